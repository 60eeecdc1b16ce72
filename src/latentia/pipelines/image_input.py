"""Pictures and masks that a call is given, in any of the field's forms, as tensors of one size.

    PIL pictures             any mode; resized by Lanczos
    numpy arrays             (H, W, C) or (B, H, W, C)   } uint8, or floats in [0, 1] or [-1, 1];
    torch tensors            (C, H, W) or (B, C, H, W)   } resized by taking the nearest pixel
    lists of one of these

As Diffusers, floats are taken as [-1, 1] when any of them is negative. Reading (`read_pictures`, `read_masks`) checks
and computes next to nothing, so that a call can refuse what does not fit before it works; `resized` makes the tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from latentia.core.arguments import check_count
from latentia.errors import InputError

One = Image.Image | np.ndarray | torch.Tensor
PictureInput = One | Sequence[One]
"""What a call takes as `image` or `mask_image`."""
Raw = list[Image.Image] | list[torch.Tensor]
"""What was read: PIL pictures, or float32 tensors (k, C, H, W); each in its own size."""

FORMS = "a PIL picture, a numpy array (H, W, C), a torch tensor (C, H, W), a batch or a list of one of these"
SLACK = 1e-3  # how far rounding may carry a value out of its range
GREY_AT_ONCE = ("1", "L", "RGB", "RGBA")  # modes that Diffusers resizes before it makes them grey


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, or their latents.

    Attributes:
        values: (n, C, H, W) float32 in [0, 1], or in [-1, 1] when some value is negative; any values when `latent`.
        latent: these are scaled latents (n, c, h, w) of pictures, not pictures.
    """

    values: torch.Tensor
    latent: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def signed(self) -> bool:
        """Whether the values are taken as [-1, 1]."""
        return bool(self.values.min() < 0)

    def centred(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The pictures in [-1, 1]; float64 keeps every bit of those in [0, 1] above 2⁻²⁹. Latents stay as they are."""
        values = self.values.to(dtype)
        return values if self.latent or self.signed else 2 * values - 1

    def unit(self) -> torch.Tensor:
        """The pictures in [0, 1], float32."""
        return self.values / 2 + 0.5 if self.signed else self.values


def load_pictures(
    given: PictureInput | None,
    height: int | None = None,
    width: int | None = None,
    *,
    multiple: int = 8,
    name: str = "image",
    channels: int = 3,
    latent_channels: int | None = None,
) -> Pictures:
    """Pictures of one size, or latents.

    Args:
        given: pictures; see the module.
        height, width: size to bring them to; default their own, rounded down to a `multiple`.
        multiple: of pixels, what a codec needs.
        name: the argument's name, for errors.
        channels: of a picture: 3, or 1 for grey.
        latent_channels: a tensor with so many channels is a latent, and is neither changed nor resized.

    Raises `InputError` for anything else, for several sizes where none is asked for, and for NaN.
    """
    raw = read_pictures(name, given, channels, latent_channels)
    if is_latent(raw, latent_channels, channels):
        size_of(name, raw)
        return Pictures(torch.cat([part for part in raw if isinstance(part, torch.Tensor)]), latent=True)
    return Pictures(resized(raw, *target_size(name, raw, height, width, multiple)))


def load_masks(
    given: PictureInput | None,
    height: int | None = None,
    width: int | None = None,
    *,
    multiple: int = 8,
    name: str = "mask_image",
    soft: bool = False,
) -> torch.Tensor:
    """Masks (n, 1, H, W): 0 or 1, cut at a half; `soft` keeps what lies between. Arguments as of `load_pictures`."""
    raw = read_masks(name, given)
    return cut(resized(raw, *target_size(name, raw, height, width, multiple), grey=True), soft)


def cut(mask: torch.Tensor, soft: bool = False) -> torch.Tensor:
    """The mask as 0 and 1, cut at a half; or, `soft`, as it is."""
    return mask if soft else (mask >= 0.5).to(mask.dtype)


# Reading -----------------------------------------------------------------------------------------------------------


def read_pictures(name: str, given: PictureInput | None, channels: int = 3, latent_channels: int | None = None) -> Raw:
    """Pictures as they are: PIL in RGB (or grey), or tensors (k, C, H, W) in [0, 1] or [-1, 1]; checked."""
    listed = _listed(name, given)
    pil = [picture for picture in listed if isinstance(picture, Image.Image)]
    if pil:
        _check_modes(name, pil)
        return [picture.convert("RGB" if channels == 3 else "L") for picture in pil]
    tensors = [_as_tensor(name, array, channels) for array in listed if not isinstance(array, Image.Image)]
    if isinstance(listed[0], torch.Tensor) and is_latent(tensors, latent_channels, channels):
        _check_range(name, tensors, -math.inf, math.inf, "pass finite latents")
        return [tensor.float() for tensor in tensors]
    wrong = {tensor.shape[1] for tensor in tensors} - {channels}
    if wrong:
        raise InputError(
            f"{name} has {' and '.join(str(c) for c in sorted(wrong))} channels, expected {channels}: numpy pictures "
            f"are (B, H, W, {channels}), torch pictures (B, {channels}, H, W); convert grey and RGBA to RGB"
        )
    return _check_range(name, tensors, -1, 1, "pass uint8, or floats in [0, 1] or [-1, 1]")


def read_masks(name: str, given: PictureInput | None) -> Raw:
    """Masks as they are: PIL, or tensors (k, 1, H, W) in [0, 1]; checked.

    Arrays may leave the channel out: (H, W), (B, H, W). Integers count as on and off when none is above 1, else as
    0 … 255.
    """
    listed = _listed(name, given)
    pil = [mask for mask in listed if isinstance(mask, Image.Image)]
    if pil:
        _check_modes(name, pil)
        return [mask if mask.mode in GREY_AT_ONCE else mask.convert("L") for mask in pil]
    tensors = [_as_mask(name, array) for array in listed if not isinstance(array, Image.Image)]
    return _check_range(name, tensors, 0, 1, "pass booleans, uint8, or floats in [0, 1]; 1 is repainted, 0 kept")


def is_latent(raw: Raw, latent_channels: int | None, channels: int = 3) -> bool:
    """Whether all that was read are tensors with a latent's number of channels."""
    return latent_channels not in (None, channels) and all(
        isinstance(part, torch.Tensor) and part.shape[1] == latent_channels and part.is_floating_point() for part in raw
    )


def _check_modes(name: str, pictures: list[Image.Image]) -> None:
    for picture in pictures:
        if picture.mode == "F" or picture.mode.startswith("I"):
            raise InputError(f"{name} is a PIL picture of mode {picture.mode!r}: bring it to 8 bits (RGB or L) first")


def _listed(name: str, given: PictureInput | None) -> list[One]:
    """The entries of a list, or the one thing that was given; all of one kind."""
    if given is None:
        raise InputError(f"{name} is missing: pass {FORMS}")
    listed = [given] if isinstance(given, Image.Image | np.ndarray | torch.Tensor) else given
    if not isinstance(listed, list | tuple):
        raise InputError(f"{name} must be {FORMS}; got {type(given).__name__}. Open files with PIL.Image.open")
    if not listed:
        raise InputError(f"{name} is an empty list: pass at least one")
    for kind in (Image.Image, np.ndarray, torch.Tensor):
        if all(isinstance(entry, kind) for entry in listed):
            return list(listed)
    kinds = ", ".join(sorted({type(entry).__name__ for entry in listed}))
    raise InputError(f"{name} must be {FORMS}; got a list of {kinds}")


def _as_tensor(name: str, array: np.ndarray | torch.Tensor, channels: int) -> torch.Tensor:
    """(k, C, H, W) of any dtype."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"{name} has shape {tuple(array.shape)}: numpy pictures are (H, W, {channels}) or (B, H, W, {channels}), "
            f"torch pictures ({channels}, H, W) or (B, {channels}, H, W)"
        )
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, -3)
    array = array.detach().cpu()
    return array if array.ndim == 4 else array[None]


def _as_mask(name: str, array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(k, 1, H, W) float32 of what is almost that."""
    numpy = isinstance(array, np.ndarray)
    tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array.detach().cpu()
    if numpy and tensor.ndim in (3, 4) and tensor.shape[-1] == 1:
        tensor = tensor[..., 0]
    elif not numpy and tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim not in (2, 3) or 0 in tensor.shape or (numpy and tensor.ndim == 3 and tensor.shape[-1] in (3, 4)):
        raise InputError(
            f"{name} has shape {tuple(array.shape)}: a mask has one channel; numpy masks are (H, W), (B, H, W) or "
            "(B, H, W, 1), torch masks (H, W), (B, H, W) or (B, 1, H, W)"
        )
    tensor = tensor.reshape(-1, 1, *tensor.shape[-2:])
    flags = tensor.dtype == torch.bool or (not tensor.is_floating_point() and int(tensor.max()) <= 1)
    return tensor.float() if flags else tensor


def _check_range(name: str, tensors: list[torch.Tensor], least: float, most: float, advice: str) -> Raw:
    """The tensors in float32, uint8 as 0 … 1. Raises `InputError` for values that are not finite or out of range."""
    for tensor in tensors:
        if tensor.dtype == torch.uint8:
            continue
        if not tensor.is_floating_point():
            raise InputError(f"{name} holds {tensor.dtype}: {advice}")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinity: {advice}")
        low, high = (float(end) for end in tensor.aminmax())
        if low < least - SLACK or high > most + SLACK:
            raise InputError(f"{name} holds values from {low:g} to {high:g}: {advice}")
    return [tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float() for tensor in tensors]


# Sizes -------------------------------------------------------------------------------------------------------------


def size_of(name: str, raw: Raw) -> tuple[int, int]:
    """The common (height, width). Raises `InputError` when there are several."""
    sizes = [part.size[::-1] if isinstance(part, Image.Image) else (part.shape[2], part.shape[3]) for part in raw]
    if len(set(sizes)) > 1:
        raise InputError(f"{name} has pictures of several sizes, (height, width) {sorted(set(sizes))}: resize them")
    return sizes[0]


def target_size(name: str, raw: Raw, height: int | None, width: int | None, multiple: int) -> tuple[int, int]:
    """(height, width) asked for, or else the pictures' own, rounded down to a multiple."""
    high = None if height is None else check_count("height", height)
    wide = None if width is None else check_count("width", width)
    if high is None or wide is None:
        own = size_of(name, raw)
        if min(own) < multiple:
            raise InputError(f"{name} is {own[0]} pixels high and {own[1]} wide, at least {multiple} are needed")
        high, wide = high or own[0] - own[0] % multiple, wide or own[1] - own[1] % multiple
    return high, wide


def resized(raw: Raw, height: int, width: int, grey: bool = False) -> torch.Tensor:
    """(n, C, height, width) float32, PIL pictures as 0 … 1; `grey`: PIL pictures as one channel (masks)."""
    return torch.cat([_resize(part, height, width, grey) for part in raw])


def _resize(part: Image.Image | torch.Tensor, height: int, width: int, grey: bool) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part if part.shape[2:] == (height, width) else F.interpolate(part, (height, width))
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling.LANCZOS)
    values = np.asarray(part.convert("L") if grey else part, dtype=np.float32) / 255
    return torch.from_numpy(values).reshape(1, height, width, -1).permute(0, 3, 1, 2)


# Pictures and prompts ------------------------------------------------------------------------------------------------


def rows_of(name: str, given: int, prompts: int, each: int) -> tuple[int, ...]:
    """Which of `given` pictures belongs to each of the `prompts`·`each` pictures that a call makes.

    One for all, one per prompt (and for all pictures of it), or one per picture. Raises `InputError` otherwise.
    """
    made = prompts * each
    if given == 1:
        return (0,) * made
    if given == made:
        return tuple(range(made))
    if given == prompts:
        return tuple(row // each for row in range(made))
    wanted = ", ".join(str(count) for count in sorted({1, prompts, made}))
    raise InputError(
        f"{given} in {name} for {prompts} prompts of {each} pictures each: give {wanted}; "
        f"for several pictures under one text, repeat the prompt"
    )
