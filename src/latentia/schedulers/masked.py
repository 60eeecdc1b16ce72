"""MaskedScheduler: MaskGIT's parallel decoding (Chang et al. 2022)."""

import math
from typing import Any, ClassVar

import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.saved import SavedScheduler
from latentia.schedulers.tokens import TokenStepOutput, check_sampling, draw, uniform

SCHEDULES = ("arccos", "cosine", "linear")
TINY = 1e-20


class MaskedScheduler(SavedScheduler):
    """From all tokens masked to none: in each step all are guessed, and the least confident are masked again.

        after step k of n, r = k/n:  ⌊N·γ(r)⌋ of N tokens stay masked, at least one fewer than before
        confidence = log p(guess) + τ(1 − r)·Gumbel noise;  tokens that are known are kept

    γ(r) is cos(πr/2) (`cosine`, MaskGIT), (2/π)·arccos r (`arccos`, TiTok, MaskBit) or 1 − r (`linear`).

    Args:
        mask_token_id: the token that means "masked"; K where codes are 0 … K − 1.
        masking_schedule: γ.
        choice_temperature: τ; 4.5 in MaskGIT. 0 keeps the most confident: sharper and less diverse.
        temperature: of the guesses; 1 is the model as it is.
        num_train_timesteps: T; t = T(1 − r).
    """

    step_options: ClassVar[frozenset[str]] = frozenset({"temperature", "choice_temperature"})
    timesteps: torch.Tensor
    num_inference_steps: int | None = None
    _position = 0

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = 1024,
        masking_schedule: str = "cosine",
        choice_temperature: float = 4.5,
        temperature: float = 1.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        check_count("mask_token_id", mask_token_id)
        check_choice("masking_schedule", masking_schedule, SCHEDULES)
        check_count("num_train_timesteps", num_train_timesteps)
        check_number("choice_temperature", choice_temperature, 0.0)
        check_sampling(temperature, 0, 1.0)
        self.timesteps = torch.empty(0)

    def masked_share(self, r: torch.Tensor | float) -> torch.Tensor:
        """γ(r), the share of tokens that are masked at progress r in [0, 1]."""
        r = torch.as_tensor(r, dtype=torch.float64).clamp(0, 1)
        if self.config.masking_schedule == "cosine":
            return torch.cos(r * (math.pi / 2))
        return torch.arccos(r) * (2 / math.pi) if self.config.masking_schedule == "arccos" else 1 - r

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """n steps; t = T(1 − k/n) for k = 0 … n − 1. Raises `InputError` unless 1 ≤ n ≤ T."""
        n, top = check_count("num_inference_steps", num_inference_steps), self.config.num_train_timesteps
        if n > top:
            raise InputError(f"num_inference_steps={n} is more than num_train_timesteps={top}: use fewer")
        self.num_inference_steps, self._position = n, 0
        self.timesteps = (1 - torch.arange(n, dtype=torch.float64) / n).mul(top).float().to(device)

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
            raise InputError(f"logits {tuple(model_output.shape)} do not fit tokens {tuple(sample.shape)}")
        c = self.config
        temperature, _, _ = check_sampling(c.temperature if temperature is None else temperature, 0, 1.0)
        tau = c.choice_temperature if choice_temperature is None else check_number("τ", choice_temperature, 0.0)
        flat, masked = sample.flatten(1), (sample == c.mask_token_id).flatten(1)
        logits = model_output.flatten(1, -2)  # (B, N, K)
        u = uniform((len(flat), 2, flat.shape[1]), generator, logits.device)
        guess = torch.where(masked, draw(logits, u[:, 0], temperature), flat)
        r = (k + 1) / n
        again = self._mask_again(logits, guess, masked, u[:, 1], tau * (1 - r), float(self.masked_share(r)), r == 1)
        self._position = k + 1
        guess = guess.view(sample.shape)
        previous = guess.masked_fill(again.view(sample.shape), c.mask_token_id)
        return TokenStepOutput(previous, guess) if return_dict else (previous, guess)

    def _mask_again(
        self,
        logits: torch.Tensor,
        guess: torch.Tensor,
        masked: torch.Tensor,
        u: torch.Tensor,
        tau: float,
        share: float,
        last: bool,
    ) -> torch.Tensor:
        """(B, N): the least confident of the masked tokens, as many of each picture as the schedule says."""
        if last:
            return torch.zeros_like(masked)
        wide = torch.promote_types(logits.dtype, torch.float32)
        known = guess.clamp(max=logits.shape[-1] - 1)[..., None]
        confidence = logits.to(wide).log_softmax(-1).gather(-1, known)[..., 0]
        if tau:
            confidence = confidence - tau * (-(u.to(wide) + TINY).log() + TINY).log()
        confidence = confidence.masked_fill(~masked, torch.inf)
        unknown = masked.sum(1)
        count = torch.minimum(unknown - 1, torch.full_like(unknown, int(masked.shape[1] * share))).clamp(min=1)
        count = torch.where(unknown > 0, torch.minimum(count, unknown), 0)
        rank = confidence.argsort(dim=1, stable=True).argsort(1)
        return (rank < count[:, None]) & masked

    def _next(self, timestep: Any) -> int:
        k = self._position
        if self.num_inference_steps is None:
            raise InputError("call MaskedScheduler.set_timesteps(num_inference_steps) before stepping")
        if k >= len(self.timesteps) or abs(float(self.timesteps[k]) - float(timestep)) > 1e-3:
            raise InputError(f"timestep {float(timestep):g} is not step {k + 1} of {self.num_inference_steps}")
        return k

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mask ⌈N·γ(1 − t/T)⌉ tokens of each picture, at least one: those whose `noise` is smallest.

        Args:
            original_samples: tokens (B, *token_shape).
            noise: uniform or normal numbers of the same shape.
            timesteps: (B,) in [0, T].
        """
        if noise.shape != original_samples.shape:
            raise InputError(f"noise {tuple(noise.shape)} does not fit tokens {tuple(original_samples.shape)}")
        rank = noise.flatten(1).argsort(1).argsort(1)
        r = 1 - torch.as_tensor(timesteps).double() / self.config.num_train_timesteps
        count = (self.masked_share(r) * rank.shape[1]).ceil().clamp(min=1).to(rank.device)
        masked = (rank < count.reshape(-1, 1)).view(original_samples.shape)
        return original_samples.masked_fill(masked, self.config.mask_token_id)
