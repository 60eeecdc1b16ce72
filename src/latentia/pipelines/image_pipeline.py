"""ImagePipeline: everything between the arguments of a call and the loop, for pictures with or without classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latentia.core.arguments import check_count
from latentia.core.images import OUTPUT_TYPES
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.pipelines import checks, guidance
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import CancelToken, check_callback, check_cancel, wanted_tensors
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import Labels, Request, SamplingOptions
from latentia.pipelines.sampling import SamplingPipeline


class ImagePipeline(SamplingPipeline):
    """Abstract: pictures from noise by a network `unet`, with classes where the network has them.

    `id2label` maps class indices to names (several names of one class apart by commas); the null class, if any,
    has no entry. Without `id2label` the network's last class index is taken for the null class.
    """

    value_names = ("id2label",)
    _callback_tensor_inputs = ("latents", "class_labels", "model_output", "pred_original_sample")

    def __init__(self, components: Mapping[str, Any], id2label: Mapping[int | str, str] | None = None) -> None:
        if id2label is not None and not isinstance(id2label, Mapping):
            raise InputError(f"id2label must map class indices to names, {{0: 'cat', 1: 'dog'}}, got {id2label!r}")
        names = None if id2label is None else {str(k): str(v) for k, v in id2label.items()}
        super().__init__(components, {"id2label": names})
        self._check_classes()

    def _check_classes(self) -> None:
        if "id2label" not in self._values:
            return
        embeds = self.unet.config.num_class_embeds
        count = len(self._values["id2label"])
        if embeds is None or count not in (embeds, embeds - 1):
            has = "no classes" if embeds is None else f"{embeds} class embeddings"
            raise InputError(
                f"id2label names {count} classes but unet has {has}: give one name per class, "
                "none for the null class (num_class_embeds = classes + 1)"
            )
        strange = [key for key in self._values["id2label"] if key not in {str(i) for i in range(count)}]
        if strange:
            raise InputError(f"id2label has keys {strange}: expected the class indices 0 to {count - 1}")

    @property
    def num_classes(self) -> int:
        """How many classes there are, without the null class; 0 for an unconditional network."""
        embeds = self.unet.config.num_class_embeds or 0
        return len(self._values["id2label"]) if "id2label" in self._values else max(embeds - 1, 0)

    @property
    def null_class(self) -> int | None:
        """Index of the class that means "no class"; None where the network has none."""
        embeds = self.unet.config.num_class_embeds
        return embeds - 1 if embeds is not None and self.num_classes < embeds else None

    @property
    def labels(self) -> dict[str, int]:
        """Class names and their indices, as `class_labels` takes them."""
        named = self._values.get("id2label", {})
        return {name.strip(): int(i) for i, names in named.items() for name in names.split(",")}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what is sampled: pixels or latents."""
        size = self.unet.config.sample_size
        if size is None:
            raise InputError("unet has no sample_size: build it with the height and width that it was trained on")
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    # One call --------------------------------------------------------------------------------------------

    def _generate(
        self,
        batch_size: int | None,
        generator: Generators,
        num_inference_steps: int,
        output_type: str,
        return_dict: bool,
        step_options: Mapping[str, Any],
        options: SamplingOptions,
    ) -> ImagePipelineOutput | tuple[Images]:
        """Check everything, then sample and decode chunk by chunk."""
        return_dict = checks.check_flag("return_dict", return_dict)
        for name in options:
            check_choice("argument", name, SamplingOptions.__annotations__)
        request = self._request(batch_size, generator, num_inference_steps, output_type, step_options, **options)
        images = self._sample(request)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _request(
        self,
        batch_size: int | None,
        generator: Generators,
        num_inference_steps: int,
        output_type: str,
        step_options: Mapping[str, Any],
        *,
        seed: int | None = None,
        sample_indices: Sequence[int] | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        latents: torch.Tensor | None = None,
        max_batch: int | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cancel: CancelToken | None = None,
    ) -> Request:
        steps = check_count("num_inference_steps", num_inference_steps)
        check_choice("output_type", output_type, (*OUTPUT_TYPES, "latent"))
        generator = checks.check_generator(generator)
        labels = self._label_indices(class_labels)
        lengths = {
            "sample_indices": checks.listed_length("sample_indices", sample_indices),
            "generator": len(generator) if isinstance(generator, list | tuple) else None,
            "class_labels": len(labels) if labels is not None and len(labels) > 1 else None,
            "latents": len(latents) if isinstance(latents, torch.Tensor) and latents.ndim else None,
        }
        batch = checks.batch_of(batch_size, lengths)
        if latents is not None:
            latents = checks.check_latents(latents, (batch, *self.sample_shape))
        scale = guidance.check_scale(guidance_scale)
        guided = {
            "guidance_scale": scale,
            "guidance_rescale": guidance.check_rescale(guidance_rescale),
            "guidance_interval": guidance.check_interval(guidance_interval),
        }
        if scale > 1:
            self._guiding_class()
        callback = check_callback(callback_on_step_end)
        known = [n for n in self._callback_tensor_inputs if n != "class_labels" or labels is not None]
        wanted = wanted_tensors(callback, callback_on_step_end_tensor_inputs, known) if callback else ()
        return Request(
            batch=batch,
            steps=steps,
            shape=self.sample_shape,
            output_type=output_type,
            generator=checks.generators_of(generator, seed, sample_indices, batch),
            tensors={} if labels is None else {"class_labels": torch.tensor(labels).expand(batch)},
            latents=latents,
            step_options=checks.check_step_options(self.scheduler, step_options),
            guidance=guided,
            max_batch=batch if max_batch is None else check_count("max_batch", max_batch),
            callback=callback,
            wanted=wanted,
            cancel=check_cancel(cancel),
        )

    def _label_indices(self, class_labels: Labels | None) -> list[int] | None:
        config = self.unet.config
        if config.num_class_embeds is None:
            if class_labels is not None:
                raise InputError("class_labels given, but this network has no classes: leave them out")
            return None
        if class_labels is None:
            null = f", or {self.null_class} for no class" if self.null_class is not None else ""
            known = f"names ({', '.join(self.labels)})" if self.labels else f"0 to {self.num_classes - 1}"
            raise InputError(f"this network is class-conditional: pass class_labels, {known}{null}")
        return checks.class_indices(class_labels, self.num_classes, self.null_class, self.labels)

    def _guiding_class(self) -> int:
        """The null class, or the error for a network that cannot be guided."""
        null = self.null_class
        if null is None:
            why = "has no classes" if self.num_classes == 0 else "was trained without a null class"
            raise InputError(f"guidance_scale above 1 needs an unconditional prediction, but this network {why}: use 1")
        return null

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network's prediction, in the sampler's dtype; guided when the call is."""
        if "class_labels" not in call.tensors:
            return self._predict(z, t)
        cond = {"class_labels": call.tensors["class_labels"]}
        scale = call.current_scale
        if scale <= 1:
            return self._predict(z, t, **cond)
        uncond = {"class_labels": torch.full_like(cond["class_labels"], self._guiding_class())}
        return guidance.predict_guided(self._predict, z, t, cond, uncond, scale, call.guidance_rescale)

    def _predict(self, z: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = self.unet(z.to(self.unet.dtype), t, **conditions).sample
        return prediction.to(z.dtype)
