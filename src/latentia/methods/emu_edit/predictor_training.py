"""What a task predictor learns from: the world's instructions, and strings of words that ask for nothing."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from latentia.core.arguments import check_count
from latentia.core.protocols import Batch
from latentia.core.rng import derive_seed
from latentia.data.dataset import check_indices
from latentia.errors import InputError
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.predictor import PredictorReport, TaskPredictor, TaskPredictorBase
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.training.objective import Loss, Objective, take

SIZE = 16
"""Side of the pictures that are drawn along, and thrown away: as small as the world has them."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Instructions:
    """Labelled instructions of one split, `{"text": (B, L) uint8, "label": (B,) int64}`; labels are places in `tasks`.

    A text is its UTF-8, filled up with zeros: a batch is tensors alone, as the training loop moves them.

    Args:
        split: `train`, `select` or `test`, with phrasings of their own.
        length: how many.
        seed: instruction i depends on (seed, split, i) alone.
        tasks: which; a label is a place in them.
        nonsense: share, beside them, of strings of words that ask for nothing, label −1.
        misspelt: share of the instructions in which one word is written wrong.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 8000,
        seed: int = 0,
        tasks: Sequence[str] = TASK_NAMES,
        nonsense: float = 0.0,
        misspelt: float = 0.0,
    ) -> None:
        for name, share in (("nonsense", nonsense), ("misspelt", misspelt)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is a share in [0, 1), got {share}")
        count = round(check_count("length", length) * (1 - nonsense))
        rows = SceneRows(split, count, SIZE, derive_seed("instructions", seed), tasks)
        found = [(row.instruction, tasks.index(row.task)) for row in map(rows.row, range(count))]
        rng = Random(derive_seed("nonsense", seed))
        vocabulary = sorted({word for text, _ in found for word in text.split()})
        found = [(misspell(rng, text) if rng.random() < misspelt else text, label) for text, label in found]
        found += [(soup(rng, vocabulary), -1) for _ in range(length - count)]
        self.texts = [text for text, _ in found]
        self.labels = torch.tensor([label for _, label in found])

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The instructions at `indices`."""
        rows = check_indices(indices, len(self))
        return {"text": to_bytes([self.texts[i] for i in rows.tolist()]), "label": self.labels[rows]}


def to_bytes(texts: Sequence[str]) -> torch.Tensor:
    """Texts → their UTF-8, (B, L) uint8, filled up with zeros."""
    encoded = [text.encode() for text in texts]
    length = max(1, *map(len, encoded))
    joined = b"".join(each.ljust(length, b"\0") for each in encoded)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(len(texts), length)


def to_texts(given: torch.Tensor) -> list[str]:
    """What `to_bytes` made of texts → the texts."""
    return [bytes(row).rstrip(b"\0").decode() for row in given.cpu().numpy()]


def soup(rng: Random, vocabulary: Sequence[str]) -> str:
    """One to ten words, some known and some made up of letters."""
    known = rng.random()
    words = [
        rng.choice(vocabulary) if rng.random() < known else "".join(rng.choices(LETTERS, k=rng.randint(1, 9)))
        for _ in range(rng.randint(1, 10))
    ]
    return " ".join(words)


def misspell(rng: Random, text: str) -> str:
    """The text with one of its longer words written wrong: a letter lost, doubled, or changed places with the next."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) > 3]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randrange(len(words[i]) - 1)
    letters = {"lost": "", "doubled": word[at] * 2, "swapped": word[at + 1] + word[at]}
    how = rng.choice(list(letters))
    words[i] = word[:at] + letters[how] + word[at + (2 if how == "swapped" else 1) :]
    return " ".join(words)


class PredictorObjective(Objective):
    """Cross entropy of the task, with what asks for nothing drawn towards equal probabilities.

        total = −mean_b log p(task_b),   and for label −1: −mean over tasks of log p

    Args:
        predictor: trained.
        smoothing: share of every label that is spread over all tasks.

    Reads `text` (B, L) uint8 and `label` (B,) int64, as `Instructions` makes them. Parts: `error`.
    """

    def __init__(self, predictor: TaskPredictorBase, smoothing: float = 0.01) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise InputError(f"smoothing must lie in [0, 1), got {smoothing}")
        self.predictor = predictor
        self.smoothing = smoothing

    def settings(self) -> dict[str, Any]:
        """The smoothing."""
        return {"smoothing": self.smoothing}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        total = self.predictor.loss(to_texts(take(batch, "text")), take(batch, "label"), self.smoothing)
        return Loss(total, {"error": total.detach()})


def judged(
    predictor: TaskPredictorBase, tasks: Sequence[str] = TASK_NAMES, examples: int = 1000, seed: int = 0
) -> PredictorReport:
    """Calibrate on `select`'s phrasings, then report on `test`'s."""
    predictor.eval()
    select = Instructions("select", examples, seed, tasks)
    predictor.calibrate(select.texts, select.labels)
    test = Instructions("test", examples, seed, tasks)
    return predictor.evaluate(test.texts, test.labels)


def train_task_predictor(
    tasks: Sequence[str] = TASK_NAMES,
    examples: int = 8000,
    steps: int = 600,
    batch_size: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
) -> TaskPredictor:
    """A trained, calibrated `TaskPredictor` in a few seconds, for scripts; recipes run `PredictorObjective`'s phase.

    Equal arguments give equal weights on one machine.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed("task predictor", seed))
        predictor = TaskPredictor(tasks)
        data, objective = Instructions("train", examples, seed, tasks, 0.1, 0.2), PredictorObjective(predictor)
        adam = torch.optim.Adam(predictor.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        predictor.train()
        for _ in range(steps):
            adam.zero_grad()
            objective(data.batch(torch.randint(len(data), (batch_size,)))).total.backward()
            adam.step()
            schedule.step()
    select = Instructions("select", max(200, examples // 8), seed, tasks)
    predictor.eval().calibrate(select.texts, select.labels)
    return predictor
