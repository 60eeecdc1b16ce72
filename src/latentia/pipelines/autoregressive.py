"""AutoregressivePipeline: VQGAN's second stage, one token after another (Esser et al. 2021)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch

from latentia.core.arguments import check_count
from latentia.core.rng import Generators
from latentia.denoisers.autoregressive import AutoregressiveTransformer
from latentia.denoisers.token_transformer import check_codes
from latentia.errors import InputError
from latentia.nn.token_block import KeyValueMemory
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.guidance import combine
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import Request, SamplingOptions
from latentia.pipelines.tokens import TokenPipeline
from latentia.schedulers.autoregressive import AutoregressiveScheduler

Told = tuple[torch.Tensor | None, torch.Tensor | None]
"""The classes and the condition of a call, as it holds them."""


@dataclass(frozen=True, slots=True)
class Past:
    """What the network remembers of one call: the memory, the tokens (rows, n) that went into it, and what it was told.

    A callback may replace any of these.
    """

    memory: KeyValueMemory
    tokens: torch.Tensor
    told: Told

    def leads_to(self, tokens: torch.Tensor, told: Told) -> bool:
        """Whether `tokens` (rows, n + 1) only add one to those remembered, under the same conditions."""
        same = all(old is new for old, new in zip(self.told, told))
        return same and self.tokens.shape[1] == tokens.shape[1] - 1 and torch.equal(self.tokens, tokens[:, :-1])


class AutoregressivePipeline(TokenPipeline):
    """Pictures token by token, from left to right and top to bottom.

    Larger pictures than the network was trained on are drawn through a window of its size that slides over the grid,
    so that each token sees those around it that are already there (Esser et al. 2021, figure 3).

    Args:
        vqvae: the codec with tokens (`VQModel`, `FlowMo`, …).
        transformer: an `AutoregressiveTransformer` on its tokens.
        scheduler: an `AutoregressiveScheduler`.
        id2label: class index → name, so that `class_labels` may be names.
    """

    transformer_kind = AutoregressiveTransformer
    scheduler_kind = AutoregressiveScheduler

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        condition: torch.Tensor | None = None,
        token_grid: tuple[int, int] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Draw tokens and decode them.

        Args:
            batch_size: how many; None: as many as there are labels, generators or conditions, else 1.
            generator: source of all randomness: one for the batch, or a list with one per picture.
            temperature, top_k, top_p: see `AutoregressiveScheduler`; None: the scheduler's.
            condition: tokens (B, condition_length) int64 of a segmentation map or the like, for networks that take
                them; as a map (B, rows, columns) where there is one for each place, and with `token_grid`.
            token_grid: (rows, columns) of the token map; None: the one of the training.
            num_inference_steps: None, or the number of tokens: each takes a step.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (the tokens).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`; logits are guided, l_∅ + s(l_c − l_∅).

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
        """
        shape = self._grid(token_grid)
        tokens = math.prod(shape)
        if num_inference_steps not in (None, tokens):
            raise InputError(
                f"num_inference_steps={num_inference_steps!r}, but these pictures have {tokens} tokens, drawn one a "
                "step: leave the number of steps out"
            )
        step: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if condition is not None and batch_size is None and isinstance(condition, torch.Tensor) and condition.ndim:
            batch_size = len(condition)

        def complete(request: Request) -> Request:
            conditions = self._condition(condition, request.batch, shape)
            return replace(request, shape=shape, tensors={**request.tensors, **conditions})

        return self._draw(batch_size, generator, tokens, output_type, return_dict, step, options, complete)

    def _grid(self, asked: tuple[int, int] | None) -> tuple[int, ...]:
        """Shape of the tokens that are to be drawn."""
        own = self.sample_shape
        if asked is None:
            return own
        grid = tuple(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else (asked,)
        if len(own) != 2 or len(grid) != 2 or any(check_count("token_grid", a) < b for a, b in zip(grid, own)):
            raise InputError(
                f"token_grid {grid} does not fit a network for {own}: give (rows, columns) of at least that, for "
                "networks of a map of tokens"
            )
        return grid

    def _condition(self, condition: object, batch: int, grid: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """The checked condition: (B, L), or (B, rows, columns) where a window will slide over it."""
        length, codes = self.transformer.config.condition_length, self.transformer.config.condition_codes
        if (condition is None) != (length == 0):
            needs = f"needs a condition of {length} tokens: pass condition" if length else "takes no condition"
            raise InputError(f"this network {needs}")
        if condition is None:
            return {}
        slides = grid != self.sample_shape
        if slides and length != math.prod(self.sample_shape):
            raise InputError(
                f"token_grid: a condition of {length} tokens does not cover a map of {self.sample_shape} place by "
                "place, so no window can slide over it: leave token_grid out"
            )
        shape = tuple(condition.shape) if isinstance(condition, torch.Tensor) else ()
        expected = ((batch, *grid),) if slides else ((batch, length), (batch, *grid))
        if not isinstance(condition, torch.Tensor) or shape not in expected or math.prod(shape[1:]) < length:
            given = f"of shape {shape}" if isinstance(condition, torch.Tensor) else f"a {type(condition).__name__}"
            raise InputError(f"condition is {given}: expected int64 of shape {' or '.join(map(str, expected))}")
        check_codes("condition", condition, codes - 1)
        return {"condition": condition if slides else condition.flatten(1)}

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the token whose turn it is, guided when the call is."""
        guided = call.guidance_scale > 1 and "class_labels" in call.tensors
        if tuple(z.shape[1:]) != self.sample_shape:
            logits = self._through_window(call, z, guided)
        else:
            logits = self._next(call, z.flatten(1), guided)
        if not guided:
            return logits
        scale = call.current_scale
        return combine(logits, scale) if scale > 1 else logits.chunk(2)[1]

    def _next(self, call: PipelineCall, z: torch.Tensor, guided: bool) -> torch.Tensor:
        """Logits after the first `step_index` of the tokens z (B, S), from what the call remembers."""
        i = call.step_index
        past: Past | None = vars(call).get("past")
        tokens = torch.cat([z, z])[:, :i] if guided else z[:, :i]
        told = call.tensors.get("class_labels"), call.tensors.get("condition")
        if past is not None and past.leads_to(tokens, told):
            embedded = self.transformer.embed(tokens[:, -1])
        else:  # the beginning, or a callback has changed what was drawn, or what the network is told
            past = Past(self.transformer.memory(), tokens, told)
            embedded = self._beginning(call, tokens, guided, told[1])
        logits: torch.Tensor = self.transformer.next_logits(embedded, past.memory)
        call.past = replace(past, tokens=tokens)
        return logits.float()

    def _through_window(self, call: PipelineCall, z: torch.Tensor, guided: bool) -> torch.Tensor:
        """The same on a larger grid z (B, rows, columns): from the window around the token, without a memory."""
        (rows, columns), (h, w) = z.shape[1:], self.sample_shape
        row, column = divmod(call.step_index, columns)
        top, left = (
            min(max(at - side // 2, 0), whole - side) for at, side, whole in ((row, h, rows), (column, w, columns))
        )
        inside = (row - top) * w + column - left
        known, condition = (
            None if each is None else each[:, top : top + h, left : left + w].flatten(1)
            for each in (z, call.tensors.get("condition"))
        )
        assert known is not None
        known = torch.cat([known, known])[:, :inside] if guided else known[:, :inside]
        embedded = self._beginning(call, known, guided, condition)
        logits: torch.Tensor = self.transformer.next_logits(embedded, self.transformer.memory())
        return logits.float()

    def _beginning(
        self, call: PipelineCall, tokens: torch.Tensor, guided: bool, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """What the network is told and the tokens known so far, embedded."""
        if condition is not None and guided:
            condition = torch.cat([condition, condition])
        prefix = self.transformer.prefix(len(tokens), self._labels(call, guided), condition)
        return torch.cat([prefix, self.transformer.tokens(tokens)], 1)
