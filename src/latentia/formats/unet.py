"""The UNet of ADM and latent diffusion (`openaimodel`): its names ↔ ours, and its arguments from tensor shapes.

With L residual blocks a stage, `input_blocks.n` (n ≥ 1) is layer (n−1) mod (L+1) of stage (n−1) div (L+1), and layer L
halves the resolution; `output_blocks.n` is layer n mod (L+1) of stage n div (L+1), whose last layer doubles it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from latentia.errors import ArtifactError
from latentia.formats.rules import Rule, Shape, below, same

RESNET = (
    same("in_layers.0.", "norm1."),
    same("in_layers.2.", "conv1."),
    same("emb_layers.1.", "time_emb_proj."),
    same("out_layers.0.", "norm2."),
    same("out_layers.3.", "conv2."),
    same("skip_connection.", "conv_shortcut."),
)
ENDS = (
    same("time_embed.0.", "time_embedding.linear_1."),
    same("time_embed.2.", "time_embedding.linear_2."),
    same("label_emb.", "class_embedding."),
    same("input_blocks.0.0.", "conv_in."),
    same("out.0.", "conv_norm_out."),
    same("out.2.", "conv_out."),
)
BLOCK = tuple(
    f"{layer}."
    for layer in (
        *(f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    )
)
"""Layers of a transformer block; both sides use the same names."""

LDM_HEAD_DIM = 32
"""Width of a head in the unconditional models of latent diffusion; no tensor tells it."""
SD1_HEADS = 8
SD2_HEAD_DIM = 64

_OUTPUT = re.compile(r"output_blocks\.(\d+)\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Structure:
    """What the names depend on.

    Attributes:
        stages, layers: resolutions, and residual blocks on the way down each.
        attends: whether each stage of the way up (lowest resolution first) has attention.
        depth: transformer blocks behind a residual block; 0: plain attention (`qkv`) instead.
        resamples: by `conv` or by a residual block, `resnet`.
    """

    stages: int
    layers: int
    attends: tuple[bool, ...]
    depth: int
    resamples: str


def their_structure(names: Iterable[str]) -> Structure:
    """The structure that their names show; `ArtifactError` when its stages are not alike."""
    names = list(names)
    slots: set[int] = set()
    ups: dict[int, str] = {}
    attention: set[int] = set()
    for match in filter(None, map(_OUTPUT.match, names)):
        n, slot, rest = int(match[1]), int(match[2]), match[3]
        slots.add(n)
        if slot and rest.startswith(("conv.", "in_layers.")):
            ups[n] = "conv" if rest.startswith("conv.") else "resnet"
        elif slot and rest.startswith("norm."):
            attention.add(n)
    count = len(slots)
    layers = min(ups, default=count - 1)
    stages = count // (layers + 1)
    if not count or slots != set(range(count)) or sorted(ups) != [layers + i * (layers + 1) for i in range(stages - 1)]:
        raise ArtifactError(
            f"the UNet has {count} output blocks that double the resolution in {sorted(ups) or 'none'}: no network of "
            "equal stages; the file is incomplete, or of another family"
        )
    attends = tuple(b * (layers + 1) in attention for b in range(stages))
    kinds = set(ups.values()) or {"conv"}
    return Structure(stages, layers, attends, _depth(names), kinds.pop())


def our_structure(names: Iterable[str]) -> Structure:
    """The structure of a UNet in our names."""
    names = list(names)
    stages = count(names, "up_blocks.")
    attends = tuple(any(n.startswith(f"up_blocks.{b}.attentions.") for n in names) for b in range(stages))
    resamples = "resnet" if any(".upsamplers.0.norm1." in n for n in names) else "conv"
    return Structure(stages, count(names, "down_blocks.0.resnets."), attends, _depth(names), resamples)


def _depth(names: Iterable[str]) -> int:
    return max((int(m[1]) + 1 for m in (re.search(r"transformer_blocks\.(\d+)\.", n) for n in names) if m), default=0)


def count(names: Iterable[str], prefix: str) -> int:
    """One more than the largest number that follows `prefix` in `names`."""
    found = (name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix))
    return max((int(text) + 1 for text in found if text.isdigit()), default=0)


def rules(structure: Structure, head_dim: int = LDM_HEAD_DIM) -> Iterator[Rule]:
    """Every rule of a UNet; `head_dim` is the width of a head where query, key and value are fused."""
    s = structure
    attention = _transformer(s.depth) if s.depth else _plain_attention(head_dim)
    layers = s.layers + 1
    yield from ENDS
    for n in range(1, s.stages * layers):
        stage, layer = divmod(n - 1, layers)
        theirs, ours = f"input_blocks.{n}.", f"down_blocks.{stage}."
        if layer < s.layers:
            yield from below(RESNET, f"{theirs}0.", f"{ours}resnets.{layer}.")
            yield from below(attention, f"{theirs}1.", f"{ours}attentions.{layer}.")
        elif s.resamples == "conv":
            yield same(f"{theirs}0.op.", f"{ours}downsamplers.0.conv.")
        else:
            yield from below(RESNET, f"{theirs}0.", f"{ours}downsamplers.0.")
    yield from below(RESNET, "middle_block.0.", "mid_block.resnets.0.")
    yield from below(attention, "middle_block.1.", "mid_block.attentions.0.")
    yield from below(RESNET, "middle_block.2.", "mid_block.resnets.1.")
    for n in range(s.stages * layers):
        stage, layer = divmod(n, layers)
        theirs, ours = f"output_blocks.{n}.", f"up_blocks.{stage}."
        yield from below(RESNET, f"{theirs}0.", f"{ours}resnets.{layer}.")
        if s.attends[stage]:
            yield from below(attention, f"{theirs}1.", f"{ours}attentions.{layer}.")
        if layer == s.layers and stage < s.stages - 1:
            slot = 2 if s.attends[stage] else 1
            if s.resamples == "conv":
                yield same(f"{theirs}{slot}.conv.", f"{ours}upsamplers.0.conv.")
            else:
                yield from below(RESNET, f"{theirs}{slot}.", f"{ours}upsamplers.0.")


def _transformer(depth: int) -> tuple[Rule, ...]:
    inner = (f"transformer_blocks.{k}.{layer}" for k in range(depth) for layer in BLOCK)
    return tuple(same(name, name) for name in ("norm.", "proj_in.", *inner, "proj_out."))


def _plain_attention(head_dim: int) -> tuple[Rule, ...]:
    return (
        same("norm.", "group_norm."),
        Rule("qkv.", ("to_q.", "to_k.", "to_v."), trailing=1, head_dim=head_dim),
        Rule("proj_out.", ("to_out.0.",), trailing=1),
    )


# Arguments from the shapes of our tensors


def config(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Any]]:
    """Class name and arguments of the UNet with these tensors, in our names.

    What no shape tells follows its family: 8 heads with convolutional projections (Stable Diffusion 1), heads 64
    wide with linear ones (2), 32 wide in unconditional models.
    """
    stages = count(shapes, "down_blocks.")
    widths = tuple(_shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(stages))
    layers = {count(shapes, f"down_blocks.{i}.resnets.") for i in range(stages)}
    attends = [any(n.startswith(f"down_blocks.{i}.attentions.") for n in shapes) for i in range(stages)]
    rises = [any(n.startswith(f"up_blocks.{i}.attentions.") for n in shapes) for i in range(stages)]
    if len(layers) != 1:
        raise ArtifactError(f"the stages of the UNet have {sorted(layers)} residual blocks: only equal ones are read")
    arguments: dict[str, Any] = {
        "in_channels": _shape(shapes, "conv_in.weight")[1],
        "out_channels": _shape(shapes, "conv_out.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "norm_num_groups": groups(widths),
    }
    if "class_embedding.weight" in shapes:
        arguments["num_class_embeds"] = shapes["class_embedding.weight"][0]
    first = "down_blocks.0.resnets.0."
    if _shape(shapes, f"{first}time_emb_proj.weight")[0] == 2 * widths[0]:
        arguments["resnet_time_scale_shift"] = "scale_shift"
    if _depth(shapes) == 0:
        return "UNet2DModel", arguments | _plain_arguments(shapes, attends, rises)
    return "UNet2DConditionModel", arguments | _text_arguments(shapes, widths, attends, rises)


def _text_arguments(
    shapes: Mapping[str, Shape], widths: tuple[int, ...], attends: list[bool], rises: list[bool]
) -> dict[str, Any]:
    middle = "mid_block.attentions.0."
    linear = len(_shape(shapes, f"{middle}proj_in.weight")) == 2
    depths = {
        _depth(name for name in shapes if name.startswith(f"down_blocks.{i}.")) for i, on in enumerate(attends) if on
    }
    return {
        "down_block_types": tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in rises),
        "cross_attention_dim": _shape(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": linear,
        "attention_head_dim": tuple(max(1, w // SD2_HEAD_DIM) for w in widths) if linear else SD1_HEADS,
        **({"transformer_layers_per_block": _depth(shapes)} if depths - {1} else {}),
    }


def _plain_arguments(shapes: Mapping[str, Shape], attends: list[bool], rises: list[bool]) -> dict[str, Any]:
    by_resnet = any(".downsamplers.0.norm1." in name for name in shapes)
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if by_resnet else ("DownBlock2D", "UpBlock2D")
    resample = "resnet" if by_resnet else "conv"
    return {
        "down_block_types": tuple("AttnDownBlock2D" if on else down for on in attends),
        "up_block_types": tuple("AttnUpBlock2D" if on else up for on in rises),
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": LDM_HEAD_DIM,
        "attn_norm_num_groups": groups(_shape(shapes, "mid_block.resnets.0.conv1.weight")[:1]),
        "add_attention": any(name.startswith("mid_block.attentions.") for name in shapes),
    }


def groups(widths: Iterable[int]) -> int:
    """32, or the most groups below that divide all `widths` when 32 do not."""
    return gcd(32, *widths)


def _shape(shapes: Mapping[str, Shape], name: str) -> Shape:
    if name not in shapes:
        raise ArtifactError(f"the UNet has no {name}: the file is incomplete, or of another family")
    return shapes[name]
