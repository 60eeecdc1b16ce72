"""`latentia evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import BatchSize, Device, Guidance, Scheduler, Seed, Steps, quiet_processes


def evaluate(
    path: Annotated[str, typer.Argument(help="Folder of a pipeline, a run or a codec.")],
    data: Annotated[str, typer.Option(help="Real images: digits, photos, hf:NAME, or a folder.")],
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Pictures to generate, or to reconstruct.")] = 540,
    steps: Steps = 20,
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
    split: Annotated[str, typer.Option(help="Images that a codec reconstructs: train, test, report or all.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the numbers as JSON.")] = None,
    device: Device = "auto",
) -> None:
    """Measure a pipeline (accuracy, Fréchet distance, nearest neighbours) or a codec (PSNR, SSIM) on real images."""
    from rich.console import Console

    from latentia.recipes import evaluation
    from latentia.recipes.sampling import Request
    from latentia.recipes.show import measurement_table

    if evaluation.is_pipeline(path):
        request = Request(
            count=count,
            steps=steps,
            scheduler=scheduler,
            seed=seed,
            guidance=guidance,
            batch_size=batch_size,
            device=device,
        )
        numbers = evaluation.evaluate_pipeline(path, data, request, evaluation.Rulers(judge, inception, seed))
    else:
        numbers = evaluation.evaluate_codec(path, data, split, count, device)
    quiet_processes(lambda: Console().print(measurement_table(numbers)))
    if out is not None and numbers:
        evaluation.write_report(numbers, out, {"path": path, "data": data})
