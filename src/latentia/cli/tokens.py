"""`latentia encode`, `latentia decode` and `latentia reconstruct`: pictures through a codec."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import Device, ImagePath, Seed

Codec = Annotated[str, typer.Option("--codec", "-c", help="Folder of a codec, or of a run or pipeline that has one.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=0, help="Side of a tile in pixels, 0 for one piece; default: the size that the codec was trained on."
    ),
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that neighbouring tiles share and fade over.")]


def encode(
    image: ImagePath,
    codec: Codec,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The token file; default: IMAGE.tokens.")] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    device: Device = "auto",
) -> None:
    """Compress a picture: write its tokens, packed to the bit."""
    from latentia.recipes.compress import write_tokens

    typer.echo(write_tokens(codec, image, out or image.with_suffix(".tokens"), tile, overlap, device))


def decode(
    tokens: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The token file.")],
    codec: Codec,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The picture; default: TOKENS.png.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Turn a token file back into the picture."""
    from latentia.recipes.compress import write_decoded

    out = out or tokens.with_suffix(".png")
    write_decoded(codec, tokens, out, seed, device)
    typer.echo(f"saved {out}")


def reconstruct(
    image: ImagePath,
    codec: Codec,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture that comes back.")] = Path("reconstruction.png"),
    tile: Tile = None,
    overlap: Overlap = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Send a picture of any size through a codec and back, and tell how much of it came back."""
    from latentia.recipes.compress import write_reconstruction

    typer.echo(write_reconstruction(codec, image, out, tile, overlap, seed, device))
