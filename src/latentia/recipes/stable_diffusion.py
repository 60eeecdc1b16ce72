"""The base of a fine-tuning run: Stable Diffusion's parts with their weights, or only their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from torch import nn

    from latentia.codecs.autoencoder_kl import AutoencoderKL
    from latentia.denoisers.unet_2d_condition import UNet2DConditionModel

SHAPES_ONLY = "sd-1.5"
"""A base that stands for the sizes of Stable Diffusion 1.5: enough for a dry run, nothing to train."""

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
SINGLE_FILES = (".safetensors", ".ckpt")


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Stable Diffusion without weights: what builds each network (on the meta device, say).

    Attributes:
        vae, text_encoder, unet: make the networks.
        length: tokens of a text.
        width: of a token's vector.
    """

    vae: Callable[[], AutoencoderKL]
    text_encoder: Callable[[], nn.Module]
    unet: Callable[[], UNet2DConditionModel]
    length: int
    width: int


def blueprint(base: str, tokenizer: str | None = None, variant: str | None = None) -> Blueprint:
    """The shapes of `base`: of a folder from its configs alone, of anything else by opening it.

    Raises as `open_base` does, and `InputError` for networks that do not belong together.
    """
    if base == SHAPES_ONLY:
        return _published()
    folder = pipeline_folder(base)
    if folder is None:
        parts = open_base(base, tokenizer, variant)
        built = {name: partial(type(parts[name]).from_config, parts[name].config) for name in ("vae", "unet")}
        text = parts["text_encoder"]
        return _fitting(base, built["vae"], partial(_again, text), built["unet"])
    return _from_folder(base, folder, variant)


def _published() -> Blueprint:
    from latentia.codecs.autoencoder_kl import AutoencoderKL
    from latentia.conditioners.clip import CLIPTextModel
    from latentia.denoisers.unet_2d_condition import UNet2DConditionModel

    vae = partial(
        AutoencoderKL,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    text = partial(CLIPTextModel, hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
    return Blueprint(vae, text, partial(UNet2DConditionModel, sample_size=64, cross_attention_dim=768), 77, 768)


def _from_folder(base: str, folder: Path, variant: str | None) -> Blueprint:
    from latentia.core.model import ModelMixin
    from latentia.pipelines.folder import INDEX, load_components, public_class, read_index, source_of

    index = read_index(folder)
    _check_parts(base, index.class_name, {name for name, entry in index.components.items() if entry})
    built: dict[str, Any] = {}
    for name in ("vae", "text_encoder", "unet"):
        entry = index.components[name]
        if entry is not None and source_of(*entry) == "own":
            kind = public_class(entry[1], ModelMixin, "component class", folder / INDEX)
            config = kind.load_config(folder / name)
            built[name] = partial(kind.from_config, config)
        else:
            part = load_components(index, [name], None, variant)[name]
            built[name] = partial(_again, part)
    return _fitting(base, built["vae"], built["text_encoder"], built["unet"])


def _again(network: nn.Module) -> nn.Module:
    """A copy of a network without its weights."""
    import copy

    return copy.deepcopy(network).to("meta")


def _fitting(base: str, vae: Any, text_encoder: Any, unet: Any) -> Blueprint:
    """The blueprint, its parts compared on the meta device."""
    import torch

    from latentia.codecs.autoencoder_kl import AutoencoderKL
    from latentia.conditioners.prompts import text_width
    from latentia.denoisers.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        codec, text, denoiser = vae(), text_encoder(), unet()
    for part, kind in ((codec, AutoencoderKL), (denoiser, UNet2DConditionModel)):
        if not isinstance(part, kind):
            raise InputError(f"base {base!r} has a {type(part).__name__} where fine-tuning wants a {kind.__name__}")
    width = text_width(text)
    if denoiser.config.cross_attention_dim != width:
        raise InputError(
            f"base {base!r}: its text encoder makes vectors of {width} and its unet looks at vectors of "
            f"{denoiser.config.cross_attention_dim}: they were not made for each other"
        )
    return Blueprint(vae, text_encoder, unet, int(text.config.max_position_embeddings), width)


def pipeline_folder(base: str) -> Path | None:
    """The pipeline's folder when `base` is one, or a run that left one; None for anything else."""
    from latentia.pipelines.folder import INDEX

    path = Path(base).expanduser()
    return next((found for found in (path, path / "pipeline") if (found / INDEX).is_file()), None)


def check_base(base: str) -> None:
    """Raise `InputError` for the name that stands for shapes only."""
    if base == SHAPES_ONLY:
        raise InputError(
            f"base={SHAPES_ONLY} stands for the sizes of Stable Diffusion 1.5 in a dry run and has no weights: give "
            "base=FOLDER of a pipeline, a Hub id, or a single-file checkpoint"
        )


def open_base(base: str, tokenizer: str | None = None, variant: str | None = None) -> dict[str, Any]:
    """The parts of Stable Diffusion by name, weights in float32 whatever they are stored in, on the CPU.

    Args:
        base: a pipeline's folder or a run's, a Hub id, or a single-file checkpoint.
        tokenizer: a folder with the tokenizer, for a single file, which has none.
        variant: tag of a folder's weight files, such as `fp16`.

    Raises `InputError` for the name that stands for shapes only, for a pipeline that lacks a part, and for a single
    file without `tokenizer`; `ArtifactError` for what cannot be read.
    """
    check_base(base)
    if Path(base).suffix in SINGLE_FILES and Path(base).expanduser().is_file():
        from latentia.pipelines.single_file import load_single_file

        pipe = load_single_file(Path(base).expanduser(), tokenizer=tokenizer)
    else:
        from latentia.pipelines.pipeline import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(pipeline_folder(base) or base, variant=variant)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    _check_parts(base, type(pipe).__name__, set(parts))
    return {name: parts[name] for name in PARTS}


def _check_parts(base: str, class_name: str, there: set[str] | Mapping[str, Any]) -> None:
    missing = [name for name in PARTS if name not in there]
    if missing:
        raise ArtifactError(
            f"base {base!r} is a {class_name} without {', '.join(missing)}: fine-tuning starts from Stable Diffusion "
            f"({', '.join(PARTS)})"
        )
