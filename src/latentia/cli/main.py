"""The `latentia` command: commands by name, errors as one line.

Importing this module imports neither torch nor any command's machinery: `--help` and shell completion are instant.
"""

import io
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from latentia._version import __version__
from latentia.cli.convert import convert
from latentia.cli.demo import demo
from latentia.cli.edit import edit
from latentia.cli.evaluate import evaluate
from latentia.cli.evaluate_edit import evaluate_edit
from latentia.cli.img2img import img2img
from latentia.cli.info import info
from latentia.cli.inpaint import inpaint
from latentia.cli.params import params
from latentia.cli.recipes import recipes
from latentia.cli.sample import sample
from latentia.cli.tokens import decode, encode, reconstruct
from latentia.cli.train import train
from latentia.errors import LatentiaError

FAILED, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """The group of all commands; errors that Latentia raises on purpose become one red line and exit code 2."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name; `evaluate edit` is one of two words."""
        two = " ".join(args[:2])
        return super().resolve_command(ctx, [two, *args[2:]] if two in self.commands else args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            trains = ctx.invoked_subcommand in ("demo", "train")
            say(str(stop) or "interrupted" + (": go on with --resume" if trains else ""), style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except (LatentiaError, OSError) as error:
            if isinstance(error, BrokenPipeError) or ctx.params.get("debug"):
                raise
            say(f"error: {error}", style="red")
            raise typer.Exit(FAILED) from None


def say(text: str, style: str) -> None:
    """One message on stderr, wrapped by the terminal alone, so that it can be copied and searched."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(text, style=style))


def print_version(asked: bool) -> None:
    """`--version`: print it and stop."""
    if asked:
        typer.echo(f"latentia {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="latentia",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compress, then generate: train latent generative models from scratch, sample them, judge them."""


for command in (
    demo,
    train,
    sample,
    edit,
    img2img,
    inpaint,
    evaluate,
    encode,
    decode,
    reconstruct,
    recipes,
    info,
    convert,
):
    app.command()(command)
app.command("evaluate edit")(evaluate_edit)
app.add_typer(params)


def run() -> None:
    """Entry point of the `latentia` script and of `python -m latentia`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without é or × shows ? instead of failing
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    app()
