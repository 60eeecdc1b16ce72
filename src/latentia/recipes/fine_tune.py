"""FineTune: what every recipe that starts from Stable Diffusion shares.

base ─▶ vae, text encoder, unet ─┐
pictures ─▶ latents, cached ─────┼─▶ one phase ─▶ out/pipeline: the base with what was trained
captions ─▶ tokens ──────────────┘
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from latentia.recipes.fine_tune_plan import FineTunePlan
from latentia.recipes.parts import Fraction, Optim
from latentia.recipes.recipe import Bench, Value, use_average
from latentia.recipes.stable_diffusion import open_base

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Dataset
    from latentia.data.captions import CaptionedImages
    from latentia.pipelines.text_to_image import StableDiffusion
    from latentia.training.objective import Objective
    from latentia.training.phase import Phase, PhaseResult

logger = logging.getLogger(__name__)

PREVIEWS = 4
"""Pictures of a preview whose texts are the data's own captions."""


class TextTarget(Value):
    """What training minimises, in the vocabulary of `TextDiffusionObjective`; the base's scheduler says ε or v."""

    loss: Literal["mse", "l1", "huber"] = Field(default="mse", description="error of the prediction")
    min_snr_gamma: PositiveFloat | None = Field(default=None, description="γ of min-SNR weighting; none for no weights")
    times: Literal["uniform", "antithetic", "logit_normal"] = Field(default="uniform", description="draw of t")
    noise_offset: NonNegativeFloat = Field(default=0.0, description="share of noise that is one number for a channel")
    caption_dropout: Fraction = Field(default=0.0, description="share of captions replaced by the empty one")


