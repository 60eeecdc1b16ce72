"""`latentia params`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import Device, Scheduler

params = typer.Typer(
    name="params", no_args_is_help=True, help="The weights of networks: generate new ones.", add_completion=False
)


@params.callback()
def about() -> None:
    """The weights of networks: generate new ones."""


@params.command()
def generate(
    pipeline: Annotated[str, typer.Argument(help="Folder of a p-diff run or pipeline.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Networks.")] = 100,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for NUMBER.safetensors; goes on where it was stopped.")
    ] = Path("nets"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler; the article takes 1000.")] = 250,
    scheduler: Scheduler = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; network i depends on (seed, i) alone.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Networks that are made together.")] = 256,
    condition: Annotated[
        str | None,
        typer.Option(
            help="What the networks are for, where the pipeline is conditional: names as `3,7` or `3=-1,7`, or all "
            "numbers as `[0, 1, 0.5]`."
        ),
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", min=0, help="How strongly the condition counts; 1 is as trained.")
    ] = 1.0,
    device: Device = "auto",
) -> None:
    """Generate networks with a trained p-diff pipeline: one state dict a file, for `load_state_dict`."""
    from latentia.recipes.parameters import open_parameters, write_networks

    pipe = open_parameters(pipeline, scheduler, device)
    files = write_networks(
        pipe,
        count,
        out,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    typer.echo(f"saved {len(files)} networks: {files[0]}" + (f" … {files[-1].name}" if len(files) > 1 else ""))
