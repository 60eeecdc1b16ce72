"""`latentia train`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import complete_recipe, complete_setting, quiet_processes


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe; see `latentia recipes`.", autocompletion=complete_recipe)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings, e.g. steps=1000 vae.optim.lr=1e-3.",
            autocompletion=complete_setting,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; default: runs/RECIPE.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, FLOPs, memory and time; train nothing.")
    ] = False,
) -> None:
    """Train a recipe; the finished pipeline lies in OUT/pipeline.

    On several processes or GPUs: torchrun --nproc_per_node N -m latentia train ...
    """
    from latentia.recipes import run
    from latentia.recipes.overrides import override

    folder = out or Path("runs") / recipe
    chosen = override(run.start_or_saved(recipe, folder, resume), settings or [])
    if dry_run:
        from rich.console import Console

        from latentia.recipes.show import plan_table

        quiet_processes(lambda: Console().print(plan_table(chosen.plan())))
        return
    saved = run.run_recipe(chosen, folder, resume=resume)
    quiet_processes(lambda: typer.echo(f"saved {saved}; try: {chosen.next_command.format(pipeline=saved)}"))
