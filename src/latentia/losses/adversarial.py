"""Adversarial losses: what a discriminator and a generator minimise over logits, and how much the latter weighs.

    hinge           D: ½ mean max(0, 1 − D(x)) + ½ mean max(0, 1 + D(x̂))          G: −mean D(x̂)
    vanilla         D: ½ mean softplus(−D(x)) + ½ mean softplus(D(x̂))             G: −mean D(x̂)
    non_saturating  D: as vanilla                                                   G: mean softplus(−D(x̂))

`hinge` and `vanilla` are those of taming-transformers (Esser et al. 2021), which has one G for both; `non_saturating`
is Goodfellow et al.'s (2014), which MaskGIT's tokenizer uses.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from latentia.errors import InputError, check_choice

GAN_LOSSES = ("hinge", "vanilla", "non_saturating")


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: str = "hinge") -> torch.Tensor:
    """What D minimises, a scalar in float32: logits of real and of made pictures, any shapes.

    1 (hinge) or ln 2 (others) for a discriminator that says 0. Raises `UnknownChoiceError` for another kind.
    """
    check_choice("adversarial loss", kind, GAN_LOSSES)
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: torch.Tensor, kind: str = "hinge") -> torch.Tensor:
    """What the generator minimises, a scalar in float32. Raises `UnknownChoiceError` for another kind."""
    check_choice("adversarial loss", kind, GAN_LOSSES)
    return F.softplus(-fake.float()).mean() if kind == "non_saturating" else -fake.float().mean()


def adaptive_weight(
    rec: torch.Tensor, gan: torch.Tensor, last_layer: torch.Tensor, delta: float = 1e-4, ceiling: float = 1e4
) -> torch.Tensor:
    """λ = clamp(‖∂rec/∂L‖ / (‖∂gan/∂L‖ + δ), 0, ceiling), detached: both losses then pull equally at the last layer.

    Esser et al. 2021, eq. 7 (δ = 1e-6 there; 1e-4 and the ceiling are those of their code). 2-norms over L, the weight
    of the decoder's last convolution. 0 where gradients are off, as in validation.

    Raises `InputError` when a loss does not reach L.
    """
    if not torch.is_grad_enabled():
        return torch.zeros((), device=rec.device)
    norms = []
    for name, loss in (("reconstruction", rec), ("adversarial", gan)):
        found = (
            torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)[0]
            if loss.requires_grad
            else None
        )
        if found is None:
            raise InputError(f"the {name} loss does not depend on the last layer given, so it has no adaptive weight")
        norms.append(found.detach().float().norm())
    return (norms[0] / (norms[1] + delta)).clamp(0.0, ceiling)


def r1_penalty(discriminator: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """½ E‖∂ΣD(x)/∂x‖², the squared slope at real pictures, a mean over the batch (Mescheder et al. 2018, R₁).

    Differentiable in the discriminator, which must judge each picture by itself: no batch norm.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        slope = torch.autograd.grad(discriminator(x).float().sum(), x, create_graph=True)[0]
    return 0.5 * slope.float().square().flatten(1).sum(1).mean()


class LeCam(nn.Module):
    """The LeCam penalty: logits stay near the running means of the other side's (Tseng et al. 2021).

        E max(0, D(x) − m_fake)² + E max(0, m_real − D(x̂))²,   m ← γm + (1 − γ) mean logit

    It keeps a discriminator from memorising few training pictures. Both means are buffers, saved with a run.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.means: torch.Tensor
        self.register_buffer("means", torch.zeros(2))

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """A scalar from the logits of both sides; in training mode the means move first."""
        real, fake = real.float(), fake.float()
        if self.training:
            with torch.no_grad():
                self.means.lerp_(torch.stack([real.mean(), fake.mean()]), 1 - self.decay)
        mean_real, mean_fake = self.means.clone()
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()
