"""`read_single_file`: a CompVis, Stability, LDM or taming-transformers checkpoint as models of ours, and back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentia.errors import ArtifactError, check_choice
from latentia.formats import autoencoder, clip, families, unet
from latentia.formats.families import Family
from latentia.formats.plan import Options, PartPlan, make_plan
from latentia.formats.rules import Move, Rule, to_theirs
from latentia.formats.tensors import DTYPES, TensorFile, open_tensors


class PartTensors(Mapping[str, torch.Tensor]):
    """Our state dict of one part: each tensor is read from the file when it is asked for, and not kept."""

    def __init__(self, file: TensorFile, plan: PartPlan) -> None:
        self._file, self._shapes = file, plan.shapes
        self._moves: dict[str, tuple[Move, int]] = {
            name: (move, i) for move in plan.moves for i, name in enumerate(move.ours)
        }
        self._last: tuple[str, Sequence[torch.Tensor]] = ("", ())

    def __getitem__(self, name: str) -> torch.Tensor:
        move, index = self._moves[name]
        if len(move.ours) == 1:
            return self._pieces(move)[0]
        if self._last[0] != move.theirs:  # query, key and value come one after another
            self._last = (move.theirs, self._pieces(move))
        pieces = self._last[1]
        if index == len(move.ours) - 1:
            self._last = ("", ())
        return pieces[index]

    def _pieces(self, move: Move) -> Sequence[torch.Tensor]:
        return move.rule.to_ours(self._file.read(move.theirs))

    def __iter__(self) -> Iterator[str]:
        return iter(self._moves)

    def __len__(self) -> int:
        return len(self._moves)

    def on_meta(self) -> dict[str, torch.Tensor]:
        """The same tensors without values: what can be checked against a model before anything is read."""
        entries = self._file.entries
        return {
            name: torch.empty(
                self._shapes[name], dtype=DTYPES.get(entries[move.theirs].dtype, torch.float32), device="meta"
            )
            for name, (move, _) in self._moves.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating dtype among the tensors."""
        found = {
            DTYPES[e] for e in {self._file.entries[m.theirs].dtype for m, _ in self._moves.values()} if e in DTYPES
        }
        floats = [dtype for dtype in found if dtype.is_floating_point]
        return max(floats, key=lambda dtype: dtype.itemsize, default=torch.float32)


@dataclass(frozen=True, slots=True)
class ConvertedPart:
    """One model of a file: public class name, constructor arguments, tensors in our names (read when asked for)."""

    class_name: str
    config: dict[str, Any]
    tensors: PartTensors


@dataclass(frozen=True, slots=True)
class Converted:
    """A checkpoint file as ours.

    Attributes:
        family: what it is; `family.pipeline` names the class that runs it.
        parts: `unet`, `vae`, `text_encoder`, as far as the file has them.
        scheduler: class name and arguments, for families that have one.
        averaged: whether the file holds averaged weights, used or not.
        notes: what was guessed because no tensor tells it.
    """

    path: Path
    family: Family
    parts: dict[str, ConvertedPart]
    scheduler: tuple[str, dict[str, Any]] | None
    averaged: bool
    notes: tuple[str, ...]


def read_single_file(
    path: Path | str,
    *,
    use_ema: bool = False,
    prediction_type: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ignore: Sequence[str] = (),
) -> Converted:
    """What a single checkpoint file holds, converted by tables; no network, no config file, no code from the file.

    Everything is derived from names and shapes, so weights are read only when they are asked for, one at a time.

    Args:
        path: `.safetensors`; or `.ckpt`, `.pt`, `.bin`, read with `weights_only`.
        use_ema: take the averaged weights (`model_ema.*`) of the parts that have them.
        prediction_type: `epsilon`, `v_prediction` or `sample`; None: what the file states, else v for 4-channel Stable
            Diffusion 2 (with a note), ε for the rest.
        overrides: part → constructor arguments that no tensor tells, e.g. `{"unet": {"norm_num_groups": 8}}`.
        ignore: beginnings of names of tensors to leave out.

    Raises `ArtifactError` for a broken file, an unknown family (saying what was found), and tensors without a place;
    `InputError` for averages that are not there.
    """
    options = Options(use_ema, prediction_type, overrides or {}, tuple(ignore))
    file = open_tensors(path)
    try:
        plan = make_plan(file.entries, file.metadata, options)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    parts = {
        name: ConvertedPart(part.class_name, part.config, PartTensors(file, part)) for name, part in plan.parts.items()
    }
    scheduler = None
    if plan.family.scheduler is not None:
        class_name, arguments = plan.family.scheduler
        betas = families.schedule(file.read("betas").tolist()) if "betas" in file.entries else {}
        scheduler = (class_name, {**arguments, **betas, **plan.scheduler})
    if "scale_factor" in file.entries and "vae" in parts:
        measured = float(file.read("scale_factor"))
        parts["vae"].config["scaling_factor"] = (overrides or {}).get("vae", {}).get("scaling_factor", measured)
    return Converted(Path(path), plan.family, parts, scheduler, plan.averaged, tuple(plan.notes))


# Back


def to_single_file(
    parts: Mapping[str, Mapping[str, torch.Tensor]], *, open_clip: bool = False
) -> dict[str, torch.Tensor]:
    """State dicts in our names (`unet`, `vae`, `text_encoder`) → one CompVis checkpoint; the inverse of reading.

    With `open_clip` a CLIP text encoder gets OpenCLIP's names (Stable Diffusion 2). A lone autoencoder gets no prefix,
    as first stages are shared. Raises `ArtifactError` naming every tensor that the layout has no place for.
    """
    checkpoint: dict[str, torch.Tensor] = {}
    for part, state in parts.items():
        check_choice("part", part, _BACK)
        prefix, rules = _BACK[part](list(state), open_clip)
        moves, lost = to_theirs(rules, state)
        if lost:
            raise ArtifactError(f"the CompVis layout has no place for {', '.join(lost)} of the {part}")
        prefix = "" if list(parts) == ["vae"] else prefix
        for move in moves:
            checkpoint[prefix + move.theirs] = move.rule.to_theirs([state[name] for name in move.ours])
    return checkpoint


def _unet_back(names: list[str], open_clip: bool) -> tuple[str, list[Rule]]:
    return "model.diffusion_model.", list(unet.rules(unet.our_structure(names)))


def _vae_back(names: list[str], open_clip: bool) -> tuple[str, list[Rule]]:
    return "first_stage_model.", list(autoencoder.rules(*autoencoder.our_stages(names)))


def _text_back(names: list[str], open_clip: bool) -> tuple[str, list[Rule]]:
    if any(name.startswith("model.layers.") for name in names):
        return "cond_stage_model.", list(clip.bert(unet.count(names, "model.layers.")))
    blocks = unet.count(names, "text_model.encoder.layers.")
    return "cond_stage_model.", list(clip.open_clip(blocks) if open_clip else clip.our_clip(names))


_BACK = {"unet": _unet_back, "vae": _vae_back, "text_encoder": _text_back}
