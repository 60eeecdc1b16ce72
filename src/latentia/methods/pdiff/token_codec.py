"""A codec of whole networks: matched weights ↔ a few codes, decoded by tokens and judged by what the networks do.

    codes   z = whitened principal components of matched, standardised weights, r of them
    decode  θ = mean + scale·(L + R(L, z)),   L = (g·z)·B a linear reconstruction, R the token transformer

The first components are told to R and count in full (g = 1). Of the others a share g stays in the weights alone, where
it makes each network different in a way of its own: what R cannot learn from so few networks it need not undo.

R starts at 0; with R = 0, g = 1 and z ~ N(0, I) this is the PCA-Gaussian control. R is trained on behaviour: a decoded
network shall predict what its original predicts, and a network between two originals what they predict on average
(knowledge distillation; "behavioural loss", L. Meynent et al., "Structure Is Not Enough", 2025).

What that means: generated networks are as good as originals, and are no copies of them; but they lie as far from the
originals' mean as R moves them, which is away from the distribution of trained weights, and most of what makes them
work is distilled on images rather than found in weights. Report them beside `decode_linear` with and without `repair`,
and beside the same codec fitted to unmatched weights.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count, check_number
from latentia.core.config import register_to_config
from latentia.core.evaluating import evaluating
from latentia.core.model import ModelMixin
from latentia.core.protocols import Batch
from latentia.core.rng import Generators
from latentia.errors import ConfigError, InputError
from latentia.methods.pdiff.batch_norm import batch_normalised
from latentia.methods.pdiff.layout import ParameterLayout, StateDict
from latentia.methods.pdiff.tokens import ParameterTokenTransformer
from latentia.training.objective import Loss, Objective, take

MOST = 2.0
"""Times their own spread that the components which the transformer is not told may have."""


class ParameterTokenCodec(ModelMixin):
    """Networks (B, D) ↔ codes (B, r, 1); see the module. `fit` measures mean, scale and components.

    A codec as `ParameterDiffusionPipeline` takes it, with a standardiser of kind `none`: it standardises by itself.
    Stored are the r·D numbers of the components, which are measured and not trained, and the transformer.

    Args:
        shapes: of the network's tensors, in the order of the vector (`ParameterLayout.shapes`).
        num_codes: r; at most one less than there are networks to fit.
        num_told: how many of them the transformer is told, the largest first; None: all.
        rest: share in [0, 2] in which the others stay in the weights; 1 as in the originals.
        token_size, width, num_layers, num_heads, expansion, learned_positions: of `ParameterTokenTransformer`.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor

    @register_to_config
    def __init__(
        self,
        shapes: tuple[tuple[int, ...], ...],
        num_codes: int = 24,
        token_size: int = 64,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        expansion: int = 2,
        learned_positions: bool = True,
        num_told: int | None = None,
        rest: float = 1.0,
    ) -> None:
        super().__init__()
        self.told = num_codes if num_told is None else check_count("num_told", num_told)
        if self.told > num_codes:
            raise ConfigError(f"num_told={num_told} is more than num_codes={num_codes}: tell at most all")
        self.rest = check_number("rest", rest, 0, MOST)
        self.refiner = ParameterTokenTransformer(
            shapes, token_size, width, num_layers, num_heads, expansion, self.told, learned_positions
        )
        size = self.refiner.grid.num_parameters
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("basis", torch.zeros(num_codes, size))

    def set_rest(self, rest: float) -> None:
        """Decode with another share from now on, and after saving and loading. Raises `InputError` outside [0, 2]."""
        self.rest = check_number("rest", rest, 0, MOST)
        self.record(rest=self.rest)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> Tensor:
        """Measure mean, scale and components of matched networks (K, D); returns their codes (K, r, 1), of variance 1.

        The scale is one number a tensor, the deviation of its residuals, so that no coordinate without variance is
        blown up. Components come from the K × K matrix of inner products; the largest first.
        Raises `InputError` for K ≤ r, and for networks of another size.
        """
        (rank, size), networks = self.basis.shape, len(vectors)
        if vectors.shape[1:] != (size,):
            raise InputError(f"expected networks (K, {size}), got {tuple(vectors.shape)}")
        if not rank < networks:
            raise InputError(f"{rank} codes need at least {rank + 1} networks, got {networks}: lower num_codes")
        self.mean.copy_(vectors.mean(0))
        x = vectors - self.mean
        spread = [part.square().mean().sqrt() for part in x.split(self._sizes(), dim=1)]
        for part, value in zip(self.scale.split(self._sizes()), spread):
            part.fill_(float(value) if value > 0 else 1.0)
        x /= self.scale
        _, left = torch.linalg.eigh((x @ x.T).double())
        codes = left[:, -rank:].flip(1).to(x) * math.sqrt(networks - 1)
        self.basis.copy_(codes.T @ x / (networks - 1))
        return codes.unsqueeze(2)

    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.refiner.grid.shapes]

    def to_latents(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Networks (B, D) → codes (B, r, 1); nothing is drawn."""
        white: Tensor = ((x - self.mean) / self.scale) @ self.basis.T
        return (white / self.basis.square().sum(1).clamp(min=1e-12)).unsqueeze(2)

    def from_latents(self, z: Tensor, generator: Generators = None) -> Tensor:
        """Codes (B, r, 1) → networks (B, D)."""
        rough, correction = self.decode_parts(z)
        return self.mean + self.scale * (rough + correction)

    def decode_linear(self, z: Tensor) -> Tensor:
        """Codes (B, r, 1) → the networks (B, D) of the PCA control, without the transformer."""
        return self.mean + self.scale * (z.squeeze(2) @ self.basis)

    def decode_parts(self, z: Tensor, rest: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, r, 1) → linear reconstruction and the transformer's correction of it, standardised (B, D) each.

        `rest` (B, 1): a share of each network's own, in place of the codec's.
        """
        if z.ndim != 3 or tuple(z.shape[1:]) != (len(self.basis), 1):
            raise InputError(f"expected codes (B, {len(self.basis)}, 1), got {tuple(z.shape)}")
        codes = z.squeeze(2)
        told, others = codes.split((self.told, len(self.basis) - self.told), dim=1)
        share = self.rest if rest is None else rest
        rough = torch.cat((told, share * others), dim=1) @ self.basis
        (correction,) = self.refiner(rough, codes=told, return_dict=False)
        return rough, correction

    @torch.no_grad()
    def encode_all(self, x: Tensor, batch_size: int = 256) -> Tensor:
        """Codes (K, r, 1) of K networks on the CPU, in batches."""
        return torch.cat([self.to_latents(part.to(self.device)).cpu() for part in x.split(batch_size)])

    @torch.no_grad()
    def decode_all(self, z: Tensor, batch_size: int = 64) -> Tensor:
        """Networks (K, D) of K codes on the CPU, in evaluation mode, in batches."""
        with evaluating([self]):
            return torch.cat([self.from_latents(part.to(self.device)).cpu() for part in z.split(batch_size)])

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(D,) → (r, 1); `InputError` for another D."""
        rank, size = self.basis.shape
        if tuple(shape) != (size,):
            raise InputError(f"shape {tuple(shape)} does not fit: expected ({size},)")
        return rank, 1

    def bits_per_element(self) -> float:
        """16: a code is worth storing in half precision."""
        return 16.0


class BehaviourObjective(Objective):
    """Decoded networks shall predict what their originals do, and those between originals what these do on average.

        total = KL(p̄ ‖ p(decode z̄)) + structure·mean R²
        z̄ = √(1 − c²)·(√λ z_i + √(1 − λ) z_j) + c·ε,    p̄ = λp_i + (1 − λ)p_j

    on images of the batch; λ is 1 for the share `pure` of samples, uniform in [0, 1] for the others, j another sample.
    The roots keep z̄ as N(0, I) as the codes are, so that the decoder learns where a prior will draw.

    Args:
        codec: a fitted `ParameterTokenCodec`; its transformer is trained.
        network, layout, base: the networks that it makes. BatchNorm normalises by the images of the step.
        images: (N, C, H, W), unlabelled.
        num_images: how many of them a step looks at.
        image_noise: deviation of noise on them, so that behaviour is compared beside the images too.
        noise: c in [0, 1], share of noise in the codes: the ξ_Z of p-diff.
        pure: share of samples that are an original, in [0, 1].
        structure: weight of the correction's size, in units of each tensor's spread.
        rests: the share of what the transformer is not told is drawn between these, for each network anew, so that one
            codec decodes with any of them; None: always the codec's own.

    Parts: `behaviour` (nats an image) and `correction`. Reads `x` (B, D), matched originals, from the batch.
    """

    frozen = ("network",)

    def __init__(
        self,
        codec: ParameterTokenCodec,
        network: nn.Module,
        layout: ParameterLayout,
        base: StateDict,
        images: Tensor,
        *,
        num_images: int = 64,
        image_noise: float = 0.3,
        noise: float = 0.3,
        pure: float = 0.5,
        structure: float = 0.01,
        rests: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        layout.check(base, "the base network")
        if tuple(layout.shapes) != codec.refiner.grid.shapes:
            raise InputError("codec and layout are of different networks: build the codec with shapes=layout.shapes")
        self.codec = codec
        self.network = batch_normalised(network).requires_grad_(False)
        known = {name for name, _ in self.network.named_parameters()} | {n for n, _ in self.network.named_buffers()}
        self.base = {name: tensor for name, tensor in base.items() if name in known and name not in layout.names}
        self.layout, self.images = layout, images
        self.num_images = check_count("num_images", num_images)
        self.image_noise = check_number("image_noise", image_noise, 0)
        self.noise = check_number("noise", noise, 0, 1)
        self.pure = check_number("pure", pure, 0, 1)
        self.structure = check_number("structure", structure, 0)
        self.rests = None if rests is None else tuple(check_number("rests", end, 0, MOST) for end in rests)

    def settings(self) -> dict[str, Any]:
        """Everything but modules and images."""
        own = ("num_images", "image_noise", "noise", "pure", "structure", "rests")
        return {name: getattr(self, name) for name in own}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        originals = take(batch, "x")
        images = self.images[torch.randint(len(self.images), (self.num_images,))].to(originals.device)
        images = torch.add(images, torch.randn_like(images), alpha=self.image_noise)
        with torch.no_grad():
            z, target = self._mix(self.codec.to_latents(originals), self.logits(originals, images).softmax(-1))
        rest = None
        if self.rests is not None:
            rest = torch.empty(len(z), 1, device=z.device).uniform_(*self.rests)
        rough, correction = self.codec.decode_parts(z, rest)
        made = self.codec.mean + self.codec.scale * (rough + correction)
        said = self.logits(made, images).log_softmax(-1)
        behaviour = F.kl_div(said, target, reduction="sum") / (len(said) * len(images))
        size = correction.square().mean()
        parts = {"behaviour": behaviour.detach(), "correction": size.detach()}
        return Loss(behaviour + self.structure * size, parts)

    def logits(self, vectors: Tensor, images: Tensor) -> Tensor:
        """Networks (B, D), images (M, …) → (B, M, classes)."""

        def one(tensors: StateDict) -> Tensor:
            out: Tensor = functional_call(self.network, {**self.base, **tensors}, (images,))
            return out

        return vmap(one)(self.layout.unflatten(vectors))

    def _mix(self, z: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and predictions of originals and of networks between two of them, codes with noise."""
        share = torch.rand(len(z), 1, 1, device=z.device)
        share = share.where(torch.rand_like(share) >= self.pure, 1.0)
        other = torch.randperm(len(z), device=z.device)
        mixed = share.sqrt() * z + (1 - share).sqrt() * z[other]
        kept = math.sqrt(1 - self.noise**2)
        return kept * mixed + self.noise * torch.randn_like(z), torch.lerp(p[other], p, share)
