"""`latentia demo`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import Seed


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report and everything behind it.")] = Path(
        "runs/demo"
    ),
    seed: Seed = 0,
) -> None:
    """Learn handwritten digits, generate them, judge them; writes OUT/report.html. Run again, it goes on.

    The same with other settings: latentia train digits-demo KEY=VALUE ...
    """
    from latentia.recipes.demo import run

    report = run(out, seed=seed)
    typer.echo(f"saved {report}; try: latentia sample {out} --class 7 --out seven.png")
