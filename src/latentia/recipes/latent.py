"""LatentDiffusion: the recipe of Rombach et al. 2022, whatever the data and the sizes.

images ─▶ codec (trained here, or given as a folder) ─▶ latents of unit variance ─▶ UNet, averaged
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from latentia.recipes.denoising import DenoisingRecipe
from latentia.recipes.parts import TrainedKL
from latentia.recipes.recipe import Bench
from latentia.recipes.sources import PUBLISHED_SIZES, codec_like, load_codec

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Batch, Dataset
    from latentia.pipelines.latent import LatentDiffusionPipeline
    from latentia.recipes.plan import Work
    from latentia.training.latents import AnyCodec
    from latentia.training.phase import Phase


class LatentDiffusion(DenoisingRecipe):
    """Two phases: `vae` (skipped when `codec` is given), then `unet` on its latents."""

    codec: str | None = Field(default=None, description="folder of a trained first stage; none trains `vae` first")
    vae: TrainedKL = Field(description="the first stage that is trained when no codec is given")
    cache: bool = Field(default=True, description="encode the data once, not in every step")
    center: bool = Field(default=False, description="shift latents to mean 0 too (LDM only scales them)")

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`vae` unless a codec is given, then `unet`."""
        main = ("unet", lambda: self.unet_phase(bench))
        return [main] if self.codec else [("vae", lambda: self.vae_phase(bench)), main]

    def vae_phase(self, bench: Bench) -> Phase:
        """Train the KL-autoencoder on the images."""
        from latentia.training.objectives import ReconstructionObjective
        from latentia.training.phase import Phase

        vae = bench.keep("vae", self.vae.build(self.image_size, self.image_channels))
        return Phase(
            name="vae",
            objective=ReconstructionObjective(vae, self.vae.kl_weight, self.vae.reduction, self.vae.loss),
            data=self.images(),
            steps=self.vae.steps,
            batch_size=self.vae.batch_size,
            optim=self.vae.optim.build(),
        )

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on the codec's latents, rescaled to unit variance."""
        images = self.images()
        codec = bench.keep("codec", self.first_stage(bench, images))
        channels, size = codec.latent_shape((self.image_channels, self.image_size, self.image_size))[:2]
        return self.denoising_phase(bench, images, self.latents(codec, images), size, channels)

    def first_stage(self, bench: Bench, images: Dataset) -> AnyCodec:
        """The codec, frozen; one trained here is scaled by 1/std of the data's latents (LDM's rule)."""
        from latentia.training.latents import measure_scale

        if self.codec:
            return load_codec(self.codec).to(bench.device).requires_grad_(False).eval()
        codec = bench.parts["vae"].to(bench.device).requires_grad_(False).eval()
        codec.set_scale(*measure_scale(codec, images, center=self.center))
        return codec

    def latents(self, codec: AnyCodec, images: Dataset) -> Dataset:
        """What the UNet learns: posteriors encoded once, or images encoded when they are needed."""
        if not self.cache:
            return EncodedDataset(codec, images, self.seed)
        from latentia.training.latents import cache_latents

        return cache_latents(codec, images, batch_size=self.vae.batch_size, seed=self.seed)

    def pipeline(self, bench: Bench) -> LatentDiffusionPipeline:
        """Codec, UNet and a DDIM sampler; the weights as they are now."""
        from latentia.pipelines.latent import LatentDiffusionPipeline
        from latentia.schedulers.ddim import DDIMScheduler

        sampler = DDIMScheduler.from_config(bench.parts["scheduler"].config, timestep_spacing="trailing")
        codec, unet, names = bench.module("codec"), bench.module("unet"), bench.parts.get("id2label")
        return LatentDiffusionPipeline(vae=codec, unet=unet, scheduler=sampler, id2label=names)

    def work(self) -> list[Work]:
        """The codec's training (or not), its encoding of the data, the UNet's training."""
        import torch

        from latentia.recipes.plan import Work

        size, channels = self.image_size, self.image_channels
        trained = not self.codec
        codec = partial(self.vae.build, size, channels) if trained else partial(codec_like, str(self.codec))
        with torch.device("meta"):
            latent_channels, side, _ = codec().latent_shape((channels, size, size))
        seen = self.steps * self.batch_size

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, channels, size, size),)

        def noisy(batch: int) -> tuple[torch.Tensor, ...]:
            labels = (torch.zeros(batch, dtype=torch.long),) if self.num_classes else ()
            return torch.zeros(batch, latent_channels, side, side), torch.zeros(batch), *labels

        first = self.vae.steps * self.vae.batch_size, self.vae.batch_size, self.vae.batch_size
        encoded = self.num_images() if self.cache else seen
        micro = self.batch_size // self.accumulate
        encode = Work("unet", "codec", codec, images, encoded, micro, micro, trained=False, call=encode_only)
        unet = partial(self.unet.build, side, latent_channels, self.num_classes)
        main = Work("unet", "unet", unet, noisy, seen, self.batch_size, micro, averaged=self.ema.decay > 0)
        return [*([Work("vae", "codec", codec, images, *first)] if trained else []), encode, main]

    def num_images(self) -> int:
        """How many images there are, for the dry run: as published, or counted; 0 for what may have to be fetched."""
        if self.data in PUBLISHED_SIZES or self.data.startswith("hf:"):
            return PUBLISHED_SIZES.get(self.data, 0)
        return len(self.images())


def encode_only(codec: AnyCodec, x: torch.Tensor) -> torch.Tensor:
    """x → z, which is all that the UNet's phase asks of the codec."""
    return codec.to_latents(x)


class EncodedDataset:
    """Images of another data set as latents, encoded when they are asked for.

    `{"x": z (B, c, h, w)}` with everything else as it was. The posterior sample of image i is always the same one.
    """

    def __init__(self, codec: AnyCodec, images: Dataset, seed: int = 0) -> None:
        self.codec, self.images, self.seed = codec, images, seed

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The latents of the images at `indices`."""
        import torch

        from latentia.core.rng import sample_generators

        batch = dict(self.images.batch(indices))
        generators = sample_generators(self.seed, [int(i) for i in indices])
        with torch.no_grad():
            batch["x"] = self.codec.to_latents(batch["x"].to(self.codec.device), generators)
        return batch
