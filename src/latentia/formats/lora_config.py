"""Rank and α of a LoRA as Diffusers keeps them: PEFT's `LoraConfig` as JSON in the metadata of a safetensors file."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentia.errors import ArtifactError

METADATA = "lora_adapter_metadata"
"""Key of the metadata under which the JSON stands."""

_TEXT = "text_model."


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What one component's entries say of α.

    Attributes:
        alpha: of every layer that no pattern names; None: the layer's rank.
        patterns: end of a path (`^`: whole path) → α.
        rank_stabilised: scale by α/√r instead of α/r.
    """

    alpha: float | None = None
    patterns: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, path: str, rank: int) -> float:
        """α of the layer at `path`, such that α/r is its scale."""
        bare = path.removeprefix(_TEXT)
        named = (alpha for pattern, alpha in self.patterns.items() if _names(pattern, bare))
        alpha = next(named, self.alpha)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def _names(pattern: str, path: str) -> bool:
    """Whether PEFT's pattern means this layer. It is read as a path: a regular expression of a file is not run."""
    plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if re.search(r"[^\w.-]", plain):
        raise ArtifactError(f"the LoRA's metadata names layers by the pattern {pattern!r}: only paths are supported")
    plain = plain.removeprefix(_TEXT)
    return path == plain or (not pattern.startswith("^") and path.endswith(f".{plain}"))


def read_configs(metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Component → its settings; entries without a component are the UNet's. `ArtifactError` when broken or DoRA's."""
    if METADATA not in metadata:
        return {}
    try:
        entries = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ArtifactError(f"the LoRA's metadata {METADATA!r} is no JSON object: save the file again, or remove it")
    by_component: dict[str, dict[str, Any]] = {}
    for name, value in entries.items():
        component, dot, rest = name.partition(".")
        by_component.setdefault(component if dot else "unet", {})[rest if dot else name] = value
    return {component: read_config(component, values) for component, values in by_component.items()}


def read_config(component: str, values: Mapping[str, Any]) -> AdapterConfig:
    """Entries of `LoraConfig` → what they say of α; `ArtifactError` for DoRA, and for what are no numbers."""
    if values.get("use_dora"):
        raise ArtifactError(f"the LoRA's metadata says that {component} uses DoRA, which is not supported")
    alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(
        _is_number(n) for n in (*patterns.values(), 0 if alpha is None else alpha)
    ):
        raise ArtifactError(f"the LoRA's metadata has no numbers as lora_alpha and alpha_pattern of {component}")
    return AdapterConfig(
        None if alpha is None else float(alpha),
        {str(name): float(value) for name, value in patterns.items()},
        bool(values.get("use_rslora")),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_config(scales: Mapping[str, tuple[int, float]], whole_paths: bool) -> dict[str, Any]:
    """Path → (r, α)  →  the entries of `LoraConfig` that tell them: the commonest, and the layers that differ.

    With `whole_paths` the layers that differ are named by their whole paths (`^`), else by ends of paths.
    """
    begin = "^" if whole_paths else ""
    ranks = Counter(rank for rank, _ in scales.values())
    alphas = Counter(alpha for _, alpha in scales.values())
    rank, alpha = ranks.most_common(1)[0][0], alphas.most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {begin + path: r for path, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {begin + path: _plain(a) for path, (_, a) in scales.items() if a != alpha},
        "target_modules": sorted(scales),
        "use_dora": False,
        "lora_bias": False,
    }


def _plain(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def write_metadata(entries: Mapping[str, Any]) -> dict[str, str]:
    """Entries of all components, `unet.r` and so on, as the metadata of a safetensors file."""
    return {METADATA: json.dumps(entries, indent=2, sort_keys=True)}
