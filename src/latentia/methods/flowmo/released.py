"""The published FlowMo checkpoints: their names, their signs, and the weights in them that nothing ever reads.

    model = from_released("flowmo_lo.pth")                 # 256 tokens of 18 bits, averaged weights

A checkpoint is a pickle of `model_state_dict`, `model_ema_state_dict` and `total_steps`; it is read with
`weights_only=True`. v = z − x in both, so no sign changes.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentia.core.artifacts import load_state_dict
from latentia.core.model_loading import SkipInit, check_fits, fill
from latentia.core.weight_files import PICKLES
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.methods.flowmo.codecs import FlowMo

GROUP_BITS = {18: 9, 56: 14}
"""Bits of one token in the two published models, by the bits of a code token."""
SOURCES = {"averaged": "model_ema_state_dict", "raw": "model_state_dict"}

_RULES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^(encoder|decoder)\.img_in\.", r"\1.image_in."),
        (r"^encoder\.txt_in\.bias$", r"encoder.code_start"),
        (r"^decoder\.txt_in\.", r"decoder.code_in."),
        (r"^(encoder|decoder)\.time_in\.in_layer\.", r"\1.time_in.linear_1."),
        (r"^(encoder|decoder)\.time_in\.out_layer\.", r"\1.time_in.linear_2."),
        (r"^encoder\.final_layer_txt\.linear\.", r"encoder.out."),
        (r"^decoder\.final_layer_img\.linear\.", r"decoder.out."),
        (r"^decoder\.final_layer_img\.adaLN_modulation\.1\.", r"decoder.out_mod."),
        (r"\.double_blocks\.", r".blocks."),
        (r"\.img_(mod|mlp)\.", r".image.\1."),
        (r"\.txt_(mod|mlp)\.", r".code.\1."),
        (r"\.img_attn\.(?:norm\.)?", r".image."),
        (r"\.txt_attn\.(?:norm\.)?", r".code."),
    )
)


def our_name(name: str) -> str:
    """A released tensor's name → ours (`encoder.double_blocks.0.img_attn.qkv.weight` → `encoder.blocks.0.image.…`)."""
    for pattern, ours in _RULES:
        name = pattern.sub(ours, name)
    return name


def released_names(model: FlowMo) -> dict[str, str]:
    """Our name → the released one, for every tensor of `model`."""
    names = {}
    for ours in model.state_dict():
        name = ours.replace(".blocks.", ".double_blocks.").replace(".image_in.", ".img_in.")
        name = name.replace(".code_in.", ".txt_in.").replace("encoder.code_start", "encoder.txt_in.bias")
        name = name.replace(".time_in.linear_1.", ".time_in.in_layer.").replace(".linear_2.", ".out_layer.")
        name = name.replace("encoder.out.", "encoder.final_layer_txt.linear.")
        name = name.replace("decoder.out.", "decoder.final_layer_img.linear.")
        name = name.replace("decoder.out_mod.", "decoder.final_layer_img.adaLN_modulation.1.")
        name = re.sub(r"\.(image|code)\.(query|key)_norm\.", r".\1.norm.\2_norm.", name)
        name = re.sub(r"\.(image|code)\.(qkv|proj|norm)\.", r".\1_attn.\2.", name)
        name = re.sub(r"\.(image|code)\.(mod|mlp)\.", r".\1_\2.", name)
        names[ours] = name.replace(".image_", ".img_").replace(".code_", ".txt_")
    return names


