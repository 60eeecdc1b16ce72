"""What a checkpoint file becomes: classes, arguments, and for each of its tensors where it goes. Torch-free.

The plan needs names and shapes only, so it is made from a header alone, and everything that does not fit is said before
a single weight is read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latentia.core.weight_files import Entry
from latentia.errors import ArtifactError, InputError, unknown_choice
from latentia.formats import autoencoder, clip, families, unet
from latentia.formats.detect import Sorted, averaged_name, sort_names
from latentia.formats.families import Family
from latentia.formats.rules import Move, Rule, Shape, to_ours

PARTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True, slots=True)
class Options:
    """What a reader may ask for.

    Attributes:
        use_ema: the averaged weights of every part that has them.
        prediction_type: what the network predicts, see `families.prediction`; None: guessed, with a note.
        overrides: part → arguments that no tensor tells, such as `{"unet": {"attention_head_dim": 4}}`.
        ignore: beginnings of names that are to be left out.
    """

    use_ema: bool = False
    prediction_type: str | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


@dataclass(slots=True)
class PartPlan:
    """One model: class, arguments, and the moves of its tensors with the shapes of ours."""

    class_name: str
    config: dict[str, Any]
    moves: list[Move]
    shapes: dict[str, Shape]


@dataclass(slots=True)
class Plan:
    """A whole file: family, parts, the arguments of its scheduler, and notes on what was guessed.

    `averaged` tells whether there are averaged weights.
    """

    family: Family
    parts: dict[str, PartPlan]
    averaged: bool
    scheduler: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_plan(
    entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None, options: Options | None = None
) -> Plan:
    """The plan for a file with these tensors (and safetensors metadata).

    Raises `ArtifactError` for a family that is not read, for tensors that belong nowhere (listing all of them) and for
    a part that is incomplete; `InputError` for averaged weights that are not there or overrides of no part.
    """
    options = options or Options()
    found = sort_names(entries, options.ignore)
    for part in options.overrides:
        if part not in found.parts:
            raise unknown_choice("part in overrides", part, found.parts)
    shapes = {name: entry.shape for name, entry in entries.items()}
    parts: dict[str, PartPlan] = {}
    unknown = list(found.unknown)
    for part in (p for p in PARTS if p in found.parts):
        if found.layouts[part] == "classes":
            continue
        parts[part], lost = _plan_part(part, found, shapes, options.overrides.get(part, {}))
        unknown += lost
    if unknown:
        raise ArtifactError(
            f"{len(unknown)} tensors belong to no part that was recognised ({', '.join(parts) or 'none'}): "
            f"{', '.join(unknown)}. The file may be a mixture; names to leave out can be given by ignore (--ignore)"
        )
    if options.use_ema:
        _take_averages(parts, found.averaged, shapes)
    return _finish(parts, found, metadata or {}, options)


def _plan_part(
    part: str, found: Sorted, shapes: Mapping[str, Shape], overrides: Mapping[str, Any]
) -> tuple[PartPlan, list[str]]:
    inside = found.parts[part]
    layout = found.layouts[part]
    rules, derive = _MAKERS[part](layout, inside, overrides)
    moves, lost = to_ours(rules, inside)
    if layout == "open_clip":
        blocks = clip.used_blocks(inside)
        lost = [name for name in lost if not clip.unused_by_stable_diffusion(name, blocks)]
    moves = [Move(inside[move.theirs], move.ours, move.rule) for move in moves]
    ours = {name: move.rule.our_shape(shapes[move.theirs]) for move in moves for name in move.ours}
    try:
        class_name, config = derive(ours)
    except (IndexError, KeyError, ValueError):
        odd = [f"{n} {s}" for n, s in ours.items() if n.endswith(".weight") and (len(s) < 2) != ("norm" in n)]
        raise ArtifactError(
            f"the {part} has tensors of shapes or names that no {part} has; the odd ones may be among "
            f"{', '.join(odd[:8]) or 'its first layers'}: the file is broken, or of another family"
        ) from None
    return PartPlan(class_name, {**config, **overrides}, moves, ours), [inside[name] for name in lost]


Derive = Callable[[Mapping[str, Shape]], tuple[str, dict[str, Any]]]
Made = tuple[Iterable[Rule], Derive]


def _unet(layout: str, names: Mapping[str, str], overrides: Mapping[str, Any]) -> Made:
    if layout == "diffusers":
        return autoencoder.identity(names), unet.config
    head_dim = overrides.get("attention_head_dim", unet.LDM_HEAD_DIM)
    return unet.rules(unet.their_structure(names), head_dim), unet.config


def _vae(layout: str, names: Mapping[str, str], overrides: Mapping[str, Any]) -> Made:
    if layout == "diffusers":
        return autoencoder.identity(names), autoencoder.config
    return autoencoder.rules(*autoencoder.their_stages(names)), autoencoder.config


def _text_encoder(layout: str, names: Mapping[str, str], overrides: Mapping[str, Any]) -> Made:
    if layout == "open_clip":
        return clip.open_clip(clip.used_blocks(names)), lambda s: ("CLIPTextModel", clip.clip_config(s, openai=False))
    if layout == "clip":
        return clip.clip(names), lambda s: ("CLIPTextModel", clip.clip_config(s, openai=True))
    rules = clip.bert(clip.their_bert_layers(names)) if layout == "ldm_bert" else autoencoder.identity(names)
    return rules, lambda s: ("LDMBertModel", clip.bert_config(s))


_MAKERS: Mapping[str, Callable[[str, Mapping[str, str], Mapping[str, Any]], Made]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text_encoder,
}


def _take_averages(parts: Mapping[str, PartPlan], averaged: set[str], shapes: Mapping[str, Shape]) -> None:
    """Point the moves of every part that has averaged weights at these."""
    done = False
    for name, part in parts.items():
        have = [averaged_name(move.theirs) in averaged for move in part.moves]
        if not any(have):
            continue
        lost = [move.theirs for move, there in zip(part.moves, have) if not there]
        if lost:
            raise ArtifactError(f"the averaged weights of the {name} lack {', '.join(lost)}: read it without use_ema")
        part.moves = [Move(averaged_name(move.theirs), move.ours, move.rule) for move in part.moves]
        part.shapes = {ours: move.rule.our_shape(shapes[move.theirs]) for move in part.moves for ours in move.ours}
        done = True
    if not done:
        raise InputError("use_ema: this file has no averaged weights (model_ema.*); leave it out")


def _finish(parts: dict[str, PartPlan], found: Sorted, metadata: Mapping[str, str], options: Options) -> Plan:
    averaged = bool(found.averaged)
    if "unet" not in parts or len(found.parts) == 1:
        return Plan(Family(_lone_name(parts)), parts, averaged)
    network = parts["unet"]
    text = found.layouts.get("text_encoder")
    kind = families.whole(network.class_name, network.config, text, v_prediction=False)
    second = kind in (families.SD2, families.SD2_INPAINT)
    stated = metadata.get("modelspec.prediction_type")
    predicts, note = families.prediction(second, network.config["in_channels"], options.prediction_type, stated)
    kind = families.whole(network.class_name, network.config, text, predicts == "v_prediction")
    plan = Plan(kind, parts, averaged, {"prediction_type": predicts}, [note] if note else [])
    if text == "classes":
        lost = ", ".join(found.parts["text_encoder"].values())
        plan.notes.append(f"{lost}: the embedding of the classes has no class here and is left out")
    _add_sizes(plan, options)
    return plan


def _add_sizes(plan: Plan, options: Options) -> None:
    """Sizes of the training pictures, and what else follows the family."""
    given = {part: options.overrides.get(part, {}) for part in PARTS}
    network, size = plan.parts["unet"].config, plan.family.latent_size
    network["sample_size"] = given["unet"].get("sample_size", size)
    vae = plan.parts.get("vae")
    if vae is not None:
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        vae.config["sample_size"] = given["vae"].get("sample_size", size * factor)
    if plan.family is families.LDM_CLASSES and plan.parts["unet"].class_name == "UNet2DConditionModel":
        network["attention_head_dim"] = given["unet"].get("attention_head_dim", 1)
    if plan.family is families.SD2_V:
        network["upcast_attention"] = given["unet"].get("upcast_attention", True)


def _lone_name(parts: Mapping[str, PartPlan]) -> str:
    return ", ".join(part.class_name for part in parts.values()) + (" alone" if len(parts) == 1 else "")
