"""LoRA files: every layout in use read into one form, and that form written in Diffusers' layout or kohya's.

The one form is component → path of a layer → (A, B, α), components being `unet` and `text_encoder`; the update of a
layer is (α/r)·B·A. What is read (with `unet.`, `text_encoder.` or no prefix, which means the UNet):

    PATH.lora_A[.NAME].weight, PATH.lora_B[.NAME].weight       Diffusers' today, in PEFT's words; α in the metadata
    PATH.lora.down.weight, PATH.lora.up.weight                 Diffusers' of 2023
    PATH.lora_linear_layer.down.weight, …                      the same, text encoders
    PATH.processor.to_q_lora.down.weight, …                    the same, attention processors
    lora_unet_P_A_T_H.lora_down.weight, ….lora_up.weight       kohya's (`lora_te_…`: text encoder), linear or LoCon
    lora_unet_input_blocks_1_1_….lora_down.weight, …           kohya's with CompVis' names of blocks

Any of them may have `PATH.alpha`, one number; a layer without α has α = r. Paths are resolved against the layers that
the network really has: underscores are not guessed at, and a text path may have `text_model.` in front or not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from latentia.errors import ArtifactError, InputError, check_choice
from latentia.formats.lora_config import (
    METADATA,
    AdapterConfig,
    read_config,
    read_configs,
    write_config,
    write_metadata,
)
from latentia.formats.unet import our_structure, rules

__all__ = ["LAYOUTS", "METADATA", "Lora", "Weights", "read_layers", "read_lora", "write_lora"]

Weights = tuple[torch.Tensor, torch.Tensor, float]
"""A, B and α of one layer."""

Lora = dict[str, dict[str, Weights]]
"""Component → path → weights."""

LAYOUTS = ("diffusers", "kohya")

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
"""Component → what kohya's keys of it begin with."""

TEXT = "text_model."
_CLIP = ("encoder.layers.", "embeddings.", "final_layer_norm")
"""Beginnings of paths in CLIP's text encoder, in front of which published files have `text_model.`."""

_SUPPORTED = (
    "supported are A and B of linear layers and convolutions (LoRA, LoCon), for a `unet` and a `text_encoder`, in the "
    "layouts of Diffusers, PEFT and kohya"
)
_FOREIGN_PREFIXES = {
    "lora_te1_": "SDXL text encoder",
    "lora_te2_": "SDXL text encoder",
    "text_encoder_2.": "SDXL text encoder",
    "text_encoder_3.": "SD 3 text encoder",
    "transformer.": "diffusion transformer",
    "diffusion_model.": "diffusion transformer",
    "lycoris_": "LyCORIS",
    "base_model.model.": "PEFT folder (its scale is in adapter_config.json; save with save_lora_weights instead)",
    "bundle_emb.": "textual inversion",
}
_FOREIGN_PARTS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    ".oft_": "OFT",
    ".lora_mid.": "LoCon with a Tucker core",
    ".on_input": "IA3",
    "lora_B.bias": "LoRA with a bias",
}

_KEY = re.compile(
    r"(?P<path>.+?)"
    r"(?:\.lora_(?P<new>A|B|down|up)(?:\.[^.]+)?\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)?\.alpha)"
)
_HALVES = {"A": "A", "down": "A", "B": "B", "up": "B", None: "alpha"}
_TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def read_lora(
    state: Mapping[str, torch.Tensor],
    layers: Mapping[str, Iterable[str]],
    metadata: Mapping[str, str] | None = None,
) -> Lora:
    """A LoRA file's tensors → component → path → (A, B, α). Tensors are passed on, not copied.

    Args:
        state: the tensors of the file.
        layers: component → paths of its linear layers and convolutions; a component that is absent from it must not
            occur in the file.
        metadata: the safetensors file's own texts; `lora_adapter_metadata` among them tells α.

    Raises one `ArtifactError` that says what was found and is not supported, or lists every layer that is not there,
    has only one of A and B, or occurs twice.
    """
    _refuse_foreign(state)
    configs = read_configs(metadata or {})
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    twice = []
    for key, tensor in state.items():
        component, path, part = _parse(key)
        parts = found.setdefault((component, path), {})
        if part in parts:
            twice.append(key)
        parts[part] = tensor
    names = {component: _Names(component, paths) for component, paths in layers.items()}
    lora: Lora = {}
    lost = []
    halves = []
    for (component, path), parts in found.items():
        ours = names[component].find(path) if component in names else None
        if ours is None:
            lost.append(f"{component} {path}")
        elif "A" not in parts or "B" not in parts or not parts["A"].ndim:
            halves.append(f"{component} {path}")
        elif ours in lora.setdefault(component, {}):
            twice.append(f"{component} {path}")
        else:
            config = configs.get(component, AdapterConfig())
            lora[component][ours] = (parts["A"], parts["B"], _alpha(path, parts, config))
    _report(lost, halves, twice, names)
    return lora


