"""`sd-inpaint`: teach Stable Diffusion to repaint what a mask covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from latentia.recipes.fine_tune import FineTune, TextTarget
from latentia.recipes.parts import Average, Fraction, Optim
from latentia.recipes.recipe import Bench
from latentia.recipes.sd_finetune import DECAY, NARUTO
from latentia.recipes.stable_diffusion import Blueprint

if TYPE_CHECKING:
    from torch import nn

    from latentia.core.protocols import Dataset
    from latentia.data.captions import CaptionedImages
    from latentia.pipelines.text_to_image import StableDiffusion
    from latentia.recipes.plan import Work
    from latentia.training.steering import InpaintingObjective


class InpaintFineTune(FineTune):
    """The whole UNet, which also sees a mask and what it leaves of the picture."""

    next_command: ClassVar[str] = 'latentia inpaint {pipeline} picture.png mask.png --prompt "..." --out filled.png'

    cover: Fraction = Field(default=0.25, description="share of masks that cover everything")

    def input_channels(self, latent_channels: int) -> tuple[int, ...]:
        """A plain UNet, which is widened, or one for inpainting, which goes on."""
        return (latent_channels, 2 * latent_channels + 1)

    def objective_for(self, bench: Bench, pictures: CaptionedImages) -> InpaintingObjective:
        """The UNet, widened if need be by weights of zero."""
        from latentia.training.steering import InpaintingObjective, widened

        vae = bench.parts["vae"]
        unet = widened(bench.parts["unet"], 2 * vae.config.latent_channels + 1)
        bench.keep("unet", unet.requires_grad_(True))
        self.freeze(bench, "text_encoder")
        return InpaintingObjective(unet, vae=vae, cover=self.cover, **self.text_options(bench))

    def training_data(self, bench: Bench, pictures: CaptionedImages) -> Dataset:
        """Pixels, of which each step encodes what its masks leave, tokens, and cached latents if there are any."""
        from latentia.data.joined import JoinedDataset

        if not self.cache:
            return pictures.called("pixels")
        return JoinedDataset(self.encoded(bench, pictures), pictures.alone("pixels"))

    def assemble(self, parts: Mapping[str, Any]) -> StableDiffusion:
        """The inpainting pipeline."""
        from latentia.pipelines.inpaint import StableDiffusionInpaintPipeline

        return StableDiffusionInpaintPipeline(**parts)

    def preview_inputs(self, bench: Bench, pictures: CaptionedImages, count: int) -> dict[str, Any]:
        """The first pictures, and masks that stay the same from preview to preview."""
        import torch

        from latentia.data.masks import random_masks

        rows = [i % len(pictures) for i in range(count)]
        generator = torch.Generator().manual_seed(self.seed)
        masks = random_masks(count, self.image_size, self.image_size, cover=0, generator=generator)
        return {"image": pictures.alone("x").batch(rows)["x"] / 2 + 0.5, "mask_image": masks}

    def save(self, bench: Bench, parts: dict[str, Any], out: Path) -> None:
        """The base with the new UNet."""
        self.assemble({**parts, "unet": bench.module("unet")}).save_pretrained(out / "pipeline")

    def encoding_work(self, base: Blueprint) -> Work:
        """Pictures into latents, and in every step what the masks leave of them."""
        row = super().encoding_work(base)
        return replace(row, samples=row.samples + self.seen)

    def main_work(self, base: Blueprint) -> Work:
        """The widened UNet."""
        from latentia.recipes.fine_tune_networks import masked
        from latentia.training.steering import widened

        def wide() -> nn.Module:
            return widened(base.unet(), 2 * base.vae().config.latent_channels + 1)

        return self.trained_row(wide, "unet", lambda n: self.noisy(base, n), call=masked)


def sd_inpaint() -> InpaintFineTune:
    """Stable Diffusion for inpainting: a UNet of 9 input channels, 859,535,364 parameters, at 512×512.

    Command: latentia train sd-inpaint base=FOLDER data=FOLDER --out runs/sd-inpaint
    Cost:    0.85 EFLOP and 22 GB: about 2.5 A100-hours of computing. No task for 2 CPU cores.
    Expect:  the authors' model has FID 1.00 and LPIPS 0.141 on Places at 512×512 (their model card, from memory), after
             440,000 steps of 2048 pictures; this is a four-thousandth of that.

    A base of 4 input channels is widened by weights of zero, so that training starts from what it paints; one of 9
    goes on. Masks are rectangles and strokes, new in every step; a quarter cover everything. Data as for `sd-finetune`.

    Source: the authors' inpainting model (440,000 steps from v1-2, batch 2048, lr to 7.5e-5); step number, batch and
    rate here are those of `sd-finetune`.
    """
    return InpaintFineTune(
        name="sd-inpaint",
        data=NARUTO,
        steps=15_000,
        batch_size=16,
        accumulate=4,
        objective=TextTarget(caption_dropout=0.1),
        optim=Optim(lr=1e-5, warmup=500, weight_decay=DECAY),
        ema=Average(decay=0.9999),
        precision="bf16",
        log_every=50,
    )
