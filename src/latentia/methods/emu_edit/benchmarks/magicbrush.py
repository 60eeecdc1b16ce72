"""MagicBrush (Zhang et al. 2023, `osunlp/MagicBrush`): sessions of up to three edits, each with a right answer.

`single-turn` measures every turn, each from the right answer of the turn before. `multi-turn`, or `final-turn`, which
is the same, measures the last turn of every session, each turn made from the editor's own result of the turn before.
Results are compared with the right answer, not with the input as in Emu Edit's paper.

The train and dev splits are a Hugging Face data set. The test split comes as an archive of files (its password is with
its authors): `edit_sessions.json`, `images/<id>/<id>-input.png`, `<id>-output1.png`, `<id>-mask1.png`, and captions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from latentia.core.files import read_json
from latentia.data.decode import flatten
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Pictures
from latentia.methods.emu_edit.benchmarks.tables import Table, open_table

PROTOCOLS = {"single-turn": "single-turn", "multi-turn": "multi-turn", "final-turn": "multi-turn"}
SPLITS = ("train", "dev", "test")
COLUMNS = ("img_id", "turn_index", "source_img", "instruction", "target_img")
SESSIONS = "edit_sessions.json"

Captions = Mapping[str, Mapping[str, str]]
"""Session → name of a picture, `139-output1.png` → what it shows."""


class Turn(NamedTuple):
    """One edit of a session; `at` says where its pictures are: a row of a table, or two files."""

    number: int
    instruction: str
    at: Any


class MagicBrush(Benchmark):
    """One split under one protocol; single-turn means are also taken over first, second and third turns.

    Args:
        source: a folder of the archive (with `edit_sessions.json`), a folder in one of the layouts of `tables`, or a
            Hub id.
        split: `train`, `dev` or `test`. The archive holds one split; it is taken at its word.
        protocol: one of `PROTOCOLS`.
        captions: the *local* captions, which CLIP-T is measured with; None: no CLIP-T.
        global_captions: captions of inputs and outputs, for Emu Edit's own measures on this set.

    A result's file is named as the authors' evaluator wants it: `<id>/<id>_1` for first turns, `<id>/<id>_inde_2` for
    further single turns, `<id>/<id>_iter_2` for chained ones; the folder may be left out.

    Duplicate turns are skipped and counted, as are sessions whose turns have gaps.
    """

    name = "magicbrush"

    def __init__(
        self,
        source: str,
        split: str = "dev",
        protocol: str = "single-turn",
        captions: Path | None = None,
        global_captions: Path | None = None,
    ) -> None:
        super().__init__()
        check_choice("protocol of MagicBrush", protocol, PROTOCOLS)
        check_choice("split of MagicBrush", split, SPLITS)
        self.split, self.protocol = split, PROTOCOLS[protocol]
        self._local = {} if captions is None else read_captions(captions, local=True)
        self._global = {} if global_captions is None else read_captions(global_captions, local=False)
        self.table: Table | None = None
        archive = Path(source).expanduser() / SESSIONS
        sessions = self._from_archive(archive) if archive.is_file() else self._from_table(source)
        for session, turns in sessions.items():
            self._add(session, turns)

    def pictures(self, case: Case) -> Pictures:
        """See the base. Of a further chained turn `before` is the session's first input."""
        first, at = case.at
        if self.table is not None:
            return Pictures(self.table.picture(first, "source_img"), self.table.picture(at, "target_img"))
        return Pictures(_read_picture(first[0]), _read_picture(at[1]))

    def _add(self, session: str, turns: list[Turn]) -> None:
        numbers = [turn.number for turn in turns]
        if numbers != list(range(1, len(turns) + 1)):
            self.skipped["session with a gap in its turns"] += 1
            self.notes.append(f"session {session} has the turns {numbers}")
            return
        chained = self.protocol == "multi-turn"
        for turn in turns:
            number = turn.number
            stem = f"{session}_1" if number == 1 else f"{session}_{'iter' if chained else 'inde'}_{number}"
            output, previous = f"{session}-output{number}.png", f"{session}-output{number - 1}.png"
            before = f"{session}-input.png" if number == 1 or chained else previous
            shown = self._global.get(session, {})
            self.cases.append(
                Case(
                    key=f"{session}/{number}",
                    instruction=turn.instruction,
                    files=(f"{session}/{stem}", stem),
                    group=f"turn {number}",
                    input_caption=shown.get(before),
                    output_caption=shown.get(output),
                    local_caption=self._local.get(session, {}).get(output),
                    follows=chained and number > 1,
                    counted=not chained or number == len(turns),
                    at=(turns[0].at if chained else turn.at, turn.at),
                )
            )
        if self._local and any(
            f"{session}-output{turn.number}.png" not in self._local.get(session, {}) for turn in turns
        ):
            self.notes.append(f"session {session} has turns without a local caption: not in clip_t")

    def _from_table(self, source: str) -> dict[str, list[Turn]]:
        table = self.table = open_table(source, self.split)
        table.need(*COLUMNS)
        sessions: dict[str, dict[int, Turn]] = {}
        rows = zip(*(table.column(name) for name in ("img_id", "turn_index", "instruction")), strict=True)
        for index, (session, number, instruction) in enumerate(rows):
            turns = sessions.setdefault(str(session), {})
            text = str(instruction or "").strip()
            if int(number) in turns:
                same = "" if turns[int(number)].instruction == text else ", with another instruction"
                self.skipped[f"duplicate turn{same}"] += 1
            elif not text:
                self.skipped["empty instruction"] += 1
            else:
                turns[int(number)] = Turn(int(number), text, index)
        return {session: [turns[n] for n in sorted(turns)] for session, turns in sessions.items()}

    def _from_archive(self, file: Path) -> dict[str, list[Turn]]:
        told = read_json(file)
        images = file.parent / "images"
        sessions: dict[str, list[Turn]] = {}
        for session, edits in told.items():
            turns = sessions[str(session)] = []
            for number, edit in enumerate(edits, start=1):
                missing = [key for key in ("input", "instruction") if key not in edit]
                if missing:
                    raise ArtifactError(f"{file}: turn {number} of session {session} has no {' and no '.join(missing)}")
                output = edit.get("output", f"{session}-output{number}.png")
                files = (_inside(images / session, edit["input"]), _inside(images / session, output))
                turns.append(Turn(number, str(edit["instruction"]).strip(), files))
        return sessions


def read_captions(path: Path, local: bool) -> Captions:
    """A file of captions; raises `InputError` when it is the other of the two files, which give other numbers.

    Local captions say what the edit put there; global ones describe whole pictures, and inputs too.
    """
    found: Captions = read_json(path)
    if not all(isinstance(each, Mapping) for each in found.values()):
        raise ArtifactError(f"{path} holds no captions by session and picture")
    inputs = any(name.endswith("-input.png") for each in found.values() for name in each)
    if local and inputs:
        raise InputError(
            f"{path} describes inputs too: it holds the global captions. CLIP-T is measured with the local ones "
            "(local_descriptions.json); give this file as --global-captions"
        )
    if not local and not inputs:
        raise InputError(f"{path} describes no inputs: it holds the local captions; give it as --captions")
    return {str(session): each for session, each in found.items()}


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ArtifactError(f"{SESSIONS} names {name!r}, which is outside {folder}")
    return path


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(flatten(picture, "RGB"))
    except FileNotFoundError:
        raise ArtifactError(f"missing picture {path}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ArtifactError(f"{path} cannot be decoded: {error}") from error
