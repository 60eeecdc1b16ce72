"""AutoregressiveScheduler: one token after another."""

from typing import Any, ClassVar

import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.tokens import ROUNDING, TokenScheduler, TokenStepOutput, check_sampling, draw, uniform


class AutoregressiveScheduler(TokenScheduler):
    """Step i draws token i of every picture from the logits of its turn; tokens not drawn yet are `mask_token_id`.

    Args:
        mask_token_id: stands for tokens that are still to come; K where codes are 0 … K − 1.
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: only the k likeliest codes, 0 for all (600 of 1024 or 16384 in VQGAN on ImageNet, 250 for faces).
        top_p: only the likeliest codes that together reach p (0.92).
        num_train_timesteps: T; t = T(1 − i/n), which only guidance intervals read.

    Raises `InputError` for values out of range.
    """

    step_options: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p"})
    _uniform: torch.Tensor | None = None

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = 1024,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        self._check_config()
        check_sampling(temperature, top_k, top_p)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Begin a run of n steps, one for each token. Raises `InputError` unless n is at least 1."""
        super().set_timesteps(num_inference_steps, device)
        self._uniform = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> TokenStepOutput | tuple[torch.Tensor, torch.Tensor]:
        """Draw the next token.

        Args:
            model_output: logits (B, K) of that token.
            timestep: an element of `timesteps`, in their order.
            sample: tokens (B, *token_shape).
            generator: one for the batch, or one per picture; read once, in the first step.
            return_dict: False returns `(prev_sample, pred_original_sample)`.
            temperature, top_k, top_p: in place of the config's.

        `pred_original_sample` has the drawn token in all places that are still to come. Raises `InputError` for shapes
        that do not fit and a timestep that is not the next one.
        """
        i, c = self._next(timestep), self.config
        flat = sample.flatten(1)
        if flat.shape[1] != self.num_inference_steps or model_output.ndim != 2 or len(model_output) != len(flat):
            raise InputError(
                f"logits of shape {tuple(model_output.shape)} and tokens of shape {tuple(sample.shape)} do not fit "
                f"{self.num_inference_steps} steps: expected (B, K), and as many tokens as steps"
            )
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options = check_sampling(*(c[name] if value is None else value for name, value in given.items()))
        if self._uniform is None:
            self._uniform = uniform((len(flat), flat.shape[1]), generator, model_output.device)
        token = draw(model_output, self._uniform[:, i], *options)
        drawn = flat.clone()
        drawn[:, i] = token
        self._position = i + 1
        drawn = drawn.view(sample.shape)
        guess = torch.where(drawn == c.mask_token_id, token.view(-1, *[1] * (drawn.ndim - 1)), drawn)
        return TokenStepOutput(drawn, guess) if return_dict else (drawn, guess)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Forget the tokens from position ⌊n(1 − t/T)⌋ on.

        Args:
            original_samples: tokens (B, *token_shape).
            noise: of the same shape; not read.
            timesteps: one, or (B,), in [0, T].

        Raises `InputError` for shapes and times that do not fit.
        """
        r, flat = self._progress(original_samples, noise, timesteps), original_samples.flatten(1)
        later = torch.arange(flat.shape[1], device=flat.device) >= (r * flat.shape[1] + ROUNDING).floor()
        return flat.masked_fill(later, self.config.mask_token_id).view(original_samples.shape)