def read_layers(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, Weights]:
    """Tensors `PATH.lora_A.weight` (or `PATH.lora.down.weight`) of one component → path → (A, B, α).

    `config`: entries of PEFT's `LoraConfig`, of which `lora_alpha`, `alpha_pattern` and `use_rslora` matter.
    Raises `ArtifactError` for other names, and layers that have only one of A and B.
    """
    _refuse_foreign(state)
    old = [key for key in state if "_lora." in key]
    if old:
        raise ArtifactError(f"{old[0]} is a name of 2023, which leaves the layer open: give PATH.lora_A.weight")
    settings = read_config("the adapter", config)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        _, path, part = _parse(key)
        layers.setdefault(path, {})[part] = tensor
    _report([], [path for path, parts in layers.items() if not {"A", "B"} <= parts.keys()], [], ["given"])
    return {path: (parts["A"], parts["B"], _alpha(path, parts, settings)) for path, parts in layers.items()}


def _report(lost: list[str], halves: list[str], twice: list[str], known: Iterable[str]) -> None:
    groups = ((lost, "not in this network"), (halves, "without both A and B"), (twice, "there twice"))
    problems = [f"{len(names)} {what}: {', '.join(sorted(names))}" for names, what in groups if names]
    if problems:
        raise ArtifactError(
            f"the LoRA does not fit the networks it is for ({', '.join(known) or 'none'}). Layers {'; '.join(problems)}"
        )


def _refuse_foreign(state: Mapping[str, torch.Tensor]) -> None:
    kinds = Counter(kind for key in state if (kind := _foreign(key)))
    if not state or kinds:
        what = ", ".join(f"{kind} ({count} tensors)" for kind, count in kinds.items())
        first = next((key for key in state if _foreign(key)), "")
        raise ArtifactError(
            f"not a LoRA that can be read: found {f'{what}, first {first}' if what else 'nothing'}; {_SUPPORTED}"
        )


def _foreign(key: str) -> str | None:
    """What kind of thing a key that is none of LoRA's belongs to; None for LoRA's."""
    for begin, kind in _FOREIGN_PREFIXES.items():
        if key.startswith(begin):
            return kind
    for part, kind in _FOREIGN_PARTS.items():
        if part in key:
            return kind
    if key.endswith((".diff", ".diff_b")):
        return "whole differences of weights"
    return None if _KEY.fullmatch(key) else "tensors of no known layout"


def _parse(key: str) -> tuple[str, str, str]:
    """Component, path as the file has it (of kohya's: with its prefix), and `A`, `B` or `alpha`."""
    match = _KEY.fullmatch(key)
    assert match is not None, key
    path, part = match["path"], _HALVES[match["new"] or match["old"]]
    for component, begin in KOHYA.items():
        if path.startswith(begin):
            return component, path, part
    path = path.replace(".processor.", ".")
    if path.startswith(("text_encoder.", TEXT)):
        return "text_encoder", path.removeprefix("text_encoder."), part
    return "unet", path.removeprefix("unet."), part


