"""CodecMixin: what every pipeline with a codec shares: decoding, slicing, tiling, and a check that the parts fit."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.pipelines.pipeline import DiffusionPipeline
from latentia.pipelines.precision import decode_safely, encode_safely


@runtime_checkable
class SlicesAndTiles(Protocol):
    """A codec with the memory switches."""

    def enable_slicing(self) -> None: ...  # noqa: D102
    def disable_slicing(self) -> None: ...  # noqa: D102
    def enable_tiling(self, tile_size: int | None = None, overlap: float | None = None) -> None: ...  # noqa: D102
    def disable_tiling(self) -> None: ...  # noqa: D102


class CodecMixin(DiffusionPipeline):
    """Abstract: latents of a codec are sampled and decoded.

    Class attributes:
        codec_name: the component that is the codec.
        extra_channels: how many channels the network may take beside the latents: a mask and an image's latents, say.
    """

    codec_name: ClassVar[str] = "vae"
    extra_channels: ClassVar[tuple[int, ...]] = (0,)

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        codec, unet = parts[self.codec_name], parts["unet"]
        if codec is None or unet is None:
            return
        latent = codec.config.get("vq_embed_dim") or codec.config.get("latent_channels")
        taken = unet.config.get("in_channels")
        if latent is not None and taken - latent not in self.extra_channels:
            wanted = " or ".join(str(latent + more) for more in self.extra_channels)
            raise InputError(
                f"{self.codec_name} makes latents of {latent} channels but unet takes {taken} ({wanted} wanted): "
                f"they were not made for each other, or not for {type(self).__name__}"
            )

    @property
    def codec(self) -> Any:
        """The component that encodes and decodes."""
        return getattr(self, self.codec_name)

    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Scaled latents (B, c, h, w) → pictures (B, C, H, W) in about [-1, 1], float32 at least.

        What overflows the codec's half precision is decoded in float32. Raises `NonFiniteError` naming the module.
        """
        with self._using(self.codec_name):
            return decode_safely(self.codec, z, generator, self.codec_name)

    def encode(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Pictures (B, C, H, W) in [-1, 1] → scaled latents (B, c, h, w), as `decode` takes them."""
        with self._using(self.codec_name):
            return encode_safely(self.codec, x, generator, self.codec_name)

    def _sliceable(self) -> SlicesAndTiles:
        if not isinstance(self.codec, SlicesAndTiles):
            raise InputError(f"{type(self.codec).__name__} cannot decode in slices or tiles; lower max_batch instead")
        return self.codec

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time: less memory, the same pictures."""
        self._sliceable().enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode whole batches."""
        self._sliceable().disable_slicing()

    def enable_vae_tiling(self, tile_size: int | None = None, overlap: float | None = None) -> None:
        """Decode large pictures in overlapping, blended tiles (sizes: see the codec)."""
        self._sliceable().enable_tiling(tile_size, overlap)

    def disable_vae_tiling(self) -> None:
        """Decode pictures in one piece."""
        self._sliceable().disable_tiling()