class FineTune(FineTunePlan):
    """Abstract: one phase that trains a part of Stable Diffusion on pictures with captions."""

    objective: TextTarget = Field(default=TextTarget(), description="what is minimised")
    optim: Optim = Field(default=Optim(lr=1e-5, weight_decay=0.01), description="optimizer")
    preview_prompts: str = Field(default="", description="texts of the previews, separated by |; empty: the data's own")
    preview_steps: PositiveInt = Field(default=20, description="sampling steps of a preview")

    # What a recipe says ----------------------------------------------------------------------------------------

    @abstractmethod
    def objective_for(self, bench: Bench, pictures: CaptionedImages) -> Objective:
        """What is trained, and how; the base's parts are on the bench."""

    @abstractmethod
    def save(self, bench: Bench, parts: dict[str, Any], out: Path) -> None:
        """Put what was trained into the base's fresh `parts` and save the pipeline."""

    def assemble(self, parts: Mapping[str, Any]) -> StableDiffusion:
        """A pipeline of these parts."""
        from latentia.pipelines.text_to_image import StableDiffusionPipeline

        return StableDiffusionPipeline(**parts)

    def open(self) -> dict[str, Any]:
        """The base's parts by name, in float32 on the CPU."""
        return open_base(self.base, self.tokenizer, self.variant)

    # Training --------------------------------------------------------------------------------------------------

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """The one phase."""
        return [(self.phase_name, lambda: self.phase(bench))]

    def phase(self, bench: Bench) -> Phase:
        """Open the base, encode the data, train."""
        from latentia.training.phase import Phase

        for name, part in self.open().items():
            bench.keep(name, part)
        for name in ("vae", "text_encoder", "unet"):
            bench.module(name).requires_grad_(False).eval().to(bench.device)
        pictures = self.tokenized(bench, self.pictures())
        data = self.training_data(bench, pictures)
        objective = self.objective_for(bench, pictures)
        for module in (bench.module("unet"), *objective.modules_by_name.values()):
            self.set_up(module)
        return Phase(
            name=self.phase_name,
            objective=objective,
            data=data,
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
            preview=lambda: self.preview(bench, pictures),
        )

    def set_up(self, module: torch.nn.Module) -> None:
        """Gradient checkpointing, where it is asked for and known."""
        from latentia.nn.checkpointing import GradientCheckpointing

        if self.gradient_checkpointing and isinstance(module, GradientCheckpointing):
            module.enable_gradient_checkpointing()

    def tokenized(self, bench: Bench, pictures: CaptionedImages) -> CaptionedImages:
        """The pictures with their captions as tokens; captions that are too long are cut, and counted."""
        from latentia.conditioners.prompts import count_windows, token_ids, window_length

        tokenizer = bench.parts["tokenizer"]
        length = window_length(tokenizer, bench.module("text_encoder"))
        bench.keep("empty_ids", token_ids(tokenizer, "", max_length=length)[0, 0])
        cut = sum(count > 1 for count in count_windows(tokenizer, pictures.captions, length))
        if cut:
            logger.warning(
                "%d of %d captions have more than %d tokens and are cut", cut, len(pictures.captions), length
            )
        return pictures.with_tokens(token_ids(tokenizer, pictures.captions, max_length=length)[:, 0])

    def training_data(self, bench: Bench, pictures: CaptionedImages) -> Dataset:
        """What a step reads."""
        return self.encoded(bench, pictures)

    def encoded(self, bench: Bench, pictures: CaptionedImages) -> Dataset:
        """The pictures' posteriors, encoded once, or their latents, encoded when they are needed."""
        from latentia.recipes.latent import EncodedDataset
        from latentia.training.latents import cache_latents

        if not self.cache:
            return EncodedDataset(bench.parts["vae"], pictures, self.seed)
        return cache_latents(bench.parts["vae"], pictures, self.encode_batch, self.seed)

    def text_options(self, bench: Bench) -> dict[str, Any]:
        """What the objective is told of noise and text."""
        from latentia.schedulers.ddpm import DDPMScheduler

        scheduler = DDPMScheduler.from_config(bench.parts["scheduler"].config)
        known = {"scheduler": scheduler, "text_encoder": bench.module("text_encoder")}
        return {**known, "empty_ids": bench.parts["empty_ids"], **self.objective.model_dump()}

    def freeze(self, bench: Bench, *names: str) -> None:
        """Hold networks that are only used in the precision in which they compute: half the memory."""
        dtype = self.half()
        for name in names if dtype is not None else ():
            bench.module(name).to(dtype)

    def half(self) -> torch.dtype | None:
        """The half precision of autocast, None without."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.autocast)

    # Looking and saving ----------------------------------------------------------------------------------------

    def preview(self, bench: Bench, pictures: CaptionedImages) -> torch.Tensor:
        """A picture (…, 3, H, W) of each preview text, from the present weights."""
        prompts = [said.strip() for said in self.preview_prompts.split("|")] if self.preview_prompts else []
        prompts = prompts or list(pictures.captions[:PREVIEWS])
        return self.draw(bench, prompts, self.preview_steps, **self.preview_inputs(bench, pictures, len(prompts)))

    def draw(self, bench: Bench, prompts: Sequence[str], steps: int, **call: Any) -> torch.Tensor:
        """Pictures (…, 3, H, W) in [-1, 1] by the parts on the bench; the networks in half precision, the codec not."""
        import torch

        pipe = self.assemble({name: bench.parts[name] for name in self.part_names(bench)})
        pipe.set_progress_bar_config(disable=True)
        size, half = {"height": self.image_size, "width": self.image_size}, self.half()
        options = {"num_inference_steps": steps, "seed": self.seed, "output_type": "latent", **size, **call}
        with torch.no_grad(), torch.autocast(pipe.device.type, dtype=half, enabled=half is not None):
            z = pipe(list(prompts), **options).images
        return pipe.decode(z).clamp(-1, 1).cpu()

    def preview_inputs(self, bench: Bench, pictures: CaptionedImages, count: int) -> dict[str, Any]:
        """What the pipeline is given beside the texts."""
        return {}

    def part_names(self, bench: Bench) -> tuple[str, ...]:
        """Names on the bench of the parts of the pipeline."""
        return ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the base with what was trained, averaged where there is an average."""
        use_average(results[self.phase_name])
        self.save(bench, self.open(), out)
