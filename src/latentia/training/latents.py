"""Encode a dataset once: latents (or their posteriors) in memory, and the scale that gives them unit variance."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.core.arguments import check_count
from latentia.core.protocols import Batch, Dataset
from latentia.core.rng import derive_seed, sample_generators
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError

AnyCodec = Autoencoder | AutoencoderKL | VQModel


def cache_latents(
    codec: AnyCodec, data: Dataset, batch_size: int = 64, seed: int = 0, samples: int | None = None
) -> TensorDataset:
    """The dataset as the prior sees it: `x` replaced by shifted and scaled latents, all else kept, on the CPU.

    A codec with a posterior leaves `mean` and `std` (N, c, h, w), from which `DiffusionObjective` draws a fresh
    z = mean + std·ε in every step, as encoding on the fly would; one without leaves `x`, which is continuous for a
    vector-quantised codec too: its decoder quantises.

    Args:
        codec: used in eval mode, without gradients, on its own device.
        data: batches with `x` (B, C, H, W) in [-1, 1].
        batch_size: samples encoded at once; changes nothing but speed and memory.
        seed: of the draws, with `samples`.
        samples: instead of posteriors store this many draws of each sample (N·samples rows `x`); draw j of sample i
            is a function of (seed, i, j).
    """
    check_count("batch_size", batch_size)
    if samples is not None:
        check_count("samples", samples)
    rows: list[dict[str, torch.Tensor]] = []
    for start, batch, mean, std in encoded(codec, data, batch_size):
        scale = latent_scale(codec, mean)
        mean, std = codec.scale_latents(mean), std if std is None else std * scale
        kept = {name: value for name, value in batch.items() if name != "x"}
        if std is None:
            rows.append({"x": mean.cpu(), **kept})
        elif samples is None:
            rows.append({"mean": mean.cpu(), "std": std.cpu(), **kept})
        else:
            for j in range(samples):
                generators = sample_generators(derive_seed("cache", seed, j), range(start, start + len(mean)))
                noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
                rows.append({"x": torch.addcmul(mean, std, noise.to(mean)).cpu(), **kept})
    return TensorDataset({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def measure_scale(
    codec: AnyCodec, data: Dataset, batch_size: int = 64, limit: int = 4096, center: bool = False
) -> tuple[float, float]:
    """(shift, scale) such that (z − shift)·scale has unit standard deviation over all elements.

    Latent diffusion's rule is scale = 1/std of every element of one batch of posterior samples, shift 0. Here
    up to `limit` samples count, evenly spread over the dataset, and the posterior's variance is added in closed form,
    Var z = Var mean + E std², so nothing is drawn. Pass the pair to `codec.set_scale`.

    Args:
        codec: its raw latents are measured; its present scale does not matter.
        data: batches with `x`.
        batch_size: samples encoded at once.
        limit: most samples to encode.
        center: also measure the shift (the mean over all elements).

    Raises `InputError` for latents that do not vary or are not finite.
    """
    check_count("limit", limit)
    count, total, squares, within = 0, 0.0, 0.0, 0.0
    for _, _, mean, std in encoded(codec, data, batch_size, limit):
        wide = mean.double()
        count += wide.numel()
        total += float(wide.sum())
        squares += float(wide.square().sum())
        within += 0.0 if std is None else float(std.double().square().sum())
    average = total / count
    variance = squares / count - average**2 + within / count
    if not math.isfinite(variance) or variance <= 0:
        raise InputError(f"the latents have variance {variance} over {count} elements: is the codec trained?")
    return (average if center else 0.0), variance**-0.5


def encoded(
    codec: AnyCodec, data: Dataset, batch_size: int, limit: int | None = None
) -> Iterator[tuple[int, Batch, torch.Tensor, torch.Tensor | None]]:
    """(first row, batch, mean, std or None) of raw latents, in order; of `limit` samples if given."""
    if len(data) < 1:
        raise InputError("the dataset is empty: there is nothing to encode")
    chosen = range(0, len(data), max(1, math.ceil(len(data) / limit)) if limit else 1)
    with evaluating(codec), torch.no_grad():
        for start in range(0, len(chosen), batch_size):
            batch = data.batch(list(chosen[start : start + batch_size]))
            x = batch["x"].to(codec.device, codec.dtype)
            if isinstance(codec, AutoencoderKL):
                (posterior,) = codec.encode(x, return_dict=False)
                yield start, batch, posterior.mean.float(), posterior.std.float()
            elif isinstance(codec, Autoencoder | VQModel):
                (z,) = codec.encode(x, return_dict=False)
                yield start, batch, z.float(), None
            else:
                raise InputError(f"can encode with Autoencoder, AutoencoderKL or VQModel, got {type(codec).__name__}")


def latent_scale(codec: AnyCodec, z: torch.Tensor) -> torch.Tensor:
    """The factor that `scale_latents` multiplies with, (1, c, 1, 1), in z's dtype."""
    zero = torch.zeros(1, z.shape[1], 1, 1, dtype=torch.float64, device=z.device)
    return (codec.scale_latents(zero + 1) - codec.scale_latents(zero)).to(z.dtype)


@contextmanager
def evaluating(codec: AnyCodec) -> Iterator[None]:
    """The codec in eval mode, afterwards as it was."""
    was_training = codec.training
    codec.eval()
    try:
        yield
    finally:
        codec.train(was_training)
