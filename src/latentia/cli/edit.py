"""`latentia edit`."""

from pathlib import Path
from typing import Annotated

import typer

from latentia.cli.options import Device, Dtype, Scheduler, Seed, quiet_processes


def edit(
    picture: Annotated[
        Path, typer.Argument(exists=True, help="The picture, or the folder of a saved session to go on with.")
    ],
    instruction: Annotated[str, typer.Argument(help="What to do, in words.")] = "",
    pipeline: Annotated[str, typer.Option("--pipeline", "-p", help="Folder of an editor or its run, or a Hub id.")] = (
        "runs/edit/pipeline"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="NAME.png; overwrites what is there.")] = Path("edited.png"),
    then: Annotated[
        list[str] | None, typer.Option("--instruction", "-i", help="A further turn on what the last one left; repeat.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Name of the task, or a learned one's file; default: predicted. Once, or once a turn."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 20,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="How closely to follow the instruction; default: the pipeline's own.")
    ] = None,
    image_guidance: Annotated[
        float | None, typer.Option(min=0, help="How closely to keep to the picture; default: the pipeline's own.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="Keep pixels that changed less, 0.03 say; default: none for one turn, else its own."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side that the editor sees; default: as it was trained.")] = (
        None
    ),
    session: Annotated[Path | None, typer.Option(help="Folder for all pictures and the history.")] = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Edit a picture by instructions.

    The task is predicted from the words, and said. What the edit leaves alone comes back bit by bit, at full size.
    """
    from latentia.recipes.editing import Edits, edit_to, open_editor, told

    edits = Edits(
        instructions=[*([instruction] if instruction or not then else []), *(then or ())],
        tasks=task or (),
        steps=steps,
        guidance=guidance,
        image_guidance=image_guidance,
        threshold=threshold,
        size=size,
        seed=seed,
    )
    made = edit_to(open_editor(pipeline, scheduler, device, dtype), picture, edits, out, session)

    def show() -> None:
        for number, turn in enumerate(made, 1):
            typer.echo(told(turn, number))
        typer.echo(f"saved {out}")

    quiet_processes(show)
