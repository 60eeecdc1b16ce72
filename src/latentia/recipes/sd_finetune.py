"""`sd-finetune`: Stable Diffusion on pictures with captions, all of its UNet; and what `sd-lora` shares with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from latentia.recipes.fine_tune import FineTune
from latentia.recipes.parts import Average, Optim
from latentia.recipes.recipe import Bench, Value
from latentia.recipes.stable_diffusion import Blueprint

if TYPE_CHECKING:
    from torch import nn

    from latentia.data.captions import CaptionedImages
    from latentia.recipes.plan import Work
    from latentia.training.fine_tuning import FineTuningObjective

ADAPTER = "default"
"""The adapters' name while they are trained; a file has no name for them."""

NARUTO = "hf:lambdalabs/naruto-blip-captions"
DECAY = 0.01
"""AdamW's weight decay in Diffusers' training scripts."""


class Lora(Value):
    """Low-rank adapters: α/r·B·A beside a layer's own weight."""

    rank: NonNegativeInt = Field(default=0, description="r; 0 trains whole networks instead of adapters")
    alpha: PositiveFloat | None = Field(default=None, description="strength α; none is r")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="layers of the UNet, by the ends of their names"
    )
    text_targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "out_proj"), description="the same of the text encoder, if it is trained"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="on what an adapter reads")
    init: Literal["gaussian", "kaiming"] = Field(default="gaussian", description="start of A; B starts at zero")

    def adapt(self, network: nn.Module, targets: tuple[str, ...]) -> nn.ModuleDict:
        """New adapters in `network`, which is frozen; returns what is trained."""
        from latentia.nn.lora import add_adapter

        return add_adapter(network, ADAPTER, self.rank, self.alpha, targets, self.dropout, self.init)


class TextFineTune(FineTune):
    """Text to image: the UNet, and perhaps its text encoder, or low-rank adapters in them."""

    train_text_encoder: bool = Field(default=False, description="train the text encoder too")
    lora: Lora = Field(default=Lora(), description="adapters instead of all weights")
    fuse: bool = Field(default=True, description="out/pipeline has the adapters added in; false: the base as it was")

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.lora.rank and self.fsdp:
            raise ValueError("fsdp shards weights that are trained, and adapters are small: set fsdp=false")
        return self

    def objective_for(self, bench: Bench, pictures: CaptionedImages) -> FineTuningObjective:
        """All weights, or adapters."""
        from latentia.training.fine_tuning import FineTuningObjective

        adapters = self.adapters(bench) if self.lora.rank else None
        if adapters is None and not self.train_text_encoder:
            self.freeze(bench, "text_encoder")
        unet = bench.module("unet")
        if adapters is None:
            unet.requires_grad_(True)
            bench.module("text_encoder").requires_grad_(self.train_text_encoder)
        options = {"train_text_encoder": self.train_text_encoder, **self.text_options(bench)}
        return FineTuningObjective(unet, adapters=adapters, **self.more_options(), **options)

    def more_options(self) -> dict[str, Any]:
        """What else the objective is told."""
        return {}

    def adapters(self, bench: Bench) -> nn.ModuleDict:
        """Adapters in the frozen networks."""
        from torch import nn

        self.freeze(bench, "text_encoder", "unet")
        made = nn.ModuleDict({"denoiser": self.lora.adapt(bench.module("unet"), self.lora.targets)})
        if self.train_text_encoder:
            made["text_encoder"] = self.lora.adapt(bench.module("text_encoder"), self.lora.text_targets)
        if self.compile:  # the loop compiles what is trained: here that is called by what is not
            bench.module("unet").compile()
        bench.keep("adapters", made)
        return made

    # Saving ----------------------------------------------------------------------------------------------------

    def save(self, bench: Bench, parts: dict[str, Any], out: Path) -> None:
        """The pipeline; with adapters also their file, `out`/lora/pytorch_lora_weights.safetensors."""
        if self.lora.rank:
            self.save_adapters(bench, parts, out)
        else:
            parts["unet"] = bench.module("unet")
            if self.train_text_encoder:
                parts["text_encoder"] = bench.module("text_encoder")
        self.assemble(parts).save_pretrained(out / "pipeline")

    def save_adapters(self, bench: Bench, parts: dict[str, Any], out: Path) -> None:
        """Write the adapters' file, and add them into the fresh parts when asked to."""
        from latentia.nn.lora import fuse, load_adapter, tree_state
        from latentia.pipelines.lora import LoraMixin

        trees = bench.parts["adapters"]
        texts = trees["text_encoder"] if self.train_text_encoder else None
        LoraMixin.save_lora_weights(out / "lora", trees["denoiser"], texts)
        for name, network in (("denoiser", "unet"), ("text_encoder", "text_encoder")):
            if self.fuse and name in trees:
                load_adapter(parts[network], ADAPTER, tree_state(trees[name]))
                fuse(parts[network])

    # The dry run -----------------------------------------------------------------------------------------------

    def text_work(self, base: Blueprint) -> Work:
        """The text encoder, trained or not."""
        if not self.train_text_encoder:
            return super().text_work(base)
        build = self.adapted(base.text_encoder, self.lora.text_targets)
        return self.trained_row(build, "text encoder", lambda n: (self.tokens(base, self.rows(n)),))

    def main_work(self, base: Blueprint) -> Work:
        """The UNet."""
        build = self.adapted(base.unet, self.lora.targets)
        return self.trained_row(build, "unet", lambda n: self.noisy(base, self.rows(n)))

    def rows(self, samples: int) -> int:
        """Rows that go through the networks for so many samples."""
        return samples

    def adapted(self, build: Callable[[], nn.Module], targets: tuple[str, ...]) -> Callable[[], nn.Module]:
        """What builds the network with adapters, or as it is."""
        if not self.lora.rank:
            return build
        from latentia.recipes.fine_tune_networks import AdaptedNetwork

        def with_adapters() -> nn.Module:
            network = build()
            return AdaptedNetwork(network, self.lora.adapt(network, targets))

        return with_adapters


def sd_finetune() -> TextFineTune:
    """Stable Diffusion on pictures with captions: the whole UNet, 859,520,964 parameters of 1.5, at 512×512.

    Command: latentia train sd-finetune base=FOLDER data=FOLDER --out runs/sd-finetune
    Cost:    147 PFLOP and 19 GB: about half an A100-hour of computing. No task for 2 CPU cores.
    Expect:  pictures in the style of the data; no score is published for these 15,000 steps of 4 pictures.

    `base` is the folder of a pipeline, a Hub id, or a single-file checkpoint (then with `tokenizer`). `data` is a
    folder with captions in metadata.jsonl (`file_name` and `text`) or in NAME.txt beside NAME.png, or `hf:NAME` with a
    column `text` or `caption`. The pictures are encoded once.

    Source: README and defaults of Diffusers' text_to_image example, whose rate, steps, batch and average these are.
    """
    return TextFineTune(
        name="sd-finetune",
        data=NARUTO,
        steps=15_000,
        batch_size=4,
        accumulate=4,
        optim=Optim(lr=1e-5, weight_decay=DECAY),
        ema=Average(decay=0.9999),
        precision="bf16",
        log_every=50,
    )
