"""What FlowMo trains: stage 1A matches the modes of p(x | c), stage 1B seeks the ones near the picture."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from latentia.core.arguments import check_count, check_number
from latentia.core.protocols import Batch
from latentia.errors import InputError, check_choice
from latentia.methods.flowmo.codecs import FlowMo
from latentia.methods.flowmo.model import SMALLEST_TIME, DiffusionAutoencoder
from latentia.methods.flowmo.weight_norm import NORM_MODES, ForcedWeightNorm
from latentia.training.objective import Loss, Objective, take


class FlowMoObjective(Objective):
    """Rectified flow with a code: the common part of both stages.

        x_t = (1 − t)·x + t·z,   L_flow = mean w(t)·(x̂₀ − x)²,   w(t) = max(t, weight_floor)^(−weight_power)

    with weight_power 2 and weight_floor 0 (at least 10⁻³ where x̂₀ is the network's answer), L_flow is the mean of
    (v − (z − x))², as in the paper. A picture's code is dropped with probability `code_dropout`; t = sigmoid(n),
    n ~ N(times_mean, times_std²), with probability `uniform_times` replaced by U(0, 1) (thick tails; 0 is the plain
    logit-normal, 1 the uniform draw).

    Args:
        codec: trained; with `freeze_encoder` only its decoder.
        perceptual: any module (x, x̂) → (B,); used, never trained. None: no perceptual term.
        perceptual_weight: of that term.
        weight_power, weight_floor: of w(t).
        times_mean, times_std, uniform_times: of t.
        code_dropout: for guidance.
        freeze_encoder: the encoder stays as it is (its own phase, after enough steps of both).
        anneal_steps: the code is b + λ·(q(ĉ) − b), b = tanh ĉ, with λ rising from 0 to 1 in so many steps;
            the gradient passes straight through always. 0: quantised at once.
        noise_sync: probability that a continuous code is noised to t_z ~ U(0, 1) and t drawn from [t_z, 1] (DiTo).
        weight_norm: `l2`, `channel` or None: `ForcedWeightNorm` after every update.
    """

    def __init__(
        self,
        codec: DiffusionAutoencoder,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 0.1,
        weight_power: float = 2.0,
        weight_floor: float = 0.0,
        times_mean: float = 0.0,
        times_std: float = 1.0,
        uniform_times: float = 0.1,
        code_dropout: float = 0.1,
        freeze_encoder: bool = False,
        anneal_steps: int = 0,
        noise_sync: float = 0.0,
        weight_norm: str | None = "l2",
    ) -> None:
        super().__init__()
        for name, share in (
            ("uniform_times", uniform_times),
            ("code_dropout", code_dropout),
            ("noise_sync", noise_sync),
        ):
            check_number(name, share, 0, 1)
        for name, number in (("perceptual_weight", perceptual_weight), ("weight_power", weight_power)):
            check_number(name, number, low=0)
        check_number("weight_floor", weight_floor, 0, 1)
        if noise_sync and isinstance(codec, FlowMo):
            raise InputError("noise_sync is for the continuous variant: use ContinuousFlowMo, or noise_sync=0")
        if weight_norm is not None:
            check_choice("weight_norm", weight_norm, NORM_MODES)
        self.codec, self.perceptual = codec, perceptual
        self.frozen = () if perceptual is None else ("perceptual",)
        self.perceptual_weight = perceptual_weight
        self.weight_power, self.weight_floor = weight_power, weight_floor
        self.times_mean, self.times_std, self.uniform_times = times_mean, times_std, uniform_times
        self.code_dropout, self.freeze_encoder = code_dropout, freeze_encoder
        self.anneal_steps = check_count("anneal_steps", anneal_steps, least=0)
        self.noise_sync, self.weight_norm = noise_sync, weight_norm
        codec.encoder.requires_grad_(not freeze_encoder)
        self.step = 0  # of the last call, for those who watch
        self._norms = None if weight_norm is None else ForcedWeightNorm(codec, weight_norm)

    def settings(self) -> dict[str, Any]:
        """Everything but the modules."""
        names = (
            "perceptual_weight", "weight_power", "weight_floor", "times_mean", "times_std", "uniform_times",
            "code_dropout", "freeze_encoder", "anneal_steps", "noise_sync", "weight_norm",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def after_update(self, turn: str) -> None:
        """Give the matrices of the blocks their first norms back."""
        if self._norms is not None:
            self._norms.apply(self.codec)

    # Pieces

    def code_of(self, x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        """The code's values (B, c, S), the quantizer's loss, and its parts for the log."""
        self.step = step
        if self.freeze_encoder:
            with torch.no_grad():  # a codebook that follows its encoder is left alone too
                return self.codec.values(self.codec.to_latents(x)), None, {}
        (latents,) = self.codec.encode(x, return_dict=False)
        if not isinstance(self.codec, FlowMo):
            return latents, None, {}
        coded = self.codec.quantize(latents)
        values = coded.values
        if step < self.anneal_steps:
            bounded = latents.detach().tanh()  # else ever larger ĉ would outgrow what is added to them
            values = latents + (torch.lerp(bounded, values.detach(), step / self.anneal_steps) - latents).detach()
        parts = {f"quantizer_{name}": part for name, part in coded.parts.items()}
        return values, coded.loss, parts

    def draw_times(self, batch: int, device: torch.device) -> torch.Tensor:
        """t (B,) in (0, 1), the normal draws one from each B-th of their distribution (as Kingma et al. 2021's are)."""
        strata = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
        normal = torch.special.ndtri(strata.clamp(1e-6, 1 - 1e-6))
        t = torch.sigmoid(normal * self.times_std + self.times_mean)
        uniform = torch.rand(batch, device=device)
        return torch.where(torch.rand(batch, device=device) < self.uniform_times, uniform, t)

    def flow_loss(
        self, x: torch.Tensor, z: torch.Tensor, t: torch.Tensor, v: torch.Tensor, estimate: torch.Tensor
    ) -> torch.Tensor:
        """L_flow from the network's own answer: the error of v carries t²·w(t), that of x̂₀ carries w(t)."""
        if self.codec.config.prediction_type != "flow_prediction":
            floored = t.clamp(min=max(self.weight_floor, 1e-3))
            error, weight = estimate - x, floored.pow(-self.weight_power)
        else:
            floored = t.clamp(min=max(self.weight_floor, SMALLEST_TIME))
            error, weight = v - (z - x), (t / floored).square() * floored.pow(2 - self.weight_power)
        return (error.square().flatten(1).mean(1) * weight).mean()

    def flow(self, x: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """L_flow at random times, and the one-step estimates x̂₀ (B, C, H, W)."""
        t = self.draw_times(len(x), x.device)
        if self.noise_sync:
            t, values = self._synchronised(t, values)
        keep = None
        if self.code_dropout:
            keep = torch.rand(len(x), device=x.device) >= self.code_dropout
        z = torch.randn_like(x)
        x_t = torch.lerp(x, z, t[:, None, None, None])
        v, estimate = self.codec.estimate(x_t, t, self.codec.flagged(values, keep))
        return self.flow_loss(x, z, t, v, estimate), estimate

    def _synchronised(self, t: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Some codes noised to level t_z, and their pictures' times drawn from [t_z, 1]."""
        chosen = torch.rand_like(t) < self.noise_sync
        level = torch.where(chosen, torch.rand_like(t), 0.0)
        t = torch.where(chosen, level + (1 - level) * torch.rand_like(t), t)
        return t, torch.lerp(values, torch.randn_like(values), level[:, None, None].to(values.dtype))

    def distance(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Mean perceptual distance of a batch."""
        assert self.perceptual is not None
        apart: torch.Tensor = self.perceptual(x, x_hat)
        return apart.mean()


class FlowMoPretraining(FlowMoObjective):
    """Stage 1A, mode matching: L_flow + perceptual_weight · d(x, x̂₀) + the quantizer's losses.

    Parts: `flow`, `perceptual` and the quantizer's. Reads `x` (B, C, H, W) in [-1, 1] from the batch. Arguments are
    those of `FlowMoObjective`.
    """

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        values, quantizer_loss, parts = self.code_of(x, step)
        total, estimate = self.flow(x, values)
        parts = {"flow": total.detach(), **parts}
        if quantizer_loss is not None:
            total = total + quantizer_loss
        if self.perceptual is not None and self.perceptual_weight:
            apart = self.distance(x, estimate)
            parts["perceptual"] = apart.detach()
            total = total + self.perceptual_weight * apart
        return Loss(total, parts)


class FlowMoRegression(FlowMoObjective):
    """Squared error of what the decoder says of nothing (x_t = 0), and the quantizer's losses: an ordinary autoencoder.

    A decoder that says x̂₀ is told the times of `flow`, so that stage 1A, going on from here, finds one that does at
    every t what it would do without knowing x_t; told t = 1 alone it learns to be deaf at others. Where it says v,
    t = 1. Parts: `mse` and the quantizer's.
    """

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        values, quantizer_loss, parts = self.code_of(x, step)
        says_picture = self.codec.config.prediction_type == "sample"
        t = self.draw_times(len(x), x.device) if says_picture else x.new_ones(len(x))
        _, said = self.codec.estimate(torch.zeros_like(x), t, self.codec.flagged(values))
        mse = (said - x).square().mean()
        return Loss(mse if quantizer_loss is None else mse + quantizer_loss, {"mse": mse.detach(), **parts})


class FlowMoPostTraining(FlowMoObjective):
    """Stage 1B, mode seeking: L_flow + sample_weight · d(x, x̂) with x̂ sampled from the code, frozen encoder.

        t_i = Σ_{j≥i} u_j / Σ_j u_j,  u ~ U(0, 1)^n for each picture;   z ← z − (t_i − t_{i+1})·v(z, c, t_i)

    The gradient goes through all n steps; each call of the decoder keeps its inputs alone and is computed again.

    Args:
        perceptual: d, any module (x, x̂) → (B,) (the paper: MSE of a ResNet-50's logits).
        sample_weight: of d; 0.01 in the paper: less forgets what 1A learned, more is fitted to d alone.
        chain_steps: n.
        options: of `FlowMoObjective`; the encoder is always frozen.

    Parts: `flow` and `sample`.
    """

    def __init__(
        self,
        codec: DiffusionAutoencoder,
        perceptual: nn.Module,
        sample_weight: float = 0.01,
        chain_steps: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(codec, perceptual, **{**options, "freeze_encoder": True})
        self.sample_weight = check_number("sample_weight", sample_weight, low=0)
        self.chain_steps = check_count("chain_steps", chain_steps)

    def settings(self) -> dict[str, Any]:
        """Everything but the modules."""
        return {**super().settings(), "sample_weight": self.sample_weight, "chain_steps": self.chain_steps}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        values, _, _ = self.code_of(x, step)
        flow, _ = self.flow(x, values)
        apart = self.distance(x, self.chain(torch.randn_like(x), values))
        return Loss(flow + self.sample_weight * apart, {"flow": flow.detach(), "sample": apart.detach()})

    def chain(self, z: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """z at t = 1 → x̂ at t = 0 in `chain_steps` Euler steps on random grids, differentiable in the decoder."""
        times = self.draw_grid(len(z), z.device)
        code = self.codec.flagged(values)
        for i in range(self.chain_steps):
            v = checkpoint(self.codec.velocity, z, times[:, i], code, use_reentrant=False)
            z = z - (times[:, i] - times[:, i + 1])[:, None, None, None] * v
        return z

    def draw_grid(self, batch: int, device: torch.device) -> torch.Tensor:
        """(B, n + 1) times that descend from 1 to 0."""
        u = torch.rand(batch, self.chain_steps, device=device)
        above = u.flip(1).cumsum(1).flip(1)  # Σ_{j≥i} u_j
        return torch.cat([above / above[:, :1], above.new_zeros(batch, 1)], dim=1)
