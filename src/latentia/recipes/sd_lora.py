"""`sd-lora`: low-rank adapters for Stable Diffusion (Hu et al. 2021)."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from latentia.recipes.parts import Average, Optim
from latentia.recipes.sd_finetune import DECAY, NARUTO, Lora, TextFineTune


class LoraFineTune(TextFineTune):
    """Adapters in the attention of the UNet, and perhaps of the text encoder; everything else is frozen."""

    @model_validator(mode="after")
    def _has_rank(self) -> Self:
        if not self.lora.rank:
            raise ValueError("lora.rank=0 trains whole networks: use sd-finetune for that, or set lora.rank")
        return self


def sd_lora() -> LoraFineTune:
    """LoRA of rank 4 in the UNet's attention: 797,184 trained parameters, a file of 3 MB, at 512×512.

    Command: latentia train sd-lora base=FOLDER data=FOLDER --out runs/sd-lora
    Cost:    99 PFLOP and 3.4 GB: about 20 A100-minutes of computing. No task for 2 CPU cores.
    Expect:  pictures in the style of the data; no score is published for these 15,000 steps of 4 pictures.

    Leaves out/lora/pytorch_lora_weights.safetensors in Diffusers' format, and out/pipeline with the adapters added in
    (`fuse=false`: the base as it was). The learning rate bears 1e-4 to 1e-3. Data as for `sd-finetune`.

    Source: README and defaults of Diffusers' text_to_image LoRA example.
    """
    return LoraFineTune(
        name="sd-lora",
        data=NARUTO,
        steps=15_000,
        batch_size=4,
        accumulate=4,
        lora=Lora(rank=4),
        optim=Optim(lr=1e-4, schedule="cosine", weight_decay=DECAY),
        ema=Average(decay=0),
        precision="bf16",
        log_every=50,
    )
