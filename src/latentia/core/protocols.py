"""The contracts through which neighbours on one floor meet.

Nothing here computes. A class fulfils a protocol by having its methods; the contract tests check every one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from latentia.core.rng import Generators


@runtime_checkable
class Codec(Protocol):
    """x ↔ z. The shared face below `encode`/`decode`, the same for every codec.

    `x` is (B, C, H, W) in [-1, 1]; `z` is what a prior learns: shifted and scaled to about unit variance.
    """

    config: Any

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x (B, C, H, W) → z; a codec with a posterior samples it (`generator`)."""
        ...

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """z → x̂ in about [-1, 1]; a codec whose decoder samples uses `generator`."""
        ...

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of z without batch for an x of `shape` without batch, (C, H, W) → (c, h, w)."""
        ...

    def bits_per_element(self) -> float:
        """Stored bits for one element of z (float codecs: 16, discrete ones: log2 of the alphabet)."""
        ...


@runtime_checkable
class TokenCodec(Codec, Protocol):
    """x ↔ tokens, whole numbers 0 … K − 1: a codec whose pictures cost a known number of bits."""

    @property
    def num_codes(self) -> int:
        """K, the alphabet of one token."""
        ...

    @property
    def tokens_per_position(self) -> int:
        """q, tokens at one position: the last axis of `token_shape` where there are several."""
        ...

    def token_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of x → shape of its tokens without batch: (h, w) or (S,), with a last axis of q if there are q."""
        ...

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → (B, *token_shape) int64."""
        ...

    def from_tokens(self, indices: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """(B, *token_shape) → x̂ (B, C, H, W); a codec whose decoder samples uses `generator`."""
        ...

    def bits(self, shape: Sequence[int]) -> float:
        """Bits of one picture of `shape` (C, H, W): number of tokens · log2 K."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """Sees a noisy `sample` (B, C, ...) at `timestep` ((B,) or scalar); predicts ε, x₀, v or a flow."""

    config: Any

    def __call__(self, sample: torch.Tensor, timestep: Any, **conditions: Any) -> Any:
        """Returns an output with `.sample` of the input's shape."""
        ...


@runtime_checkable
class Scheduler(Protocol):
    """Diffusers' scheduler contract as users know it; tensors in, tensors out."""

    config: Any
    timesteps: torch.Tensor
    order: int
    step_options: Any
    """Names of the keywords that `step` takes beyond `generator` and `return_dict`, such as `eta`."""

    def fresh(self) -> "Scheduler":
        """An independent copy without inference state; every call of a pipeline works on one of its own."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the starting noise."""
        ...

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the inference timesteps and forget all multistep state (rebinding, never mutating in place)."""
        ...

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the network expects it."""
        ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
        """One step back; returns an output with `.prev_sample`."""
        ...

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x₀ and ε → x_t, for training and for starting from an image."""
        ...


@runtime_checkable
class FeatureNetwork(Protocol):
    """A ruler for images: what `frechet_<name>`, precision/recall and nearest neighbours are measured on."""

    name: str

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → features (B, D), float."""
        ...


Batch = Mapping[str, torch.Tensor]
"""One training batch by name, e.g. `{"x": (B, C, H, W) in [-1, 1], "label": (B,) int64}`."""


@runtime_checkable
class Dataset(Protocol):
    """Samples by index, fetched a batch at a time; the same index always gives the same sample."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices`, stacked."""
        ...
