"""`latentia recipes`."""

from typing import Annotated

import typer
from rich.console import Console

from latentia.cli.options import complete_recipe


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show one recipe and its settings.", autocompletion=complete_recipe)
    ] = None,
) -> None:
    """List the recipes, or show what one of them does, costs and takes."""
    from latentia.recipes import registry
    from latentia.recipes.show import list_table, recipe_page

    Console().print(list_table(registry.summaries()) if name is None else recipe_page(registry.builder(name)))
