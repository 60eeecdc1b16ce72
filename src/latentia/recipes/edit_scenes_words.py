"""The phase `words` of `edit-scenes`: what instructions ask for, learnt from the sentences alone.

Rows of the world know what their instruction says: the task, which thing is meant and by which words, what it is to
become, and where. A text encoder that tells these apart has bound adjectives to nouns before it meets a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.protocols import Batch
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.world.references import Reference
from latentia.methods.emu_edit.world.vocabulary import PLACES
from latentia.training.objective import Loss, Objective, take

SIZE = 16
"""Side of the pictures that come with the sentences, and are not looked at."""

COLLECTED = 4000
"""Rows that are read to know which facts there are."""


def facts(row: Row) -> set[str]:
    """What the instruction says, as short texts: `task:local`, `the colour:red`, `new shape:star`, …"""
    return set(_facts(row))


def _facts(row: Row) -> Iterator[str]:
    meta = row.meta
    kind: str = meta["kind"]
    yield f"task:{row.task}"
    yield f"kind:{kind}"
    if meta.get("effect"):
        yield f"effect:{meta['effect']}"
    if meta.get("reference") is not None:
        yield from (f"the {field}:{value}" for field, value in zip(Reference._fields, meta["reference"]) if value)
    if row.task in ("local", "add"):
        yield from _of_new_thing(kind, meta["after"].things[meta["result"]])
    elif row.task == "texture":
        yield f"new texture:{meta['after'].things[meta['subject']].texture}"
    elif row.task == "background":
        yield f"background:{meta['after'].background.name}"
    elif row.task == "text" and meta["after"].writing is not None:
        written = meta["after"].writing
        yield from (f"written {name}:{value}" for name, value in zip(written._fields, written))
    elif kind.endswith("/from"):
        scene = meta["scene"]
        yield f"background:{scene.background.name}"
        for thing in scene.things:
            yield f"{thing.colour} {thing.shape}"
            yield f"{thing.texture} {thing.shape}"


def _of_new_thing(kind: str, thing: Any) -> Iterator[str]:
    if kind in ("local/recolour", "local/swap") or kind.startswith("add/"):
        yield f"new colour:{thing.colour}"
    if kind == "local/swap" or kind.startswith("add/"):
        yield f"new shape:{thing.shape}"
    if kind.startswith("add/"):
        yield f"new size:{'small' if thing.small else 'large'}"
    if kind == "add/place":
        near = min(PLACES, key=lambda name: (PLACES[name][0] - thing.x) ** 2 + (PLACES[name][1] - thing.y) ** 2)
        yield f"place:{near}"


class Facts:
    """Instructions of the training split and their facts, `{"input_ids": (B, L) int64, "facts": (B, F) float32}`.

    Args:
        encode: instructions → tokens.
        length, seed, tasks, weights: of the rows.
        tell_task: whether the task and its kind are among the facts.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], torch.Tensor],
        length: int,
        seed: int,
        tasks: Sequence[str],
        weights: Sequence[float] | None = None,
        tell_task: bool = True,
    ) -> None:
        self.encode, self.rows = encode, SceneRows("train", length, SIZE, seed, tasks, weights)
        known = sorted(set().union(*(facts(self.rows.row(i)) for i in range(min(length, COLLECTED)))))
        if not tell_task:
            known = [fact for fact in known if not fact.startswith(("task:", "kind:"))]
        self.places = {fact: place for place, fact in enumerate(known)}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The instructions at `indices`."""
        rows = [self.rows.row(int(i)) for i in indices]
        said = torch.zeros(len(rows), len(self.places))
        for i, row in enumerate(rows):
            said[i, [self.places[fact] for fact in facts(row) if fact in self.places]] = 1
        return {"input_ids": self.encode([row.instruction for row in rows]), "facts": said}


class FactsObjective(Objective):
    """Learn which facts an instruction states, from the maximum of its tokens' vectors.

        total = sum over facts of the cross entropy, mean over the batch

    `head`, (B, width) → (B, facts) logits, is trained along. Parts: `found`, the share of the stated facts that are
    told. Reads `input_ids` and `facts` from the batch.
    """

    def __init__(self, text_encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.text_encoder, self.head = text_encoder, head

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        said, ids = take(batch, "facts"), take(batch, "input_ids")
        states = self.text_encoder(ids).last_hidden_state
        logits = self.head(states.amax(1)).float()
        total = F.binary_cross_entropy_with_logits(logits, said, reduction="sum") / len(said)
        found = ((logits.detach() > 0) * said).sum() / said.sum().clamp(min=1)
        return Loss(total, {"found": found})
