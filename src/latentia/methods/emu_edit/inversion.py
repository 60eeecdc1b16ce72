"""Task inversion: everything frozen, one new task vector learned from a few rows (Sheynin et al. 2023)."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.conditioners.prompts import token_ids
from latentia.core.protocols import Batch, Dataset
from latentia.core.rng import derive_seed
from latentia.data.decode import to_unit
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.datasets import EditRows, Encode
from latentia.methods.emu_edit.engine import Engine, Proposal, ScenePairs
from latentia.methods.emu_edit.model import EmuEditModel
from latentia.methods.emu_edit.objective import EmuEditObjective
from latentia.methods.emu_edit.pipeline import EmuEditPipeline
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.unseen import UNSEEN_TASKS
from latentia.methods.emu_edit.world.render import World
from latentia.training.objective import Loss, Objective, take

MEAN, NEAREST = "mean", "nearest"
DRAWS = 4
"""Times and noises under which a loss is compared, each example once under each."""


class TaskVector(nn.Module):
    """v = start + basis · w, of which w is learned, from 0.

    Args:
        start: v at first, (task_dim,).
        basis: (task_dim, K), what a unit of each w does; see `even_basis`.
    """

    start: torch.Tensor
    basis: torch.Tensor

    def __init__(self, start: torch.Tensor, basis: torch.Tensor) -> None:
        super().__init__()
        if start.ndim != 1 or basis.ndim != 2 or len(basis) != len(start):
            raise InputError(
                f"start is (task_dim,), basis (task_dim, K), got {tuple(start.shape)}, {tuple(basis.shape)}"
            )
        self.w = nn.Parameter(torch.zeros(basis.shape[1], device=start.device))
        self.register_buffer("start", start.detach().float().clone())
        self.register_buffer("basis", basis.detach().float().clone())

    @property
    def vector(self) -> torch.Tensor:
        """v, (task_dim,)."""
        return self.start + self.basis @ self.w

    def forward(self, batch: int) -> torch.Tensor:
        """v for each of a batch, (B, task_dim)."""
        return self.vector.expand(batch, -1)


WEAKEST = 0.02
"""Directions that do less than this share of the strongest are learned no faster than if they did so much."""


@torch.no_grad()
def even_basis(model: EmuEditModel) -> torch.Tensor:
    """Coordinates (task_dim, task_dim) in which every direction of v does equally much to the network.

    The maps W of the task (to the time embedding and to the tokens, one above the other) start at zero, so training on
    k tasks leaves them k strong directions, and a vector learned as it is can hardly be more than a mixture of these.
    With W = U S Vᵀ the basis is r · V / max(S, 0.02 · S₁): a unit of each coordinate changes what W makes of v by r,
    the root mean square, a coordinate, by which the tasks of the table differ from their mean there.
    """
    maps = torch.cat((model.to_time.weight, model.to_tokens.weight)).double()
    _, s, vt = torch.linalg.svd(maps, full_matrices=True)
    s = torch.cat((s, s.new_zeros(vt.shape[0] - len(s))))
    table = model.tasks.weight.double()
    spread = ((table - table.mean(0)) @ maps.T).square().sum(1).mean() / vt.shape[0]
    if not float(s[0]) > 0:  # never trained: the vector's own coordinates
        return torch.eye(len(vt), device=maps.device) * table_scale(model)
    reached = s.clamp(min=WEAKEST * float(s[0]))
    return (vt.T / reached * spread.sqrt().clamp(min=1e-6)).float()


class TaskInversionObjective(Objective):
    """min over v alone of E ‖target − network(x_t, t, τ(c_T), c_I, v)‖², the editor's own loss (Sheynin et al. 2023).

    Args:
        editing: the editor's objective, with the settings to learn under; the text encoder must not be trained. Frozen.
        start: v at first, (task_dim,); see `start_vector`.

    Reads what `EmuEditObjective` reads but `task`. Parts: its own.
    """

    frozen = ("editing",)

    def __init__(self, editing: EmuEditObjective, start: torch.Tensor) -> None:
        super().__init__()
        if editing.train_text_encoder or not editing.tell_task:
            raise InputError("task inversion needs an objective with train_text_encoder=False and tell_task=True")
        if start.shape != (editing.denoiser.task_dim,):
            raise InputError(f"start has shape {tuple(start.shape)}: expected ({editing.denoiser.task_dim},)")
        self.editing = editing.requires_grad_(False)
        self.task = TaskVector(start.to(editing.denoiser.device), even_basis(editing.denoiser))

    def settings(self) -> dict[str, Any]:
        """The editor's."""
        return self.editing.settings()

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        given = {**batch, "task": self.task(len(take(batch, "x")))}
        loss: Loss = self.editing(given, turn, step)
        return loss


