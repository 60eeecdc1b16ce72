"""TokenPipeline: pictures from the tokens of a codec, guessed by a transformer."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from latentia.core.finite import is_finite
from latentia.core.rng import Generators
from latentia.denoisers.token_transformer import TokenTransformer
from latentia.errors import InputError, NonFiniteError, check_choice
from latentia.pipelines import checks
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.folder import uncompiled
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import Request, SamplingOptions


class TokenPipeline(ImagePipeline):
    """Abstract: a transformer fills in tokens, the codec turns them into pictures.

    Calls, callbacks, seeds and folders are those of every other pipeline; `latents` are tokens (B, *token_shape),
    int64, with the scheduler's `mask_token_id` for those that are still unknown.

    Class attributes:
        transformer_kind, scheduler_kind: what these components must be.
    """

    roles: ClassVar[Mapping[str, str]] = {"vqvae": "token_codec", "transformer": "denoiser", "scheduler": "scheduler"}
    families = ("tokens",)
    denoisers = ("transformer",)
    transformer_kind: ClassVar[type[TokenTransformer]]
    scheduler_kind: ClassVar[type]
    vqvae: Any
    transformer: Any

    def __init__(
        self, vqvae: Any, transformer: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None
    ) -> None:
        super().__init__({"vqvae": vqvae, "transformer": transformer, "scheduler": scheduler}, id2label)

    @property
    def unet(self) -> Any:  # what the base calls the network
        """The transformer."""
        return self.transformer

    @property
    def codec(self) -> Any:
        """The codec."""
        return self.vqvae

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        wanted = {"transformer": self.transformer_kind, "scheduler": self.scheduler_kind}.get(name)
        if wanted is not None and not isinstance(uncompiled(value), wanted):
            raise InputError(
                f"{type(self).__name__}: component {name!r} must be a {wanted.__name__}; got {type(value).__name__}"
            )
        counted: Mapping[str, Callable[[Any], int]] = {
            "vqvae": lambda codec: codec.num_codes,
            "transformer": lambda network: network.config.num_codes,
            "scheduler": lambda scheduler: scheduler.config.mask_token_id,
        }
        parts = {**{each: vars(self).get(each) for each in self.roles}, name: value}
        codes = {each: counted[each](part) for each, part in parts.items() if part is not None}
        if len(set(codes.values())) > 1:
            told = ", ".join(f"{each} {count}" for each, count in codes.items())
            raise InputError(f"these parts count codes differently ({told}): they were not made for each other")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one picture's tokens."""
        return tuple(self.transformer.config.token_shape)

    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Tokens (B, *token_shape) → pictures (B, C, H, W) in about [-1, 1].

        Raises `InputError` for tokens that are still unknown, `NonFiniteError`.
        """
        z = z.long()
        if bool((z == self.scheduler.config.mask_token_id).any()):
            raise InputError("some tokens are still unknown (the mask token): decode pred_original_sample instead")
        with self._using("vqvae"):
            pictures: torch.Tensor = self.vqvae.from_tokens(z, generator=generator)
        if not is_finite(pictures):
            raise NonFiniteError("NaN or infinity in the decoded pictures: decode in float32")
        return pictures.float()

    def _draw(
        self,
        batch_size: int | None,
        generator: Generators,
        steps: int,
        output_type: str,
        return_dict: bool,
        step_options: Mapping[str, Any],
        options: SamplingOptions,
        complete: Callable[[Request], Request],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Check everything, `complete` the request, then draw tokens and decode them, chunk by chunk."""
        return_dict = checks.check_flag("return_dict", return_dict)
        for name in options:
            check_choice("argument", name, SamplingOptions.__annotations__)
        if options.get("latents") is not None:
            raise InputError("latents: pictures of tokens do not start from noise; leave them out and give a seed")
        if options.get("guidance_rescale"):
            raise InputError("guidance_rescale: logits have no spread to keep; leave it out")
        request = complete(self._request(batch_size, generator, steps, output_type, step_options, **options))
        images = self._sample(request)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _start(self, request: Request, call: PipelineCall, rows: slice, generator: Generators) -> torch.Tensor:
        shape = (rows.stop - rows.start, *request.shape)
        return torch.full(shape, self.scheduler.config.mask_token_id, device=self.execution_device)

    def _labels(self, call: PipelineCall, guided: bool) -> torch.Tensor | None:
        """The call's classes; behind the null class as often where it is guided."""
        labels = call.tensors.get("class_labels")
        if labels is None or not guided:
            return labels
        return torch.cat([torch.full_like(labels, self._guiding_class()), labels])
