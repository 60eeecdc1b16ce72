"""What p-diff's two phases learn: to rebuild vectors of parameters through noise, and to denoise their latents."""

from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_number
from latentia.core.protocols import Batch
from latentia.errors import InputError, check_choice
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.objective import Loss, Objective, take
from latentia.training.objectives import DiffusionObjective

NOISES = ("additive", "mix")


class ParameterReconstructionObjective(Objective):
    """Learn x → z → x̂ through noise in both places: min ‖D(E(x + ξ_V) + ξ_Z) − x‖².

    Wang et al. 2024, arXiv:2402.13144, §3.2 (their σ: 0.001 and 0.1).

    Args:
        autoencoder: trained.
        parameter_noise: σ of ξ_V, on the standardised vectors.
        latent_noise: σ of ξ_Z, on the latents.
        noise: `additive`, a + σε; or `mix`, (1 − σ)a + σε with latents clamped to [−1, 1], as the first edition's
            code has it.
        noisy_target: compare with x + ξ_V instead of x, as the later edition's code does.

    Parts: `mse`; and, for more than one vector, `explained`: 1 − mse/(variance between the batch's vectors), the
    share of what tells checkpoints apart that survives noise and autoencoder (0 where the batch does not vary).
    Reads `x` (B, D), standardised, from the batch. Raises `InputError` for σ out of range.
    """

    def __init__(
        self,
        autoencoder: ParameterAutoencoder,
        parameter_noise: float = 0.001,
        latent_noise: float = 0.1,
        noise: str = "additive",
        noisy_target: bool = False,
    ) -> None:
        super().__init__()
        check_choice("noise", noise, NOISES)
        limit = 1.0 if noise == "mix" else float("inf")
        self.autoencoder = autoencoder
        self.parameter_noise = check_number("parameter_noise", parameter_noise, 0, limit)
        self.latent_noise = check_number("latent_noise", latent_noise, 0, limit)
        self.noise, self.noisy_target = noise, noisy_target

    def settings(self) -> dict[str, Any]:
        """Everything but the module."""
        names = ("parameter_noise", "latent_noise", "noise", "noisy_target")
        return {name: getattr(self, name) for name in names}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        seen = self._disturb(x, self.parameter_noise)
        z = self._disturb(self.autoencoder.to_latents(seen), self.latent_noise)
        if self.noise == "mix":
            z = z.clamp(-1, 1)
        x_hat = self.autoencoder.from_latents(z)
        mse = (x_hat.float() - (seen if self.noisy_target else x).float()).square().mean()
        parts = {"mse": mse.detach()}
        if len(x) > 1:
            between = x.float().var(dim=0).mean()
            varies = between > 1e-9 * x.float().square().mean()
            parts["explained"] = torch.where(varies, 1 - parts["mse"] / between, 0.0)
        return Loss(mse, parts)

    def _disturb(self, a: torch.Tensor, sigma: float) -> torch.Tensor:
        if not sigma:
            return a
        kept = a * (1 - sigma) if self.noise == "mix" else a
        return torch.add(kept, torch.randn_like(a), alpha=sigma)


class LatentPriorObjective(DiffusionObjective):
    """Learn to denoise the latents of parameters (B, c, L): ε, x₀ or v by the scheduler's prediction type.

    Wang et al. 2024, arXiv:2402.13144, §3.3; everything is `DiffusionObjective`'s, except for

    Args:
        shared_time: tell the network the first sample's time for the whole batch although each sample has its own:
            the first edition's bug, for measuring what it costs.
    """

    def __init__(
        self, denoiser: nn.Module, scheduler: SchedulerMixin, shared_time: bool = False, **options: Any
    ) -> None:
        super().__init__(denoiser, scheduler, **options)
        self.shared_time = shared_time

    def settings(self) -> dict[str, Any]:
        """Everything but the module."""
        return {**super().settings(), "shared_time": self.shared_time}

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the network says of x_t."""
        return super().predict(noisy, t[:1].expand(len(t)) if self.shared_time else t, batch)


def explained_variance(vectors: torch.Tensor, rebuilt: torch.Tensor) -> float:
    """1 − Σ‖v − v̂‖²/Σ‖v − v̄‖² over checkpoints (K, D): the share of the variance *between* them that is rebuilt.

    1 for perfect reconstruction, 0 for rebuilding the mean checkpoint each time, below 0 for worse. In float64.
    Raises `InputError` for shapes that differ, and for checkpoints that do not differ from each other.
    """
    if vectors.shape != rebuilt.shape or vectors.ndim != 2:
        raise InputError(f"expected two tensors (K, D), got {tuple(vectors.shape)} and {tuple(rebuilt.shape)}")
    wide = vectors.double()
    between = (wide - wide.mean(dim=0)).square().sum()
    if not between > 0:
        raise InputError("the checkpoints do not differ, so there is no variance between them to explain")
    return float(1 - (wide - rebuilt.double()).square().sum() / between)
