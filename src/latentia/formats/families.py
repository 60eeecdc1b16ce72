"""Families of checkpoints: which pipeline their parts make, and the noise schedule that they were trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from latentia.errors import check_choice

PREDICTIONS = ("epsilon", "v_prediction", "sample")

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SD_SCHEDULER = {**SD_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
LDM_SCHEDULER = {**SD_BETAS, "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}
TEXT_LDM_SCHEDULER = {**SD_BETAS, "clip_sample": False}

PART_OF = {"vqvae": "vae", "bert": "text_encoder"}
"""Component of a pipeline → part of a file, where the names differ."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a whole checkpoint is.

    Attributes:
        name: as a reader calls it.
        pipeline: public class that runs it; None: only its parts are read.
        scheduler: class and arguments.
        tokenizer: class in transformers; None: none needed.
        latent_size: side of the training latents.
    """

    name: str
    pipeline: str | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    tokenizer: str | None = None
    latent_size: int = 64


def _stable_diffusion(name: str, pipeline: str, **more: Any) -> Family:
    return Family(name, pipeline, ("PNDMScheduler", SD_SCHEDULER), "CLIPTokenizer", **more)


SD1 = _stable_diffusion("Stable Diffusion 1", "StableDiffusionPipeline")
SD2 = _stable_diffusion("Stable Diffusion 2", "StableDiffusionPipeline")
SD2_V = _stable_diffusion("Stable Diffusion 2", "StableDiffusionPipeline", latent_size=96)
SD1_INPAINT = _stable_diffusion("Stable Diffusion 1 inpainting", "StableDiffusionInpaintPipeline")
SD2_INPAINT = _stable_diffusion("Stable Diffusion 2 inpainting", "StableDiffusionInpaintPipeline")
PIX2PIX = _stable_diffusion("InstructPix2Pix", "StableDiffusionInstructPix2PixPipeline")
LDM_TEXT = Family(
    "latent diffusion, text to image",
    "LDMTextToImagePipeline",
    ("DDIMScheduler", TEXT_LDM_SCHEDULER),
    "BertTokenizer",
    32,
)
LDM = Family("latent diffusion", "LDMPipeline", ("DDIMScheduler", LDM_SCHEDULER))
LDM_CLASSES = Family("latent diffusion with class embeddings")
LDM_CONCAT = Family("latent diffusion on a concatenated condition")
TEXT_UNET = Family("UNet that reads a text")


def whole(class_name: str, unet: Mapping[str, Any], text_layout: str | None, v_prediction: bool) -> Family:
    """The family of a file with a UNet of these arguments and a text encoder of this layout."""
    channels, out = unet["in_channels"], unet["out_channels"]
    if text_layout == "classes":
        return LDM_CLASSES
    if class_name == "UNet2DModel":
        return LDM if channels == out else LDM_CONCAT
    if text_layout in ("ldm_bert", "diffusers_bert"):
        return LDM_TEXT
    second = text_layout == "open_clip" or (text_layout is None and unet["use_linear_projection"])
    if channels == 9:
        return SD2_INPAINT if second else SD1_INPAINT
    if channels == 8 and not second:
        return PIX2PIX
    if channels != out:
        return LDM_CONCAT
    return (SD2_V if v_prediction else SD2) if second else SD1


def prediction(family_is_sd2: bool, in_channels: int, asked: str | None, stated: str | None) -> tuple[str, str | None]:
    """What the network predicts, and a note when that is a guess.

    No tensor tells. `asked` decides, else what the file states of itself (ModelSpec's `prediction_type`); else v for
    Stable Diffusion 2 with 4 channels (its 768-pixel models), ε for everything else.
    """
    if asked is not None:
        check_choice("prediction_type", asked, PREDICTIONS)
        return asked, None
    if stated in ("epsilon", "v", "v_prediction"):
        return ("epsilon" if stated == "epsilon" else "v_prediction"), None
    if family_is_sd2 and in_channels == 4:
        return "v_prediction", (
            "taken for a 768-pixel Stable Diffusion 2 (v-prediction): the weights do not tell. If pictures come out "
            "as brown mush it is a 512-pixel base model: pass prediction_type='epsilon'"
        )
    return "epsilon", None


def schedule(betas: Sequence[float]) -> dict[str, Any]:
    """The scheduler arguments that a checkpoint's own `betas` (float32) amount to.

    linspace(β₀, β₁) or linspace(√β₀, √β₁)² within the rounding of float32; any other list goes in whole.
    """
    first, last, count = betas[0], betas[-1], len(betas)
    base = {"num_train_timesteps": count, "beta_start": _round(first), "beta_end": _round(last)}
    roots = [sqrt(first) + (sqrt(last) - sqrt(first)) * i / max(1, count - 1) for i in range(count)]
    plain = [first + (last - first) * i / max(1, count - 1) for i in range(count)]
    for name, values in (("scaled_linear", [root**2 for root in roots]), ("linear", plain)):
        if all(abs(a - b) <= 1e-5 * last for a, b in zip(betas, values)):
            return {**base, "beta_schedule": name}
    return {"num_train_timesteps": count, "trained_betas": tuple(betas)}


def _round(value: float) -> float:
    """A float32 as the short decimal that somebody once wrote in a config."""
    return float(f"{value:.6g}")
