"""What one call of an image pipeline asks for: the keywords it takes, and their checked form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import torch

from latentia.core.rng import Generators
from latentia.pipelines.callbacks import Callback, CancelToken, PipelineCallback

Labels = int | str | Sequence[int | str] | torch.Tensor


class SamplingOptions(TypedDict):
    """Keywords that every image pipeline takes beside Diffusers' own.

    seed: picture i is drawn from its own generator, derived from (seed, i); alone or in any batch it is the same.
    sample_indices: the numbers i of the pictures under `seed`; default 0 … batch_size − 1.
    class_labels: one class (int, or a name of `id2label`) or one per picture; needed by class-conditional networks.
    guidance_scale: s of ε_∅ + s(ε_c − ε_∅); at most 1: the conditional network alone.
    guidance_rescale: φ in [0, 1]; how far the guided prediction gets the conditional one's spread back.
    guidance_interval: (start, stop) in [0, 1], 0 = noise, 1 = data: guidance acts while start ≤ 1 − t/T ≤ stop.
    latents: standard normal starting noise (B, C, H, W), scaled by the scheduler's `init_noise_sigma`.
    max_batch: largest batch that goes through the network; more pictures are made in chunks.
    callback_on_step_end: `(pipe, step_index, timestep, tensors)`, a `PipelineCallback` or a list of these.
    callback_on_step_end_tensor_inputs: names to hand to it, of latents, class_labels, model_output,
        pred_original_sample (x̂₀).
    cancel: a `CancelToken` that another thread may pull.
    """

    seed: NotRequired[int | None]
    sample_indices: NotRequired[Sequence[int] | None]
    class_labels: NotRequired[Labels | None]
    guidance_scale: NotRequired[float]
    guidance_rescale: NotRequired[float]
    guidance_interval: NotRequired[tuple[float, float]]
    latents: NotRequired[torch.Tensor | None]
    max_batch: NotRequired[int | None]
    callback_on_step_end: NotRequired[Callback | PipelineCallback | Sequence[PipelineCallback] | None]
    callback_on_step_end_tensor_inputs: NotRequired[Sequence[str]]
    cancel: NotRequired[CancelToken | None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call's arguments, checked and completed; everything per picture is `batch` long.

    Attributes:
        shape: of one sample, (C, H, W), or of a picture's tokens.
        tensors: conditions by name, one row per picture; callbacks may ask for them.
        guidance: keywords of `PipelineCall`.
        notes: what else the call carries for its pipeline's hooks, as attributes.
    """

    batch: int
    steps: int
    shape: tuple[int, ...]
    output_type: str
    generator: Generators
    latents: torch.Tensor | None
    step_options: Mapping[str, Any]
    guidance: Mapping[str, Any]
    max_batch: int
    callback: Callback | None
    wanted: tuple[str, ...]
    cancel: CancelToken | None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def chunks(self) -> Iterator[slice]:
        """Consecutive rows of at most `max_batch`."""
        for start in range(0, self.batch, self.max_batch):
            yield slice(start, min(start + self.max_batch, self.batch))

    def generators(self, rows: slice) -> Generators:
        """The source of noise for some rows: their own generators, or the one for all."""
        return self.generator[rows] if isinstance(self.generator, list | tuple) else self.generator
