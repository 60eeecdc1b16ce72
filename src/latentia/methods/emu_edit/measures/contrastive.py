"""What the two towers learn: which caption belongs to which picture, before and after an edit."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from latentia.core.arguments import check_number
from latentia.core.evaluating import evaluating
from latentia.core.protocols import Batch
from latentia.data.dataset import check_indices
from latentia.errors import InputError
from latentia.methods.emu_edit.datasets import SceneRows, batch_of
from latentia.methods.emu_edit.measures.towers import SceneTowers
from latentia.methods.emu_edit.rows import Row
from latentia.metrics.measurement import Measurement
from latentia.training.objective import Loss, Objective, take


class CaptionedEdits:
    """Rows of the world with their captions as numbers of words.

    A batch holds `x` and `words` of the edited pictures, `source` and `source_words` of those before:
    (B, 3, H, W) in [-1, 1] and (B, L) int64.
    """

    def __init__(self, rows: SceneRows, towers: SceneTowers) -> None:
        self.rows, self.towers, self.shape = rows, towers, rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows at `indices`."""
        rows = [self.rows.row(i) for i in check_indices(indices, len(self)).tolist()]
        batch = batch_of(rows)
        return {
            "x": batch["x"],
            "source": batch["source"],
            "words": self.towers.word_numbers([row.output_caption for row in rows]),
            "source_words": self.towers.word_numbers([row.input_caption for row in rows]),
        }


@torch.no_grad()
def retrieval(towers: SceneTowers, rows: Sequence[Row], among: int = 100) -> dict[str, Measurement]:
    """What the towers are worth on rows they have not seen: `retrieved_of_<among>` and `told_apart`.

    The first: how often a picture after an edit is nearest to its own caption among those of `among` rows. The second:
    how often a picture, before or after, is nearer to its own caption than to the other of its row (chance: ½).
    Raises `InputError` for fewer rows than `among`.
    """
    if len(rows) < among:
        raise InputError(f"retrieval among {among} needs as many rows, got {len(rows)}")
    count = len(rows) - len(rows) % among
    with evaluating([towers]):
        images = F.normalize(towers.pictures([r.image for r in rows] + [r.target for r in rows]), dim=1)
        texts = F.normalize(towers.texts([r.input_caption for r in rows] + [r.output_caption for r in rows]), dim=1)
    before, after = images.chunk(2)
    told_before, told_after = texts.chunk(2)
    blocks = after[:count].view(-1, among, after.shape[1]) @ told_after[:count].view(-1, among, after.shape[1]).mT
    hits = (blocks.argmax(2) == torch.arange(among, device=blocks.device)).double().mean()
    moved = told_after - told_before
    apart = torch.cat([(after * moved).sum(1) > 0, (before * moved).sum(1) < 0]).double().mean()
    found = {f"retrieved_of_{among}": (float(hits), count), "told_apart": (float(apart), 2 * len(rows))}
    return {name: Measurement(f"{name}[{towers.name}]", value, n) for name, (value, n) in found.items()}


class ContrastiveObjective(Objective):
    """Both pictures and both captions of every row in the batch: each belongs to its own alone.

        total = ½ (CE over captions + CE over pictures) + weight · CE between the two of one row

    The first is CLIP's symmetric cross entropy (Radford et al. 2021) over 2B pairs, equal captions not counted against
    each other. The second asks of every row which caption is of which picture: an edit is a small part of a picture,
    and this is what a change of captions is later measured by.

    Args:
        towers: trained.
        edit_weight: of the second.

    Parts: `retrieved`, how often the right caption of 2B is the nearest; `told_apart`, the same of the row's two.
    """

    def __init__(self, towers: SceneTowers, edit_weight: float = 1.0) -> None:
        super().__init__()
        self.towers = towers
        self.edit_weight = check_number("edit_weight", edit_weight, low=0)

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        pictures = torch.cat([take(batch, "source"), take(batch, "x")])
        words = torch.cat([take(batch, "source_words"), take(batch, "words")])
        images, texts = self.towers(pictures, words)
        scores = self.towers.scale * (images @ texts.T).float()
        total, parts = contrast(scores, words, self.edit_weight)
        return Loss(total, parts)


def contrast(
    scores: torch.Tensor, words: torch.Tensor, edit_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores (2B, 2B) of pictures against captions, the first B before the edit and the others after → loss, parts."""
    count = len(scores)
    own = torch.arange(count, device=scores.device)
    same = (words[:, None] == words[None]).all(-1)
    same[own, own] = False
    scores = scores.masked_fill(same, float("-inf"))
    total = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    other = own.roll(count // 2)
    pairs = torch.stack([scores[own, own], scores[own, other]], dim=1)
    total = total + edit_weight * F.cross_entropy(pairs, torch.zeros_like(own))
    retrieved = (scores.detach().argmax(1) == own).float().mean()
    told_apart = (pairs.detach()[:, 0] > pairs.detach()[:, 1]).float().mean()
    return total, {"retrieved": retrieved, "told_apart": told_apart}
