"""ParameterDiffusionPipeline: noise → latents → parameter vectors → state dicts of plain networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NotRequired, TypedDict, Unpack, overload

import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.evaluating import evaluating
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import InputError, NonFiniteError, check_choice
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.condition import Given, check_condition_fits, conditions_of_call
from latentia.methods.pdiff.layout import StateDict
from latentia.methods.pdiff.template import ParameterTemplate
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
from latentia.pipelines.precision import decode_safely, encode_safely
from latentia.pipelines.request import Request
from latentia.pipelines.sampling import SamplingPipeline


class StateDicts(Sequence[StateDict]):
    """The state dicts of generated networks, each made when it is asked for: a hundred large ones need not fit."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def __len__(self) -> int:
        return len(self.checkpoints)

    @overload
    def __getitem__(self, index: int) -> StateDict: ...
    @overload
    def __getitem__(self, index: slice) -> list[StateDict]: ...
    def __getitem__(self, index: int | slice) -> StateDict | list[StateDict]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self.checkpoints.state_dict(i) for i in numbers]
        return self.checkpoints.state_dict(numbers)


@dataclass(slots=True)
class ParameterPipelineOutput(Output):
    """The networks of one call.

    Attributes:
        state_dicts: N whole state dicts for `load_state_dict`, with tensors of their own, each made when asked for.
        vectors: (N, D) float32, the generated parameters.
        latents: (N, c, L), what was sampled.
        checkpoints: the same networks as `Checkpoints`, for scoring and saving.
    """

    state_dicts: StateDicts
    vectors: torch.Tensor
    latents: torch.Tensor
    checkpoints: Checkpoints


class ParameterOptions(TypedDict):
    """Keywords that a call takes beside its own.

    seed: network i is drawn from its own generator, derived from (seed, i); alone or in any batch it is the same.
    sample_indices: the numbers i of the networks under `seed`; default 0 … num_samples − 1.
    condition: what the networks are for, where the pipeline is conditional: (width,) numbers for all networks or
        (N, width), or text for `template.condition.parse`, such as `3,7`.
    class_labels: what a conditional `unet` is told: one class or (N,); or what `condition` says, in numbers.
    guidance_scale: s of ε_∅ + s(ε_c − ε_∅); at most 1: the conditional network alone. Above 1 only where the pipeline
        was trained with condition dropout.
    latents: standard normal starting noise (N, c, L).
    max_batch: most latents that go through a network at once; more are sampled and decoded in chunks.
    callback_on_step_end: `(pipe, step_index, timestep, tensors)`, a `PipelineCallback` or a list of these.
    callback_on_step_end_tensor_inputs: names to hand to it, of latents, class_labels, model_output,
        pred_original_sample (x̂₀); `pipe.decode` makes vectors of latents.
    cancel: a `CancelToken` that another thread may pull.
    """

    seed: NotRequired[int | None]
    sample_indices: NotRequired[Sequence[int] | None]
    condition: NotRequired[Given | None]
    class_labels: NotRequired[int | Sequence[int] | torch.Tensor | None]
    guidance_scale: NotRequired[float]
    latents: NotRequired[torch.Tensor | None]
    max_batch: NotRequired[int | None]
    callback_on_step_end: NotRequired[Callback | PipelineCallback | Sequence[PipelineCallback] | None]
    callback_on_step_end_tensor_inputs: NotRequired[Sequence[str]]
    cancel: NotRequired[CancelToken | None]


