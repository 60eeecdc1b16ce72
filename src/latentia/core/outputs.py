"""Named results: `out.sample`, `out["sample"]`, `out[0]` and `(sample,) = out` all work.

Concrete outputs are `@dataclass(slots=True)` subclasses, cheap enough for inner loops.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class Output:
    """Base of every named result; fields that are None are left out of the tuple view."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order of declaration."""
        return tuple(v for f in fields(self) if (v := getattr(self, f.name)) is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.__dataclass_fields__:
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has: {', '.join(self.__dataclass_fields__)}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())
