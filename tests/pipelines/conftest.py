"""Tiny pipelines on real components; seeded, so that every test sees the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentia import AutoencoderKL, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from latentia.pipelines.latent import LatentDiffusionPipeline

SMALL = {
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def tiny_unet(channels: int = 3, size: int = 8, **arguments: Any) -> UNet2DModel:
    torch.manual_seed(0)
    given = {**SMALL, "in_channels": channels, "out_channels": channels, "sample_size": size, **arguments}
    return UNet2DModel(**given).eval()


def tiny_vae(**arguments: Any) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
        sample_size=16,
        **arguments,
    ).eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., UNet2DModel]:
    return tiny_unet


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., AutoencoderKL]:
    return tiny_vae


@pytest.fixture
def ddim() -> DDIMPipeline:
    return quiet(DDIMPipeline(tiny_unet(), DDIMScheduler()))


@pytest.fixture
def ddpm() -> DDPMPipeline:
    return quiet(DDPMPipeline(tiny_unet(), DDPMScheduler()))


@pytest.fixture
def latent() -> LatentDiffusionPipeline:
    """Three named classes and a null class."""
    names = {0: "cat, kitty", 1: "dog", 2: "owl"}
    unet = tiny_unet(channels=2, num_class_embeds=4)
    return quiet(LatentDiffusionPipeline(tiny_vae(), unet, DDIMScheduler(clip_sample=False), id2label=names))
