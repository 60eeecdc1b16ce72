"""AutoregressiveScheduler: one token after another."""

from typing import Any, ClassVar

import torch

from latentia.core.arguments import check_count
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.saved import SavedScheduler
from latentia.schedulers.tokens import TokenStepOutput, check_sampling, draw, uniform


class AutoregressiveScheduler(SavedScheduler):
    """Step i draws token i of every picture from the logits of its turn; tokens not drawn yet are `mask_token_id`.

    Args:
        mask_token_id: stands for tokens that are still to come; K where codes are 0 … K − 1.
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: only the k likeliest codes, 0 for all (600 of 1024 or 16384 in VQGAN on ImageNet, 250 for faces).
        top_p: only the likeliest codes that together reach p (0.92).
        num_train_timesteps: T; t = T(1 − i/n), which only guidance intervals read.
    """

    step_options: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p"})
    timesteps: torch.Tensor
    num_inference_steps: int | None = None
    _position = 0
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
        check_count("mask_token_id", mask_token_id)
        check_count("num_train_timesteps", num_train_timesteps)
        check_sampling(temperature, top_k, top_p)
        self.timesteps = torch.empty(0)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """n steps, one for each token."""
        n = check_count("num_inference_steps", num_inference_steps)
        self.num_inference_steps, self._position, self._uniform = n, 0, None
        share = 1 - torch.arange(n, dtype=torch.float64) / n
        self.timesteps = share.mul(self.config.num_train_timesteps).float().to(device)

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
            timestep: not read; tokens come in order.
            sample: tokens (B, *token_shape).
            generator: one for the batch, or one per picture; read once, in the first step.
            return_dict: False returns `(prev_sample, pred_original_sample)`, which are the same.
            temperature, top_k, top_p: in place of the config's.

        Raises `InputError` for shapes that do not fit and after the last token.
        """
        i, c = self._position, self.config
        if self.num_inference_steps is None or i >= self.num_inference_steps:
            raise InputError(f"there is no step {i + 1}: call set_timesteps with the number of tokens first")
        flat = sample.flatten(1)
        if flat.shape[1] != self.num_inference_steps or model_output.ndim != 2 or len(model_output) != len(flat):
            raise InputError(
                f"logits {tuple(model_output.shape)} and tokens {tuple(sample.shape)} do not fit "
                f"{self.num_inference_steps} steps: expected (B, K) and as many tokens as steps"
            )
        if self._uniform is None:
            self._uniform = uniform((len(flat), flat.shape[1]), generator, model_output.device)
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options = check_sampling(*(c[name] if value is None else value for name, value in given.items()))
        drawn = flat.clone()
        drawn[:, i] = draw(model_output, self._uniform[:, i], *options)
        self._position = i + 1
        drawn = drawn.view(sample.shape)
        return TokenStepOutput(drawn, drawn) if return_dict else (drawn, drawn)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Forget the tokens from position ⌊n(1 − t/T)⌋ on; `noise` is not read."""
        flat = original_samples.flatten(1)
        share = 1 - torch.as_tensor(timesteps, device=flat.device).double() / self.config.num_train_timesteps
        later = torch.arange(flat.shape[1], device=flat.device) >= (share * flat.shape[1]).floor().reshape(-1, 1)
        return flat.masked_fill(later, self.config.mask_token_id).view(original_samples.shape)
