"""What schedulers of tokens share: sampling from logits, with one stream of random numbers for each picture."""

from dataclasses import dataclass

import torch

from latentia.core.arguments import check_number
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import InputError


@dataclass(slots=True)
class TokenStepOutput(Output):
    """`prev_sample` (B, *token_shape): tokens, some still masked; `pred_original_sample`: the same without masks."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1) of `shape` (batch first), row i from generator i where there is one for each."""
    if isinstance(generator, list | tuple):
        if len(generator) != shape[0]:
            raise InputError(f"got {len(generator)} generators for a batch of {shape[0]}: give one per picture")
        rows = [torch.rand(shape[1:], generator=each, device=each.device).to(device) for each in generator]
        return torch.stack(rows) if rows else torch.empty(shape, device=device)
    where = device if generator is None else generator.device  # type: ignore[union-attr]
    return torch.rand(shape, generator=generator, device=where).to(device)  # type: ignore[arg-type]


def check_sampling(temperature: object, top_k: object, top_p: object) -> tuple[float, int, float]:
    """Temperature ≥ 0, top_k ≥ 0 (0 for all) and top_p in (0, 1]. Raises `InputError`."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise InputError(f"top_k must be a whole number, 0 for all codes, got {top_k!r}")
    return (
        check_number("temperature", temperature, 0.0, advice="1 (the model as it is), or 0 (the likeliest code)"),
        top_k,
        check_number("top_p", top_p, 0.0, 1.0, "1 (all codes), or 0.92", open_low=True),
    )


def draw(
    logits: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Tokens (…) from logits (…, K) by inverting the distribution function at u (…) in [0, 1).

    Args:
        logits: of any floating dtype; computed in float32 at least.
        u: one uniform number for each token.
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: only the k likeliest codes; 0 for all.
        top_p: only the likeliest codes that together reach p (Holtzman et al. 2020), the one that crosses p included.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    k = logits.shape[-1]
    if top_k and top_k < k:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = logits.softmax(-1)
    if top_p < 1:
        sorted_p, order = p.sort(-1, descending=True)
        beyond = sorted_p.cumsum(-1) - sorted_p >= top_p
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulated = p.cumsum(-1)
    # The sum stands in for 1, so that rounding never reaches beyond the last code that has a share.
    at = (u.to(p.dtype) * cumulated[..., -1])[..., None].contiguous()
    found = torch.searchsorted(cumulated, at, right=True)[..., 0]
    last = (p > 0).to(torch.uint8).flip(-1).argmax(-1)
    return torch.minimum(found, k - 1 - last)
