"""Several edits of one picture, one after the other, with undo, redo and a history that can be saved."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latentia.core.arguments import check_count
from latentia.core.config import to_json
from latentia.core.files import read_json, write_atomic, write_text_atomic
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.methods.emu_edit.canvas import open_picture, read_pictures
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.pipelines.image_input import PictureInput

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.predictor import TaskGuess
    from latentia.methods.emu_edit.task_choice import OneTask

HISTORY, VERSION = "history.json", 1
NOT_PER_TURN = ("image", "instruction", "task", "generator", "seed", "sample_indices", "output_type", "return_dict")
"""Arguments of the pipeline's call that a session gives itself."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One edit.

    Attributes:
        instruction: what was asked for.
        task: what it was edited as.
        probability: how sure that was, None where the task was given.
        changed: share of the picture's pixels that are not as before the turn.
    """

    instruction: str
    task: str
    probability: float | None
    changed: float


class EditSession:
    """Edits of one picture in turn, each of what the one before left (Sheynin et al. 2023, sequential edits).

        session = pipe.session(picture, seed=0)
        session.edit("remove the red square")
        session.edit("make the background grey")
        session.undo()
        session.save("session")

    Turn k is drawn from (seed, k): the same turns give the same pictures, after an undo, too.

    Args:
        pipe: the editor.
        image: one picture.
        seed: of all turns.
        thresholding: the rule that keeps what a turn hardly changed; default `pipe.thresholding`. None: no rule.
        options: further arguments of all the pipeline's calls, such as `num_inference_steps`.

    Attributes `pictures` (before the first turn, and after each), `turns`, and `position`, how many of them are done.
    """

    def __init__(
        self,
        pipe: "EmuEditPipeline",
        image: PictureInput,
        seed: int = 0,
        thresholding: Thresholding | float | str | None = "default",
        **options: Any,
    ) -> None:
        given = read_pictures(image)
        if len(given) != 1:
            raise InputError(f"a session edits one picture, got {len(given)}")
        for name in options:
            if name in NOT_PER_TURN:
                raise InputError(f"a session gives {name!r} itself: leave it out (a turn's task goes to edit)")
        if isinstance(thresholding, str):
            check_choice("thresholding", thresholding, ("default",))
            thresholding = pipe.thresholding
        self.pipe = pipe
        self.seed = check_count("seed", seed, least=0)
        self.thresholding = thresholding
        self.options = options
        self.pictures: list[Image.Image] = given
        self.turns: list[Turn] = []
        self.position = 0

    @property
    def image(self) -> Image.Image:
        """The picture as it is now."""
        return self.pictures[self.position]

    @property
    def history(self) -> list[Turn]:
        """The turns that led to it."""
        return self.turns[: self.position]

    def edit(self, instruction: str, task: "OneTask" = None, **options: Any) -> Image.Image:
        """Make one more edit and return the picture; what was undone before is forgotten.

        `options` replace the session's for this turn. Raises what the pipeline's call raises; then nothing changed.
        """
        if not isinstance(instruction, str):
            raise InputError(f"a turn has one instruction, got {instruction!r}: call edit once for each")
        made: Any = self.pipe(
            self.image,
            instruction,
            task,
            seed=self.seed,
            sample_indices=[self.position],
            **{"thresholding": self.thresholding, **self.options, **options},
        )
        picture: Image.Image = made.images[0]
        guess: TaskGuess | None = made.guesses[0]
        turn = Turn(
            instruction, made.tasks[0], None if guess is None else guess.probability, changed_share(self.image, picture)
        )
        self.pictures = [*self.pictures[: self.position + 1], picture]
        self.turns = [*self.history, turn]
        self.position += 1
        return picture

    def undo(self) -> Image.Image:
        """Take the last turn back and return the picture before it. Raises `InputError` when there is none."""
        if not self.position:
            raise InputError("nothing to undo: this is the picture as it was given")
        self.position -= 1
        return self.image

    def redo(self) -> Image.Image:
        """Do again what was undone last. Raises `InputError` when nothing was."""
        if self.position == len(self.turns):
            raise InputError("nothing to redo: no turn was undone since the last edit")
        self.position += 1
        return self.image

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all pictures (`000.png` the given one) and `history.json` into a folder, and return it.

        The history is written last, so that a folder that has one is whole. Raises `ArtifactError`.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"{path} is a file: give a folder for the session")
        for number, picture in enumerate(self.pictures):
            write_atomic(path / f"{number:03d}.png", _png(picture))
        turns = [asdict(turn) for turn in self.turns]
        record = {"version": VERSION, "seed": self.seed, "position": self.position, "turns": turns}
        write_text_atomic(path / HISTORY, to_json(record))
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str], pipe: "EmuEditPipeline", **options: Any) -> "EditSession":
        """Go on with a saved session: its pictures, turns and seed; `options` as of the constructor.

        Raises `ArtifactError` for a folder that holds none, or not all of it.
        """
        path = Path(folder)
        record = read_json(path / HISTORY)
        turns, seed, position = _checked(record, path / HISTORY)
        files = [path / f"{number:03d}.png" for number in range(len(turns) + 1)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ArtifactError(f"{path} lacks {', '.join(missing)}: save or copy the session again")
        session = cls(pipe, open_picture(files[0]), **{"seed": seed, **options})
        session.pictures = [open_picture(file) for file in files]
        session.turns, session.position = turns, position
        return session


def changed_share(before: Image.Image, after: Image.Image) -> float:
    """Share of pixels that differ, for pictures of one size."""
    a, b = (np.asarray(picture.convert("RGBA")) for picture in (before, after))
    return float((a != b).any(-1).mean())


def _png(picture: Image.Image) -> Any:
    def write(path: Path) -> None:
        picture.save(path, format="PNG")

    return write


def _checked(record: Mapping[str, Any], file: Path) -> tuple[list[Turn], int, int]:
    """Turns, seed and position of a record. Raises `ArtifactError`."""
    if record.get("version") != VERSION:
        raise ArtifactError(
            f"{file} has version {record.get('version')!r} of the format, this Latentia reads {VERSION}"
        )
    try:
        turns = [Turn(**turn) for turn in record["turns"]]
        seed, position = check_count("seed", record["seed"], 0), check_count("position", record["position"], 0)
    except (KeyError, TypeError, InputError) as error:
        raise ArtifactError(f"{file} is damaged ({error}): save or copy the session again") from error
    if position > len(turns):
        raise ArtifactError(f"{file} is damaged: position {position} of {len(turns)} turns")
    return turns, seed, position
