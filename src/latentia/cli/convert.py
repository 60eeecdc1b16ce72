"""`latentia convert`."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A checkpoint file (.safetensors, .ckpt, .pt, .bin), or a saved folder."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or NAME.safetensors.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of the tokenizer that checkpoint files lack: a pipeline's, or its tokenizer/."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="The same as --dtype fp16.")] = False,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16; default: as in the source.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights.")] = False,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample: Stable Diffusion 2 files do not tell.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Leave out tensors whose names begin so; repeat it for several.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Convert checkpoints: a single file to a folder or back, a pickle to safetensors, a LoRA to the other layout.

    Nothing is downloaded and no code from a file is run.
    """
    from latentia.errors import InputError
    from latentia.recipes.convert import Request
    from latentia.recipes.convert import convert as carry_out

    if half and dtype not in (None, "fp16", "float16"):
        raise InputError(f"--half and --dtype {dtype} contradict each other: give one")
    request = Request(
        source, target, tokenizer, "fp16" if half else dtype, ema, prediction_type, tuple(ignore or ()), force
    )
    carry_out(request, typer.echo)
