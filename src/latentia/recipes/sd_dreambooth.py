"""`sd-dreambooth`: one subject from a few pictures, under a rare word (Ruiz et al. 2022)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from latentia.errors import InputError
from latentia.recipes.parts import Average, Optim
from latentia.recipes.recipe import Bench
from latentia.recipes.sd_finetune import DECAY, TextFineTune
from latentia.recipes.sources import open_pictures
from latentia.recipes.stable_diffusion import Blueprint

if TYPE_CHECKING:
    from latentia.core.protocols import Dataset
    from latentia.data.captions import CaptionedImages
    from latentia.recipes.plan import Work

CLASS_IMAGES = "class_images"


class DreamBooth(TextFineTune):
    """All pictures have one caption; with `class_prompt` the model is held to what it made of the class before."""

    instance_prompt: Annotated[str, Field(min_length=1)] = Field(description="the caption of every picture")
    class_prompt: str = Field(default="", description="what the subject is one of; empty: no prior is preserved")
    class_data: str | None = Field(default=None, description="folder of pictures of the class; none draws them first")
    num_class_images: PositiveInt = Field(default=200, description="pictures of the class to draw")
    class_steps: PositiveInt = Field(default=50, description="sampling steps of each")
    class_batch: PositiveInt = Field(default=4, description="drawn together")
    prior_weight: NonNegativeFloat = Field(default=1.0, description="weight of the loss on the class's pictures")

    @model_validator(mode="after")
    def _one_caption(self) -> Self:
        if self.caption:
            raise ValueError("caption: here every picture's caption is instance_prompt")
        if self.class_data and not self.class_prompt:
            raise ValueError("class_data needs class_prompt, the caption of its pictures")
        return self

    def check(self) -> None:
        """Raise for a class without pictures, too."""
        super().check()
        if self.class_data:
            self.one_caption(self.class_data, self.class_prompt)

    def pictures(self) -> CaptionedImages:
        """The subject's pictures, all with one caption."""
        return self.one_caption(self.data, self.instance_prompt)

    def one_caption(self, data: str, caption: str) -> CaptionedImages:
        """Pictures that are all called the same, whatever their own captions say."""
        from latentia.data.captions import CaptionedImages

        found = open_pictures(data, self.image_size)
        return CaptionedImages(found, self.image_size, self.look(), caption, every=True)

    def training_data(self, bench: Bench, pictures: CaptionedImages) -> Dataset:
        """The subject's pictures, each beside one of the class."""
        from latentia.data.joined import PairedDataset
        from latentia.training.fine_tuning import PRIOR

        subject = self.encoded(bench, pictures)
        if not self.class_prompt:
            return subject
        folder = self.class_data or str(self.draw_class(bench))
        prior = self.tokenized(bench, self.one_caption(folder, self.class_prompt))
        return PairedDataset(subject, self.encoded(bench, prior), PRIOR)

    def more_options(self) -> dict[str, Any]:
        """The prior's weight."""
        return {"prior_weight": self.prior_weight if self.class_prompt else None}

    # The class -------------------------------------------------------------------------------------------------

    def draw_class(self, bench: Bench) -> Path:
        """Draw what is missing of the class's pictures into `out`/class_images; each process its share.

        Picture i is a function of (seed, i), and written whole or not at all: an interrupted run goes on where it was.
        """
        from accelerate import PartialState

        from latentia.core.images import to_pil
        from latentia.recipes.sampling import save_png

        if bench.out is None:
            raise InputError(
                "pictures of the class are drawn into the run's folder, and there is none: give class_data"
            )
        folder = bench.out / CLASS_IMAGES
        processes = PartialState()
        share = range(processes.process_index, self.num_class_images, processes.num_processes)
        mine = [i for i in share if not class_image(folder, i).is_file()]
        for start in range(0, len(mine), self.class_batch):
            rows = mine[start : start + self.class_batch]
            made = self.draw(bench, [self.class_prompt] * len(rows), self.class_steps, sample_indices=rows)
            for i, picture in zip(rows, to_pil(made), strict=True):
                save_png(picture, class_image(folder, i), {"prompt": self.class_prompt, "seed": self.seed, "index": i})
        processes.wait_for_everyone()
        return folder

    # The dry run -----------------------------------------------------------------------------------------------

    def num_images(self) -> int:
        """Pictures that are encoded: the subject's and the class's."""
        if not self.class_prompt:
            return super().num_images()
        given = self.class_data
        drawn = self.look().count(self.num_class_images)
        return super().num_images() + (len(self.one_caption(given, self.class_prompt)) if given else drawn)

    def rows(self, samples: int) -> int:
        """With a prior each sample brings one of the class."""
        return 2 * samples if self.class_prompt else samples

    def text_work(self, base: Blueprint) -> Work:
        """The text encoder, trained or not."""
        if self.train_text_encoder:
            return super().text_work(base)
        return self.row(base.text_encoder, "text encoder", lambda n: (self.tokens(base, self.rows(n)),), trained=False)

    def work(self) -> list[Work]:
        """Drawing the class, if that is to be done, then training."""
        from latentia.recipes.plan import Work
        from latentia.recipes.stable_diffusion import blueprint

        training = super().work()
        if not self.class_prompt or self.class_data:
            return training
        base = blueprint(self.base, self.tokenizer, self.variant)
        calls, rows = 2 * self.class_steps * self.num_class_images, 2 * self.class_batch  # with guidance
        inputs = lambda n: self.noisy(base, n)  # noqa: E731
        inputs = partial(self.noisy, base)
        drawing = Work(self.phase_name, "drawing the class", base.unet, inputs, calls, rows, rows, trained=False)
        return [drawing, *training]


def class_image(folder: Path, index: int) -> Path:
    """The file of one picture of the class."""
    return folder / f"{index:05d}.png"


def sd_dreambooth() -> DreamBooth:
    """One subject from 3 to 5 pictures, called by a rare word: the whole UNet, or adapters (`lora.rank=4`).

    Command: latentia train sd-dreambooth base=FOLDER data=FOLDER --out runs/sd-dreambooth
    Cost:    1 PFLOP and 16 GB: under an A100-minute of computing, 3 more to draw a class. No task for 2 CPU cores.
    Expect:  DINO 0.668, CLIP-I 0.803, CLIP-T 0.305 (table 1 of the paper, with Stable Diffusion; from memory).

    Every picture has the caption `instance_prompt`. With `class_prompt="a photo of dog"` the prior is preserved: 200
    pictures of the class are drawn first (or taken from `class_data`), each step sees as many of them as of the
    subject, and twice as many steps are usual. With `lora.rank=4` use `optim.lr=1e-4`.

    Source: README and defaults of Diffusers' dreambooth example.
    """
    return DreamBooth(
        name="sd-dreambooth",
        data="hf:diffusers/dog-example",
        instance_prompt="a photo of sks dog",
        steps=400,
        batch_size=1,
        optim=Optim(lr=5e-6, weight_decay=DECAY),
        ema=Average(decay=0),
        precision="bf16",
        save_every=200,
    )
