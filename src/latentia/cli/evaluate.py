"""`latentia evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import BatchSize, Device, Guidance, Scheduler, Seed, Steps, quiet_processes

KINDS = ("codec", "pipeline")


def named_kind(words: list[str]) -> tuple[str | None, str]:
    """`FOLDER`, or `codec FOLDER`, or `pipeline FOLDER` → the kind, if it was said, and the folder."""
    if len(words) == 1:
        return None, words[0]
    if len(words) > 2:
        raise typer.BadParameter(f"one folder at a time, got {' '.join(words)}")
    if words[0] not in KINDS:
        raise typer.BadParameter(f"{words[0]!r} is neither 'codec' nor 'pipeline'")
    return words[0], words[1]


def evaluate(
    path: Annotated[
        list[str], typer.Argument(help="Folder of a pipeline, a run or a codec; `codec FOLDER` for a run's codec.")
    ],
    data: Annotated[str, typer.Option(help="Real images: digits, photos, hf:NAME, or a folder.")],
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Pictures to generate, or to reconstruct.")] = 540,
    steps: Steps = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    guidance: Guidance = 1.0,
    batch_size: BatchSize = 64,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of a trained judge; trained there first if it is not there.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="File of the standard Inception weights: measure fid.", exists=True)
    ] = None,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of LPIPS weights (VGG or Alex), repeat for trunk and heads: measure lpips.", exists=True
        ),
    ] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="Beside a codec: JPEG, WebP and AVIF at the same bits.")
    ] = False,
    split: Annotated[str, typer.Option(help="Images that a codec reconstructs: train, test, report or all.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the numbers as JSON.")] = None,
    device: Device = "auto",
) -> None:
    """Measure a pipeline (accuracy, Fréchet distance, nearest neighbours) or a codec (PSNR, SSIM) on real images."""
    from rich.console import Console

    from latentia.recipes import evaluation
    from latentia.recipes.sampling import Request
    from latentia.recipes.show import measurement_table

    kind, folder = named_kind(path)
    rulers = evaluation.Rulers(judge, inception, seed)
    if kind == "pipeline" or (kind is None and evaluation.is_pipeline(folder)):
        request = Request(
            count=count,
            steps=steps,
            scheduler=scheduler,
            seed=seed,
            guidance=guidance,
            batch_size=batch_size,
            device=device,
        )
        numbers = evaluation.evaluate_pipeline(folder, data, request, rulers)
    else:
        numbers = evaluation.evaluate_codec(folder, data, split, count, device, rulers, lpips or (), formats)
    quiet_processes(lambda: Console().print(measurement_table(numbers)))
    if out is not None and numbers:
        evaluation.write_report(numbers, out, {"path": folder, "data": data})
