"""EmuEditObjective: denoise the edited picture, told the picture, the instruction and the task."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.arguments import check_number
from latentia.core.protocols import Batch
from latentia.errors import InputError
from latentia.losses.reconstruction import ERRORS
from latentia.methods.emu_edit.model import EmuEditModel
from latentia.methods.emu_edit.parsing import SceneParser
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.objective import Loss, take
from latentia.training.objectives import DiffusionObjective

MOST = 20.0
"""Greatest weight of an edited pixel against a whole picture's mean, so that tiny edits do not make the gradient."""


class EmuEditObjective(DiffusionObjective):
    """Learn to denoise the target x₀ from x_t, given the source c_I, the instruction c_T and the task i.

        total = mean_b w(t_b) · mean_pixels error(network(x_t, t, τ(c_T), c_I, i), target) + gate_weight · CE(g, M)

    (Sheynin et al. 2023.) Conditions are dropped by InstructPix2Pix's single draw r ~ U(0, 1) a sample, u = `dropout`:
    r < u: text; u ≤ r < 2u: text and picture; 2u ≤ r < 3u: picture. A null text is the encoded empty instruction, a
    null picture zeros; the task stays. Times, noise and w are `DiffusionObjective`'s.

    Ours, all off by default but used by small editors that have minutes to learn in:

    - `change_weight` λ: the error is (1 − λ) · error + λ · min(M / mean M, 20) · error, M the mask of the edit, so that
      a share λ is about the edited pixels however few they are (the idea is OmniGen's); of a model with a copy gate
      the second is the error of y, which the gate does not feel;
    - `gate_weight`: cross entropy between the model's copy gate and M;
    - `terminal_share`: so many samples are pure noise, t = T − 1, where an edit is decided;
    - `parse_weight`: of a `SceneParser`'s loss, which makes the network tell what stands where.

    Args:
        denoiser: trained. With a copy gate the scheduler must predict `sample`.
        scheduler: see `DiffusionObjective`; zero terminal SNR needs `v_prediction` or `sample`.
        text_encoder: τ, `text_encoder(input_ids).last_hidden_state` (B, L, D).
        empty_ids: (L,) int64, the tokens of "", padded as instructions are.
        dropout: u in [0, 1/3].
        train_text_encoder: train τ along; otherwise it is frozen.
        tell_task: whether the model hears the task (else the null one: an editor without task embedding).
        options: the other arguments of `DiffusionObjective`.

    Reads `x`, `source` (B, C, H, W), `input_ids` (B, L) int64, `task` (B,) int64 and, for the weights, `mask`
    (B, 1, H, W) bool, and `things` for the parser. Parts: `error`, and `gate` and `parsed` where they are trained.
    Raises `InputError` for values out of range and settings that do not fit.
    """

    empty_ids: torch.Tensor
    denoiser: EmuEditModel

    def __init__(
        self,
        denoiser: EmuEditModel,
        scheduler: SchedulerMixin,
        text_encoder: nn.Module,
        empty_ids: torch.Tensor,
        dropout: float = 0.05,
        train_text_encoder: bool = True,
        tell_task: bool = True,
        change_weight: float = 0.0,
        gate_weight: float = 0.0,
        terminal_share: float = 0.0,
        parse_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, scheduler, **options)
        for name, value, most in (
            ("dropout", dropout, 1 / 3),
            ("change_weight", change_weight, 1.0),
            ("terminal_share", terminal_share, 1.0),
        ):
            if not 0 <= value <= most:
                raise InputError(f"{name} must lie in [0, {most:.3g}], got {value}")
        if not gate_weight >= 0 or (gate_weight and not denoiser.config.copy_gate):
            raise InputError(f"gate_weight must be at least 0, and 0 for a model without copy gate, got {gate_weight}")
        check_number("parse_weight", parse_weight, low=0)
        if denoiser.prediction_type not in (None, scheduler.prediction_type):
            raise InputError(
                f"a model with a copy gate predicts x0: build the scheduler with prediction_type='sample', "
                f"not {scheduler.prediction_type!r}"
            )
        if empty_ids.ndim != 1 or empty_ids.dtype != torch.int64:
            raise InputError(f"empty_ids must be (L,) int64, got {tuple(empty_ids.shape)} of {empty_ids.dtype}")
        self.text_encoder = text_encoder
        self.register_buffer("empty_ids", empty_ids, persistent=False)
        self.dropout, self.train_text_encoder, self.tell_task = dropout, train_text_encoder, tell_task
        self.change_weight, self.gate_weight, self.terminal_share = change_weight, gate_weight, terminal_share
        self.parse_weight = parse_weight
        self.parser = SceneParser(denoiser.unet) if parse_weight else None
        if not train_text_encoder:
            self.frozen = (*self.frozen, "text_encoder")
            text_encoder.eval()

    def settings(self) -> dict[str, Any]:
        """Everything but the modules and tokens."""
        names = (
            *("dropout", "train_text_encoder", "tell_task"),
            *("change_weight", "gate_weight", "terminal_share", "parse_weight"),
        )
        return super().settings() | {name: getattr(self, name) for name in names}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x0 = take(batch, self.key)
        noise, t = self.draw_noise(x0), self.draw_times(len(x0), x0.device)
        source, ids = self.dropped(take(batch, "source"), take(batch, "input_ids"))
        task = take(batch, "task") if self.tell_task else None
        noisy = self.scheduler.add_noise(x0, noise, t)
        said = self.denoiser(noisy, t, encoder_hidden_states=self.encode(ids), source=source, task=task)
        target = self.scheduler.training_target(x0, noise, t).float()
        each = ERRORS[self.loss](said.sample.float(), target).flatten(1).mean(1)
        if self.change_weight:
            # With a gate it is y that counts there: where to edit is the gate's affair, and has its own loss.
            there = said.sample if said.edit is None else said.edit
            edited = self.pixel_weights(take(batch, "mask")) * ERRORS[self.loss](there.float(), target)
            each = (1 - self.change_weight) * each + self.change_weight * edited.flatten(1).mean(1)
        weight = self.weight(t, batch)
        total = (each if weight is None else each * weight).mean()
        parts = {"error": total.detach()}
        if self.gate_weight:
            gate = F.binary_cross_entropy_with_logits(said.gate.float(), take(batch, "mask").float())
            parts["gate"] = gate.detach()
            total = total + self.gate_weight * gate
        if self.parser is not None:
            parsed = self.parser(take(batch, "things"))
            parts["parsed"] = parsed.detach()
            total = total + self.parse_weight * parsed
        return Loss(total, parts)

    def draw_times(self, batch: int, device: torch.device) -> torch.Tensor:
        """(B,) training times, a share of them the last."""
        t = super().draw_times(batch, device)
        if not self.terminal_share:
            return t
        last = torch.rand(batch, device=device) < self.terminal_share
        return torch.where(last, torch.full_like(t, self.num_times - 1), t)

    def dropped(self, source: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and tokens, each nulled in two of the three ways of the single draw."""
        if ids.ndim != 2 or ids.shape[1] != len(self.empty_ids) or ids.dtype != torch.int64:
            raise InputError(
                f"input_ids must be (B, {len(self.empty_ids)}) int64, as long as empty_ids, got {tuple(ids.shape)} "
                f"of {ids.dtype}"
            )
        if not self.dropout:
            return source, ids
        r = torch.rand(len(ids), 1, device=ids.device)
        u = self.dropout
        ids = torch.where(r < 2 * u, self.empty_ids, ids)
        kept = ((r < u) | (r >= 3 * u)).to(source.dtype)
        return source * kept[:, :, None, None], ids

    def pixel_weights(self, mask: torch.Tensor) -> torch.Tensor:
        """M (B, 1, H, W) → M / mean M, at most `MOST`."""
        edited = mask.float()
        share = edited.mean((1, 2, 3), keepdim=True).clamp(min=1 / edited[0].numel())
        return (edited / share).clamp(max=MOST)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """τ(c_T) (B, L, D); without a graph when the text encoder is not trained."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            encoded: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return encoded
