"""FineTunePlan: what a fine-tuning run is made of, before a weight is read: base, pictures, shapes, cost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.errors import InputError
from latentia.recipes.parts import Average
from latentia.recipes.recipe import Recipe
from latentia.recipes.sources import PUBLISHED_SIZES, open_pictures
from latentia.recipes.stable_diffusion import SHAPES_ONLY, Blueprint, blueprint, check_base

if TYPE_CHECKING:
    import torch

    from latentia.data.captions import CaptionedImages, Views
    from latentia.recipes.plan import Work


class FineTunePlan(Recipe):
    """Abstract: a base, pictures with captions, and the networks that run."""

    phase_name: ClassVar[str] = "unet"
    next_command: ClassVar[str] = 'latentia sample {pipeline} --prompt "..." --out samples.png'

    base: str = Field(default=SHAPES_ONLY, description="pipeline folder, run, Hub id or checkpoint; sd-1.5: only sizes")
    variant: str | None = Field(default=None, description="tag of the base's weight files, such as fp16")
    tokenizer: str | None = Field(default=None, description="folder of the tokenizer, for a base that is one file")
    data: str = Field(description="hf:NAME, or a folder: metadata.jsonl with file_name and text, or NAME.txt files")
    caption: str = Field(default="", description="what pictures without a caption are called; empty: they are an error")
    image_size: PositiveInt = Field(default=512, description="pixels a side, divisible by 8")
    crop: Literal["center", "random"] = Field(default="center", description="which square of a picture is seen")
    views: PositiveInt = Field(default=1, description="random crops of each picture; each is encoded once")
    flip: bool = Field(default=False, description="mirror images too; not for writing or anything that has a left")
    cache: bool = Field(default=True, description="encode the pictures once, not in every step")
    encode_batch: PositiveInt = Field(default=8, description="pictures that are encoded together for the cache")
    gradient_checkpointing: bool = Field(default=False, description="less memory, a forward pass more")
    ema: Average = Field(default=Average(decay=0), description="average of the trained weights")

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if self.views > 1 and self.crop == "center":
            raise ValueError(f"views={self.views} of the same centre: set crop=random, or views=1")
        return self

    # Base and pictures -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `InputError` or `ArtifactError` for a base without weights and for data without captions."""
        check_base(self.base)
        self.pictures()

    def check_shapes(self, base: Blueprint) -> None:
        """Raise `InputError` for a base that this recipe cannot start from."""
        import torch

        with torch.device("meta"):
            vae, unet = base.vae(), base.unet()
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if self.image_size % factor:
            near = max(factor, round(self.image_size / factor) * factor)
            raise InputError(f"image_size {self.image_size} is not divisible by {factor}: take {near}")
        if unet.config.in_channels not in self.input_channels(vae.config.latent_channels):
            raise InputError(
                f"base {self.base!r} has a UNet of {unet.config.in_channels} input channels; {self.name} wants "
                f"{' or '.join(map(str, self.input_channels(vae.config.latent_channels)))}"
            )

    def input_channels(self, latent_channels: int) -> tuple[int, ...]:
        """Numbers of input channels that the base's UNet may have."""
        return (latent_channels,)

    def look(self) -> Views:
        """Crops and flips."""
        from latentia.data.captions import Views

        return Views(self.crop, self.views, self.flip, self.seed)

    def pictures(self) -> CaptionedImages:
        """The pictures and their captions."""
        from latentia.data.captions import CaptionedImages

        return CaptionedImages(open_pictures(self.data, self.image_size), self.image_size, self.look(), self.caption)

    # The dry run -----------------------------------------------------------------------------------------------

    def num_images(self) -> int:
        """How many pictures are encoded: as published, or counted; 0 for what may have to be fetched."""
        if self.data.startswith("hf:"):
            return self.look().count(PUBLISHED_SIZES.get(self.data, 0))
        return len(self.pictures())

    def work(self) -> list[Work]:
        """The codec's encoding, the text encoder, and the network that is trained."""
        base = blueprint(self.base, self.tokenizer, self.variant)
        self.check_shapes(base)
        return [self.encoding_work(base), self.text_work(base), self.main_work(base)]

    @property
    def seen(self) -> int:
        """Samples of the whole phase."""
        return self.steps * self.batch_size

    def encoding_work(self, base: Blueprint) -> Work:
        """Pictures into latents."""
        from latentia.recipes.latent import encode_only
        from latentia.recipes.plan import Work

        pictures = self.num_images()
        samples, batch = (
            (pictures, self.encode_batch) if self.cache else (self.seen, self.batch_size // self.accumulate)
        )
        row = Work(self.phase_name, "vae", base.vae, self.pixels, samples, batch, batch, trained=False)
        return replace(row, call=encode_only)

    def text_work(self, base: Blueprint) -> Work:
        """Tokens into vectors."""
        return self.row(base.text_encoder, "text encoder", lambda n: (self.tokens(base, n),), trained=False)

    def row(self, build: Callable[[], torch.nn.Module], network: str, inputs: Any, **more: Any) -> Work:
        """A row of the dry run for a network that sees every sample."""
        from latentia.recipes.plan import Work

        micro = self.batch_size // self.accumulate
        return Work(self.phase_name, network, build, inputs, self.seen, self.batch_size, micro, **more)

    def trained_row(self, build: Callable[[], torch.nn.Module], network: str, inputs: Any, **more: Any) -> Work:
        """A row for a network that is trained, in whole or in part."""
        frozen = 4 if self.autocast == "no" else 2
        average, again = self.ema.decay > 0, self.gradient_checkpointing
        return self.row(build, network, inputs, averaged=average, recomputed=again, frozen_bytes=frozen, **more)

    def pixels(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Pictures, on the current default device."""
        import torch

        return (torch.zeros(batch, 3, self.image_size, self.image_size),)

    def tokens(self, base: Blueprint, batch: int) -> torch.Tensor:
        """Tokens of captions."""
        import torch

        return torch.zeros(batch, base.length, dtype=torch.long)

    def noisy(self, base: Blueprint, batch: int) -> tuple[torch.Tensor, ...]:
        """x_t, t and encoded text."""
        import torch

        with torch.device("meta"):
            shape = base.vae().latent_shape((3, self.image_size, self.image_size))
        return torch.zeros(batch, *shape), torch.zeros(batch), torch.zeros(batch, base.length, base.width)

    @abstractmethod
    def main_work(self, base: Blueprint) -> Work:
        """The row of the trained network in the dry run."""
