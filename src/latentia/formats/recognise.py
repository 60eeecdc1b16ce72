"""What a safetensors file holds, for `latentia info`: from its header alone, without torch."""

import re

from latentia.core.inspect_path import Content
from latentia.core.weight_files import Header
from latentia.errors import LatentiaError
from latentia.formats.detect import foreign_family
from latentia.formats.plan import Plan, make_plan

_DOWN = re.compile(r"(.+)(?:\.lora_(?:A|down)(?:\.[^.]+)?|(?:_lora|\.lora|\.lora_linear_layer)\.down)\.weight")
"""Name of the A of one layer, in every layout of `formats.lora`."""

_RELATIVES = {".hada_": "LoHa", ".lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"}
"""Part of a name → kind of adapter that shares a LoRA's names."""


def recognise(header: Header) -> Content:
    """The family, the parts and the problems of a file with this header; never raises."""
    family = foreign_family(header.tensors)
    if family == "a LoRA":
        return _lora(header)
    if family is not None:
        return Content(family)
    try:
        plan = make_plan(header.tensors, header.metadata)
    except LatentiaError as error:
        return Content(problems=[str(error)])
    parts = {
        name: (part.class_name, tuple(dict.fromkeys(move.theirs for move in part.moves)))
        for name, part in plan.parts.items()
    }
    return Content(plan.family.name, parts, ("default", "ema") if plan.averaged else (), [*plan.notes, *_lacks(plan)])


def _lora(header: Header) -> Content:
    """Rank, and layers of each network."""
    for part, kind in _RELATIVES.items():
        if any(part in name for name in header.tensors):
            return Content(f"a {kind}", problems=[f"{kind} is not read, LoRA alone is"])
    downs = [name for name in header.tensors if _DOWN.fullmatch(name)]
    ranks = sorted({shape[0] for name in downs if (shape := header.tensors[name].shape)})
    by_network: dict[str, list[str]] = {"unet": [], "text_encoder": []}
    for name in header.tensors:
        text = name.startswith(("text_encoder", "text_model.", "lora_te"))
        by_network["text_encoder" if text else "unet"].append(name)
    parts = {}
    for network, names in by_network.items():
        layers = len(set(names) & set(downs))
        if layers:
            parts[network] = (f"{layers} layer{'s' if layers > 1 else ''}", tuple(names))
    rank = f" of rank {ranks[0]}" if len(ranks) == 1 else f" of ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    return Content(f"a LoRA{rank}", parts)


def _lacks(plan: Plan) -> list[str]:
    if plan.family.pipeline is None:
        return []
    wanted = ("unet", "vae", "text_encoder") if plan.family.tokenizer else ("unet", "vae")
    return [f"it has no {part}: pass one to load it as a pipeline" for part in wanted if part not in plan.parts]
