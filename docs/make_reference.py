"""Writes reference.md: every public name, one line each, by floor; from the docstrings' first lines.

python docs/make_reference.py
"""

import inspect
from itertools import groupby
from pathlib import Path

import latentia

HERE = Path(__file__).parent
FLOORS = (
    *("core", "schedulers", "codecs", "denoisers", "conditioners", "losses", "metrics"),
    *("training", "pipelines", "methods"),
)
HEAD = """# Reference

Every public name, from the ground floor up: `from latentia import …`. A name leads to its file, where the docstring has
the equation, the arguments and what is raised. Written by `python docs/make_reference.py`.
"""


def place(name: str) -> tuple[int, str]:
    """Where a name stands: its floor's number, then the alphabet. A floor that is not listed raises `ValueError`."""
    return FLOORS.index(getattr(latentia, name).__module__.split(".")[1]), name


def line(name: str) -> str:
    """A list entry: the name, linked to its file, and the first line of its docstring."""
    found = getattr(latentia, name)
    path = found.__module__.replace(".", "/")
    first = (inspect.getdoc(found) or "").partition("\n")[0]
    return f"- [`{name}`](../src/{path}.py): {first}"


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for floor, names in groupby(sorted(latentia.__all__, key=place), key=lambda name: place(name)[0]):
        parts.append(f"\n## {FLOORS[floor]}\n\n" + "\n".join(map(line, names)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    (HERE / "reference.md").write_text(reference(), encoding="utf-8")
