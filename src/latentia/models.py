"""Models under the name where users of Diffusers look for them: `from latentia.models import EMAModel, UNet2DModel`."""

from typing import Any

_NAMES = (
    "Autoencoder",
    "AutoencoderKL",
    "CLIPTextModel",
    "ControlNetModel",
    "EMAModel",
    "LDMBertModel",
    "ModelMixin",
    "UNet2DConditionModel",
    "UNet2DModel",
    "VQModel",
)

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        import latentia

        return getattr(latentia, name)
    raise AttributeError(f"latentia.models has no {name!r}; it has: {', '.join(_NAMES)}")
