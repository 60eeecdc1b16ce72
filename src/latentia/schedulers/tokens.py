"""What schedulers of tokens share: their place in a run, and sampling from logits, one stream of numbers a picture."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.saved import SavedScheduler

ROUNDING = 1e-3
"""Timesteps are float32: a number of tokens that is a whole one but for so much is that whole one."""


@dataclass(slots=True)
class TokenStepOutput(Output):
    """`prev_sample` (B, *token_shape): tokens, some still masked; `pred_original_sample`: the same without masks."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class TokenScheduler(SavedScheduler):
    """Abstract base: from all tokens `mask_token_id` to none, in n steps at t = T(1 − k/n), k = 0 … n − 1.

    The recorded config holds `mask_token_id` (K where codes are 0 … K − 1) and `num_train_timesteps` T. Steps are taken
    in order; `set_timesteps` begins a new run.
    """

    timesteps: torch.Tensor
    num_inference_steps: int | None = None
    _position = 0

    def _check_config(self) -> None:
        check_count("mask_token_id", self.config.mask_token_id)
        check_count("num_train_timesteps", self.config.num_train_timesteps)
        self.timesteps = torch.empty(0)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def step_index(self) -> int:
        """Steps taken."""
        return self._position

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Begin a run of n steps. Raises `InputError` unless n is at least 1."""
        n = check_count("num_inference_steps", num_inference_steps)
        self.num_inference_steps, self._position = n, 0
        top = self.config.num_train_timesteps
        self.timesteps = torch.tensor([top * (1 - k / n) for k in range(n)], dtype=torch.float32, device=device)

    def _next(self, timestep: Any) -> int:
        """Number of the step to take; `InputError` unless it is the one at `timestep`."""
        k, n = self._position, self.num_inference_steps
        if n is None:
            raise InputError(f"call {type(self).__name__}.set_timesteps(num_inference_steps) before stepping")
        if k >= n:
            raise InputError(f"all {n} steps are taken: call set_timesteps to begin again")
        one = not isinstance(timestep, torch.Tensor) or timestep.numel() == 1
        if not one or not abs(float(timestep) - float(self.timesteps[k])) <= ROUNDING / n:
            raise InputError(
                f"timestep {timestep} is not that of step {k + 1} of {n}, {float(self.timesteps[k]):g}: tokens are "
                "drawn in order"
            )
        return k

    @abstractmethod
    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Tokens → tokens, some of them masked."""

    def _progress(self, tokens: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """r = 1 − t/T of each picture, (B, 1) float64; raises `InputError` for shapes and times that do not fit."""
        if noise.shape != tokens.shape:
            raise InputError(f"noise {tuple(noise.shape)} and tokens {tuple(tokens.shape)} must have one shape")
        times = torch.as_tensor(timesteps, device=tokens.device).double()
        if times.numel() not in (1, len(tokens)) or times.ndim > 1:
            raise InputError(
                f"got {times.numel()} timesteps for a batch of {len(tokens)}: give one, or one per picture"
            )
        top = self.config.num_train_timesteps
        if times.device.type == "cpu" and not bool(((times >= 0) & (times <= top)).all()):
            raise InputError(f"timesteps must lie in 0 (known) to {top} (all masked), got {times.tolist()}")
        return (1 - times / top).reshape(-1, 1)


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1) of `shape` (batch first), row i from generator i where there is one for each."""
    if isinstance(generator, list | tuple):
        if len(generator) != shape[0]:
            raise InputError(
                f"got {len(generator)} generators for a batch of {shape[0]}: give one generator per sample"
            )
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
        top_k: only the k likeliest codes, and those as likely as the last of them; 0 for all.
        top_p: of these, only the likeliest that together reach p (Holtzman et al. 2020), the one that crosses p
            included.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits = logits / temperature
    k = logits.shape[-1]
    if 0 < top_k < k:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = logits.softmax(-1)
    if top_p < 1:
        sorted_p, order = p.sort(-1, descending=True)
        beyond = sorted_p.cumsum(-1) - sorted_p >= top_p
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulated = p.cumsum(-1)
    # The sum stands in for 1, and its product with the largest number below 1 is less than it, however that is rounded:
    # so none is found beyond the last code that has a share, unless there is a NaN.
    below = u.to(p.dtype).clamp(max=1 - torch.finfo(p.dtype).eps / 2)
    at = (below * cumulated[..., -1])[..., None].contiguous()
    return torch.searchsorted(cumulated, at, right=True)[..., 0].clamp(max=k - 1)
