"""Two-scale guidance: how closely to keep to the picture, and how closely to follow the instruction.

    ẽ = e(∅, ∅) + γ_I [e(I, ∅) − e(∅, ∅)] + γ_T [e(I, T) − e(I, ∅)]    Brooks et al. 2023, eq. 3

It is the sum (1 − γ_I) e(∅, ∅) + (γ_I − γ_T) e(I, ∅) + γ_T e(I, T): a branch whose weight is 0 need not be computed,
and at (1, 1) one forward is left. The task stays in all branches, as it did where conditions were dropped in training.
"""

from collections.abc import Mapping

import torch

IMAGE_GUIDANCE, TEXT_GUIDANCE = 1.5, 5.0
"""γ_I and γ_T of the article."""

BRANCHES = {
    "nothing": ("no_image", "negative_prompt_embeds"),
    "picture": ("image_latents", "negative_prompt_embeds"),
    "both": ("image_latents", "prompt_embeds"),
}
"""Branch → which picture and which text it sees, by the names of a call's tensors."""


def branch_weights(image_scale: float, text_scale: float) -> dict[str, float]:
    """Branch → its weight in ẽ, those of weight 0 left out; the weights sum to 1."""
    weights = {"nothing": 1 - image_scale, "picture": image_scale - text_scale, "both": text_scale}
    return {branch: weight for branch, weight in weights.items() if weight}


def combined(predictions: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """ẽ from the predictions of all branches that have a weight.

    Written as differences from one of them, so that where all agree ẽ is what they say, to the last bit.
    """
    base = predictions["picture" if "picture" in weights else next(iter(weights))]
    others = [(predictions[branch], weight) for branch, weight in weights.items() if predictions[branch] is not base]
    result = base
    for prediction, weight in others:
        result = result + weight * (prediction - base)
    return result
