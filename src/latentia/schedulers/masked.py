"""MaskedScheduler: MaskGIT's parallel decoding (Chang et al. 2022)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from latentia.core.arguments import check_number
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.tokens import ROUNDING, TokenScheduler, TokenStepOutput, check_sampling, draw, uniform

SCHEDULES: Mapping[str, Callable[[Any, Any], Any]] = {
    "arccos": lambda r, maths: maths.acos(r) * (2 / math.pi),
    "cosine": lambda r, maths: maths.cos(r * (math.pi / 2)),
    "linear": lambda r, maths: 1 - r,
}
"""γ(r) by name, of a number by `math` or of a tensor by `torch`."""
TINY, EXACT = 1e-20, 1e-9


class MaskedScheduler(TokenScheduler):
    """From all tokens masked to none: in each step all are guessed, and the least confident are masked again.

        after step k of n, r = k/n:  ⌊N·γ(r)⌋ of N tokens stay masked, and fewer than before, but one until the last
        confidence = log p(guess) + τ(1 − r)·Gumbel noise;  tokens that are known are kept

    γ(r) is cos(πr/2) (`cosine`, MaskGIT), (2/π)·arccos r (`arccos`, TiTok, MaskBit) or 1 − r (`linear`).

    Args:
        mask_token_id: the token that means "masked"; K where codes are 0 … K − 1.
        masking_schedule: γ.
        choice_temperature: τ; 4.5 in MaskGIT. 0 keeps the most confident: sharper and less diverse.
        temperature: of the guesses; 1 is the model as it is. Confidence is the model's, whatever the temperature.
        num_train_timesteps: T; t = T(1 − r).

    Raises `InputError` for values out of range, `UnknownChoiceError` for an unknown γ.
    """

    step_options: ClassVar[frozenset[str]] = frozenset({"temperature", "choice_temperature"})

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = 1024,
        masking_schedule: str = "cosine",
        choice_temperature: float = 4.5,
        temperature: float = 1.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        self._check_config()
        check_choice("masking_schedule", masking_schedule, SCHEDULES)
        check_number("choice_temperature", choice_temperature, 0.0)
        check_sampling(temperature, 0, 1.0)

    def masked_share(self, r: torch.Tensor | float) -> torch.Tensor:
        """γ(r), the share of tokens that are masked at progress r in [0, 1]."""
        r = torch.as_tensor(r, dtype=torch.float64).clamp(0, 1)
        share: torch.Tensor = SCHEDULES[self.config.masking_schedule](r, torch)
        return share

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        temperature: float | None = None,
        choice_temperature: float | None = None,
    ) -> TokenStepOutput | tuple[torch.Tensor, torch.Tensor]:
        """Guess the masked tokens and mask the least confident guesses again.

        Args:
            model_output: logits (B, *token_shape, K).
            timestep: an element of `timesteps`, in their order.
            sample: tokens (B, *token_shape), masked ones `mask_token_id`.
            generator: one for the batch, or one per picture.
            return_dict: False returns `(prev_sample, pred_original_sample)`.
            temperature, choice_temperature: in place of the config's.

        Raises `InputError` for shapes that do not fit and a timestep that is not the next one.
        """
        k, n = self._next(timestep), self.num_inference_steps or 1
        if model_output.shape[:-1] != sample.shape:
            raise InputError(
                f"logits of shape {tuple(model_output.shape)} do not fit tokens of shape {tuple(sample.shape)}: "
                "expected the tokens' shape and K behind it"
            )
        c = self.config
        temperature, _, _ = check_sampling(c.temperature if temperature is None else temperature, 0, 1.0)
        tau = c.choice_temperature
        if choice_temperature is not None:
            tau = check_number("choice_temperature", choice_temperature, 0.0)
        flat = sample.flatten(1)
        masked = flat == c.mask_token_id
        logits = model_output.flatten(1, -2)  # (B, N, K)
        u = uniform((len(flat), 2, flat.shape[1]), generator, logits.device)
        drawn = draw(logits, u[:, 0], temperature)
        previous = guess = torch.where(masked, drawn, flat)
        r = (k + 1) / n
        if r < 1:
            confidence = self._confidence(logits, drawn, u[:, 1], tau * (1 - r))
            share = SCHEDULES[c.masking_schedule](r, math)
            again = self._least(confidence, masked, math.floor(flat.shape[1] * share + EXACT))
            previous = guess.masked_fill(again, c.mask_token_id)
        self._position = k + 1
        previous, guess = previous.view(sample.shape), guess.view(sample.shape)
        return TokenStepOutput(previous, guess) if return_dict else (previous, guess)

    @staticmethod
    def _confidence(logits: torch.Tensor, code: torch.Tensor, u: torch.Tensor, tau: float) -> torch.Tensor:
        """log p(code) + τ·Gumbel noise, (B, N)."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        confidence = logits.to(wide).log_softmax(-1).gather(-1, code[..., None])[..., 0]
        if not tau:
            return confidence
        exponential = u.to(wide).clamp(min=TINY).log().neg()
        return torch.sub(confidence, exponential.log(), alpha=tau)

    @staticmethod
    def _least(confidence: torch.Tensor, masked: torch.Tensor, share: int) -> torch.Tensor:
        """(B, N): the least confident of the masked tokens, `share` of each picture, but fewer than are masked now."""
        unknown = masked.sum(1, keepdim=True)
        count = (unknown - 1).clamp(1, max(share, 1))  # 1 of 1 as well: the last round takes it
        rank = torch.where(masked, confidence, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        return (rank < count) & masked

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mask ⌈N·γ(1 − t/T)⌉ tokens of each picture, at least one: those whose `noise` is smallest.

        Args:
            original_samples: tokens (B, *token_shape).
            noise: uniform or normal numbers of the same shape.
            timesteps: one, or (B,), in [0, T].

        Raises `InputError` for shapes and times that do not fit.
        """
        share = self.masked_share(self._progress(original_samples, noise, timesteps))
        rank = noise.flatten(1).argsort(1).argsort(1)
        count = (share * rank.shape[1] - ROUNDING).ceil().clamp(min=1)
        masked = (rank < count).view(original_samples.shape)
        return original_samples.masked_fill(masked, self.config.mask_token_id)
