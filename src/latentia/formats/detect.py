"""What a checkpoint is, from the names of its tensors alone. Nothing here imports torch.

A whole checkpoint has its parts under prefixes; a part saved alone has none. Families that are not read are recognised
all the same, so that the error can name them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from latentia.errors import ArtifactError

PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "unet.": "unet",
    "vae.": "vae",
    "text_encoder.": "text_encoder",
}
"""Prefix → part: CompVis' three, and the names of Diffusers' folders."""

EMA = "model_ema."
"""Averaged weights: this and the name of the weight without its dots."""

HARMLESS = re.compile(
    r"(betas|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_|sqrt_one_minus_|log_one_minus_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|logvar|lvlb_weights|scale_factor|global_step|epoch"
    r"|model_ema\.(decay|num_updates)|(first_stage_model\.)?(loss|colorize)\b.*|.*\bposition_ids"
    r"|cond_stage_model\.(logit_scale|text_projection\.weight))"
)
"""Tensors of a training run that no model needs: noise schedules, losses with their networks, counters."""

FOREIGN = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "model.diffusion_model.label_emb.0.0.": "Stable Diffusion XL, or an unCLIP",
    "label_emb.0.0.": "Stable Diffusion XL, or an unCLIP",
    "add_embedding.linear_1.": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "control_model.": "a ControlNet in its authors' layout",
    "input_hint_block.": "a ControlNet in its authors' layout",
    "controlnet_cond_embedding.": "a ControlNet (put it in a folder with its config.json for ControlNetModel)",
    "depth_model.": "Stable Diffusion 2 depth",
    "low_scale_model.": "the Stable Diffusion upscaler",
    "embedder.model.visual.": "Stable unCLIP",
    "model.diffusion_model.input_blocks.1.0.time_stack.": "Stable Video Diffusion",
    "ip_adapter.": "an IP-Adapter",
    "string_to_param": "a textual inversion",
    "emb_params": "a textual inversion",
    "<": "a textual inversion",
    "clip_txt_mapper.": "Stable Cascade",
    "x_embedder.": "a diffusion transformer",
    "model.diffusion_model.x_embedder.": "a diffusion transformer",
    "quantize.embed.": "a VQGAN with Gumbel quantisation",
    "first_stage_model.quantize.embed.": "a VQGAN with Gumbel quantisation",
}
"""Beginning of a name → the family that it gives away, none of which is read."""

_FOREIGN_WITHIN = {
    ".motion_modules.": "AnimateDiff",
    ".lora_down.": "a LoRA",
    ".lora_A.": "a LoRA",
    ".lora.down.": "a LoRA",
    "_lora.down.": "a LoRA",
    ".lora_linear_layer.": "a LoRA",
}

SUPPORTED = (
    "Stable Diffusion 1 and 2 (with their inpainting models and InstructPix2Pix), latent diffusion with and without "
    "text, their autoencoders and those of taming-transformers, and each UNet, autoencoder or text encoder alone, in "
    "their authors' names or Diffusers'"
)

LAYOUTS = {
    "unet": {"input_blocks.0.0.": "compvis", "down_blocks.0.resnets.": "diffusers"},
    "vae": {
        "encoder.down_blocks.": "diffusers",
        "encoder.down.": "compvis",
        "decoder.up_blocks.": "diffusers",
        "decoder.up.": "compvis",
    },
    "text_encoder": {
        "model.transformer.resblocks.": "open_clip",
        "transformer.token_emb.": "ldm_bert",
        "transformer.text_model.": "clip",
        "transformer.embeddings.": "clip",
        "text_model.embeddings.": "clip",
        "embeddings.token_embedding.": "clip",
        "model.embed_tokens.": "diffusers_bert",
        "embedding.": "classes",
    },
}
"""Part → beginning of a name inside it → whose names it has; the first that is found counts."""


@dataclass(slots=True)
class Sorted:
    """The names of a checkpoint by part.

    Attributes:
        parts: part → name inside it → name in the file.
        layouts: part → whose names it has, a value of `LAYOUTS`.
        averaged: names of averaged weights.
        unknown: names that belong to no part and are not harmless.
    """

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    averaged: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def foreign_family(names: Iterable[str]) -> str | None:
    """The family that is not read and that a name gives away; None when there is none."""
    for name in names:
        for sentinel, family in FOREIGN.items():
            if name.startswith(sentinel):
                return family
        if name.startswith(("lora_unet_", "lora_te")):
            return "a LoRA"
        for sentinel, family in _FOREIGN_WITHIN.items():
            if sentinel in name:
                return family
    return None


def sort_names(names: Iterable[str], ignore: Iterable[str] = ()) -> Sorted:
    """The names by part; those that begin with one of `ignore` are left out.

    Raises `ArtifactError` for a family that is not read, naming it, and for tensors that tell nothing.
    """
    skipped = tuple(ignore)
    names = [name for name in names if not (skipped and name.startswith(skipped))]
    family = foreign_family(names)
    if family is not None:
        raise ArtifactError(f"this is {family}, which is not read here; read are: {SUPPORTED}")
    found = Sorted()
    rest = [name for name in names if not HARMLESS.fullmatch(name)]
    found.averaged = {name for name in rest if name.startswith(EMA)}
    for name in rest:
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            found.parts.setdefault(PREFIXES[prefix], {})[name[len(prefix) :]] = name
        elif name not in found.averaged:
            found.unknown.append(name)
    if not found.parts and not found.unknown:
        raise ArtifactError(f"these {len(names)} tensors are of no model; read are: {SUPPORTED}")
    if not found.parts:
        part = _lone_part(found.unknown)
        found.parts, found.unknown = {part: {name: name for name in found.unknown}}, []
    for part, inside in found.parts.items():
        found.layouts[part] = _layout(part, inside)
    return found


def _lone_part(names: list[str]) -> str:
    for part in LAYOUTS:
        if _known_layout(part, names) not in (None, "classes"):
            return part
    heads = sorted({name.split(".", 1)[0] for name in names})
    raise ArtifactError(
        f"the names of these {len(names)} tensors tell no family (they begin with {', '.join(heads[:8])}"
        f"{', …' if len(heads) > 8 else ''}); read are: {SUPPORTED}"
    )


def _known_layout(part: str, names: Iterable[str]) -> str | None:
    names = list(names)
    for sentinel, layout in LAYOUTS[part].items():
        if any(name.startswith(sentinel) for name in names):
            return layout
    return None


def _layout(part: str, inside: Mapping[str, str]) -> str:
    layout = _known_layout(part, inside)
    if layout is None:
        some = ", ".join(list(inside.values())[:3])
        raise ArtifactError(f"the {part} in this file is of no known kind (it has {some}, …); read are: {SUPPORTED}")
    return layout


def averaged_name(name: str) -> str:
    """Where the averaged copy of the weight `name` lies."""
    return EMA + name.removeprefix("model.").replace(".", "")
