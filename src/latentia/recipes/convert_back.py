"""Diffusers' folders → one CompVis checkpoint file."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from latentia.core import transaction
from latentia.core.artifacts import load_state_dict, save_state_dict
from latentia.core.config import FrozenConfig, freeze
from latentia.core.files import read_json
from latentia.core.model import ModelMixin
from latentia.core.weight_files import Entry, variants
from latentia.errors import ArtifactError
from latentia.formats.families import PART_OF
from latentia.formats.plan import Options, make_plan
from latentia.formats.single_file import to_single_file
from latentia.pipelines import folder as layout

PART_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
    "AutoencoderKL": "vae",
    "VQModel": "vae",
    "CLIPTextModel": "text_encoder",
    "LDMBertModel": "text_encoder",
}
"""Classes that the CompVis layout has a place for."""

NOT_OF_THE_FUNCTION = frozenset(
    (
        *("sample_size", "force_upcast", "upcast_attention", "beta", "legacy_beta", "lookup_from_codebook"),
        *("dropout", "attention_dropout", "activation_dropout", "initializer_range", "initializer_factor", "init_std"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "projection_dim", "use_attention_mask", "zero_init"),
    )
)
"""Arguments that change no number of a trained network in float32: a file that leaves them out loses nothing."""

Say = Callable[[str], None]


def folder_to_file(folder: Path, target: Path, dtype: torch.dtype | None, say: Say) -> None:
    """Write the networks of a pipeline folder, or the model of a model folder, as one checkpoint file.

    What a checkpoint cannot say (heads, groups, prediction) is warned about where readers would assume otherwise.
    Raises `ArtifactError` for parts that the layout has no place for.
    """
    models = {}
    for name, where in _networks(folder).items():
        target_class, config, state = _read(where)
        part = PART_OF.get(name, name) if name else PART_OF_CLASS.get(target_class.__name__, "")
        if PART_OF_CLASS.get(target_class.__name__) != part:
            raise ArtifactError(
                f"{where} holds a {target_class.__name__}, which CompVis files have no place for; "
                f"they hold: {', '.join(PART_OF_CLASS)}"
            )
        models[part] = (target_class.__name__, config, state)
        say(f"{where}: {target_class.__name__}, {sum(t.numel() for t in state.values()):,} parameters")
    text = models.get("text_encoder")
    open_clip = text is not None and text[1].get("hidden_act") == "gelu"
    checkpoint = to_single_file({part: state for part, (_, _, state) in models.items()}, open_clip=open_clip)
    predicts = _predicts(folder)
    _warn_of_losses(models, checkpoint, predicts, target)
    save_checkpoint(checkpoint, target, dtype)
    say(f"saved {target}: {len(checkpoint):,} tensors, {sum(t.numel() for t in checkpoint.values()):,} numbers")


def save_checkpoint(state: Mapping[str, torch.Tensor], target: Path, dtype: torch.dtype | None) -> None:
    """Write one safetensors file, whole or not at all; floats are cast to `dtype` unless it is None."""
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_state_dict(state, target.parent, stem=target.name.removesuffix(".safetensors"), max_shard_size="1000TB")


def _networks(folder: Path) -> dict[str, Path]:
    """Component → folder of every network of a pipeline; `{"": folder}` for a model's own folder."""
    if not (folder / layout.INDEX).is_file():
        return {"": folder}
    index = layout.read_index(folder)
    names = [name for name, entry in index.components.items() if entry is not None]
    return {name: folder / name for name in names if (folder / name / "config.json").is_file()}


def _read(folder: Path) -> tuple[type[ModelMixin], FrozenConfig, dict[str, torch.Tensor]]:
    """Class, whole config and weights (today's names, dtype of the file) of a model folder."""
    recorded = read_json(transaction.current(folder / "config.json"))
    name = recorded.get("_class_name") or next(iter(recorded.get("architectures") or ()), None)
    target = layout.public_class(str(name), ModelMixin, "model class", folder / "config.json")
    config = target.load_config(folder)
    given = {k: freeze(v, k) for k, v in config.items() if k in target.config_arguments()}
    tags = variants(transaction.names(folder), target.weights_stem)
    variant = None if None in tags or not tags else sorted(map(str, tags))[0]
    state = load_state_dict(folder, variant=variant, stem=target.weights_stem)
    return target, FrozenConfig({**target.config_defaults(), **given}), target.convert_legacy_keys(state)


def _predicts(folder: Path) -> str | None:
    config = folder / "scheduler" / "scheduler_config.json"
    return read_json(config).get("prediction_type", "epsilon") if config.is_file() else None


def _warn_of_losses(
    models: Mapping[str, tuple[str, FrozenConfig, Any]],
    checkpoint: Mapping[str, torch.Tensor],
    predicts: str | None,
    target: Path,
) -> None:
    """Plan how the new file would be read, and warn of every argument that would come out different."""
    entries = {name: Entry("F32", tuple(tensor.shape), 0, 0) for name, tensor in checkpoint.items()}
    plan = make_plan(entries, options=Options())
    public = importlib.import_module("latentia")
    lost: dict[str, Any] = {}
    for part, (class_name, config, _) in models.items():
        assumed = {**getattr(public, class_name).config_defaults(), **plan.parts[part].config}
        for name in assumed.keys() - NOT_OF_THE_FUNCTION:
            if not _equal(config[name], assumed[name]):
                lost[f"{part}.{name}"] = config[name]
    assumed_prediction = plan.scheduler.get("prediction_type")
    if predicts and assumed_prediction and predicts != assumed_prediction:
        lost["prediction_type"] = predicts
    if lost:
        warnings.warn(
            f"{target} cannot say that {', '.join(f'{k} is {v!r}' for k, v in sorted(lost.items()))}: readers assume "
            "otherwise, so tell them (overrides= and prediction_type= of from_single_file)",
            stacklevel=3,
        )


def _equal(value: Any, assumed: Any) -> bool:
    """Equal, a number standing for the same number in every stage."""
    if isinstance(assumed, tuple) and not isinstance(value, tuple):
        value = (value,) * len(assumed)
    if isinstance(value, tuple) and not isinstance(assumed, tuple):
        assumed = (assumed,) * len(value)
    return bool(value == assumed)
