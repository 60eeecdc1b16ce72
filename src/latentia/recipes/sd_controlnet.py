"""`sd-controlnet`: steer Stable Diffusion by a second picture (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from latentia.recipes.fine_tune import FineTune, TextTarget
from latentia.recipes.parts import Optim
from latentia.recipes.recipe import Bench
from latentia.recipes.sd_finetune import DECAY
from latentia.recipes.stable_diffusion import Blueprint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latentia.core.protocols import Dataset
    from latentia.data.captions import CaptionedImages
    from latentia.pipelines.text_to_image import StableDiffusion
    from latentia.recipes.plan import Work
    from latentia.training.steering import ControlNetObjective


class ControlNetFineTune(FineTune):
    """A ControlNet beside the frozen UNet."""

    next_command: ClassVar[str] = 'pipeline = latentia.DiffusionPipeline.from_pretrained("{pipeline}")'

    phase_name: ClassVar[str] = "controlnet"

    start: str | None = Field(default=None, description="folder of a ControlNet to go on with; none copies the UNet")

    def check(self) -> None:
        """Raise for data without captions, or without pictures to steer by, too."""
        from latentia.data.captions import ConditionImages

        super().check()
        ConditionImages(self.pictures().pictures, self.image_size, self.look())

    def objective_for(self, bench: Bench, pictures: CaptionedImages) -> ControlNetObjective:
        """The ControlNet alone."""
        from latentia.denoisers.controlnet import ControlNetModel
        from latentia.recipes.fine_tune_networks import controlnet_beside
        from latentia.training.steering import ControlNetObjective

        unet, vae = bench.parts["unet"], bench.parts["vae"]
        controlnet = ControlNetModel.from_pretrained(self.start) if self.start else controlnet_beside(unet, vae)
        bench.keep("controlnet", controlnet.requires_grad_(True))
        self.freeze(bench, "text_encoder", "unet")
        if self.compile:  # the loop compiles what is trained
            unet.compile()
        return ControlNetObjective(unet, controlnet=controlnet, **self.text_options(bench))

    def training_data(self, bench: Bench, pictures: CaptionedImages) -> Dataset:
        """Latents, tokens, and the pictures to steer by, which are decoded when they are needed."""
        from latentia.data.captions import ConditionImages
        from latentia.data.joined import JoinedDataset

        conditions = ConditionImages(pictures.pictures, self.image_size, pictures.views)
        bench.keep("conditions", conditions)
        return JoinedDataset(self.encoded(bench, pictures), conditions)

    def assemble(self, parts: Mapping[str, Any]) -> StableDiffusion:
        """The pipeline with its ControlNet."""
        from latentia.pipelines.controlnet import StableDiffusionControlNetPipeline

        return StableDiffusionControlNetPipeline(**parts)

    def part_names(self, bench: Bench) -> tuple[str, ...]:
        """The base's parts and the ControlNet."""
        return (*super().part_names(bench), "controlnet")

    def preview_inputs(self, bench: Bench, pictures: CaptionedImages, count: int) -> dict[str, Any]:
        """The first pictures to steer by."""
        conditions = bench.parts["conditions"]
        rows = [i % len(conditions) for i in range(count)]
        return {"image": conditions.batch(rows)["condition"] / 255}

    def save(self, bench: Bench, parts: dict[str, Any], out: Path) -> None:
        """The base and the ControlNet as one pipeline; the ControlNet's folder is out/pipeline/controlnet."""
        self.assemble({**parts, "controlnet": bench.module("controlnet")}).save_pretrained(out / "pipeline")

    def main_work(self, base: Blueprint) -> Work:
        """The frozen UNet and the ControlNet."""
        from latentia.recipes.fine_tune_networks import SteeredUNet, controlnet_beside

        def steered() -> nn.Module:
            unet = base.unet()
            return SteeredUNet(unet, controlnet_beside(unet, base.vae()))

        def inputs(batch: int) -> tuple[torch.Tensor, ...]:
            return *self.noisy(base, batch), *self.pixels(batch)

        return self.trained_row(steered, "unet + controlnet", inputs)


def sd_controlnet() -> ControlNetFineTune:
    """A ControlNet of 361,279,120 parameters beside the frozen UNet, at 512×512.

    Command: latentia train sd-controlnet base=FOLDER data=FOLDER --out runs/sd-controlnet
    Cost:    206 PFLOP and 12 GB: about 40 A100-minutes of computing. No task for 2 CPU cores.
    Expect:  within 10,000 steps it follows the picture, all at once (the paper's "sudden convergence"); no score is
             published for these 50,000 circles.

    `data` is a folder whose metadata.jsonl names for each `file_name` its `text` and its `conditioning_image` (edges,
    a pose, …), or `hf:NAME` with these columns. The picture to steer by is cropped and mirrored as its picture is.

    Source: Zhang et al. 2023 (lr 1e-5, half of the captions dropped) and Diffusers' controlnet example (batch 4).
    """
    return ControlNetFineTune(
        name="sd-controlnet",
        data="hf:fusing/fill50k",
        steps=15_000,
        batch_size=4,
        objective=TextTarget(caption_dropout=0.5),
        optim=Optim(lr=1e-5, weight_decay=DECAY),
        precision="bf16",
        log_every=50,
    )