def dead_weights(model: FlowMo) -> dict[str, tuple[int, ...]]:
    """Released name → shape of every weight that the release allocates and no gradient ever reaches.

    They are not built here: the encoder's time, modulations and image read-out, the weight that multiplies its zero
    code, the decoder's code read-out, and what each half's last block does after attention to the stream that is not
    read; 80 M of 945 M in the large model.
    """
    c = model.config
    patch = c.in_channels * c.patch_size**2
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def ending(name: str, width: int, heads: int) -> None:
        hidden = int(width * c.mlp_ratio)
        shapes[f"{name}_attn.norm.query_norm.scale"] = (width // heads,)
        linear(f"{name}_attn.proj", width, width)
        linear(f"{name}_mlp.0", hidden, width)
        linear(f"{name}_mlp.2", width, hidden)

    width = c.encoder_width
    linear("encoder.time_in.in_layer", width, 256)
    linear("encoder.time_in.out_layer", width, width)
    shapes["encoder.txt_in.weight"] = (width, c.code_dim)
    for i in range(c.encoder_depth):
        for stream in ("img", "txt"):
            linear(f"encoder.double_blocks.{i}.{stream}_mod.lin", 6 * width, width)
    ending(f"encoder.double_blocks.{c.encoder_depth - 1}.img", width, c.encoder_heads)
    linear("encoder.final_layer_img.linear", patch, width)
    for end in ("img", "txt"):
        linear(f"encoder.final_layer_{end}.adaLN_modulation.1", 2 * width, width)
    width = c.decoder_width
    ending(f"decoder.double_blocks.{c.decoder_depth - 1}.txt", width, c.decoder_heads)
    linear("decoder.final_layer_txt.linear", c.code_dim + 1, width)
    linear("decoder.final_layer_txt.adaLN_modulation.1", 2 * width, width)
    return shapes


def released_parameters(model: FlowMo) -> int:
    """Parameters as the release counts them, dead ones included."""
    return model.num_parameters() + sum(torch.Size(shape).numel() for shape in dead_weights(model).values())


def to_released(model: FlowMo) -> dict[str, torch.Tensor]:
    """The weights under the released names, zeros where the release keeps dead ones: its code loads this strictly."""
    names = released_names(model)
    state = {names[ours]: tensor for ours, tensor in model.state_dict().items()}
    like = next(iter(state.values()))
    return state | {name: like.new_zeros(shape) for name, shape in dead_weights(model).items()}


def from_released(
    path: str | os.PathLike[str],
    weights: str = "averaged",
    image_size: int = 256,
    code_length: int = 256,
    group_bits: int | None = None,
    **config: Any,
) -> FlowMo:
    """Build the FlowMo that a published checkpoint holds, in evaluation mode.

    Sizes are read from the tensors' shapes; the picture's side and the number of code tokens leave no trace in them.

    Args:
        path: a `.pth` of the release, or safetensors with the same names.
        weights: `averaged` or `raw`, for a checkpoint that holds both.
        image_size, code_length: of the training.
        group_bits: bits of one token; None: as published (9 of 18, 14 of 56), or all of a code token's.
        config: further arguments of `FlowMo`.

    Raises `ArtifactError` for a file that is missing, unsafe, or no FlowMo (naming every tensor that does not fit).
    """
    check_choice("weights", weights, SOURCES)
    state = _read(Path(path), weights)
    sizes = _sizes(state, str(path))
    bits = GROUP_BITS.get(sizes["code_dim"], sizes["code_dim"]) if group_bits is None else group_bits
    given = {"quantizer_options": {"group_bits": bits}, **sizes, **config}
    with SkipInit():
        model = FlowMo(image_size=image_size, code_length=code_length, **given)
    dead = dead_weights(model)
    live = {our_name(name): tensor for name, tensor in state.items() if name not in dead}
    check_fits(model, live, str(path), strict=True)
    fill(model, live)
    return model.eval()


def _read(path: Path, weights: str) -> Mapping[str, torch.Tensor]:
    if path.suffix not in {*PICKLES, ".pth"}:
        return load_state_dict(path)
    if not path.is_file():
        raise ArtifactError(f"no file {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises by what is wrong: UnpicklingError, RuntimeError, EOFError, …
        said = type(error).__name__
        raise ArtifactError(
            f"{path} is broken, or asks for more than tensors, which is refused ({said}): copy or download it again"
        ) from None
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path} holds a {type(loaded).__name__}, not a checkpoint of FlowMo")
    state = loaded.get(SOURCES[weights], loaded)
    if not isinstance(state, dict) or (state is loaded and any(key in loaded for key in SOURCES.values())):
        raise ArtifactError(f"{path} holds no {SOURCES[weights]!r}: ask for the other weights")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _sizes(state: Mapping[str, torch.Tensor], source: str) -> dict[str, int]:
    """The arguments that the shapes give away."""
    try:
        sizes = {"code_dim": len(state["encoder.final_layer_txt.linear.bias"])}
        for half in ("encoder", "decoder"):
            width, patch = state[f"{half}.img_in.weight"].shape
            head = len(state[f"{half}.double_blocks.0.img_attn.norm.query_norm.scale"])
            blocks = {name.split(".")[2] for name in state if name.startswith(f"{half}.double_blocks.")}
            sizes |= {f"{half}_width": width, f"{half}_depth": len(blocks), f"{half}_heads": width // head}
    except KeyError as error:
        raise ArtifactError(f"{source} is no checkpoint of FlowMo: it lacks {error.args[0]}") from None
    side = round((patch / 3) ** 0.5)
    if 3 * side**2 != patch:
        raise InputError(f"{source} reads patches of {patch} values, which are no squares of RGB pixels")
    return {**sizes, "patch_size": side}
