"""Pictures sampled in a codec's latent space: LatentDiffusionPipeline and LDMPipeline."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Unpack, runtime_checkable

import torch

from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.pipelines.checks import eta_option
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import SamplingOptions


@runtime_checkable
class SlicesAndTiles(Protocol):
    """A codec with the memory switches."""

    def enable_slicing(self) -> None: ...  # noqa: D102
    def disable_slicing(self) -> None: ...  # noqa: D102
    def enable_tiling(self, tile_size: int | None = None, overlap: float | None = None) -> None: ...  # noqa: D102
    def disable_tiling(self) -> None: ...  # noqa: D102


class LatentPipeline(ImagePipeline):
    """Abstract: the network denoises latents, a codec turns them into pictures.

    Class attributes:
        codec_name: the component that is the codec.
    """

    codec_name: ClassVar[str] = "vae"

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        codec, unet = parts[self.codec_name], parts["unet"]
        if codec is None or unet is None:
            return
        latent = codec.config.get("vq_embed_dim") or codec.config.get("latent_channels")
        taken = unet.config.get("in_channels")
        if latent is not None and taken != latent:
            raise InputError(
                f"{self.codec_name} makes latents of {latent} channels but unet takes {taken}: "
                "they were not made for each other"
            )

    @property
    def codec(self) -> Any:
        """The component that encodes and decodes."""
        return getattr(self, self.codec_name)

    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Scaled latents (B, c, h, w) → pictures (B, C, H, W) in about [-1, 1], float32 at least."""
        with torch.no_grad():
            x: torch.Tensor = self.codec.from_latents(z.to(self.codec.device, self.codec.dtype), generator)
        return x.to(torch.promote_types(x.dtype, torch.float32))

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

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Sample latents and decode them.

        Args:
            batch_size: how many; None: as many as there are labels, generators or latents, else 1.
            generator: source of all noise: one for the batch, or a list with one per picture.
            eta: η in [0, 1] of DDIM: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
            num_inference_steps: steps of the scheduler, 1 to its `num_train_timesteps`.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (z, undecoded).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`.

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step at which it appeared.
        """
        step = {"eta": eta_option(eta)}
        return self._generate(batch_size, generator, num_inference_steps, output_type, return_dict, step, options)


class LatentDiffusionPipeline(LatentPipeline):
    """Latent diffusion (Rombach et al. 2022), with classes where the network has them.

    Args:
        vae: the codec (`AutoencoderKL`, `Autoencoder`, …).
        unet: the network on scaled latents.
        scheduler: any scheduler.
        id2label: class index → name, so that `class_labels` may be names.
    """

    roles: ClassVar[Mapping[str, str]] = {"vae": "codec", "unet": "denoiser", "scheduler": "scheduler"}

    def __init__(self, vae: Any, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__({"vae": vae, "unet": unet, "scheduler": scheduler}, id2label)


class LDMPipeline(LatentPipeline):
    """Latent diffusion in the folder that Diffusers' class of the same name reads and writes (codec: `vqvae`)."""

    roles: ClassVar[Mapping[str, str]] = {"vqvae": "codec", "unet": "denoiser", "scheduler": "scheduler"}
    codec_name = "vqvae"

    def __init__(self, vqvae: Any, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__({"vqvae": vqvae, "unet": unet, "scheduler": scheduler}, id2label)
