"""EmuEditPipeline: a picture and an instruction → the picture, edited; the task is told from the instruction."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from PIL import Image

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.core.arguments import check_count, check_number
from latentia.core.evaluating import evaluating
from latentia.core.images import OUTPUT_TYPES, to_uint8
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.canvas import Canvas, read_pictures
from latentia.methods.emu_edit.editing_request import (
    EditOptions,
    EditPipelineOutput,
    EditRequest,
    as_images,
    as_tensor,
    check_sides,
    check_texts,
    check_thresholding,
    readable,
    spread,
)
from latentia.methods.emu_edit.fitting import check_fit
from latentia.methods.emu_edit.guidance import BRANCHES, IMAGE_GUIDANCE, TEXT_GUIDANCE, branch_weights, combined
from latentia.methods.emu_edit.joint_text import encode_jointly
from latentia.methods.emu_edit.model import EmuEditModel
from latentia.methods.emu_edit.predictor import TaskGuess, TaskPredictorBase
from latentia.methods.emu_edit.session import EditSession
from latentia.methods.emu_edit.task_choice import TaskChoice, TaskInput, choose_tasks, listed_tasks
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.pipelines import checks, guidance
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import CancelToken, check_callback, check_cancel, wanted_tensors
from latentia.pipelines.image_input import PictureInput
from latentia.pipelines.outputs import Images
from latentia.pipelines.precision import decode_safely, encode_safely, run_safely
from latentia.pipelines.request import Request
from latentia.pipelines.sampling import SamplingPipeline

logger = logging.getLogger(__name__)


class EmuEditPipeline(SamplingPipeline):
    """Edit pictures by instructions (Sheynin et al. 2023), under two guidances; see `guidance`.

        pipe = EmuEditPipeline.from_pretrained("runs/edit/pipeline")
        edited = pipe(picture, "remove the red square").images[0]

    Any picture will do; see `canvas`: what the edit leaves alone comes back bit by bit, at full size.

    Args:
        model: `EmuEditModel`.
        scheduler: any scheduler of its prediction type.
        text_encoder, tokenizer: what instructions are encoded by: ours, or of transformers.
        text_encoder_2, tokenizer_2: a second one beside it, CLIP and T5 say; see `joint_text`.
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
        "text_encoder_2": "text_encoder",
        "tokenizer_2": "tokenizer",
        "text_encoder": "text_encoder",
        "tokenizer": "tokenizer",
        "task_predictor": "denoiser",
        "codec": "codec",
    }
    optional_components = frozenset(("task_predictor", "codec", "text_encoder_2", "tokenizer_2"))
    value_names = ("id2task", "default_guidance_scale", "default_image_guidance_scale", "alpha", "unscaled_source")
    denoisers = ("model",)
    _callback_tensor_inputs = (
        *("latents", "prompt_embeds", "negative_prompt_embeds", "image_latents", "task_embeds"),
        *("model_output", "pred_original_sample"),
    )
    model: EmuEditModel
    text_encoder: Any
    tokenizer: Any
    text_encoder_2: Any
    tokenizer_2: Any
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
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
    ) -> None:
        parts = (model, scheduler, text_encoder_2, tokenizer_2, text_encoder, tokenizer, task_predictor, codec)
        if (text_encoder_2 is None) != (tokenizer_2 is None):
            raise InputError("text_encoder_2 and tokenizer_2 belong together: give both or neither")
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
        check_fit(parts, self.task_names if parts["model"] is not None else {})

    # What it is ------------------------------------------------------------------------------------------

    @property
    def unet(self) -> EmuEditModel:
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
    def text_pairs(self) -> list[tuple[Any, Any]]:
        """(tokenizer, text encoder), one or two of them."""
        second = [] if self.text_encoder_2 is None else [(self.tokenizer_2, self.text_encoder_2)]
        return [(self.tokenizer, self.text_encoder), *second]

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

    def understand(self, instruction: str | Sequence[str], task: TaskInput = None) -> list[TaskChoice]:
        """As what each instruction would be edited, without editing; arguments and errors as of a call."""
        texts, tasks = check_texts(instruction), listed_tasks(task)
        several = {"instruction": len(texts), "task": len(tasks)}
        batch = checks.batch_of(None, {name: count for name, count in several.items() if count > 1})
        return self._understood(spread(texts, batch), spread(tasks, batch))[1]

    def _understood(self, texts: Sequence[str], tasks: Sequence[Any]) -> tuple[list[str], list[TaskChoice]]:
        """Instructions that the text encoder can read, and their tasks."""
        with evaluating([self.task_predictor]):
            choices = choose_tasks(tasks, texts, self.model, self.task_names, self.task_predictor)
        return readable(texts, choices, self.text_pairs), choices

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
        scales = self._scales(guidance_scale, image_guidance_scale)
        asked = image, instruction, task, num_inference_steps, output_type, generator
        request = self._request(*asked, scales, **options)
        unsure = [choice.guess for choice in request.choices if choice.guess is not None and not choice.guess.sure]
        if unsure:
            logger.warning("editing as %s%s", unsure[0].note, f" (and {len(unsure) - 1} more)" if unsure[1:] else "")
        try:
            z = self._sample(request)
            assert isinstance(z, torch.Tensor)
            images: Images = z if output_type == "latent" else as_images(self._returned(request, z), output_type)
        finally:
            if self._offload is not None:
                self._offload.release()
        names, guesses = [choice.name for choice in request.choices], [choice.guess for choice in request.choices]
        return EditPipelineOutput(images, names, guesses) if return_dict else (images, names, guesses)

    def _scales(self, text: float | None, image: float | None) -> tuple[float, float]:
        """(γ_T, γ_I) of a call, given or this pipeline's."""
        paper = (1.0, 1.0) if self.model.config.copy_gate else (TEXT_GUIDANCE, IMAGE_GUIDANCE)
        text = self._values.get("default_guidance_scale", paper[0]) if text is None else text
        image = self._values.get("default_image_guidance_scale", paper[1]) if image is None else image
        return guidance.check_scale(text), check_number("image_guidance_scale", image, 0.0, advice="1.5")

    def _request(
        self,
        image: PictureInput | None,
        instruction: str | Sequence[str],
        task: TaskInput,
        num_inference_steps: int,
        output_type: str,
        generator: Generators,
        scales: tuple[float, float],
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
        pictures, texts, tasks = spread(pictures, batch), spread(texts, batch), spread(tasks, batch)
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
        texts, choices = self._understood(texts, tasks)
        return EditRequest(
            batch=batch,
            steps=steps,
            shape=shape,
            output_type="latent",
            generator=checks.generators_of(generator, seed, sample_indices, batch),
            latents=latents,
            step_options=checks.check_step_options(self.scheduler, {"eta": checks.eta_option(eta)}),
            guidance={"guidance_scale": scales[0]},
            notes={"image_guidance_scale": scales[1]},
            max_batch=batch if max_batch is None else check_count("max_batch", max_batch),
            callback=callback,
            wanted=wanted_tensors(callback, callback_on_step_end_tensor_inputs, known) if callback else (),
            cancel=check_cancel(cancel),
            canvases=[Canvas.fit(picture, *sides) for picture in pictures],
            texts=texts,
            choices=choices,
            thresholding=check_thresholding(thresholding),
        )

    # One chunk of the batch --------------------------------------------------------------------------------

    def _conditions(self, request: Request, rows: slice) -> dict[str, torch.Tensor]:
        """Both texts, both pictures and the task of some rows; each made by itself, the same in any batch."""
        assert isinstance(request, EditRequest)
        device, dtype = self.execution_device, self.model.dtype
        pairs = self.text_pairs
        with self._using(*("text_encoder", "text_encoder_2")[: len(pairs)]):
            texts = encode_jointly(pairs, [*request.texts[rows], ""])
        texts = texts.to(device, dtype)
        sources = torch.cat([self._source(as_tensor(canvas.seen[None])) for canvas in request.canvases[rows]])
        sources = sources.to(device, torch.promote_types(dtype, torch.float32))
        return {
            "prompt_embeds": texts[:-1],
            "negative_prompt_embeds": texts[-1:].expand(len(texts) - 1, -1, -1).contiguous(),
            "image_latents": sources,
            "no_image": torch.zeros_like(sources),
            "task_embeds": torch.stack([choice.vector for choice in request.choices[rows]]).to(device, dtype),
        }

    def _source(self, x: torch.Tensor) -> torch.Tensor:
        """A picture (1, 3, H, W) in [-1, 1] → what stands beside the noise; nothing is drawn."""
        if self.codec is None:
            return x
        with self._using("codec"):
            if not isinstance(self.codec, AutoencoderKL):
                return encode_safely(self.codec, x, name="codec")
            mean = run_safely(self.codec, lambda vae, given, _: vae.encode(given).latent_dist.mode(), x, name="codec")
            return mean if self._values.get("unscaled_source") else self.codec.scale_latents(mean)

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction under both guidances, from one forward over the branches that they need."""
        weights = branch_weights(call.image_guidance_scale, call.current_scale)
        pictures, texts = zip(*(BRANCHES[branch] for branch in weights))
        dtype = self.model.dtype
        said = self.model(
            torch.cat([z] * len(weights)).to(dtype),
            t,
            encoder_hidden_states=call.joined(*texts),
            source=call.joined(*pictures).to(dtype),
            task=call.joined(*["task_embeds"] * len(weights)),
        ).sample.to(z.dtype)
        return combined(dict(zip(weights, said.chunk(len(weights)))), weights)

    @torch.no_grad()
    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """What is sampled (B, C, h, w) → pictures (B, 3, H, W) in about [-1, 1], float32 at least."""
        if self.codec is None:
            return z
        with evaluating([self.codec]), self._using("codec"):
            return decode_safely(self.codec, z, generator, "codec")

    def _returned(self, request: EditRequest, z: torch.Tensor) -> list[Image.Image]:
        """Samples → whole pictures, changed where the edit changed them."""
        finished = []
        for rows in request.chunks():
            for canvas, edited in zip(request.canvases[rows], to_uint8(self.decode(z[rows])), strict=True):
                rule = request.thresholding
                if rule is None and canvas.reduced and not self.model.config.copy_gate:
                    rule = self.thresholding  # else a picture's finest details would go everywhere
                kept = None if rule is None else rule.keeps(as_tensor(canvas.seen[None]), as_tensor(edited[None]))
                finished.append(canvas.returned(edited, None if kept is None else kept[0, 0].numpy()))
        return finished