class ClampLatents(PipelineCallback):
    """Clamps the latents to [−limit, limit] after every step, as the first edition's sampler does (a defect)."""

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = check_number("limit", limit, 0, open_low=True)

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Replace the latents."""
        return {"latents": callback_kwargs["latents"].clamp(-self.limit, self.limit)}


class ParameterDiffusionPipeline(SamplingPipeline):
    """Neural network diffusion (Wang et al. 2024, arXiv:2402.13144): new parameters for a network, from noise.

        pipe = ParameterDiffusionPipeline.from_pretrained("runs/pdiff")
        network.load_state_dict(pipe(num_samples=100, seed=0).state_dicts[17])

    Args:
        autoencoder: `ParameterAutoencoder`, or another codec of vectors (B, D).
        unet: the network on white latents (`UNet1D`).
        scheduler: any scheduler.
        template: `ParameterTemplate`: layout, base network, statistics.
    """

    roles: ClassVar[Mapping[str, str]] = {
        "autoencoder": "codec",
        "unet": "denoiser",
        "scheduler": "scheduler",
        "template": "denoiser",
    }
    _callback_tensor_inputs = ("latents", "class_labels", "model_output", "pred_original_sample")
    autoencoder: Any
    template: ParameterTemplate

    def __init__(self, autoencoder: Any, unet: Any, scheduler: Any, template: ParameterTemplate) -> None:
        parts = {"autoencoder": autoencoder, "unet": unet, "scheduler": scheduler, "template": template}
        super().__init__(parts)

    def _check_component(self, name: str, value: Any) -> None:
        if name == "template" and not isinstance(value, ParameterTemplate):
            raise InputError(f"component 'template' must be a ParameterTemplate, got {type(value).__name__}")
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        _check_fit(parts["autoencoder"], parts["unet"], parts["template"])

    @property
    def sample_shape(self) -> tuple[int, int]:
        """(c, L) of the latents."""
        channels, length = self.template.whitener.shape
        return channels, length

    def __call__(
        self,
        num_samples: int | None = None,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        eta: float = 0.0,
        return_dict: bool = True,
        **options: Unpack[ParameterOptions],
    ) -> ParameterPipelineOutput | tuple[Any, ...]:
        """Generate networks.

        Args:
            num_samples: how many; None: as many as there are generators, conditions or latents, else 1.
            generator: source of all noise: one for the batch, or a list with one per network.
            num_inference_steps: steps of the scheduler, 1 to its `num_train_timesteps`.
            eta: η in [0, 1] of DDIM. Needs a scheduler that takes it.
            return_dict: False returns `(state_dicts, vectors, latents, checkpoints)`.
            options: see `ParameterOptions`.

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step at which it appeared.
        """
        return_dict = checks.check_flag("return_dict", return_dict)
        for name in options:
            check_choice("argument", name, ParameterOptions.__annotations__)
        request = self._request(num_samples, generator, num_inference_steps, eta, **options)
        try:
            z = self._sample(request)
            assert isinstance(z, torch.Tensor)
            vectors = torch.cat([self.decode(z[rows]).cpu() for rows in request.chunks()])
        finally:
            if self._offload is not None:
                self._offload.release()
        made = self.template.checkpoints(vectors, {"source": "generated", "steps": request.steps})
        output = ParameterPipelineOutput(StateDicts(made), made.vectors, z, made)
        return output if return_dict else output.to_tuple()

    def _request(
        self,
        num_samples: int | None,
        generator: Generators,
        num_inference_steps: int,
        eta: float,
        *,
        seed: int | None = None,
        sample_indices: Sequence[int] | None = None,
        condition: Given | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        latents: torch.Tensor | None = None,
        max_batch: int | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cancel: CancelToken | None = None,
    ) -> Request:
        steps = check_count("num_inference_steps", num_inference_steps)
        generator = checks.check_generator(generator)
        labels = conditions_of_call(self.unet.config, self.template.condition, class_labels, condition)
        told = "class_labels" if condition is None else "condition"
        lengths = {
            "sample_indices": checks.listed_length("sample_indices", sample_indices),
            "generator": len(generator) if isinstance(generator, list | tuple) else None,
            told: len(labels) if labels is not None and len(labels) > 1 else None,
            "latents": len(latents) if isinstance(latents, torch.Tensor) and latents.ndim else None,
        }
        batch = checks.batch_of(num_samples, lengths)
        shape: Any = self.sample_shape
        if latents is not None:
            latents = checks.check_latents(latents, (batch, *shape))
        callback = check_callback(callback_on_step_end)
        known = [n for n in self._callback_tensor_inputs if n != "class_labels" or labels is not None]
        return Request(
            batch=batch,
            steps=steps,
            shape=shape,
            output_type="latent",
            generator=checks.generators_of(generator, seed, sample_indices, batch),
            tensors={} if labels is None else {"class_labels": labels.expand(batch, *labels.shape[1:])},
            latents=latents,
            step_options=checks.check_step_options(self.scheduler, {"eta": checks.eta_option(eta)}),
            guidance={"guidance_scale": self._scale(guidance_scale)},
            max_batch=batch if max_batch is None else check_count("max_batch", max_batch),
            callback=callback,
            wanted=wanted_tensors(callback, callback_on_step_end_tensor_inputs, known) if callback else (),
            cancel=check_cancel(cancel),
        )

    def _scale(self, scale: float) -> float:
        """A guidance scale that this pipeline can have."""
        scale, condition = guidance.check_scale(scale), self.template.condition
        if scale > 1 and (condition is None or not condition.guided):
            why = "is unconditional" if condition is None else "was trained without condition dropout"
            raise InputError(f"guidance_scale above 1 needs a null condition, but this pipeline {why}: use 1")
        return scale

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network's prediction, in the sampler's dtype; guided when the call is."""
        if call.current_scale <= 1:
            return self._predict(z, t, **call.tensors)
        null = {name: torch.zeros_like(tensor) for name, tensor in call.tensors.items()}
        return guidance.predict_guided(self._predict, z, t, call.tensors, null, call.current_scale)

    def _predict(self, z: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = self.unet(z.to(self.unet.dtype), t, **conditions).sample
        return prediction.to(z.dtype)

    @torch.no_grad()
    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """White latents (B, c, L) → parameter vectors (B, D), float32 at least.

        Raises `NonFiniteError` naming the module that made a NaN or infinity.
        """
        with evaluating([self.autoencoder]), self._using("autoencoder", "template"):
            raw = self.template.whitener.inverse(z.to(self.template.device))
            x = decode_safely(self.autoencoder, raw, generator, "autoencoder")
            vectors = self.template.standardiser.inverse(x.to(self.template.device))
        if not bool(torch.isfinite(vectors).all()):
            raise NonFiniteError("NaN or infinity in the de-standardised vectors: check the template's statistics")
        return vectors

    @torch.no_grad()
    def encode(self, vectors: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Parameter vectors (B, D) → white latents (B, c, L), as `decode` takes them."""
        with evaluating([self.autoencoder]), self._using("autoencoder", "template"):
            x = self.template.standardiser(vectors.to(self.template.device))
            raw = encode_safely(self.autoencoder, x, generator, "autoencoder")
            white: torch.Tensor = self.template.whitener(raw.to(self.template.device))
        return white


def _check_fit(autoencoder: Any, unet: Any, template: ParameterTemplate | None) -> None:
    """Raise `InputError` for parts that were not made for each other; None: not there yet."""
    if template is None:
        return
    size, latents = template.layout.size, template.whitener.shape
    if unet is not None:
        check_condition_fits(unet.config, template.condition)
    if autoencoder is not None:
        if autoencoder.config.get("size") not in (None, size):
            raise InputError(
                f"autoencoder is for vectors of {autoencoder.config.size} but template's layout holds {size}: "
                "they were not made for each other"
            )
        made = tuple(autoencoder.latent_shape((size,)))
        if made != latents:
            raise InputError(f"autoencoder makes latents {made} but template whitens {latents}: fit a new whitener")
    if unet is not None:
        channels, length = unet.config.get("in_channels"), unet.config.get("sample_size")
        if channels not in (None, latents[0]) or length not in (None, latents[1]):
            raise InputError(
                f"unet takes latents ({channels}, {length}) but the autoencoder's are {latents}: "
                "they were not made for each other"
            )
