"""`latentia sample`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import BatchSize, Device, Guidance, Scheduler, Seed, Steps, quiet_processes


def sample(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline or run, or a Hub id.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="NAME.png: one grid; a folder: one PNG each. Overwrites what is there.")
    ] = Path("samples.png"),
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Pictures in all.")] = 16,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", help="Class, number or name; repeat it for several, taken in turn; default: all."
        ),
    ] = None,
    steps: Steps = 20,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    guidance: Guidance = 1.0,
    batch_size: BatchSize = 64,
    scale: Annotated[int | None, typer.Option(min=1, help="Enlarge pictures of a grid; default: to 64 pixels.")] = None,
    device: Device = "auto",
) -> None:
    """Generate pictures with a trained pipeline.

    Picture i of a seed is the same alone, in any batch and on any number of processes (torchrun).
    """
    from latentia.recipes.sampling import Request, open_pipeline, sample_to

    request = Request(
        count=count,
        classes=tuple(classes or ()),
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
    )
    sample_to(open_pipeline(pipeline, request), request, out, scale)
    quiet_processes(lambda: typer.echo(f"saved {out}"))
