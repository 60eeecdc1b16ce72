"""Quantizers by name."""

from typing import Any

from latentia.codecs.quantizers.fsq import FiniteScalarQuantizer
from latentia.codecs.quantizers.lfq import LookupFreeQuantizer
from latentia.codecs.quantizers.quantizer import Quantizer
from latentia.codecs.quantizers.residual import ResidualVectorQuantizer
from latentia.codecs.quantizers.vq import VectorQuantizer
from latentia.codecs.quantizers.vq_ema import EMAVectorQuantizer
from latentia.errors import ConfigError, check_choice

QUANTIZERS: dict[str, type[Quantizer]] = {
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "residual": ResidualVectorQuantizer,
    "vq": VectorQuantizer,
    "vq_ema": EMAVectorQuantizer,
}
"""Name → class; every one is built with `dim` and the keywords that its `options` name."""

NEEDED = {"fsq": "levels", "residual": "num_codes", "vq": "num_codes", "vq_ema": "num_codes"}
"""The option without which a quantizer cannot be built."""


def build_quantizer(name: str, *, dim: int, **options: Any) -> Quantizer:
    """The quantizer `name` for z of `dim` channels.

    Raises `UnknownChoiceError` for an unknown quantizer or option, `ConfigError` for a missing one or a bad value.
    """
    check_choice("quantizer", name, QUANTIZERS)
    kind = QUANTIZERS[name]
    for option in options:
        check_choice(f"option of quantizer {name!r}", option, kind.options)
    if NEEDED.get(name, "") not in ("", *options):
        raise ConfigError(f"quantizer {name!r} needs {NEEDED[name]}: give it among its options")
    return kind(dim=dim, **options)
