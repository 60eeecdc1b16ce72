"""Options and completions that several commands share. Nothing here imports torch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentia.errors import LatentiaError

if TYPE_CHECKING:
    from latentia.recipes.recipe import Recipe


def complete_recipe(incomplete: str) -> list[str]:
    """Recipe names that begin with what was typed."""
    from latentia.recipes import registry

    return [name for name in registry.names() if name.startswith(incomplete)]


def complete_setting(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`key=` of the recipe that was named, with each key's meaning."""
    from latentia.recipes import registry
    from latentia.recipes.overrides import keys

    try:
        recipe: Recipe = registry.recipe(ctx.params.get("recipe") or "")
    except LatentiaError:
        return []
    return [(f"{key.name}=", key.description) for key in keys(recipe) if key.name.startswith(incomplete)]


def complete_scheduler(incomplete: str) -> list[str]:
    """Short scheduler names that begin with what was typed."""
    from latentia.recipes.samplers import SAMPLERS

    return [name for name in SAMPLERS if name.startswith(incomplete)]


def check_scheduler(name: str | None) -> str | None:
    """A known short name; an unknown one raises with the nearest."""
    from latentia.recipes.samplers import check_sampler

    return None if name is None else check_sampler(name)


def quiet_processes(show: Callable[[], None]) -> None:
    """Call `show` in the first process only, so that `torchrun` says everything once."""
    if os.environ.get("RANK", "0") == "0":
        show()


def size(height: int | None, width: int | None) -> dict[str, int]:
    """The sides that were given, as arguments of a pipeline's call."""
    return {name: side for name, side in (("height", height), ("width", width)) if side is not None}


def loras(given: list[str] | None) -> list[tuple[str, float]]:
    """`PATH` or `PATH=WEIGHT`, each as (path, weight); what exists under the whole name is a path."""
    found = []
    for text in given or ():
        path, equals, weight = text.rpartition("=")
        try:
            found.append((path, float(weight)) if equals and not Path(text).exists() else (text, 1.0))
        except ValueError:
            found.append((text, 1.0))
    return found


Device = Annotated[str, typer.Option(help="auto, cpu, mps, cuda, cuda:0, …")]
Seed = Annotated[int, typer.Option(min=0, help="Seed; picture i depends on (seed, i) alone.")]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Steps of the sampler, rounds of a masked transformer; default: 20, or the pipeline's own (tokens)."
    ),
]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Classifier-free guidance scale; 1 is none; default: the pipeline's own.")
]
Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", help="What to draw; repeat it for several, taken in turn.")
]
Negative = Annotated[str | None, typer.Option("--negative", help="What to steer away from.")]
Lora = Annotated[
    list[str] | None, typer.Option(help="LoRA file or folder, PATH or PATH=WEIGHT; repeat it for several.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
ImagePath = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The picture.")]
OutPath = Annotated[
    Path, typer.Option("--out", "-o", help="NAME.png: one grid; a folder: one PNG each. Overwrites what is there.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures that are made together.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        callback=check_scheduler,
        autocompletion=complete_scheduler,
        help="ddim, ddpm, dpm++, dpm++sde, euler, euler_a, heun, pndm, flow, …; default: the pipeline's own.",
    ),
]
SavedPath = Annotated[
    Path, typer.Argument(help="A saved folder (pipeline, codec, model or run), or a checkpoint file.")
]
