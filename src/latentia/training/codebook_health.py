"""CodebookHealth: how evenly a training batch uses the codes, for the log, and one warning when it collapses."""

import logging

import torch

from latentia.codecs.quantizers.quantizer import Quantizer, spread

COLLAPSED = 0.1
"""Perplexity over its ceiling below which a codebook counts as collapsed."""
LOOK_EVERY, FIRST_LOOK = 100, 200
"""Steps between looks, each of which waits for the device, and the first one, when the codes have settled."""

log = logging.getLogger("latentia.training")


class CodebookHealth:
    """Perplexity of each batch's tokens beside its ceiling, and how many codes occur.

    Args:
        quantizer: whose tokens are counted.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.num_codes = quantizer.num_codes
        self.advice = ADVICE[self._kind(quantizer)]
        self.warned = False

    @staticmethod
    def _kind(quantizer: Quantizer) -> str:
        options = quantizer.options
        kinds = (("decay", "ema"), ("codebook", "ema"), ("beta", "gradient"), ("diversity", "signs"))
        return next((kind for option, kind in kinds if option in options), "fixed")

    def of(self, indices: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """`perplexity`, `perplexity_ceiling` = min(K, tokens) and `codes_used` of one batch's tokens in step `step`."""
        perplexity, used = spread(indices, self.num_codes)
        ceiling = min(self.num_codes, indices.numel())
        if step >= FIRST_LOOK and step % LOOK_EVERY == 0 and not self.warned:
            self._look(float(perplexity), ceiling, step)
        return {
            "perplexity": perplexity,
            "perplexity_ceiling": torch.full_like(perplexity, ceiling),
            "codes_used": used.float(),
        }

    def _look(self, perplexity: float, ceiling: int, step: int) -> None:
        if perplexity < COLLAPSED * ceiling:
            self.warned = True
            log.warning(
                "step %d: the codebook has collapsed, the tokens' perplexity is %.1f where %d is possible; %s",
                step,
                perplexity,
                ceiling,
                self.advice,
            )


ADVICE = {
    "gradient": "try quantizer='vq_ema', which starts by k-means and revives dead codes",
    "ema": "try a higher revive (0.3), a lower decay (0.95) or cosine=True as quantizer_options, or a lower lr",
    "signs": "try a higher entropy_weight or diversity in quantizer_options",
    "fixed": "try fewer or smaller levels, or a lower lr: this codebook cannot learn, z has collapsed",
}
"""The settings to try, by how the codes come about."""
