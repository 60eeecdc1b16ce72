"""PixelDiffusion: the recipe of Ho et al. 2020, a UNet on the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from latentia.recipes.denoising import DenoisingRecipe
from latentia.recipes.parts import Noise
from latentia.recipes.recipe import Bench
from latentia.recipes.sources import open_data

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Dataset
    from latentia.pipelines.pixel import DDPMPipeline
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase


class PixelDiffusion(DenoisingRecipe):
    """One phase, `unet`, on images in [-1, 1]."""

    flip: bool = Field(default=False, description="mirror each image with probability one half")
    noise: Noise = Field(default=Noise(clip_sample=True), description="the diffusion process")

    def images(self, split: str = "train") -> Dataset:
        """The real images, mirrored at random when they are to be trained on and `flip` is set."""
        size, channels, flip = self.image_size, self.image_channels, self.flip and split == "train"
        return open_data(self.data, split, size, channels, num_classes=self.num_classes, flip=flip)

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`unet` alone."""
        return [("unet", lambda: self.unet_phase(bench))]

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on the images."""
        images = self.images()
        return self.denoising_phase(bench, images, images, self.image_size, self.image_channels)

    def pipeline(self, bench: Bench) -> DDPMPipeline:
        """UNet and the scheduler it was trained with; the weights as they are now."""
        from latentia.pipelines.pixel import DDPMPipeline

        unet, scheduler = bench.module("unet"), bench.parts["scheduler"]
        return DDPMPipeline(unet=unet, scheduler=scheduler, id2label=bench.parts.get("id2label"))

    def work(self) -> list[Work]:
        """The UNet's training."""
        import torch

        from latentia.recipes.plan import Work

        def noisy(batch: int) -> tuple[torch.Tensor, ...]:
            labels = (torch.zeros(batch, dtype=torch.long),) if self.num_classes else ()
            return (
                torch.zeros(batch, self.image_channels, self.image_size, self.image_size),
                torch.zeros(batch),
                *labels,
            )

        unet = partial(self.unet.build, self.image_size, self.image_channels, self.num_classes)
        seen, micro = self.steps * self.batch_size, self.batch_size // self.accumulate
        return [Work("unet", "unet", unet, noisy, seen, self.batch_size, micro, averaged=self.ema.decay > 0)]
