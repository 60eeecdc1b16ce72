"""The protocol by which every codec of this project is judged, and what image formats reach at the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.evaluating import evaluating
from latentia.core.images import from_pil, to_pil
from latentia.core.protocols import Codec, FeatureNetwork, TokenCodec
from latentia.core.rng import sample_generators
from latentia.errors import InputError
from latentia.metrics.evaluate import evaluate_reconstruction
from latentia.metrics.frechet import frechet
from latentia.metrics.image_formats import FORMATS, compress
from latentia.metrics.lpips import Distance, perceptual_distance
from latentia.metrics.measurement import Measurement

if TYPE_CHECKING:
    from latentia.codecs.quantizers.quantizer import Usage

PROTOCOL = (
    "Pictures in [-1, 1], float32, as the data set gives them: squares, cropped from the centre and resized (bicubic, "
    "antialiased) where they come from a folder; tiles of photographs are neither. Reconstructions are clipped to "
    "[-1, 1] and not rounded to 8 bits. psnr: peak 2, the mean over pictures of each one's; psnr_pooled: of the mean "
    "squared error of all (FlowMo's code pools batches of 5). ssim: Gaussian window of 11 pixels, σ 1.5, mean over "
    "channels. frechet_R: Fréchet distance of the features of ruler R between reconstructions and the same originals. "
    "Bits: tokens · log2 K over pixels, without entropy coding and without a header. A decoder that samples draws "
    "picture i from (seed, i)."
)
"""Said once, quoted by every report."""


@dataclass(frozen=True, slots=True)
class CodecNumbers:
    """How well pictures come back.

    Attributes:
        n: pictures.
        bits_per_pixel: None for a codec without tokens.
        psnr, psnr_pooled: dB.
        ssim: None for pictures smaller than its window.
        frechet: distances by ruler, `frechet_digits`, …
        perceptual: `lpips-vgg`, …: mean distance by network.
        usage: perplexity, ceiling, used, codes; None without tokens.
        encode_seconds, decode_seconds: a picture, wall time of this run.
        seed: of decoders that sample.
    """

    n: int
    bits_per_pixel: float | None
    psnr: float
    psnr_pooled: float
    ssim: float | None
    frechet: dict[str, float] = field(default_factory=dict)
    perceptual: dict[str, float] = field(default_factory=dict)
    usage: dict[str, float] | None = None
    encode_seconds: float = math.nan
    decode_seconds: float = math.nan
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def measurements(self) -> list[Measurement]:
        """The numbers one by one, each with its n."""
        values: dict[str, float | None] = {"psnr": self.psnr, "psnr_pooled": self.psnr_pooled, "ssim": self.ssim}
        values |= {"bits_per_pixel": self.bits_per_pixel} | self.frechet | self.perceptual
        if self.usage is not None:
            values |= {"code_perplexity": self.usage["perplexity"], "codes_used": self.usage["used"]}
        return [Measurement(name, v, self.n, self.n, self.seed) for name, v in values.items() if v is not None]


def evaluate_codec(
    codec: Codec,
    pictures: torch.Tensor,
    rulers: Sequence[FeatureNetwork] = (),
    distances: Sequence[Distance] = (),
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[CodecNumbers, torch.Tensor]:
    """Send pictures (N, C, H, W) in [-1, 1] there and back: the numbers, and the reconstructions (N, C, H, W).

    A posterior is decoded from its mode, tokens from themselves. See `PROTOCOL`. Raises `InputError` for no pictures.
    """
    if pictures.ndim != 4 or not len(pictures):
        raise InputError(f"needs pictures (N, C, H, W), got {tuple(pictures.shape)}")
    assert isinstance(codec, torch.nn.Module)
    back, tokens, encoding, decoding = [], [], 0.0, 0.0
    like = next(codec.parameters())
    with evaluating([codec]), torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            x = pictures[start : start + batch_size].to(like.device, like.dtype)
            began = time.perf_counter()
            if isinstance(codec, TokenCodec):
                tokens.append(codec.to_tokens(x))
                between = time.perf_counter()
                y = codec.from_tokens(tokens[-1], generator=sample_generators(seed, range(start, start + len(x))))
            else:
                between = time.perf_counter()
                y = codec(x).sample
            back.append(y.float().cpu().clamp(-1, 1))
            encoding, decoding = encoding + between - began, decoding + time.perf_counter() - between
    y = torch.cat(back)
    usage = usage_of(codec, torch.cat(tokens)) if isinstance(codec, TokenCodec) else None
    numbers = judge_pictures(pictures, y, rulers, distances)
    shape = tuple(pictures.shape[1:])
    bits = codec.bits(shape) / (shape[1] * shape[2]) if isinstance(codec, TokenCodec) else None
    return CodecNumbers(
        **numbers,
        bits_per_pixel=bits,
        usage=None if usage is None else asdict(usage),
        encode_seconds=encoding / len(pictures),
        decode_seconds=decoding / len(pictures),
        seed=seed,
    ), y


def judge_pictures(
    x: torch.Tensor, y: torch.Tensor, rulers: Sequence[FeatureNetwork] = (), distances: Sequence[Distance] = ()
) -> dict[str, Any]:
    """Reconstructions y of pictures x (N, C, H, W), whatever made them: what `CodecNumbers` says of them."""
    report = evaluate_reconstruction(x, y)
    found = [frechet(ruler, x, y) for ruler in rulers]
    apart = [perceptual_distance(distance, x, y) for distance in distances]
    return {
        "n": len(x),
        "psnr": report["psnr"].value,
        "psnr_pooled": report["psnr_pooled"].value,
        "ssim": report["ssim"].value if "ssim" in report else None,
        "frechet": {each.name: each.value for each in found},
        "perceptual": {each.name: each.value for each in apart},
    }


def usage_of(codec: TokenCodec, tokens: torch.Tensor) -> Usage:
    """How evenly tokens (N, …) spread over the codec's codes."""
    from latentia.codecs.quantizers.quantizer import Usage

    return Usage.of_counts(tokens.flatten().unique(return_counts=True)[1], codec.num_codes)


def evaluate_formats(
    pictures: torch.Tensor,
    bits_per_pixel: float,
    rulers: Sequence[FeatureNetwork] = (),
    distances: Sequence[Distance] = (),
    headers: bool = True,
    names: Sequence[str] = FORMATS,
) -> dict[str, dict[str, Any]]:
    """What JPEG, WebP and AVIF make of the same pictures with at most the same bits for each picture.

    By name: the fields of `judge_pictures`, `bits_per_pixel` and `bits_per_pixel_with_headers` (means of what was
    spent) and `fits`, the share of pictures that kept the budget; the others are the smallest that the format makes.
    """
    budget = bits_per_pixel * pictures.shape[-1] * pictures.shape[-2] / 8
    channels, pixels = pictures.shape[1], pictures.shape[-1] * pictures.shape[-2]
    originals = to_pil(pictures)
    rows = {}
    for name in names:
        made = [compress(each, name, budget, headers) for each in originals]
        back = torch.cat([from_pil([each.picture], channels) for each in made])
        rows[name] = judge_pictures(pictures, back, rulers, distances) | {
            "bits_per_pixel": 8 * sum(each.bytes if headers else each.payload for each in made) / len(made) / pixels,
            "bits_per_pixel_with_headers": 8 * sum(each.bytes for each in made) / len(made) / pixels,
            "fits": sum(each.fits for each in made) / len(made),
        }
    return rows
