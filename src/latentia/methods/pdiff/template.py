"""ParameterTemplate: what turns a generated vector into a network: the layout, the base network, and the statistics."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.errors import ConfigError, InputError, check_choice
from latentia.methods.pdiff.batch_norm import reestimate
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.condition import Condition
from latentia.methods.pdiff.layout import ParameterLayout, StateDict
from latentia.methods.pdiff.networks import NETWORKS, build
from latentia.methods.pdiff.normalise import Standardiser, Whitener


class ParameterTemplate(ModelMixin):
    """The part of a pipeline folder that is no network of its own, saved like one.

    Holds `layout`, the base network's whole state dict (`base`), the `standardiser` of vectors and the `whitener` of
    latents. Its tensors keep their dtypes whatever the pipeline is cast to: a generated network has those of its base.
    Build it with `of`; the arguments of the constructor are what the config file records.

    Where whole networks with BatchNorm are generated, it also knows the architecture and holds unlabelled `images`, on
    which the running statistics of every generated network are measured (`measuring`).

    Args:
        layout: the layout as JSON text.
        base: (name, dtype, shape) of every tensor of the base network.
        latent_shape: (c, L) of the latents.
        standardise: kind of the `Standardiser`.
        whiten: kind of the `Whitener`.
        network: name in `networks.NETWORKS` of the architecture whose statistics are measured anew; None keeps those
            of the base network.
        sizes: of that network, as `networks.build` takes them.
        images: shape (N, C, H, W) of the images on which they are measured.
        condition: what a conditional pipeline is told, as `Condition.to_config` has it; None: nothing.

    Raises `ConfigError` for a layout that is not of this base network, and for a dtype that torch does not have.
    """

    images: torch.Tensor | None

    @register_to_config
    def __init__(
        self,
        layout: str,
        base: Sequence[tuple[str, str, Sequence[int]]],
        latent_shape: Sequence[int],
        standardise: str = "coordinate",
        whiten: str = "full",
        network: str | None = None,
        sizes: Mapping[str, Any] | None = None,
        images: Sequence[int] | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.layout = ParameterLayout.from_json(layout, "the template's layout")
        self.base = nn.Module()
        for name, dtype, shape in base:
            _plant(self.base, name, torch.zeros(tuple(shape), dtype=_dtype(dtype)))
        try:
            self.layout.check(self.base_state(), "the template's base network")
        except InputError as error:
            raise ConfigError(str(error)) from None
        self.standardiser = Standardiser(self.layout.size, standardise)
        self.whitener = Whitener(latent_shape, whiten)
        self.condition: Condition | None = None if condition is None else Condition.from_config(condition)
        if (network is None) != (images is None):
            raise ConfigError("a template measures statistics with a network and images: give both, or neither")
        if network is not None:
            check_choice("network", network, NETWORKS)
        self.measured, self.sizes = network, dict(sizes or {})
        self.register_buffer("images", None if images is None else torch.zeros(tuple(images)))

    @classmethod
    def of(
        cls,
        layout: ParameterLayout,
        base: Mapping[str, torch.Tensor],
        standardiser: Standardiser,
        whitener: Whitener,
        *,
        measuring: tuple[str, Mapping[str, Any], torch.Tensor] | None = None,
        condition: Condition | None = None,
    ) -> Self:
        """The template of a base network, with copies of its tensors and of the fitted statistics.

        Args:
            measuring: name and sizes of the architecture, and images (N, C, H, W), N ≥ 2, for BatchNorm's statistics.
            condition: what a conditional pipeline is told.

        Raises `InputError` for a base network or statistics of another layout.
        """
        layout.check(base, "the base network")
        if len(standardiser.mean) != layout.size:
            raise InputError(f"the standardiser is for {len(standardiser.mean)} parameters, the layout {layout.size}")
        kinds = [(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in base.items()]
        network, sizes, images = measuring or (None, None, None)
        shape = None if images is None else tuple(images.shape)
        template = cls(
            layout.to_json(),
            kinds,
            *(whitener.shape, standardiser.kind, whitener.kind, network, sizes, shape),
            condition=None if condition is None else condition.to_config(),
        )
        if template.images is not None and images is not None:
            template.images.copy_(images)
        slots = template.base_state()
        for name, tensor in base.items():
            slots[name].copy_(tensor.detach())
        template.standardiser.load_state_dict(standardiser.state_dict())
        template.whitener.load_state_dict(whitener.state_dict())
        return template.eval()

    def base_state(self) -> StateDict:
        """The base network's state dict; the template's own tensors, not copies."""
        state: StateDict = self.base.state_dict()
        return state

    def checkpoints(self, vectors: torch.Tensor, meta: Mapping[str, Any] | None = None) -> Checkpoints:
        """Generated vectors (N, D) as networks on the CPU, with statistics of their own where these are measured."""
        base = {name: tensor.cpu() for name, tensor in self.base_state().items()}
        vectors, own = vectors.detach().float().cpu(), {}
        if self.measured is not None and self.images is not None:
            network = build(self.measured, **self.sizes)
            own = reestimate(network, self.layout, base, vectors, self.images.cpu())
        return Checkpoints(self.layout, vectors, base, dict(meta or {}), own)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """As of `ModelMixin`, but in the saved dtypes whatever is asked for."""
        return super().from_pretrained(name_or_path, **{**options, "dtype": None, "torch_dtype": None})

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Follow moves from device to device, but no casts."""
        return super()._apply(lambda t: fn(t) if t.is_meta else t.to(fn(t[:0] if t.ndim else t).device), recurse)


def _plant(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register `tensor` under a dotted name, growing the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_buffer(leaf, tensor)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"torch has no dtype {name!r}: the template's config is broken, or of a newer torch")
    return found
