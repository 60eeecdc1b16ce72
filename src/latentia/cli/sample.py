"""`latentia sample`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Guidance,
    Lora,
    Negative,
    OutPath,
    Prompt,
    Scheduler,
    Seed,
    Steps,
    loras,
    quiet_processes,
    size,
)


def sample(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline or run, or a Hub id.")],
    prompt: Prompt = None,
    out: OutPath = Path("samples.png"),
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="Pictures in all; default: one a prompt, else 16.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", help="Class, number or name; repeat it for several, taken in turn; default: all."
        ),
    ] = None,
    negative: Negative = None,
    height: Annotated[int | None, typer.Option(min=8, help="Height in pixels, for pipelines that read texts.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Width in pixels, likewise.")] = None,
    steps: Steps = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    batch_size: BatchSize = 64,
    lora: Lora = None,
    dtype: Dtype = "float32",
    scale: Annotated[int | None, typer.Option(min=1, help="Enlarge pictures of a grid; default: to 64 pixels.")] = None,
    device: Device = "auto",
) -> None:
    """Generate pictures with a trained pipeline.

    Picture i of a seed is the same alone, in any batch and on any number of processes (torchrun).
    """
    from latentia.recipes.sampling import Request, open_pipeline, sample_to

    request = Request(
        count=count or len(prompt or ()) or 16,
        classes=tuple(classes or ()),
        prompts=tuple(prompt or ()),
        negative=negative,
        inputs=size(height, width),
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        loras=loras(lora),
    )
    sample_to(open_pipeline(pipeline, request), request, out, scale)
    quiet_processes(lambda: typer.echo(f"saved {out}"))
