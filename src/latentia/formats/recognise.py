"""What a safetensors file holds, for `latentia info`: from its header alone, without torch."""

from latentia.core.inspect_path import Content
from latentia.core.weight_files import Header
from latentia.errors import LatentiaError
from latentia.formats.detect import foreign_family
from latentia.formats.plan import Plan, make_plan


def recognise(header: Header) -> Content:
    """The family, the parts and the problems of a file with this header; never raises."""
    family = foreign_family(header.tensors)
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


def _lacks(plan: Plan) -> list[str]:
    if plan.family.pipeline is None:
        return []
    wanted = ("unet", "vae", "text_encoder") if plan.family.tokenizer else ("unet", "vae")
    return [f"it has no {part}: pass one to load it as a pipeline" for part in wanted if part not in plan.parts]
