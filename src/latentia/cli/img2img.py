"""`latentia img2img`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Guidance,
    ImagePath,
    Lora,
    Negative,
    OutPath,
    Prompt,
    Scheduler,
    Seed,
    Steps,
    loras,
    quiet_processes,
)


def img2img(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline that reads texts, or a Hub id.")],
    image: ImagePath,
    prompt: Prompt = None,
    out: OutPath = Path("img2img.png"),
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Pictures; default: one a prompt.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="How much is made anew: 0 nothing, 1 everything; default: the pipeline's own (0.8)."
        ),
    ] = None,
    negative: Negative = None,
    steps: Steps = 50,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    batch_size: BatchSize = 64,
    lora: Lora = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Make a picture anew, guided by a text.

    The picture is noised to a share of the way and denoised again: of `--steps`, about strength · steps are run.
    """
    from latentia.recipes.sampling import Request, open_pipeline, read_picture, sample_to

    request = Request(
        count=count or len(prompt or ()) or 1,
        prompts=tuple(prompt or ()),
        negative=negative,
        inputs={"image": read_picture(image)} | ({} if strength is None else {"strength": strength}),
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        loras=loras(lora),
    )
    sample_to(open_pipeline(pipeline, request, "image2image"), request, out)
    quiet_processes(lambda: typer.echo(f"saved {out}"))
