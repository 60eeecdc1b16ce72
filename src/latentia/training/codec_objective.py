"""CodecObjective: learn to compress so that it looks right; reconstruction, perceptual and adversarial losses."""

from typing import Any

import torch
from torch import nn

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.core.arguments import check_count, check_number
from latentia.core.evaluating import evaluating
from latentia.core.protocols import Batch
from latentia.errors import InputError, check_choice
from latentia.losses.adversarial import (
    GAN_LOSSES,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from latentia.losses.patchgan import PatchDiscriminator
from latentia.losses.reconstruction import ERRORS, REDUCTIONS, per_sample
from latentia.training.objective import Loss, Objective, take

Made = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
"""x̂, the bottleneck's weighted loss, and its parts."""


class CodecObjective(Objective):
    """Learn x → z → x̂ as VQGAN and latent diffusion's first stages do; without a discriminator one turn, with one two.

        nll           = n · mean_b [error(x, x̂) + perceptual_weight · d(x, x̂)]
        bottleneck    = n · kl_weight · mean KL(q(z|x) ‖ N(0, I)) / elements,   or quantizer_weight · quantizer's loss
        generator     = nll + bottleneck + ramp(k) · gan_weight · λ · G(D(x̂)),   λ = `adaptive_weight` (or 1)
        discriminator = ½ hinge pair + r1_weight · R₁(x) + lecam_weight · LeCam

    error is the mean over a picture's elements, n = 1 for `reduction="mean"` (taming) and n = elements of x for `sum`
    (latent diffusion's convention, where the perceptual distance counts once for every element), so that all weights
    mean the same in both. Every batch trains both sides: the discriminator sees the x̂ that the generator's turn made.

    A discriminator that has not learned yet pushes at random and breaks the reconstruction (taming issue 44). Here
    it learns alone first, then its pull is ramped up:

        steps     … start      start + warmup     start + warmup + ramp …
        D           idle       learns             learns
        pull on G   0          0                  0 → gan_weight

    With `warmup=0, ramp=0` that is the published `disc_start`.

    Args:
        codec: `VQModel`, `AutoencoderKL` or `Autoencoder`; trained.
        discriminator: `PatchDiscriminator` or any x → logits; trained. None for no adversarial loss.
        perceptual: frozen distance (x, x̂) → (B,), see `latentia.losses.perceptual`; None for none.
        loss: `l1`, `l2` (= `mse`) or `huber`.
        reduction: `mean` or `sum`, see above.
        perceptual_weight, kl_weight, quantizer_weight, gan_weight: ≥ 0.
        gan: `hinge`, `vanilla` or `non_saturating`.
        adaptive: multiply by λ, measured at the decoder's last convolution. Without it, `gan_weight` alone.
        start, warmup, ramp: steps, see above.
        r1_weight, lecam_weight: ≥ 0, 0 for none.

    Parts of `generator` (`main` without a discriminator): `rec` and `perceptual` in units of error and d, the
    bottleneck's (`kl` a sample and element; the quantizer's own and `perplexity` of the batch's tokens), `gan`,
    `gan_weight` (λ · gan_weight · ramp). Of `discriminator`: `real` and `fake` (mean logits), `r1`, `lecam`.

    Reads `x` (B, C, H, W) in [-1, 1]. Raises `InputError` for other codecs and values out of range.
    """

    def __init__(
        self,
        codec: VQModel | AutoencoderKL | Autoencoder,
        discriminator: nn.Module | None = None,
        perceptual: nn.Module | None = None,
        *,
        loss: str = "l1",
        reduction: str = "mean",
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        quantizer_weight: float = 1.0,
        gan: str = "hinge",
        gan_weight: float = 0.8,
        adaptive: bool = True,
        start: int = 0,
        warmup: int = 0,
        ramp: int = 0,
        r1_weight: float = 0.0,
        lecam_weight: float = 0.0,
    ) -> None:
        super().__init__()
        _check_codec(codec)
        check_choice("loss", loss, ERRORS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("adversarial loss", gan, GAN_LOSSES)
        self.codec = codec
        self.loss, self.reduction, self.gan, self.adaptive = loss, reduction, gan, adaptive
        self.perceptual_weight = check_number("perceptual_weight", perceptual_weight, low=0)
        self.kl_weight = check_number("kl_weight", kl_weight, low=0)
        self.quantizer_weight = check_number("quantizer_weight", quantizer_weight, low=0)
        self.gan_weight = check_number("gan_weight", gan_weight, low=0)
        self.r1_weight = check_number("r1_weight", r1_weight, low=0)
        self.lecam_weight = check_number("lecam_weight", lecam_weight, low=0)
        self.start = check_count("start", start, least=0)
        self.warmup, self.ramp = check_count("warmup", warmup, least=0), check_count("ramp", ramp, least=0)
        self.discriminator, self.perceptual = discriminator, perceptual
        self.lecam = LeCam() if discriminator is not None and lecam_weight else None
        self.turns = ("main",) if discriminator is None else ("generator", "discriminator")  # type: ignore[misc]
        self.frozen = () if perceptual is None else ("perceptual",)
        self._made: dict[int, tuple[int, torch.Tensor]] = {}
        if isinstance(discriminator, PatchDiscriminator) and discriminator.config.norm == "batch" and r1_weight:
            raise InputError(
                "R1 is the slope of one picture's logits, and batch norm mixes pictures: use norm='group' or 'none'"
            )

    def turn_modules(self, turn: str) -> tuple[str, ...]:
        """The codec, or the discriminator with its penalty's means."""
        return tuple(name for name in self.modules_by_name if (name == "codec") == (turn != "discriminator"))

    def settings(self) -> dict[str, Any]:
        """Everything but the modules, of which the perceptual distance is named."""
        own = ("loss", "reduction", "perceptual_weight", "kl_weight", "quantizer_weight")
        said = {name: getattr(self, name) for name in own} | {"perceptual": getattr(self.perceptual, "name", None)}
        if self.discriminator is None:
            return said
        gan = ("gan", "gan_weight", "adaptive", "start", "warmup", "ramp", "r1_weight", "lecam_weight")
        return said | {name: getattr(self, name) for name in gan}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        if turn != "discriminator":
            return self._generator(x, step)
        if step < self.start:
            return self._idle()
        return self._discriminator(x, self._made_of(x, step))

    def pull(self, step: int) -> float:
        """Share of `gan_weight` with which the discriminator pulls at the generator in step `step` (from 0)."""
        after = step - self.start - self.warmup
        if self.discriminator is None or after < 0:
            return 0.0
        return min(1.0, (after + 1) / (self.ramp + 1))

    def _generator(self, x: torch.Tensor, step: int) -> Loss:
        x_hat, bottleneck, parts = self._reconstruct(x)
        self._keep(x, x_hat, step)
        elements = x[0].numel() if self.reduction == "sum" else 1
        rec = per_sample(ERRORS[self.loss](x_hat.float(), x.float()), "mean").mean()
        nll, parts = rec, {"rec": rec.detach(), **parts}
        if self.perceptual is not None:
            perceptual = self.perceptual(x, x_hat).mean()
            nll, parts["perceptual"] = rec + self.perceptual_weight * perceptual, perceptual.detach()
        nll = elements * nll
        total = nll + elements * bottleneck if self._has_posterior else nll + bottleneck
        if self.discriminator is None:
            return Loss(total, parts)
        gan, weight = self._pull_of_discriminator(nll, x_hat, step)
        return Loss(total + weight * gan, {**parts, "gan": gan.detach(), "gan_weight": weight})

    def _pull_of_discriminator(
        self, nll: torch.Tensor, x_hat: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The generator's adversarial loss and its detached weight; (0, 0), at no cost, while it does not count."""
        share = self.pull(step) * self.gan_weight
        if self.discriminator is None or not share:
            return x_hat.new_zeros((), dtype=torch.float32), x_hat.new_zeros((), dtype=torch.float32)
        gan = generator_loss(self.discriminator(x_hat), self.gan)
        if not self.adaptive:
            return gan, torch.full_like(gan, share).detach()
        return gan, share * adaptive_weight(nll, gan, self.codec.decoder.conv_out.weight)

    def _discriminator(self, x: torch.Tensor, x_hat: torch.Tensor) -> Loss:
        assert self.discriminator is not None
        real, fake = self.discriminator(x), self.discriminator(x_hat)
        total = discriminator_loss(real, fake, self.gan)
        parts = {"real": real.detach().float().mean(), "fake": fake.detach().float().mean()}
        if self.r1_weight:
            r1 = r1_penalty(self.discriminator, x)
            total, parts["r1"] = total + self.r1_weight * r1, r1.detach()
        if self.lecam is not None:
            lecam = self.lecam(real, fake)
            total, parts["lecam"] = total + self.lecam_weight * lecam, lecam.detach()
        return Loss(total, parts)

    def _idle(self) -> Loss:
        """A loss of 0 for a turn in which the discriminator rests.

        It reaches one bias, with gradient 0: gradients of all other weights stay None, so their Adam state does not
        begin before they learn; and DDP and loss scaling, which insist on some gradient, are content.
        """
        assert self.discriminator is not None
        last = list(self.discriminator.parameters())[-1]
        total = 0.0 * last.float().sum()
        names = ("real", "fake", *(["r1"] if self.r1_weight else []), *(["lecam"] if self.lecam is not None else []))
        return Loss(total, {name: torch.zeros((), device=last.device) for name in names})

    @property
    def _has_posterior(self) -> bool:
        return isinstance(self.codec, AutoencoderKL)

    def _reconstruct(self, x: torch.Tensor) -> Made:
        codec = self.codec
        if isinstance(codec, VQModel):
            (z,) = codec.encode(x, return_dict=False)
            quantized = codec.quantize(z)
            x_hat = codec.decode(quantized.values, force_not_quantize=True, return_dict=False)[0]
            parts = {**quantized.parts, "perplexity": perplexity(quantized.indices, codec.quantize.num_codes)}
            bottleneck = self.quantizer_weight * quantized.loss
        elif isinstance(codec, AutoencoderKL):
            (posterior,) = codec.encode(x, return_dict=False)
            (x_hat,) = codec.decode(posterior.sample(), return_dict=False)
            kl = posterior.kl().mean() / x[0].numel()
            bottleneck, parts = self.kl_weight * kl, {"kl": kl.detach()}
        else:
            (z,) = codec.encode(x, return_dict=False)
            (x_hat,) = codec.decode(z, return_dict=False)
            bottleneck, parts = x_hat.new_zeros(()), {}
        if x_hat.shape != x.shape:
            raise InputError(f"the codec made {tuple(x_hat.shape)} of {tuple(x.shape)}: check in_ and out_channels")
        return x_hat, bottleneck, parts

    def _keep(self, x: torch.Tensor, x_hat: torch.Tensor, step: int) -> None:
        """Remember x̂ of these very pictures until the discriminator's turn of this step."""
        if self.discriminator is None or step < self.start:
            return
        self._made = {key: made for key, made in self._made.items() if made[0] == step}
        self._made[x.data_ptr()] = (step, x_hat.detach())

    def _made_of(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """The x̂ that the generator's turn made of x, or, for who calls this turn alone, a new one."""
        made_at, x_hat = self._made.pop(x.data_ptr(), (-1, x))
        if made_at == step and x_hat.shape == x.shape:
            return x_hat
        with torch.no_grad(), evaluating([self.codec]):
            return self._reconstruct(x)[0]


def perplexity(indices: torch.Tensor, num_codes: int) -> torch.Tensor:
    """exp(entropy) of how often each of K codes occurs among the indices, a scalar in [1, K]; stays on the device."""
    shares = torch.bincount(indices.flatten(), minlength=num_codes).float() / indices.numel()
    return torch.special.entr(shares).sum().exp()


def _check_codec(codec: nn.Module) -> None:
    if not isinstance(codec, VQModel | AutoencoderKL | Autoencoder):
        raise InputError(
            f"CodecObjective trains VQModel, AutoencoderKL or Autoencoder, got {type(codec).__name__}; FlowMo has "
            "objectives of its own"
        )
    if isinstance(codec, VQModel) and codec.config.lookup_from_codebook:
        raise InputError("a VQModel with lookup_from_codebook=True decodes tokens only: train it with False")
