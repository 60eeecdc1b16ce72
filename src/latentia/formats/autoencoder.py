"""First stages of latent diffusion and taming-transformers: their names ↔ ours, and arguments from tensor shapes.

`encoder.down.i` is our `encoder.down_blocks.i`; `decoder.up.0` is the highest resolution, our last up block. The
attention is made of 1×1 convolutions there, of matrices here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from latentia.errors import ArtifactError
from latentia.formats.rules import Rule, Shape, below, same
from latentia.formats.unet import count, groups

RESNET = (
    *(same(f"{name}.", f"{name}.") for name in ("norm1", "conv1", "norm2", "conv2")),
    same("nin_shortcut.", "conv_shortcut."),
)
ATTENTION = (
    same("norm.", "group_norm."),
    Rule("q.", ("to_q.",), trailing=2),
    Rule("k.", ("to_k.",), trailing=2),
    Rule("v.", ("to_v.",), trailing=2),
    Rule("proj_out.", ("to_out.0.",), trailing=2),
)
ENDS = tuple(
    same(theirs, ours)
    for theirs, ours in (
        *((f"{half}.{end}.", f"{half}.{end}.") for half in ("encoder", "decoder") for end in ("conv_in", "conv_out")),
        *((f"{half}.norm_out.", f"{half}.conv_norm_out.") for half in ("encoder", "decoder")),
        ("quant_conv.", "quant_conv."),
        ("post_quant_conv.", "post_quant_conv."),
        ("quantize.embedding.", "quantize.embedding."),
    )
)
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of Diffusers' attention in files of 2022."""

SD_SCALE = 0.18215
"""1 / standard deviation of the raw latents of Stable Diffusion's autoencoder (Rombach et al. 2022)."""


def their_stages(names: Iterable[str]) -> tuple[int, int]:
    """Stages and residual blocks a stage (of the encoder) in their names."""
    names = list(names)
    return count(names, "decoder.up."), count(names, "encoder.down.0.block.")


def our_stages(names: Iterable[str]) -> tuple[int, int]:
    """Stages and residual blocks a stage (of the encoder) in our names."""
    names = list(names)
    return count(names, "decoder.up_blocks."), count(names, "encoder.down_blocks.0.resnets.")


def rules(stages: int, layers: int) -> Iterator[Rule]:
    """Every rule of an autoencoder."""
    yield from ENDS
    for half in ("encoder", "decoder"):
        for i in (0, 1):
            yield from below(RESNET, f"{half}.mid.block_{i + 1}.", f"{half}.mid_block.resnets.{i}.")
        yield from below(ATTENTION, f"{half}.mid.attn_1.", f"{half}.mid_block.attentions.0.")
    for i in range(stages):
        theirs, ours = f"encoder.down.{i}.", f"encoder.down_blocks.{i}."
        yield from _stage(theirs, ours, layers)
        yield same(f"{theirs}downsample.conv.", f"{ours}downsamplers.0.conv.")
        theirs, ours = f"decoder.up.{stages - 1 - i}.", f"decoder.up_blocks.{i}."
        yield from _stage(theirs, ours, layers + 1)
        yield same(f"{theirs}upsample.conv.", f"{ours}upsamplers.0.conv.")


def _stage(theirs: str, ours: str, layers: int) -> Iterator[Rule]:
    for j in range(layers):
        yield from below(RESNET, f"{theirs}block.{j}.", f"{ours}resnets.{j}.")
        yield from below(ATTENTION, f"{theirs}attn.{j}.", f"{ours}attentions.{j}.")


def identity(names: Iterable[str]) -> Iterator[Rule]:
    """Rules for tensors that have our names already, or those of 2022."""
    for name in names:
        *parents, last, end = ["", "", *name.split(".")]
        known = LEGACY_ATTENTION.get(last) if ".attentions." in name else None
        ours = ".".join([*parents[2:], known, end]) if known else name
        attends = ".attentions." in name and "transformer_blocks" not in name and (known or ".to_" in name)
        yield Rule(name, (ours,), trailing=2 if attends else 0)


def config(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Any]]:
    """Class name and arguments of the autoencoder with these tensors, in our names: `AutoencoderKL` or `VQModel`.

    Raises `ArtifactError` for one that neither class can be.
    """
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"):
        if name not in shapes:
            raise ArtifactError(f"the autoencoder has no {name}: the file is incomplete, or of another family")
    stages = count(shapes, "encoder.down_blocks.")
    widths = tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(stages))
    latent = shapes["decoder.conv_in.weight"][1]
    arguments: dict[str, Any] = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes.get("decoder.conv_out.weight", (3,))[0],
        "down_block_types": _types(shapes, "encoder.down_blocks.", stages, ("AttnDown", "Down"), "EncoderBlock2D"),
        "up_block_types": _types(shapes, "decoder.up_blocks.", stages, ("AttnUp", "Up"), "DecoderBlock2D"),
        "block_out_channels": widths,
        "layers_per_block": count(shapes, "encoder.down_blocks.0.resnets."),
        "latent_channels": latent,
        "norm_num_groups": groups(widths),
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in shapes),
    }
    if "quantize.embedding.weight" in shapes:
        codes, dim = shapes["quantize.embedding.weight"]
        return "VQModel", {**arguments, "num_vq_embeddings": codes, "vq_embed_dim": dim, "scaling_factor": 1.0}
    quant, post = shapes.get("quant_conv.weight"), shapes.get("post_quant_conv.weight")
    if any(conv is not None and conv[0] != conv[1] for conv in (quant, post)):
        raise ArtifactError(
            f"the autoencoder's latents change width around the latent space (quant_conv {quant}, post_quant_conv "
            f"{post}): AutoencoderKL has one width; retrain with embed_dim equal to z_channels"
        )
    if shapes["encoder.conv_out.weight"][0] != 2 * latent:
        raise ArtifactError(
            f"the encoder ends in {shapes['encoder.conv_out.weight'][0]} channels, the decoder begins with {latent}, "
            "and there is no codebook: a KL autoencoder has twice as many, a VQ one quantize.embedding.weight"
        )
    arguments |= {"use_quant_conv": quant is not None, "use_post_quant_conv": post is not None}
    return "AutoencoderKL", {**arguments, "scaling_factor": SD_SCALE if latent == 4 else 1.0}


def _types(shapes: Mapping[str, Shape], prefix: str, stages: int, starts: tuple[str, str], end: str) -> tuple[str, ...]:
    with_attention, without = starts
    return tuple(
        (with_attention if any(name.startswith(f"{prefix}{i}.attentions.") for name in shapes) else without) + end
        for i in range(stages)
    )