def editing_objective(pipe: EmuEditPipeline, train_text_encoder: bool = False, **options: Any) -> EmuEditObjective:
    """The objective of a saved editor, with other settings as given; `gate_weight` counts where there is a gate."""
    if not pipe.model.config.copy_gate:
        options = {**options, "gate_weight": 0.0}
    empty = token_ids(pipe.tokenizer, "")[0, 0].to(pipe.model.device)
    return EmuEditObjective(
        pipe.model, pipe.scheduler, pipe.text_encoder, empty, train_text_encoder=train_text_encoder, **options
    )


def table_scale(model: EmuEditModel) -> float:
    """Root mean square of the table of task vectors."""
    return max(float(model.tasks.weight.detach().float().square().mean().sqrt()), 1e-6)


# Where to start ------------------------------------------------------------------------------------------------


def start_vector(
    editing: EmuEditObjective, data: Dataset, names: Mapping[str, int], start: str = NEAREST, seed: int = 0
) -> tuple[str, torch.Tensor, dict[str, float]]:
    """Where an inversion starts: its name, v (task_dim,), and the loss of each candidate where they were compared.

    Args:
        editing: the editor's objective.
        data: the examples.
        names: task → place in the table.
        start: `nearest`, the row of the table, or their mean, with the least loss on the examples; `mean`; or a task.
        seed: of the times and noises that all candidates are compared under.

    Raises `UnknownChoiceError` for another start.
    """
    check_choice("start", start, (NEAREST, MEAN, *names))
    table = editing.denoiser.tasks.weight.detach()
    candidates = {name: table[place] for name, place in names.items()}
    candidates[MEAN] = torch.stack(list(candidates.values())).mean(0)
    if start != NEAREST:
        return start, candidates[start].clone(), {}
    losses = losses_of(editing, data, candidates, seed)
    best = min(losses, key=lambda name: losses[name])
    return best, candidates[best].clone(), losses


@torch.no_grad()
def losses_of(
    editing: EmuEditObjective, data: Dataset, vectors: Mapping[str, torch.Tensor], seed: int = 0, most: int = 32
) -> dict[str, float]:
    """Mean loss under each vector, over at most `most` examples, all under the same times and noises."""
    device = editing.denoiser.device
    batch = data.batch(range(min(len(data), most)))
    batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    count = len(take(batch, "x"))
    cuda = [device] if device.type == "cuda" else []
    editing.eval()
    found: dict[str, float] = {}
    with torch.random.fork_rng(cuda):
        for name, vector in vectors.items():
            torch.manual_seed(derive_seed("task losses", seed))
            told = {**batch, "task": vector.to(device).expand(count, -1)}
            found[name] = sum(float(editing(told).total) for _ in range(DRAWS)) / DRAWS
    return found


# Examples ------------------------------------------------------------------------------------------------------


class UnseenSource:
    """One of `UNSEEN_TASKS` as a source of rows."""

    def __init__(self, task: str, size: int) -> None:
        check_choice("task", task, UNSEEN_TASKS)
        self.task, self.world = UNSEEN_TASKS[task], World.of(size)

    def __call__(self, rng: Random, split: str) -> Proposal:
        """One drawn row as a proposal."""
        row = self.task.make(rng, self.world, split)
        captions = row.input_caption, row.output_caption
        return Proposal(row.task, row.instruction, *captions, details={"row": row})


