"""PixelDiffusion: the recipe of Ho et al. 2020, a UNet on the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from latentia.recipes.parts import Average, Noise, Optim, Target, UNet
from latentia.recipes.recipe import Bench, Recipe, use_average
from latentia.recipes.sources import class_names, open_data

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Dataset
    from latentia.pipelines.pixel import DDPMPipeline
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult


class PixelDiffusion(Recipe):
    """One phase, `unet`, on images in [-1, 1]."""

    data: str = Field(description="digits, photos, hf:NAME, or a folder of images (of class folders)")
    image_size: PositiveInt = Field(description="pixels a side")
    image_channels: PositiveInt = Field(default=3, description="1 (grey) or 3 (RGB)")
    flip: bool = Field(default=False, description="mirror each image with probability one half")
    num_classes: NonNegativeInt = Field(default=0, description="classes that the UNet is told; 0 is unconditional")
    unet: UNet = Field(description="the denoiser")
    objective: Target = Field(default=Target(), description="what is minimised")
    noise: Noise = Field(default=Noise(clip_sample=True), description="the diffusion process")
    optim: Optim = Field(default=Optim(), description="optimizer")
    ema: Average = Field(default=Average(), description="average of the weights")

    @model_validator(mode="after")
    def _labels_to_drop(self) -> Self:
        self.objective.check_classes(self.num_classes)
        return self

    def images(self, split: str = "train") -> Dataset:
        """The real images, as `{"x": (N, C, H, W) in [-1, 1]}` and `label` when there are classes."""
        size, channels, flip = self.image_size, self.image_channels, self.flip and split == "train"
        return open_data(self.data, split, size, channels, num_classes=self.num_classes, flip=flip)

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`unet` alone."""
        return [("unet", lambda: self.unet_phase(bench))]

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on the images."""
        from latentia.training.phase import Phase

        images = self.images()
        bench.keep("id2label", class_names(images) if self.num_classes else None)
        unet = bench.keep("unet", self.unet.build(self.image_size, self.image_channels, self.num_classes))
        scheduler = bench.keep("scheduler", self.noise.build())
        return Phase(
            name="unet",
            objective=self.objective.build(unet, scheduler),
            data=images,
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
            preview=lambda: self.preview(bench),
        )

    def pipeline(self, bench: Bench) -> DDPMPipeline:
        """UNet and the scheduler it was trained with; the weights as they are now."""
        from latentia.pipelines.pixel import DDPMPipeline

        unet, scheduler = bench.module("unet"), bench.parts["scheduler"]
        return DDPMPipeline(unet=unet, scheduler=scheduler, id2label=bench.parts.get("id2label"))

    def preview(self, bench: Bench) -> torch.Tensor:
        """Sixteen pictures (16, C, H, W) by DDIM-20 from the present weights, for the training log."""
        from latentia.pipelines.distributed import sample_sharded
        from latentia.schedulers.ddim import DDIMScheduler

        pipe = self.pipeline(bench)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        pipe.set_progress_bar_config(disable=True)
        labels = [i % self.num_classes for i in range(16)] if self.num_classes else None
        return sample_sharded(pipe, 16, seed=self.seed, class_labels=labels, num_inference_steps=20) * 2 - 1

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the averaged UNet and scheduler as a pipeline."""
        use_average(results["unet"])
        self.pipeline(bench).save_pretrained(out / "pipeline")

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
