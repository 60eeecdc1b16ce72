"""The objectives of the lineage: reconstruct (codecs), denoise (priors), classify (judges)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.core.protocols import Batch
from latentia.errors import InputError, check_choice
from latentia.losses.reconstruction import ERRORS, REDUCTIONS, per_sample, weighted_error
from latentia.losses.weighting import min_snr_weight
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.codebook_health import CodebookHealth
from latentia.training.objective import Loss, Objective, take

TIMES = ("antithetic", "logit_normal", "uniform")
Parts = dict[str, torch.Tensor]


class ReconstructionObjective(Objective):
    """Learn x → z → x̂: reconstruction error, plus a posterior's KL or a quantizer's loss if the codec has one.

        total = 1/B Σ_b (Σ_elements error(x, x̂) + kl_weight · KL(q(z|x_b) ‖ N(0, I))),   or
        total = 1/B Σ_b (Σ_elements error(x, x̂)) + n · quantizer_weight · quantizer's loss

    which is latent diffusion's convention: both terms are sums over elements, means over the batch
    (Rombach et al. 2022, without its perceptual and adversarial terms); the quantizer's loss is a mean over elements
    and counts once for each of the n elements of one x. `reduction="mean"` divides the whole by n, so the weights mean
    the same in both; only learning rate and clipping feel it. A codec with a posterior decodes a sample of it.

    Args:
        codec: `Autoencoder`, `AutoencoderKL` or `VQModel`; trained.
        kl_weight: ≥ 0; without effect for a codec without posterior.
        reduction: `sum` or `mean`.
        loss: `l1`, `l2` (= `mse`) or `huber`.
        quantizer_weight: ≥ 0; without effect for a codec without quantizer.

    Parts: `rec` and, with a posterior, `kl`, both in the units of the total (before `kl_weight`). With a quantizer its
    own parts, and `perplexity` of the batch's tokens beside `perplexity_ceiling`, and `codes_used`. A codebook that
    collapses, its perplexity below a tenth of its ceiling, is warned of once in the log `latentia.training`.
    Reads `x` (B, C, H, W) in [-1, 1] from the batch.
    """

    def __init__(
        self,
        codec: Autoencoder | AutoencoderKL | VQModel,
        kl_weight: float = 1e-6,
        reduction: str = "sum",
        loss: str = "l1",
        quantizer_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("loss", loss, ERRORS)
        if not isinstance(codec, Autoencoder | AutoencoderKL | VQModel):
            raise InputError(
                f"ReconstructionObjective trains Autoencoder, AutoencoderKL or VQModel, got {type(codec).__name__}"
            )
        if isinstance(codec, VQModel) and codec.config.lookup_from_codebook:
            raise InputError("a VQModel with lookup_from_codebook=True decodes tokens only: train it with False")
        if not kl_weight >= 0:
            raise InputError(f"kl_weight must be at least 0, got {kl_weight}")
        if not quantizer_weight >= 0:
            raise InputError(f"quantizer_weight must be at least 0, got {quantizer_weight}")
        self.codec = codec
        self.kl_weight, self.reduction, self.loss = kl_weight, reduction, loss
        self.quantizer_weight = quantizer_weight
        self.health = CodebookHealth(codec.quantize) if isinstance(codec, VQModel) else None

    def settings(self) -> dict[str, Any]:
        """Loss, reduction and weights."""
        said = {"kl_weight": self.kl_weight, "reduction": self.reduction, "loss": self.loss}
        return said if self.health is None else said | {"quantizer_weight": self.quantizer_weight}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        elements = x[0].numel() if self.reduction == "mean" else 1
        x_hat, bottleneck, parts = self._reconstruct(x, step)
        if x_hat.shape != x.shape:
            raise InputError(f"the codec made {tuple(x_hat.shape)} of {tuple(x.shape)}: check in_ and out_channels")
        rec = per_sample(ERRORS[self.loss](x_hat.float(), x.float()), "sum").mean() / elements
        scaled = {"kl": parts["kl"] / elements} if "kl" in parts else parts
        return Loss(rec + bottleneck / elements, {"rec": rec.detach(), **scaled})

    def _reconstruct(self, x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor | float, Parts]:
        """x̂, the weighted loss of the bottleneck as a sum over the elements of one x, and its parts."""
        codec = self.codec
        if isinstance(codec, VQModel):
            (z,) = codec.encode(x, return_dict=False)
            quantized = codec.quantize(z)
            parts = {**quantized.parts, **self.health.of(quantized.indices, step)} if self.health else {}
            x_hat = codec.decode(quantized.values, force_not_quantize=True, return_dict=False)[0]
            return x_hat, x[0].numel() * self.quantizer_weight * quantized.loss, parts
        if isinstance(codec, AutoencoderKL):
            (posterior,) = codec.encode(x, return_dict=False)
            (x_hat,) = codec.decode(posterior.sample(), return_dict=False)
            kl = posterior.kl().mean()
            return x_hat, self.kl_weight * kl, {"kl": kl.detach()}
        (z,) = codec.encode(x, return_dict=False)
        (x_hat,) = codec.decode(z, return_dict=False)
        return x_hat, 0.0, {}


class DiffusionObjective(Objective):
    """Learn what the scheduler's prediction type says (ε, x₀, v, or the flow ε − x₀) at random times.

        x_t = α_t x₀ + σ_t ε,   total = mean_b w(t_b) · mean_elements error(network(x_t, t), target)

    with w = 1 or min-SNR-γ's weight. Schedulers with β tables draw whole timesteps 0 … T−1; flow matching draws
    σ in (0, 1), shifted as its config says (σ ← sσ/(1 + (s−1)σ)), and the network sees T·σ.

    What the network sees and is told, and what a sample weighs, are methods that subclasses override: `model_input`,
    `conditions` and `weight`, `predict` for the whole call, `compare` for its error.

    Args:
        denoiser: `denoiser(x_t, t, class_labels=…).sample`; trained. Labels are passed if its config has classes.
        scheduler: supplies `add_noise`, `training_target`, `alpha_sigma` and `prediction_type`.
        loss: `mse`, `l1` or `huber`.
        min_snr_gamma: γ of min-SNR weighting (5 in the paper); None for none.
        times: `uniform`; `antithetic` (pairs t and T−1−t, as Ho et al.'s successors do); or `logit_normal`
            (sigmoid of a Gaussian, Esser et al. 2024).
        times_mean, times_std: of that Gaussian.
        label_dropout: probability, for each sample by itself, that its label becomes the null class, the last of
            the denoiser's class embeddings (classifier-free guidance).
        key: the batch's entry that holds x₀; else `mean` and `std` of a posterior, of which each step draws anew.
        noise_offset: share of noise that is the same all over a channel, for darker and brighter pictures (0.1 with
            Stable Diffusion; Guttenberg 2023).

    Raises `InputError` for values out of range, and for ε-prediction with zero terminal SNR, where ε says
    nothing about x₀.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: SchedulerMixin,
        loss: str = "mse",
        min_snr_gamma: float | None = None,
        times: str = "uniform",
        times_mean: float = 0.0,
        times_std: float = 1.0,
        label_dropout: float = 0.0,
        key: str = "x",
        noise_offset: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, ERRORS)
        check_choice("times", times, TIMES)
        if not 0 <= label_dropout <= 1:
            raise InputError(f"label_dropout is a probability in [0, 1], got {label_dropout}")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise InputError(f"min_snr_gamma must be positive, or None for no weighting, got {min_snr_gamma}")
        self.denoiser, self.scheduler = denoiser, scheduler.fresh()
        self.loss, self.min_snr_gamma = loss, min_snr_gamma
        self.times, self.times_mean, self.times_std = times, times_mean, times_std
        self.label_dropout, self.key, self.noise_offset = label_dropout, key, noise_offset
        self.num_times = int(scheduler.config.num_train_timesteps)
        self.whole_times = isinstance(scheduler, DiffusionScheduler)
        self._check_terminal()
        config: Any = denoiser.config
        self.num_classes: int | None = config.get("num_class_embeds")
        self.conditional = self.num_classes is not None or config.get("class_embed_type") is not None
        if label_dropout and self.num_classes is None:
            raise InputError("label_dropout needs a denoiser with num_class_embeds (its last index is the null class)")

    def _check_terminal(self) -> None:
        if not self.whole_times or self.scheduler.prediction_type != "epsilon":
            return
        alpha, _ = self.scheduler.alpha_sigma(torch.tensor([self.num_times - 1]))
        if float(alpha) == 0:
            raise InputError(
                "at zero terminal SNR (rescale_betas_zero_snr) an epsilon prediction says nothing about x0: "
                "use prediction_type='v_prediction' or 'sample'"
            )

    def settings(self) -> dict[str, Any]:
        """Everything but the modules."""
        own = ("loss", "min_snr_gamma", "times", "times_mean", "times_std", "label_dropout", "key", "noise_offset")
        scheduler = {f"scheduler.{k}": v for k, v in self.scheduler.config.items()}
        return {name: getattr(self, name) for name in own} | scheduler

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x0 = self.clean(batch)
        noise = self.draw_noise(x0)
        t = self.draw_times(len(x0), x0.device)
        noisy = self.scheduler.add_noise(x0, noise, t)
        prediction = self.predict(noisy, t, batch)
        target = self.scheduler.training_target(x0, noise, t)
        return self.compare(prediction, target, self.weight(t, batch))

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> Loss:
        """The loss of a batch; a subclass may tell parts of it apart."""
        return Loss(weighted_error(prediction, target, self.loss, weight), {})

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the network says of x_t."""
        prediction: torch.Tensor = self.denoiser(self.model_input(noisy, batch), t, **self.conditions(batch)).sample
        return prediction

    def model_input(self, noisy: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the network sees: x_t; a subclass may append channels to it."""
        return noisy

    def conditions(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Further arguments of the network: its labels, if its config has classes; a subclass may add to them."""
        return {"class_labels": self.labels(take(batch, "label"))} if self.conditional else {}

    def clean(self, batch: Batch) -> torch.Tensor:
        """x₀ as given, or drawn from the posterior that was cached."""
        if self.key not in batch and "mean" in batch:
            mean = batch["mean"]
            return torch.addcmul(mean, take(batch, "std"), torch.randn_like(mean))
        return take(batch, self.key)

    def draw_noise(self, x0: torch.Tensor) -> torch.Tensor:
        """ε: independent everywhere, plus `noise_offset` times one number for each sample and channel."""
        noise = torch.randn_like(x0)
        if self.noise_offset:
            shape = (*x0.shape[:2], *(1 for _ in x0.shape[2:]))
            noise += self.noise_offset * torch.randn(shape, device=x0.device, dtype=x0.dtype)
        return noise

    def draw_times(self, batch: int, device: torch.device) -> torch.Tensor:
        """(B,) training times: whole ones int64 in 0 … T−1, continuous ones float in [0, T]."""
        if self.times == "logit_normal":
            u = torch.sigmoid(torch.randn(batch, device=device) * self.times_std + self.times_mean)
        elif self.times == "antithetic":
            half = torch.rand((batch + 1) // 2, device=device)
            u = torch.cat([half, 1 - half])[:batch]
        else:
            u = torch.rand(batch, device=device)
        if self.whole_times:
            return (u * self.num_times).long().clamp_(max=self.num_times - 1)
        config = self.scheduler.config
        shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
        return self.num_times * (shift * u / (1 + (shift - 1) * u))

    def labels(self, label: torch.Tensor) -> torch.Tensor:
        """(B,) labels, each replaced by the null class with probability `label_dropout`."""
        if not self.label_dropout or self.num_classes is None:
            return label
        dropped = torch.rand(label.shape, device=label.device) < self.label_dropout
        return torch.where(dropped, self.num_classes - 1, label)

    def weight(self, t: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        """(B,) weights of the samples, None for ones; a subclass may weigh by what the batch says."""
        if self.min_snr_gamma is None:
            return None
        alpha, sigma = self.scheduler.alpha_sigma(t)
        return min_snr_weight((alpha / sigma).square(), self.min_snr_gamma, self.scheduler.prediction_type)


class ClassificationObjective(Objective):
    """Learn labels: cross entropy of `network(x)`, logits (B, K), against `label` (B,) in 0 … K−1.

    Part: `accuracy`. Reads `x` and `label` from the batch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        label = take(batch, "label")
        logits = self.network(take(batch, "x")).float()
        accuracy = (logits.detach().argmax(1) == label).float().mean()
        return Loss(F.cross_entropy(logits, label), {"accuracy": accuracy})
