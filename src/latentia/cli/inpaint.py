"""`latentia inpaint`."""

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


def inpaint(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline that reads texts, or a Hub id.")],
    image: ImagePath,
    mask: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Of the same size; white is made anew.")],
    prompt: Prompt = None,
    out: OutPath = Path("inpaint.png"),
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Pictures; default: one a prompt.")] = None,
    strength: Annotated[float, typer.Option(min=0, max=1, help="1 forgets what was under the mask.")] = 1.0,
    paste_back: Annotated[
        bool, typer.Option(help="Outside the mask keep the picture's own pixels, with a soft seam.")
    ] = True,
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
    """Make the white part of a mask anew, guided by a text.

    Works with networks made for it (9 channels) and with any other, whose latents are blended at every step.
    """
    from latentia.recipes.sampling import Request, open_pipeline, padded, read_picture, sample_to

    picture = read_picture(image)
    whole = padded(picture)
    inputs = {"image": whole, "mask_image": padded(read_picture(mask)), "height": whole.height, "width": whole.width}
    request = Request(
        count=count or len(prompt or ()) or 1,
        prompts=tuple(prompt or ()),
        negative=negative,
        inputs={**inputs, "strength": strength, "paste_back": paste_back},
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        loras=loras(lora),
        size=picture.size,
    )
    sample_to(open_pipeline(pipeline, request, "inpainting"), request, out)
    quiet_processes(lambda: typer.echo(f"saved {out}"))