class UnseenRows(EditRows):
    """Rows of a task that the editor never saw, made when asked for.

    Args:
        task: a name in `UNSEEN_TASKS`.
        split: `train`, `select` or `test`.
        length: how many rows count as the whole set.
        size: side of the pictures.
        seed: row i depends on (seed, split, i) alone.
        encode: what makes tensors of the instructions.
        number: place of the task in a table; None: batches say nothing of the task.
    """

    def __init__(
        self,
        task: str,
        split: str = "train",
        length: int = 100,
        size: int = 64,
        seed: int = 0,
        encode: Encode | None = None,
        number: int | None = None,
    ) -> None:
        super().__init__(length, encode)
        self.split, self.number = split, number
        self.engine = Engine(UnseenSource(task, size), ScenePairs(), (), seed)
        self.shape = (3, size, size)

    def row(self, index: int) -> Row:
        """Row `index`, made anew."""
        return self.engine.row(self.split, index)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, Any]:
        """The rows at `indices`; see `examples_of`."""
        return examples_of([self.row(int(i)) for i in indices], self.encode, self.number)


def examples_of(rows: Sequence[Row], encode: Encode | None = None, number: int | None = None) -> dict[str, Any]:
    """Rows of a task that is in no table yet as a batch: as `datasets.batch_of`, its `task` being `number`, or none."""
    texts = [row.instruction for row in rows]
    batch: dict[str, Any] = {
        "x": _pixels([row.target for row in rows]),
        "source": _pixels([row.image for row in rows]),
        "mask": torch.from_numpy(np.stack([row.mask for row in rows])[:, None]),
    }
    if number is not None:
        batch["task"] = torch.full((len(rows),), number)
    return batch | ({"instruction": texts} if encode is None else dict(encode(texts)))


def _pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return to_unit(torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous())


class LatentRows:
    """Rows of pictures as rows of latents, encoded when asked for, as the pipeline encodes what it edits."""

    def __init__(self, data: Dataset, pipe: EmuEditPipeline) -> None:
        self.data, self.codec = data, pipe.codec
        self.unscaled = bool(pipe.plain_values.get("unscaled_source"))

    def __len__(self) -> int:
        return len(self.data)

    @torch.no_grad()
    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The rows at `indices`; masks say which latents hold an edited pixel."""
        rows = dict(self.data.batch(indices))
        x, source = (rows[name].to(self.codec.device) for name in ("x", "source"))
        rows["x"] = self.codec.to_latents(x)
        rows["source"] = self._source(source)
        rows["mask"] = F.adaptive_max_pool2d(rows["mask"].float(), rows["x"].shape[-2:]) > 0
        return rows

    def _source(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.codec, AutoencoderKL):
            z: torch.Tensor = self.codec.to_latents(x)
            return z
        encoded: Any = self.codec.encode(x)
        mean: torch.Tensor = encoded.latent_dist.mode()
        return mean if self.unscaled else self.codec.scale_latents(mean)


# What becomes of it --------------------------------------------------------------------------------------------


def with_task(model: EmuEditModel, vector: torch.Tensor) -> EmuEditModel:
    """A copy of the model with one more row in its table, `vector` (task_dim,); all else is the same bit for bit."""
    copy = EmuEditModel.from_config(model.config, num_tasks=len(model.tasks.weight) + 1)
    state = dict(model.state_dict())
    state["tasks.weight"] = torch.cat((state["tasks.weight"], vector.to(state["tasks.weight"])[None]))
    copy.load_state_dict(state)
    return copy.to(model.device, model.dtype).train(model.training)


def editor_with(pipe: EmuEditPipeline, model: EmuEditModel, names: Mapping[str, int], **parts: Any) -> EmuEditPipeline:
    """The pipeline with another model, whose tasks are `names`; `parts` replace further components."""
    values = {**pipe.plain_values, "id2task": {place: name for name, place in names.items()}}
    return EmuEditPipeline(**{**pipe.components, **values, "model": model, **parts})
