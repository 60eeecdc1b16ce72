"""Encode and decode in a codec's own dtype where that holds the numbers, and in float32 where it does not.

Stable Diffusion's autoencoder overflows float16 on some pictures (its config says `force_upcast`), and one infinity
blackens the whole picture. The float32 twin that mends this is made once; the codec itself, which other threads may be
using, is never changed.
"""

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from latentia.core.finite import first_nonfinite
from latentia.core.rng import Generators
from latentia.errors import NonFiniteError

logger = logging.getLogger(__name__)

_HALVES = (torch.float16, torch.bfloat16)


def decode_safely(codec: Any, z: torch.Tensor, generator: Generators = None, name: str = "vae") -> torch.Tensor:
    """Scaled latents z → x̂ = `codec.from_latents(z)`, finite, in float32 at least.

    A codec in half precision decodes in float32 when it is float16 and its config says `force_upcast`; otherwise in
    its own dtype, and just the samples that overflow are decoded again, in float32. What a picture becomes never
    depends on the others in its batch.

    Args:
        codec: an `nn.Module` with `from_latents`, on the device where it shall compute.
        generator: for codecs whose decoder samples.
        name: of the codec, for errors.

    Raises `NonFiniteError` naming the module that made a NaN or infinity in float32.
    """
    return run_safely(codec, lambda network, part, rows: network.from_latents(part, rows), z, generator, name)


def encode_safely(codec: Any, x: torch.Tensor, generator: Generators = None, name: str = "vae") -> torch.Tensor:
    """x in [-1, 1] → scaled latents z = `codec.to_latents(x)`, finite, in float32 at least; see `decode_safely`."""
    return run_safely(codec, lambda network, part, rows: network.to_latents(part, rows), x, generator, name)


Run = Callable[[Any, torch.Tensor, Generators], torch.Tensor]
"""`run(codec, input, generator)`: one direction of a codec."""


@torch.no_grad()
def run_safely(
    codec: Any, run: Run, given: torch.Tensor, generator: Generators = None, name: str = "vae"
) -> torch.Tensor:
    """`run(codec, given, generator)`, batch first, as `decode_safely` does it: for other ways through a codec.

    `run` must use the network that it is handed, which may be the float32 copy.
    """
    device, dtype = codec.device, codec.dtype
    start = _states(generator)  # a second attempt draws what the first one drew
    if dtype not in _HALVES:
        return _checked(codec, run, given.to(device, dtype), generator, start, name)
    wide = given.to(device, torch.float32)
    if dtype == torch.float16 and codec.config.get("force_upcast"):
        return _checked(_float32_twin(codec, name), run, wide, generator, start, name)
    result = run(codec, given.to(device, dtype), generator).float()
    bad = ~torch.isfinite(result).flatten(1).all(dim=1)
    if not bool(bad.any()):
        return result
    overflowed = bad.nonzero().flatten().tolist()
    logger.warning("%s overflows %s in %d of %d samples: these in float32", name, dtype, len(overflowed), len(bad))
    _rewind(generator, start)
    twin = _float32_twin(codec, name)
    if generator is None or isinstance(generator, Sequence):
        some = generator if generator is None else [generator[i] for i in overflowed]
        result[bad] = _checked(twin, run, wide[bad], some, _states(some), name)
    else:  # one generator draws for the whole batch at once
        result[bad] = _checked(twin, run, wide, generator, start, name)[bad]
    return result


def _checked(
    codec: Any, run: Run, given: torch.Tensor, generator: Generators, start: list[torch.Tensor], name: str
) -> torch.Tensor:
    """The result, or an error that names who spoilt it."""
    result = run(codec, given, generator)
    if bool(torch.isfinite(result).all()):
        return result
    _rewind(generator, start)
    bad = ~torch.isfinite(given).flatten(1).all(dim=1)
    culprit = first_nonfinite({name: codec}, lambda: run(codec, given, generator))
    where = "its input was not finite" if bool(bad.any()) else f"first in {culprit or f'{name}, outside its modules'}"
    raise NonFiniteError(
        f"NaN or infinity from {name} in {str(codec.dtype).removeprefix('torch.')}, {where}: "
        "check its weights, and that scaling_factor and the latents belong to it"
    )


def _states(generator: Generators) -> list[torch.Tensor]:
    return [one.get_state() for one in _each(generator)]


def _rewind(generator: Generators, states: list[torch.Tensor]) -> None:
    for one, state in zip(_each(generator), states, strict=True):
        one.set_state(state)


def _each(generator: Generators) -> Sequence[torch.Generator]:
    if generator is None:
        return ()
    return (generator,) if isinstance(generator, torch.Generator) else generator


# The float32 twin ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Twin:
    network: nn.Module
    fingerprint: tuple[object, ...]


_lock = threading.Lock()
_twins: WeakKeyDictionary[nn.Module, _Twin] = WeakKeyDictionary()


def _float32_twin(codec: nn.Module, name: str) -> Any:
    """A float32 copy of `codec` as it is now; the same copy until weights, switches or device change."""
    with _lock:
        fingerprint = _fingerprint(codec)
        kept = _twins.get(codec)
        if kept is None or kept.fingerprint != fingerprint:
            if kept is None:
                logger.info("%s runs in float32: a copy of its weights is made", name)
            _twins.pop(codec, None)  # the old copy's memory goes before the new one's comes
            twin = copy.deepcopy(codec, {id(t): _widened(t) for t in _tensors(codec)})
            kept = _twins[codec] = _Twin(twin, fingerprint)
        return kept.network


def forget_float32(codec: nn.Module) -> None:
    """Free the float32 copy of a codec, if there is one; the next overflow makes another."""
    with _lock:
        _twins.pop(codec, None)


def _tensors(codec: nn.Module) -> list[torch.Tensor]:
    return [*codec.parameters(), *codec.buffers()]


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    wide = tensor.detach().float() if tensor.is_floating_point() else tensor.detach().clone()
    return nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide


def _fingerprint(codec: nn.Module) -> tuple[object, ...]:
    """Equal as long as the weights, the config, and the plain attributes (switches, sizes, modes) are."""
    # What was loaded under torch.inference_mode() counts no versions.
    weights = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.device) for t in _tensors(codec)]
    plain = [
        (key, value)
        for module in codec.modules()
        for key, value in vars(module).items()
        if value is None or isinstance(value, bool | int | float | str)
    ]
    return (*weights, *plain, vars(codec).get("_config"))