class _Names:
    """The layers of one component under every name that files give them."""

    def __init__(self, component: str, paths: Iterable[str]) -> None:
        paths = list(paths)
        self.text = component == "text_encoder"
        self.begin = KOHYA[component]
        self.dotted = {self._bare(path): path for path in paths}
        self.flat: dict[str, set[str]] = {}
        for path in paths:
            self.flat.setdefault(_flat(self._bare(path)), set()).add(path)
        if not self.text:
            for theirs, ours in _compvis(paths):
                self.flat.setdefault(_flat(theirs), set()).add(ours)

    def find(self, path: str) -> str | None:
        """The layer that a file means by `path`; None for none, or more than one."""
        if path.startswith(self.begin):
            flat = path.removeprefix(self.begin)
            ours = self.flat.get(flat.removeprefix(_flat(TEXT)) if self.text else flat, set())
            return next(iter(ours)) if len(ours) == 1 else None
        path = self._bare(path)
        return self.dotted.get(path) or self.dotted.get(self._today(path))

    def _bare(self, path: str) -> str:
        return path.removeprefix(TEXT) if self.text else path

    def _today(self, path: str) -> str:
        """A path of 2023 as it is called today."""
        if not self.text:
            return f"{path}.0"  # to_out
        begin, _, last = path.rpartition(".")
        return f"{begin}.{_TEXT_WORDS.get(last, last)}"


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _compvis(paths: list[str]) -> Iterable[tuple[str, str]]:
    """CompVis' path and ours of every layer of a UNet that both have."""
    present = set(paths)
    for rule in rules(our_structure(paths)):
        ours = rule.ours[0].removesuffix(".")
        if len(rule.ours) == 1 and ours in present:
            yield rule.theirs.removesuffix("."), ours


def _alpha(path: str, parts: Mapping[str, torch.Tensor], config: AdapterConfig) -> float:
    if "alpha" not in parts:
        return config.alpha_of(path, parts["A"].shape[0])
    if parts["alpha"].numel() != 1:
        raise ArtifactError(f"{path}.alpha must be one number, has shape {tuple(parts['alpha'].shape)}")
    return float(parts["alpha"])


def write_lora(
    lora: Mapping[str, Mapping[str, Weights]], layout: str = "diffusers"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Component → path → (A, B, α)  →  tensors and metadata of a safetensors file.

    `diffusers`: PEFT's words, α and ranks in the metadata, as Diffusers writes and reads it. `kohya`: underscored
    names with `alpha` tensors. Reading the result gives the same numbers back.
    Raises `UnknownChoiceError` for another layout, `InputError` for an empty LoRA or an unknown component.
    """
    check_choice("LoRA layout", layout, LAYOUTS)
    for component in lora:
        check_choice("component of a LoRA", component, KOHYA)
    if not any(lora.values()):
        raise InputError("there is nothing to save: the LoRA has no layers")
    state: dict[str, torch.Tensor] = {}
    texts: dict[str, object] = {}
    for component, weights in lora.items():
        if not weights:
            continue
        shown = {_published(component, path): value for path, value in weights.items()}
        if layout == "kohya":
            _add_kohya(state, KOHYA[component], shown)
            continue
        for path, (down, up, _) in shown.items():
            state[f"{component}.{path}.lora_A.weight"] = down
            state[f"{component}.{path}.lora_B.weight"] = up
        scales = {path.removeprefix(TEXT): (a.shape[0], alpha) for path, (a, _, alpha) in shown.items()}
        texts |= {f"{component}.{name}": value for name, value in write_config(scales, component == "unet").items()}
    return state, write_metadata(texts) if texts else {}


def _published(component: str, path: str) -> str:
    return TEXT + path if component == "text_encoder" and path.startswith(_CLIP) else path


def _add_kohya(state: dict[str, torch.Tensor], begin: str, weights: Mapping[str, Weights]) -> None:
    for path, (down, up, alpha) in weights.items():
        name = begin + _flat(path)
        if f"{name}.alpha" in state:
            raise InputError(f"two layers are called {name!r} in kohya's layout: save in Diffusers' layout")
        number = torch.tensor(alpha)
        state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
        state[f"{name}.alpha"] = number if float(number) == alpha else number.new_tensor(alpha, dtype=torch.float64)
