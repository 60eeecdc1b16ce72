"""DenoisingRecipe: what every diffusion recipe shares, whether the UNet sees pixels or latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from latentia.recipes.parts import Average, Noise, Optim, Target, UNet
from latentia.recipes.recipe import Bench, Recipe, use_average
from latentia.recipes.sources import class_names, open_data

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Dataset
    from latentia.pipelines.image_pipeline import ImagePipeline
    from latentia.training.phase import Phase, PhaseResult


class DenoisingRecipe(Recipe):
    """Abstract: images from somewhere, with or without classes; the main phase, `unet`, trains a denoiser."""

    data: str = Field(description="digits, photos, hf:NAME, or a folder of images (of class folders)")
    image_size: PositiveInt = Field(description="pixels a side")
    image_channels: PositiveInt = Field(default=3, description="1 (grey) or 3 (RGB)")
    num_classes: NonNegativeInt = Field(default=0, description="classes that the UNet is told; 0 is unconditional")
    unet: UNet = Field(description="the denoiser")
    objective: Target = Field(default=Target(), description="what is minimised")
    noise: Noise = Field(default=Noise(), description="the diffusion process")
    optim: Optim = Field(default=Optim(), description="optimizer of the UNet")
    ema: Average = Field(default=Average(), description="average of the UNet's weights")

    @model_validator(mode="after")
    def _labels_to_drop(self) -> Self:
        self.objective.check_classes(self.num_classes)
        return self

    def images(self, split: str = "train") -> Dataset:
        """The real images, as `{"x": (N, C, H, W) in [-1, 1]}` and `label` when there are classes."""
        return open_data(self.data, split, self.image_size, self.image_channels, num_classes=self.num_classes)

    @abstractmethod
    def pipeline(self, bench: Bench) -> ImagePipeline:
        """The weights as they are now, and a sampler."""

    def denoising_phase(self, bench: Bench, images: Dataset, data: Dataset, size: int, channels: int) -> Phase:
        """Train the denoiser on `data`, (channels, size, size) each, which was made of `images`."""
        from latentia.training.phase import Phase

        bench.keep("id2label", class_names(images) if self.num_classes else None)
        unet = bench.keep("unet", self.unet.build(size, channels, self.num_classes))
        scheduler = bench.keep("scheduler", self.noise.build())
        return Phase(
            name="unet",
            objective=self.objective.build(unet, scheduler),
            data=data,
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
            preview=lambda: self.preview(bench),
        )

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
        """Save the pipeline with averaged weights."""
        use_average(results["unet"])
        self.pipeline(bench).save_pretrained(out / "pipeline")
