"""AutoregressivePipeline: VQGAN's second stage, one token after another (Esser et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch

from latentia.core.rng import Generators
from latentia.denoisers.autoregressive import AutoregressiveTransformer
from latentia.errors import InputError, check_choice
from latentia.nn.token_block import KeyValueMemory
from latentia.pipelines import checks
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.guidance import combine
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import SamplingOptions
from latentia.pipelines.tokens import TokenPipeline
from latentia.schedulers.autoregressive import AutoregressiveScheduler


@dataclass(slots=True)
class Past:
    """What the network remembers of one call: the memory, and the tokens that went into it (rows, n)."""

    memory: KeyValueMemory
    tokens: torch.Tensor


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
                them.
            token_grid: (rows, columns) of the token map; None: the one of the training.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (the tokens).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`; logits are guided, l_∅ + s(l_c − l_∅).

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
        """
        return_dict = checks.check_flag("return_dict", return_dict)
        self._check_options(options)
        for name in options:
            check_choice("argument", name, SamplingOptions.__annotations__)
        shape = self._grid(token_grid)
        count = 1
        for side in shape:
            count *= side
        step: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if condition is not None and batch_size is None:
            batch_size = len(condition)
        request = self._request(batch_size, generator, count, output_type, step, **options)
        tensors = {**request.tensors, **self._condition(condition, request.batch)}
        images = self._sample(replace(request, shape=shape, tensors=tensors))
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _grid(self, asked: tuple[int, int] | None) -> tuple[int, ...]:
        own = self.sample_shape
        if asked is None:
            return own
        if len(own) != 2 or len(asked) != 2 or asked[0] < own[0] or asked[1] < own[1]:
            raise InputError(
                f"token_grid {tuple(asked)} does not fit a network for {own}: give (rows, columns) of at least that, "
                "for networks of a map of tokens"
            )
        return tuple(asked)

    def _condition(self, condition: torch.Tensor | None, batch: int) -> dict[str, torch.Tensor]:
        length = self.transformer.config.condition_length
        if (condition is None) != (length == 0):
            needs = f"needs condition ({batch}, {length})" if length else "takes no condition"
            raise InputError(f"this network {needs}")
        if condition is None:
            return {}
        if condition.shape != (batch, length) or condition.is_floating_point():
            raise InputError(f"condition is {tuple(condition.shape)}: expected int64 of shape ({batch}, {length})")
        return {"condition": condition}

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

    def _prefix(self, call: PipelineCall, guided: bool, rows: int) -> torch.Tensor:
        condition = call.tensors.get("condition")
        if condition is not None and guided:
            condition = torch.cat([condition, condition])
        prefix: torch.Tensor = self.transformer.prefix(rows, self._labels(call, guided), condition)
        return prefix

    def _next(self, call: PipelineCall, z: torch.Tensor, guided: bool) -> torch.Tensor:
        """Logits after the first `step_index` of the tokens z (B, S), from what the call remembers."""
        i = call.step_index
        past: Past | None = vars(call).get("past")
        tokens = torch.cat([z, z])[:, :i] if guided else z[:, :i]
        if past is not None and past.tokens.shape[1] == i - 1 and torch.equal(past.tokens, tokens[:, :-1]):
            embedded = self.transformer.embed(tokens[:, -1])
        else:  # the beginning, or a callback has changed what was drawn
            past = Past(self.transformer.memory(len(tokens)), tokens[:, :0])
            embedded = torch.cat([self._prefix(call, guided, len(tokens)), self.transformer.tokens(tokens)], 1)
        logits: torch.Tensor = self.transformer.next_logits(embedded, past.memory)
        past.tokens = tokens
        call.past = past
        return logits.float()

    def _through_window(self, call: PipelineCall, z: torch.Tensor, guided: bool) -> torch.Tensor:
        """The same on a larger grid z (B, h, w): from the window around the token, without a memory."""
        (rows, columns), (h, w) = z.shape[1:], self.sample_shape
        row, column = divmod(call.step_index, columns)
        top, left = (
            min(max(at - side // 2, 0), whole - side) for at, side, whole in ((row, h, rows), (column, w, columns))
        )
        window = z[:, top : top + h, left : left + w].flatten(1)
        inside = (row - top) * w + column - left
        known = torch.cat([window, window])[:, :inside] if guided else window[:, :inside]
        prefix = self._prefix(call, guided, len(known))
        embedded = torch.cat([prefix, self.transformer.tokens(known)], 1)
        logits: torch.Tensor = self.transformer.next_logits(embedded, self.transformer.memory(len(known)))
        return logits.float()
