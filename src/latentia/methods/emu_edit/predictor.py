"""Instruction → task: which of the editor's tasks somebody means, how sure that is, and what else it may be."""

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.errors import ConfigError, InputError
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES

SURE = 0.8
"""From this probability on a guess is taken without a word."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TaskGuess:
    """What an instruction is taken for.

    Attributes:
        task: the likeliest task.
        probability: of it, calibrated on phrasings that were not trained on.
        second: the next likely one.
        second_probability: of that.
    """

    task: str
    probability: float
    second: str
    second_probability: float

    @property
    def sure(self) -> bool:
        """Whether the probability is at least `SURE`."""
        return self.probability >= SURE

    @property
    def note(self) -> str:
        """One line: the task, and, when that is not sure, what to do."""
        said = f"{self.task} ({self.probability:.2f})"
        if self.sure:
            return said
        return (
            f"{said}, which is not sure (or {self.second}, {self.second_probability:.2f}): "
            "name the task, or say it in other words"
        )


@dataclass(frozen=True, slots=True)
class PredictorReport:
    """How well tasks are told on `n` instructions.

    Attributes:
        accuracy: share of right guesses.
        nll: mean −log p of the right task, in nats.
        calibration: expected calibration error over ten bins of the guess's probability (Guo et al. 2017).
        sure: share of guesses that are sure, and `accuracy_when_sure` among these (1 when there are none).
        confused: (right, guessed) → how often, the most frequent first.
    """

    n: int
    accuracy: float
    nll: float
    calibration: float
    sure: float
    accuracy_when_sure: float
    confused: dict[tuple[str, str], int]


class TaskPredictorBase(ModelMixin, ABC):
    """Abstract: instructions → logits over `tasks`, softened by a temperature that is fitted on held-out phrasings."""

    tasks: tuple[str, ...]
    temperature: torch.Tensor

    @abstractmethod
    def logits(self, instructions: Sequence[str]) -> torch.Tensor:
        """(B, tasks), float32, before the temperature, with a gradient."""

    def loss(self, instructions: Sequence[str], labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Mean cross entropy with labels (B,) int64, places in `tasks`; −1: an instruction that is none of them."""
        scores = self.logits(instructions).log_softmax(-1)
        labels = labels.to(scores.device)
        spread = -scores.mean(-1)
        told = F.nll_loss(scores, labels.clamp(min=0), reduction="none")
        told = (1 - smoothing) * told + smoothing * spread
        return torch.where(labels >= 0, told, spread).mean()

    @torch.no_grad()
    def probabilities(self, instructions: str | Sequence[str]) -> torch.Tensor:
        """(B, tasks), on the CPU. Raises `InputError` for what are no instructions."""
        texts = check_instructions(instructions)
        return (self.logits(texts) / self.temperature).softmax(-1).cpu()

    def predict(self, instructions: str | Sequence[str]) -> list[TaskGuess]:
        """One guess for each instruction. Raises `InputError` for what are no instructions."""
        best = self.probabilities(instructions).topk(min(2, len(self.tasks)))
        guesses = []
        for values, places in zip(best.values.tolist(), best.indices.tolist()):
            guesses.append(TaskGuess(self.tasks[places[0]], values[0], self.tasks[places[-1]], values[-1]))
        return guesses

    @torch.no_grad()
    def calibrate(self, instructions: Sequence[str], labels: torch.Tensor) -> float:
        """Fit the temperature T that makes softmax(logits / T) likeliest (Guo et al. 2017); returns it.

        A grid from 0.25 to 8: where every guess is right the likelihood has no maximum, and the search must end.
        """
        logits, labels = self.logits(check_instructions(instructions)), labels.to(self.device)
        grid = torch.logspace(-2, 3, 61, base=2.0)
        losses = torch.stack([F.cross_entropy(logits / t, labels, label_smoothing=0.002) for t in grid.to(logits)])
        self.temperature.fill_(float(grid[int(losses.argmin())]))
        return float(self.temperature)

    @torch.no_grad()
    def evaluate(self, instructions: Sequence[str], labels: torch.Tensor) -> PredictorReport:
        """Accuracy and calibration on labelled instructions, labels (B,) int64 places in `tasks`."""
        p, labels = self.probabilities(instructions), labels.cpu()
        best = p.max(-1)
        right = best.indices == labels
        bins = (best.values * 10).long().clamp(max=9)
        gaps = [(right[bins == b].float().mean() - best.values[bins == b].mean()).abs() for b in bins.unique()]
        shares = [float((bins == b).float().mean()) for b in bins.unique()]
        sure = best.values >= SURE
        pairs = list(zip(labels[~right].tolist(), best.indices[~right].tolist()))
        counts = {pair: pairs.count(pair) for pair in sorted(set(pairs), key=lambda pair: -pairs.count(pair))}
        return PredictorReport(
            n=len(labels),
            accuracy=float(right.float().mean()),
            nll=float(F.nll_loss(p.clamp(min=1e-12).log(), labels)),
            calibration=float(sum(share * float(gap) for share, gap in zip(shares, gaps))),
            sure=float(sure.float().mean()),
            accuracy_when_sure=float(right[sure].float().mean()) if bool(sure.any()) else 1.0,
            confused={(self.tasks[a], self.tasks[b]): count for (a, b), count in counts.items()},
        )


