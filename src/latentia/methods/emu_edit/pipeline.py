"""EmuEditPipeline: a picture and an instruction → the picture, edited; the task is told from the instruction."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NotRequired, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image

from latentia.conditioners.prompts import encode_prompts, text_width
from latentia.core.arguments import check_count, check_number
from latentia.core.evaluating import evaluating
from latentia.core.images import OUTPUT_TYPES, to_uint8
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.canvas import Canvas, read_pictures
from latentia.methods.emu_edit.editing_request import EditRequest, as_images, check_sides, check_texts, thresholding_of
from latentia.methods.emu_edit.guidance import BRANCHES, IMAGE_GUIDANCE, TEXT_GUIDANCE, branch_weights, combined
from latentia.methods.emu_edit.model import EmuEditModel
from latentia.methods.emu_edit.predictor import TaskGuess, TaskPredictorBase
from latentia.methods.emu_edit.session import EditSession
from latentia.methods.emu_edit.task_choice import TaskInput, choose_tasks, listed_tasks
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.pipelines import checks, guidance
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import (
    Callback,
    CancelToken,
    PipelineCallback,
    check_callback,
    check_cancel,
    wanted_tensors,
)
from latentia.pipelines.image_input import PictureInput
from latentia.pipelines.outputs import Images
from latentia.pipelines.precision import decode_safely, encode_safely, run_safely
from latentia.pipelines.request import Request
from latentia.pipelines.sampling import SamplingPipeline

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class EditPipelineOutput(Output):
    """The pictures of one call.

    Attributes:
        images: edited, each in the size it was given in; in the form that `output_type` asked for.
        tasks: what each was edited as, by name.
        guesses: how sure that is, for those whose task was predicted; None for the others.
    """

    images: Images
    tasks: list[str]
    guesses: list[TaskGuess | None]


class EditOptions(TypedDict):
    """Keywords that a call takes beside its own.

    seed: picture i is drawn from its own generator, derived from (seed, i); alone or in any batch it is the same.
    sample_indices: the numbers i of the pictures under `seed`; default 0 … pictures − 1.
    size: what the editor sees: a side, or (height, width), in pixels; default the size it was trained on.
    thresholding: a `Thresholding`, or its α: keep what the edit hardly changed. Default: keep what is exactly equal,
        and, where an editor without copy gate sees a picture smaller than it is, what `pipe.thresholding` keeps.
    eta: η in [0, 1] of DDIM: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
    latents: standard normal starting noise (pictures, C, h, w), scaled by the scheduler's `init_noise_sigma`.
    max_batch: most pictures that go through the network at once; more are edited in chunks.
    callback_on_step_end: `(pipe, step_index, timestep, tensors)`, a `PipelineCallback` or a list of these; it may
        assign `pipe.guidance_scale` and `pipe.image_guidance_scale`.
    callback_on_step_end_tensor_inputs: names to hand to it, of latents, prompt_embeds, negative_prompt_embeds,
        image_latents, task_embeds, model_output, pred_original_sample (x̂₀).
    cancel: a `CancelToken` that another thread may pull.
    """

    seed: NotRequired[int | None]
    sample_indices: NotRequired[Sequence[int] | None]
    size: NotRequired[int | tuple[int, int] | None]
    thresholding: NotRequired[Thresholding | float | None]
    eta: NotRequired[float]
    latents: NotRequired[torch.Tensor | None]
    max_batch: NotRequired[int | None]
    callback_on_step_end: NotRequired[Callback | PipelineCallback | Sequence[PipelineCallback] | None]
    callback_on_step_end_tensor_inputs: NotRequired[Sequence[str]]
    cancel: NotRequired[CancelToken | None]


class EmuEditPipeline(SamplingPipeline):
    """Edit pictures by instructions (Sheynin et al. 2023), under two guidances; see `guidance`.

        pipe = EmuEditPipeline.from_pretrained("runs/edit/pipeline")
        edited = pipe(picture, "remove the red square").images[0]

    Any picture will do; see `canvas`: what the edit leaves alone comes back bit by bit, at full size.

    Args:
        model: `EmuEditModel`.
        scheduler: any scheduler of its prediction type.
        text_encoder, tokenizer: what instructions are encoded by: ours, or of transformers.
        task_predictor: `TaskPredictor` or `T5TaskPredictor`; None: every call names its task.
        codec: of a latent editor; None: it edits pixels.
        id2task: place in the model's table → name; default the sixteen of `TASKS`.
        default_guidance_scale, default_image_guidance_scale: of calls that give none; by default 5 and 1.5 as in the
            article, and 1 and 1 for a model with copy gate, whose null picture has nothing to copy.
        alpha: α of `thresholding`, calibrated; default 0.03.
        unscaled_source: show the network the posterior's mean as it is, as InstructPix2Pix was trained, and not the
            scaled latents.
    """

    roles: ClassVar[Mapping[str, str]] = {
        "model": "denoiser",
        "scheduler": "scheduler",
        "text_encoder": "text_encoder",
        "tokenizer": "tokenizer",
        "task_predictor": "denoiser",
        "codec": "codec",
    }
    optional_components = frozenset(("task_predictor", "codec"))
    value_names = ("id2task", "default_guidance_scale", "default_image_guidance_scale", "alpha", "unscaled_source")
    denoisers = ("model",)
    _callback_tensor_inputs = (
        *("latents", "prompt_embeds", "negative_prompt_embeds", "image_latents", "task_embeds"),
        *("model_output", "pred_original_sample"),
    )
    model: EmuEditModel
    text_encoder: Any
    tokenizer: Any
    task_predictor: TaskPredictorBase | None
    codec: Any

    def __init__(
        self,
        model: EmuEditModel,
        scheduler: Any,
        text_encoder: Any,
        tokenizer: Any,
        task_predictor: TaskPredictorBase | None = None,
        codec: Any = None,
        id2task: Mapping[int | str, str] | None = None,
        default_guidance_scale: float | None = None,
        default_image_guidance_scale: float | None = None,
        alpha: float | None = None,
        unscaled_source: bool | None = None,
    ) -> None:
        parts = (model, scheduler, text_encoder, tokenizer, task_predictor, codec)
        if id2task is None and len(model.tasks.weight) != len(TASK_NAMES):
            raise InputError(
                f"model has {len(model.tasks.weight)} tasks, not the {len(TASK_NAMES)} known ones: "
                "name them by id2task={0: 'local', …}"
            )
        named = None if id2task is None else {str(place): name for place, name in id2task.items()}
        values = {
            "id2task": named,
            "default_guidance_scale": default_guidance_scale,
            "default_image_guidance_scale": default_image_guidance_scale,
            "alpha": alpha,
            "unscaled_source": unscaled_source,
        }
        for name in self.value_names[1:4]:
            if values[name] is not None:
                check_number(name, values[name], 0.0)
        super().__init__(dict(zip(self.roles, parts, strict=True)), values)

    def _check_component(self, name: str, value: Any) -> None:
        if name == "model" and not isinstance(value, EmuEditModel):
            raise InputError(f"component 'model' must be an EmuEditModel, got {type(value).__name__}")
        if name == "task_predictor" and not isinstance(value, TaskPredictorBase | None):
            raise InputError(
                f"component 'task_predictor' must be a TaskPredictor, a T5TaskPredictor or None, got "
                f"{type(value).__name__}"
            )
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        _check_fit(parts, self.task_names if parts["model"] is not None else {})

    # What it is ------------------------------------------------------------------------------------------

    @property
    def unet(self) -> EmuEditModel:  # type: ignore[override]
        """The network that denoises: `model`."""
        return self.model

    @property
    def task_names(self) -> dict[str, int]:
        """Task → its place in the model's table."""
        given = self._values.get("id2task")
        if given is None:
            return {name: place for place, name in enumerate(TASK_NAMES)}
        return {name: int(place) for place, name in given.items()}

    @property
    def thresholding(self) -> Thresholding:
        """The rule of sessions, with this pipeline's α."""
        return Thresholding(**{name: self._values[name] for name in ("alpha",) if name in self._values})

    @property
    def scale_factor(self) -> int:
        """Pixels a side for each position that is sampled: 1 without codec."""
        if self.codec is None:
            return 1
        side = 1024
        return side // int(self.codec.latent_shape((self.codec.config.in_channels, side, side))[1])

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was trained on."""
        side = self.model.config.sample_size * self.scale_factor
        return side, side

    @property
    def multiple(self) -> int:
        """What both sides of `size` must be multiples of, in pixels."""
        halvings = len(self.model.unet.config.block_out_channels) - 1
        return int(self.scale_factor * self.model.config.patch_size * 2**halvings)

    def session(self, image: PictureInput, **options: Any) -> EditSession:
        """Several edits of one picture, one after the other; see `EditSession`, whose options these are."""
        return EditSession(self, image, **options)

    # One call --------------------------------------------------------------------------------------------

    def __call__(
        self,
        image: PictureInput | None = None,
        instruction: str | Sequence[str] = "",
        task: TaskInput = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[EditOptions],
    ) -> EditPipelineOutput | tuple[Images, list[str], list[TaskGuess | None]]:
        """Edit pictures.

        Args:
            image: one picture or a list, of any size: PIL of any mode, numpy (H, W, 3), torch (3, H, W).
            instruction: what to do: one for all, or one per picture. May be empty with a learned task that knows its
                own.
            task: None: predicted from the instruction. Or a name or number of the table, `none`, a learned task (its
                .safetensors file, or the `TaskEmbedding`), a vector (task_dim,), or a list of these, one per picture.
            num_inference_steps: steps of the scheduler.
            guidance_scale: γ_T ≥ 0: how closely to follow the instruction.
            image_guidance_scale: γ_I ≥ 0: how closely to keep to the picture. (1, 1) is no guidance, and the fastest.
            generator: source of all noise: one for the batch, or a list with one per picture.
            output_type: `pil`; `np` (B, H, W, C) or `pt` (B, C, H, W) in [0, 1], of pictures of one size; `latent`
                (what was sampled, at the editor's size).
            return_dict: False returns `(images, tasks, guesses)`.
            options: see `EditOptions`.

        Raises:
            InputError: an argument does not fit, an instruction is empty or too long; before any work.
            UnknownChoiceError: a task is not known; the nearest one is named.
            ArtifactError: a learned task's file is broken, or another model's.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step at which it appeared.
        """
        return_dict = checks.check_flag("return_dict", return_dict)
        for name in options:
            check_choice("argument", name, EditOptions.__annotations__)
        with evaluating(self.networks):
            request = self._request(
                image, instruction, task, num_inference_steps, output_type, generator, **options
            ).guided_by(self._scales(guidance_scale, image_guidance_scale))
        for choice in request.choices:
            if choice.guess is not None and not choice.guess.sure:
                logger.warning("edited as %s", choice.guess.note)
        try:
            z = self._sample(request)
            assert isinstance(z, torch.Tensor)
            images: Images = z if output_type == "latent" else self._returned(request, z)
        finally:
            if self._offload is not None:
                self._offload.release()
        names, guesses = [choice.name for choice in request.choices], [choice.guess for choice in request.choices]
        return EditPipelineOutput(images, names, guesses) if return_dict else (images, names, guesses)

    def _scales(self, text: float | None, image: float | None) -> dict[str, float]:
        """Both scales of a call, given or this pipeline's."""
        paper = (1.0, 1.0) if self.model.config.copy_gate else (TEXT_GUIDANCE, IMAGE_GUIDANCE)
        text = self._values.get("default_guidance_scale", paper[0]) if text is None else text
        image = self._values.get("default_image_guidance_scale", paper[1]) if image is None else image
        return {
            "guidance_scale": guidance.check_scale(text),
            "image_guidance_scale": check_number("image_guidance_scale", image, 0.0, advice="1.5"),
        }

    def _request(
        self,
        image: PictureInput | None,
        instruction: str | Sequence[str],
        task: TaskInput,
        num_inference_steps: int,
        output_type: str,
        generator: Generators,
        *,
        seed: int | None = None,
        sample_indices: Sequence[int] | None = None,
        size: int | tuple[int, int] | None = None,
        thresholding: Thresholding | float | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        max_batch: int | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cancel: CancelToken | None = None,
    ) -> EditRequest:
        steps = check_count("num_inference_steps", num_inference_steps)
        check_choice("output_type", output_type, (*OUTPUT_TYPES, "latent"))
        pictures, texts, tasks = read_pictures(image), check_texts(instruction), listed_tasks(task)
        generator = checks.check_generator(generator)
        several = {"image": len(pictures), "instruction": len(texts), "task": len(tasks)}
        lengths: dict[str, int | None] = {name: count for name, count in several.items() if count > 1}
        lengths["sample_indices"] = checks.listed_length("sample_indices", sample_indices)
        lengths["generator"] = len(generator) if isinstance(generator, list | tuple) else None
        batch = checks.batch_of(None, lengths)
        pictures, texts, tasks = (each * batch if len(each) == 1 else each for each in (pictures, texts, tasks))
        sizes = sorted({picture.size for picture in pictures})
        if output_type in ("np", "pt") and len(sizes) > 1:
            raise InputError(f"pictures of several sizes {sizes} are no array: leave output_type at 'pil'")
        sides = check_sides(size, self.default_size, self.multiple)
        factor = self.scale_factor
        shape = (self.model.config.in_channels, sides[0] // factor, sides[1] // factor)
        if latents is not None:
            latents = checks.check_latents(latents, (batch, *shape))
        callback = check_callback(callback_on_step_end)
        known = self._callback_tensor_inputs
        choices = choose_tasks(tasks, texts, self.model, self.task_names, self.task_predictor)
        return EditRequest(
            batch=batch,
            steps=steps,
            shape=shape,
            output_type="latent",
            pictures_as=output_type,
            generator=checks.generators_of(generator, seed, sample_indices, batch),
            latents=latents,
            step_options=checks.check_step_options(self.scheduler, {"eta": checks.eta_option(eta)}),
            guidance={},
            max_batch=batch if max_batch is None else check_count("max_batch", max_batch),
            callback=callback,
            wanted=wanted_tensors(callback, callback_on_step_end_tensor_inputs, known) if callback else (),
            cancel=check_cancel(cancel),
            canvases=[Canvas.fit(picture, *sides) for picture in pictures],
            texts=self._readable(texts, choices),
            choices=choices,
            thresholding=thresholding_of(thresholding),
        )
