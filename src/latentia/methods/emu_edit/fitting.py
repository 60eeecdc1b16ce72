"""Whether the components of an editor were made for each other."""

from collections.abc import Mapping
from typing import Any

from latentia.errors import InputError
from latentia.methods.emu_edit.joint_text import joint_width


def check_fit(parts: Mapping[str, Any], names: Mapping[str, int]) -> None:
    """Raise `InputError` for parts that were not made for each other; None: not there yet, or without."""
    model = parts["model"]
    if model is None:
        return
    bad = [place for place in names.values() if not 0 <= place < len(model.tasks.weight)]
    if bad:
        raise InputError(f"id2task names places {bad}, but model has {len(model.tasks.weight)} tasks")
    if parts["text_encoder"] is not None:
        encoders = [parts[name] for name in ("text_encoder", "text_encoder_2") if parts[name] is not None]
        width, taken = joint_width(encoders), model.unet.config.cross_attention_dim
        if width != taken:
            raise InputError(
                f"text_encoder makes embeddings of width {width} but model looks at texts of width {taken}: "
                "they were not made for each other"
            )
    scheduler, wanted = parts["scheduler"], model.prediction_type
    if scheduler is not None and wanted not in (None, scheduler.config.prediction_type):
        raise InputError(
            f"model predicts {wanted!r} but scheduler expects {scheduler.config.prediction_type!r}: build it with "
            f"prediction_type={wanted!r}"
        )
    channels, codec = model.config.in_channels, parts["codec"]
    latent = None if codec is None else codec.config.get("vq_embed_dim") or codec.config.get("latent_channels")
    if latent not in (None, channels):
        raise InputError(f"codec makes latents of {latent} channels but model takes {channels}")
    predictor = parts["task_predictor"]
    unknown = [] if predictor is None else sorted(set(predictor.tasks) - set(names))
    if unknown:
        raise InputError(f"task_predictor tells tasks that the model has not: {', '.join(unknown)}; see id2task")
