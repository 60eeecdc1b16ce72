"""`latentia info`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from latentia.cli.options import SavedPath


def info(
    path: SavedPath, as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False
) -> None:
    """Say what lies at a path: classes, parameters, sizes, and what is wrong with it."""
    from latentia.core.inspect_path import describe
    from latentia.formats.recognise import recognise
    from latentia.recipes.show import description_tree

    found = describe(path, recognise)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        Console().print(description_tree(found))
    if found.kind == "missing":
        raise typer.Exit(2)
