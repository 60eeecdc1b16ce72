"""Measurement: a number that carries its name, its n, its seed and its circumstances."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of a report.

    Attributes:
        name: metric and ruler, e.g. `frechet_digits`; `fid` only for the standard Inception features.
        value: the number.
        n_generated: how many generated (or judged) samples it was computed from.
        n_real: how many real samples stand behind it; 0 when none do.
        seed: seed of the draws involved; None when nothing was drawn.
        details: whatever else is needed to repeat or to doubt it (eps, k, dimension, spread over draws, ...).
    """

    name: str
    value: float
    n_generated: int
    n_real: int = 0
    seed: int | None = None
    details: Mapping[str, float | int | str | bool] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        against = f" against {self.n_real} real" if self.n_real else ""
        return f"{self.name} {self.value:.4g} (n = {self.n_generated}{against})"

    def to_dict(self) -> dict[str, Any]:
        """A flat JSON-able dict; a value that JSON cannot hold (NaN, ∞) becomes its name as a string."""
        value: float | str = self.value if math.isfinite(self.value) else str(self.value)
        base = {"name": self.name, "value": value, "n_generated": self.n_generated, "n_real": self.n_real}
        return base | {"seed": self.seed} | dict(self.details)
