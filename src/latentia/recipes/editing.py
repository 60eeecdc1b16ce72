"""`latentia edit`: instructions carried out on a picture, one after the other, by a saved editor."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.errors import InputError, check_choice
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sampling import DTYPES, save_png
from latentia.recipes.sources import resolve_device

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.session import EditSession, Turn


@dataclass(frozen=True, slots=True)
class Edits:
    """What to do, and how.

    Attributes:
        instructions: in turn; an empty one is allowed with a learned task that knows its own words.
        tasks: none: predicted; one for all; or one an instruction: names, or files of learned tasks.
        steps: of the sampler.
        guidance, image_guidance: γ_T and γ_I; None: the pipeline's own.
        threshold: α of the rule that keeps what a turn hardly changed; None: the pipeline's in a session, no rule for
            a single edit.
        size: side that the editor sees; None: the one it was trained on.
        seed: turn k is drawn from (seed, k).
    """

    instructions: Sequence[str]
    tasks: Sequence[str] = ()
    steps: int = 20
    guidance: float | None = None
    image_guidance: float | None = None
    threshold: float | None = None
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.tasks) not in (0, 1, len(self.instructions)):
            raise InputError(
                f"{len(self.tasks)} tasks for {len(self.instructions)} instructions: give none, one, or one for each"
            )

    def turns(self) -> Iterator[tuple[str, str | None]]:
        """(instruction, task) of each turn."""
        several = self.tasks if len(self.tasks) > 1 else [self.tasks[0] if self.tasks else None]
        for turn, instruction in enumerate(self.instructions):
            yield instruction, several[turn % len(several)]

    @property
    def options(self) -> dict[str, Any]:
        """What the pipeline's calls take beside pictures, texts and tasks."""
        asked = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "image_guidance_scale": self.image_guidance,
            "thresholding": self.threshold,
            "size": self.size,
        }
        return {name: value for name, value in asked.items() if value is not None}


def open_editor(
    path: str | os.PathLike[str], scheduler: str | None = None, device: str = "auto", dtype: str = "float32"
) -> EmuEditPipeline:
    """Load the editor of a run, a pipeline's own folder or a Hub id, with the sampler that was asked for.

    Raises `InputError` for a pipeline of another kind, `ArtifactError` for a folder that holds none.
    """
    import torch

    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.pipelines.pipeline import DiffusionPipeline

    check_choice("dtype", dtype, DTYPES)
    inner = Path(path) / "pipeline"
    pipe = DiffusionPipeline.from_pretrained(
        inner if (inner / "model_index.json").is_file() else path, dtype=getattr(torch, dtype)
    )
    if not isinstance(pipe, EmuEditPipeline):
        raise InputError(f"{path} is a {type(pipe).__name__}, which is no editor: train edit-scenes for one")
    if scheduler is not None:
        pipe.scheduler = make_sampler(scheduler, pipe.scheduler)
    pipe.set_progress_bar_config(desc="editing", leave=False)
    return pipe.to(resolve_device(device))


def open_session(pipe: EmuEditPipeline, picture: Path, edits: Edits, several: bool) -> EditSession:
    """A session on a picture, or on the folder of a saved one, which goes on where it was."""
    from latentia.methods.emu_edit.canvas import open_picture
    from latentia.methods.emu_edit.session import EditSession

    if picture.is_dir():
        return EditSession.load(picture, pipe, **edits.options)
    options: dict[str, Any] = {"seed": edits.seed} | ({} if several else {"thresholding": None})
    return EditSession(pipe, open_picture(picture), **{**options, **edits.options})


def edit_to(pipe: EmuEditPipeline, picture: Path, edits: Edits, out: Path, keep: Path | None = None) -> list[Turn]:
    """Carry out the edits on a picture (or go on with a session's folder) and write the last as PNG; returns the turns.

    The session goes into `keep`, or back into its folder. Raises `InputError`, before any work, for an `out` that is
    no PNG; nothing is written when a turn fails.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"the edited picture is written as PNG, so that nothing else changes: {out.stem}.png, say")
    keep = picture if picture.is_dir() and keep is None else keep
    if keep is not None and keep.exists() and not keep.is_dir():
        raise InputError(f"{keep} is a file: give a folder for the session")
    session = open_session(pipe, picture, edits, keep is not None or len(edits.instructions) > 1)
    pipe.understand(*(list(asked) for asked in zip(*edits.turns())))  # the last turn's mistake, before the first's work
    before = session.position
    for instruction, task in edits.turns():
        session.edit(instruction, task)
    made = session.history[before:]
    done = [{"instruction": turn.instruction, "task": turn.task} for turn in made]
    save_png(session.image, out, {"edits": done, "seed": session.seed, "steps": edits.steps})
    if keep is not None:
        session.save(keep)
    return made


def told(turn: Turn, number: int) -> str:
    """A turn in a line: what it was, as what it was edited, and how much of the picture that changed."""
    how = "as given" if turn.probability is None else f"probability {turn.probability:.2f}"
    asked = turn.instruction.strip() or "its own instruction"
    return f"{number}. {asked}: {turn.task} ({how}), {turn.changed:.1%} of the pixels changed"


@contextmanager
def unsure_quietly() -> Iterator[None]:
    """Inside, no warning of a task that the pipeline is not sure of: where many are judged, numbers tell."""
    logger = logging.getLogger("latentia.methods.emu_edit.pipeline")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