def check_instructions(given: str | Sequence[str]) -> list[str]:
    """One instruction or several, as a list. Raises `InputError` for other things and for empty ones."""
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else None
    if not listed or not all(isinstance(text, str) for text in listed):
        raise InputError(f"expected an instruction or a list of them, got {given!r}")
    for place, text in enumerate(listed):
        if not text.strip():
            raise empty_instruction(place, len(listed))
    return listed


def empty_instruction(place: int, count: int) -> InputError:
    """The error for the empty one, at `place`, of `count` instructions."""
    which = f" number {place + 1}" if count > 1 else ""
    return InputError(f"the instruction{which} is empty: say what to change, 'remove the red square', say")


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Different names, at least one. Raises `ConfigError`."""
    if not tasks or isinstance(tasks, str) or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must be a list of different names, got {tasks!r}")
    return tuple(tasks)


class TaskPredictor(TaskPredictorBase):
    """A small one that needs no files but its own: hashed words, pairs of words and letters, and two layers.

    Words and pairs of neighbouring words are counted under `buckets` numbers by their CRC-32, as are the three-letter
    pieces of words, so that misspelt ones are recognised; their vectors are averaged, kind by kind, and a layer of
    `hidden` units reads them (Joulin et al. 2016).

    Args:
        tasks: names, in the order of the editor's table; default all sixteen.
        buckets: rows of the table of vectors.
        width: of these vectors, and `hidden` of the layer that reads them.
        dropout: share of the features that are dropped while training, so that no single word decides.

    Raises `ConfigError` for values out of range.
    """

    features: ClassVar[tuple[str, ...]] = ("word", "pair", "piece")

    @register_to_config
    def __init__(
        self,
        tasks: Sequence[str] = TASK_NAMES,
        buckets: int = 8192,
        width: int = 32,
        hidden: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_counts(self.config, ("buckets", "width", "hidden"))
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")
        self.tasks = check_tasks(tasks)
        self.table = nn.EmbeddingBag(buckets, width, mode="sum")
        self.hidden = nn.Linear(len(self.features) * width, hidden)
        self.out = nn.Linear(hidden, len(self.tasks))
        self.register_buffer("temperature", torch.ones(()))
        nn.init.normal_(self.table.weight, std=0.05)  # what was never met says next to nothing

    def forward(self, places: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Bags of features, as `encode` makes them → logits (B, tasks)."""
        bags = self.table(places, starts, per_sample_weights=weights.to(self.dtype))
        x = bags.view(-1, self.hidden.in_features)
        logits: torch.Tensor = self.out(F.gelu(self.hidden(x)))
        return logits.float()

    def logits(self, instructions: Sequence[str]) -> torch.Tensor:
        """See the base class."""
        logits: torch.Tensor = self(*(tensor.to(self.device) for tensor in self.encode(instructions)))
        return logits

    def encode(self, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Texts → features' rows (N,), their weights (N,), and where each bag starts (B · kinds,).

        Weights are 1/√n for n features of a kind; while training a share of them is 0.
        """
        places: list[int] = []
        sizes: list[int] = []
        for text in instructions:
            for bag in features_of(text):
                places.extend(zlib.crc32(feature.encode()) % self.config.buckets for feature in bag)
                sizes.append(len(bag))
        counts = torch.tensor(sizes)
        weights = counts.float().clamp(min=1).rsqrt().repeat_interleave(counts)
        if self.training and self.config.dropout:
            weights = weights * (torch.rand(len(weights)) >= self.config.dropout)
        return torch.tensor(places, dtype=torch.long), weights, counts.cumsum(0) - counts


def features_of(text: str) -> Iterator[list[str]]:
    """Words, pairs of neighbours, and pieces of three letters of a text, each with a sign of its kind."""
    written = _WORD.findall(text)
    words = ["^", *("#" if word.isupper() and len(word) > 1 else word.lower() for word in written), "$"]
    yield [f"w {word}" for word in words]
    yield [f"p {a} {b}" for a, b in pairwise(words)]
    yield [f"l {spelt[i : i + 3]}" for word in words[1:-1] for spelt in [f" {word} "] for i in range(len(spelt) - 2)]
