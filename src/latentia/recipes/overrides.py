"""`key=value` from the command line onto a recipe: everything wrong is said at once, before any work."""

import ast
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from latentia.errors import InputError
from latentia.recipes.recipe import Recipe, problems

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
NOTHING = {"none": None, "null": None}
BOOLEANS = {"true": True, "false": False}


class Key(NamedTuple):
    """One field that `key=value` can set: dotted name, its definition and its present value."""

    name: str
    field: FieldInfo
    value: Any

    @property
    def type_name(self) -> str:
        """The field's type as a reader sees it, e.g. `int > 0`, `float`, `no | bf16 | fp16`."""
        limits = [text for item in self.field.metadata if (text := _limit(item))]
        return " ".join([_type_text(self.field.annotation), *limits])

    @property
    def description(self) -> str:
        """What the field means, with its unit."""
        return self.field.description or ""


def keys(recipe: Recipe) -> list[Key]:
    """Every key that can be set on `recipe`, groups flattened with dots, in order of declaration."""
    return list(_walk(recipe, ""))


def _walk(value: BaseModel, prefix: str) -> Iterator[Key]:
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from _walk(inner, f"{prefix}{name}.")
        elif not field.frozen:
            yield Key(prefix + name, field, inner)


def override(recipe: AnyRecipe, assignments: Sequence[str]) -> AnyRecipe:
    """A copy of `recipe` with `key=value` assignments applied and checked.

    Values are read as JSON or Python literals (`1e-4`, `true`, `None`, `(1,2,4)`, `1,2,4`); a field that holds
    text takes them as they stand, `=` included. Raises one `InputError` that lists every wrong assignment:
    malformed, unknown (with the nearest key), given twice, of the wrong type or out of range.
    """
    known = {key.name: key for key in keys(recipe)}
    wrong: list[str] = []
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, raw = text.partition("=")
        name = name.strip()
        if not equals or not name:
            wrong.append(f"{text}: expected key=value, for example steps=1000")
        elif name not in known:
            wrong.append(_unknown(name, known))
        elif name in values:
            wrong.append(f"{name}: given twice ({values[name]!r} and {raw!r}): keep one")
        else:
            values[name] = read_value(raw, known[name].field.annotation)
    changed = recipe
    try:
        changed = type(recipe).model_validate(_merged(recipe.model_dump(), values))
    except ValidationError as error:
        wrong += [f"{line}{_note(known.get(key))}" for key, line in problems(error).items()]
    if wrong:
        count = "1 setting is wrong" if len(wrong) == 1 else f"{len(wrong)} settings are wrong"
        listed = "".join(f"\n  {line}" for line in wrong)
        raise InputError(f"{recipe.name}: {count}{listed}\nall keys: latentia recipes {recipe.name}")
    return changed


def _note(key: Key | None) -> str:
    return f" ({key.description})" if key and key.description else ""


def _unknown(name: str, known: Mapping[str, Key]) -> str:
    groups = [key for key in known if key.startswith(f"{name}.")]
    if groups:
        return f"{name}: is a group, set its fields: {', '.join(groups)}"
    match = nearest_key(name, known)
    return f"{name}: unknown key" + (f", did you mean {match!r}?" if match else "")


def nearest_key(name: str, known: Mapping[str, Any]) -> str | None:
    """The known dotted key closest to `name`; `lr` finds `optim.lr` because the last part counts alone too."""
    if whole := get_close_matches(name, known, n=1, cutoff=0.7):
        return whole[0]
    longest_first = sorted(known, key=lambda key: -len(key))
    tails = {key.rpartition(".")[2]: key for key in longest_first}  # of equal tails the shortest key wins
    tail = get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.6)
    return tails[tail[0]] if tail else next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)


def _merged(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        *groups, leaf = name.split(".")
        inner = base
        for group in groups:
            inner = inner[group]
        inner[leaf] = value
    return base


def read_value(raw: str, annotation: Any) -> Any:
    """The text after `=` as the value that pydantic will check against `annotation`."""
    text = raw.strip()
    takes = set(_members(annotation))
    if type(None) in takes and text.lower() in NOTHING:
        return None
    choices = [choice for kind in takes if get_origin(kind) is Literal for choice in get_args(kind)]
    if str in takes or choices:
        return next((choice for choice in choices if str(choice) == text), text)
    if text[:1] not in ("[", "(", '"', "'") and any(get_args(kind)[:1] == (str,) for kind in takes):
        return [word.strip() for word in text.split(",") if word.strip()]  # names: 2 and 2.10 are no numbers here
    if text.lower() in NOTHING | BOOLEANS:
        return (NOTHING | BOOLEANS)[text.lower()]
    if "," in text and text[0] not in "[({\"'":
        text = f"[{text.rstrip(',')}]"
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if text.startswith("[") and text.endswith("]"):  # a bare list of words: down,attn
        return [word.strip() for word in text[1:-1].split(",")]
    return text


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _type_text(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_type_text(inner[0]), *(text for item in inner[1:] if (text := _limit(item)))])
    if origin is Literal:
        return " | ".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(member) for member in inner)
    if inner:
        listed = ", ".join("…" if member is Ellipsis else _type_text(member) for member in inner)
        return f"{_type_text(origin)}({listed})"
    if annotation is type(None):
        return "none"
    return "text" if annotation is str else getattr(annotation, "__name__", str(annotation))


def _limit(constraint: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {value}" for name, sign in signs.items() if (value := getattr(constraint, name, None)) is not None
    ]
    return " ".join(found)
