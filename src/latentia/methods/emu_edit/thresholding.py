"""Sequential edit thresholding: what an edit hardly changed stays, so that many turns do not wear a picture out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from latentia.core.arguments import check_number
from latentia.errors import InputError, check_choice

FILTERS = ("gaussian", "box", "none")
REDUCTIONS = ("mean", "sum", "max")
REFERENCE_SIDE, REFERENCE_SIGMA = 512, 2.0
"""The default low-pass: a deviation of 2 pixels where the longer side has 512, in proportion elsewhere."""


@dataclass(frozen=True, slots=True)
class Thresholding:
    """Keep a pixel of the picture before the turn where the change is small (Sheynin et al. 2023):

        d = ‖c^{s+1} − c^s‖₁ over RGB, a pixel;  d̄ = lowpass(d);  c^{s+1}(p) ← c^s(p) where d̄(p) < α

    A choice pixel by pixel, no blend: α = 0 keeps everything that is new, and a turn of which d < α everywhere changes
    nothing. What the article leaves open is an option here.

    Attributes:
        alpha: α, in units of pictures in [0, 1]. The article's 0.03 is below what many codecs lose on the way there
            and back: see `calibrated`.
        filter: the low-pass: `gaussian`, `box` (of the same variance), `none`.
        sigma: its deviation in pixels; None: 2 pixels at 512.
        reduction: over the three channels: `mean`, `sum` or `max` of the differences.

    Raises `UnknownChoiceError` and `InputError` for values that are none of these.
    """

    alpha: float = 0.03
    filter: str = "gaussian"
    sigma: float | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0.0, advice="0.03")
        check_choice("filter", self.filter, FILTERS)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if self.sigma is not None:
            check_number("sigma", self.sigma, 0.0, advice="2")

    def distance(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """d̄ (B, 1, H, W) of two batches of pictures (B, 3, H, W) in [-1, 1]; as wide as [0, 1] pictures differ."""
        if before.shape != after.shape or before.ndim != 4:
            raise InputError(
                f"pictures before and after must be (B, C, H, W) of one shape, got {tuple(before.shape)} and "
                f"{tuple(after.shape)}"
            )
        differences = (after.float() - before.float()).abs() / 2
        if self.reduction == "max":
            d = differences.amax(1, keepdim=True)
        else:
            d = differences.sum(1, keepdim=True) if self.reduction == "sum" else differences.mean(1, keepdim=True)
        return self._lowpass(d)

    def keeps(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Which pixels stay as before: bool (B, 1, H, W)."""
        return self.distance(before, after) < self.alpha

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Pictures before and after a turn (B, 3, H, W) in [-1, 1] → the turn's result, every pixel one of the two."""
        return torch.where(self.keeps(before, after), before, after)

    def arrays(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The same for two pictures uint8 (H, W, 3)."""
        kept = self.keeps(_tensor(before), _tensor(after))[0, 0].numpy()
        return np.where(kept[..., None], before, after)

    @torch.no_grad()
    def calibrated(
        self,
        pictures: torch.Tensor,
        codec: Any = None,
        again: torch.Tensor | None = None,
        quantile: float = 0.99,
    ) -> "Thresholding":
        """These settings with the α that passes over what changes although nothing was edited.

        Args:
            pictures: (B, 3, H, W) in [-1, 1].
            codec: its round trip x → z → x̂ is what may be lost; a sampled posterior is drawn as encoding draws it.
            again: instead of a codec, the pictures as they come back from an editor that should have left them alone.
            quantile: share of all pixels whose d̄ is to stay below α.

        Raises `InputError` unless exactly one of `codec` and `again` is given.
        """
        check_number("quantile", quantile, 0.0, 1.0, advice="0.99")
        if (codec is None) == (again is None):
            raise InputError("calibrate against either codec= or again=, the pictures as they came back")
        if again is None:
            again = codec.from_latents(codec.to_latents(pictures.to(codec.device))).to(pictures).clamp(-1, 1)
        ordered = self.distance(pictures, again).flatten().sort().values
        last = ordered.cpu()[math.ceil(quantile * (len(ordered) - 1))]
        return replace(self, alpha=float(torch.nextafter(last, torch.tensor(math.inf))))

    def _lowpass(self, d: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) smoothed; weights are not negative and sum to one, pictures go on as their edge does."""
        sides = d.shape[-2:]
        sigma = max(sides) * REFERENCE_SIGMA / REFERENCE_SIDE if self.sigma is None else self.sigma
        kernel = lowpass_kernel(self.filter, sigma)
        if len(kernel) == 1:
            return d
        weights, reach = torch.tensor(kernel, dtype=d.dtype, device=d.device), len(kernel) // 2
        wide = F.conv2d(F.pad(d, (reach, reach, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
        return F.conv2d(F.pad(wide, (0, 0, reach, reach), mode="replicate"), weights.view(1, 1, -1, 1))


def lowpass_kernel(name: str, sigma: float) -> Sequence[float]:
    """An odd number of weights that sum to one, of about deviation `sigma` pixels; one weight: no low-pass."""
    if name == "none" or sigma == 0:
        return (1.0,)
    if name == "box":
        side = 2 * round((math.sqrt(12 * sigma**2 + 1) - 1) / 2) + 1  # (n² − 1)/12 is the variance of n equal weights
        return (1 / side,) * side
    reach = math.ceil(3 * sigma)
    raw = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    return tuple(weight / sum(raw) for weight in raw)


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
