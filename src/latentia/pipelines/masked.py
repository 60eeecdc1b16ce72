"""MaskedPipeline: MaskGIT, all tokens at once in a few steps (Chang et al. 2022)."""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch

from latentia.core.rng import Generators
from latentia.denoisers.masked import MaskedTransformer
from latentia.errors import check_choice
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.guidance import combine
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import Request, SamplingOptions
from latentia.pipelines.tokens import TokenPipeline
from latentia.schedulers.masked import MaskedScheduler

GUIDANCE = ("constant", "linear", "power_cosine")
POWER = 3.0


class MaskedPipeline(TokenPipeline):
    """Pictures from masked tokens: guess all, keep the confident, repeat.

    Args:
        vqvae: the codec with tokens (`VQModel`, `FlowMo`, …).
        transformer: a `MaskedTransformer` on its tokens.
        scheduler: a `MaskedScheduler`.
        id2label: class index → name, so that `class_labels` may be names.
    """

    transformer_kind = MaskedTransformer
    scheduler_kind = MaskedScheduler

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        num_inference_steps: int = 8,
        temperature: float | None = None,
        choice_temperature: float | None = None,
        guidance_schedule: str = "constant",
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Fill in tokens and decode them.

        Args:
            batch_size: how many; None: as many as there are labels or generators, else 1.
            generator: source of all randomness: one for the batch, or a list with one per picture.
            num_inference_steps: rounds of guessing; 8 to 12 in MaskGIT, 64 with groups of bits.
            temperature: of the guesses; None: the scheduler's.
            choice_temperature: noise in what counts as confident, fading over the rounds; None: the scheduler's.
            guidance_schedule: how the guidance scale s of round k of n comes about: `constant`; `linear`,
                1 + (s − 1)k/n; `power_cosine`, 1 + (s − 1)(1 − cos π(k/n)³)/2 (TiTok); k counts from 0.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (the tokens).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`; logits are guided, l_∅ + s(l_c − l_∅).

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
        """
        check_choice("guidance_schedule", guidance_schedule, GUIDANCE)
        step: dict[str, Any] = {"temperature": temperature, "choice_temperature": choice_temperature}

        def complete(request: Request) -> Request:
            return replace(request, notes={"guidance_schedule": guidance_schedule})

        return self._draw(batch_size, generator, num_inference_steps, output_type, return_dict, step, options, complete)

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Logits (B, *token_shape, K), guided when the call is."""
        scale = call.current_scale
        if scale > 1:
            scale = 1 + (scale - 1) * self._share(call)
        guided = scale > 1 and "class_labels" in call.tensors
        tokens = torch.cat([z, z]) if guided else z
        logits = self.transformer(tokens, self._labels(call, guided)).sample.float()
        return combine(logits, scale) if guided else logits

    def _share(self, call: PipelineCall) -> float:
        """How much of the guidance acts in this round, 0 to 1."""
        r = call.step_index / call.num_timesteps
        shares = {"constant": 1.0, "linear": r, "power_cosine": (1 - math.cos(math.pi * r**POWER)) / 2}
        return shares[call.guidance_schedule]
