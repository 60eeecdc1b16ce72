"""`latentia evaluate edit`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import BatchSize, Device, Seed, quiet_processes


def evaluate_edit(
    edited: Annotated[
        str,
        typer.Argument(
            help="A pipeline or run folder, a folder of result pictures named by id, a published table of results, or "
            "copy, grey, oracle."
        ),
    ],
    benchmark: Annotated[str, typer.Option(help="emu-edit, magicbrush or scenes.")] = "scenes",
    data: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the benchmark; scenes are made when asked for.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test; of MagicBrush dev.")] = None,
    protocol: Annotated[
        str, typer.Option(help="MagicBrush: single-turn, or multi-turn (also called final-turn).")
    ] = "single-turn",
    scale: Annotated[
        str | None,
        typer.Option(
            help="A (Emu Edit's paper), B (UltraEdit), C (faulty captions removed), M (MagicBrush) or own; default: "
            "what the networks fit. Numbers of two scales are not comparable."
        ),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP.")] = None,
    dino: Annotated[str | None, typer.Option(help="Folder or Hub id of a DINO or DINOv2.")] = None,
    towers: Annotated[
        Path | None, typer.Option(help="Folder of the scenes' own network; trained there first if it is not there.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="MagicBrush's local captions, for clip_t.")] = None,
    global_captions: Annotated[
        Path | None, typer.Option(help="MagicBrush's global captions, for clip_dir and clip_out.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="The first so many edits; default: all, of scenes 512.")
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures of scenes.")] = 64,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a pipeline; default: its own.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Text guidance scale; default: the pipeline's.")] = None,
    image_guidance: Annotated[
        float | None, typer.Option(min=0, help="Image guidance scale; default: the pipeline's.")
    ] = None,
    tell_task: Annotated[bool, typer.Option("--tell-task", help="Tell a pipeline the true task.")] = False,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Measured beside: copy, grey, oracle; repeat it. Default: copy.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write everything as JSON.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder: also write the inputs and instructions, for another program to edit.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure edits: CLIP, DINO and pixel distances, and true success on scenes; on a scale that its name says."""
    from rich.console import Console

    from latentia.recipes.edit_evaluation import EditRequest, evaluate_edits
    from latentia.recipes.edit_evaluation_show import edit_tables

    request = EditRequest(
        benchmark=benchmark,
        data=data,
        split=split,
        protocol=protocol,
        scale=scale,
        clip=clip,
        dino=dino,
        towers=towers,
        captions=captions,
        global_captions=global_captions,
        count=count,
        size=size,
        seed=seed,
        steps=steps,
        guidance=guidance,
        image_guidance=image_guidance,
        tell_task=tell_task,
        batch_size=batch_size,
        device=device,
        baselines=baseline or ("copy",),
        export=export,
    )
    report = evaluate_edits(edited, request)
    quiet_processes(lambda: Console().print(edit_tables(report)))
    if out is not None:
        report.write(out)
