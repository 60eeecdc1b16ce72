"""SamplingPipeline: from a checked request to pictures, whatever they are conditioned on."""

from abc import abstractmethod
from itertools import chain
from typing import Any, ClassVar

import torch

from latentia.core.evaluating import evaluating
from latentia.core.images import as_output
from latentia.core.rng import Generators, randn
from latentia.errors import InputError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.loop import sample_loop
from latentia.pipelines.outputs import Images, join
from latentia.pipelines.pipeline import DiffusionPipeline
from latentia.pipelines.request import Request
from latentia.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from latentia.schedulers.tokens import TokenScheduler


class SamplingPipeline(DiffusionPipeline):
    """Abstract: noise → loop → pictures, chunk by chunk. What differs between pipelines are the hooks below.

    `_conditions` makes the tensors that the network is told, `_first_step` says how much of the schedule is skipped,
    `_start` makes the first latents, `_denoise` predicts, `_refine` may change the latents after each step, and
    `_picture` decodes.
    """

    denoisers: ClassVar[tuple[str, ...]] = ("unet",)
    """Components that run in every step."""
    families: ClassVar[tuple[str, ...]] = ("diffusion", "flow matching")
    """Families of schedulers that it can sample by."""
    unet: Any
    scheduler: Any

    @torch.no_grad()
    def _sample(self, request: Request) -> Images:
        """All pictures of a request."""
        chunks = list(request.chunks())
        scheduler = self.scheduler  # the same for all chunks, whatever is set on the pipeline meanwhile
        try:
            with evaluating(self.networks):
                first = self._begin(request, chunks[0], scheduler)
                calls = chain([first], (self._begin(request, rows, scheduler) for rows in chunks[1:]))
                with self.progress_bar(first.num_timesteps * len(chunks)) as bar:
                    return join([self._run(request, call, rows, bar.update) for call, rows in zip(calls, chunks)])
        finally:
            if self._offload is not None:
                self._offload.release()

    def _begin(self, request: Request, rows: slice, scheduler: Any) -> PipelineCall:
        """The state of one chunk, on its own copy of the scheduler."""
        scheduler = scheduler.fresh()
        scheduler.set_timesteps(request.steps)
        start = self._first_step(request, scheduler)
        if start:
            scheduler.set_begin_index(start)
        call = PipelineCall(
            self,
            scheduler,
            timesteps=scheduler.timesteps[start:],
            tensors=self._conditions(request, rows),
            cancel=request.cancel,
            **request.guidance,
        )
        vars(call).update(request.notes)
        return call

    def _run(self, request: Request, call: PipelineCall, rows: slice, advance: Any) -> Images:
        """Noise → latents → pictures for the rows of one chunk."""
        generator = request.generators(rows)
        start = self._start(request, call, rows, generator)
        with self._using(*self.denoisers):
            z = sample_loop(
                call,
                self._denoise,
                start,
                generator=generator,
                step_options=request.step_options,
                callback=request.callback,
                wanted=request.wanted,
                refine=self._refine if self.refines else None,
                advance=advance,
            )
        if request.output_type == "latent":
            return z
        return as_output(self._picture(request, call, rows, self.decode(z, generator)), request.output_type)

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        before = vars(self).get(name)
        if name == "scheduler" and family_of(value) not in self.families:
            raise InputError(
                f"{type(self).__name__} takes a scheduler of {' or '.join(self.families)}; {type(value).__name__} is "
                f"one of {family_of(value)}"
            )
        if name == "scheduler" and before is not None and family_of(before) != family_of(value):
            raise InputError(
                f"{type(value).__name__} is of the {family_of(value)} family, but this network was trained with a "
                f"{type(before).__name__} ({family_of(before)}): build the pipeline anew if it was not"
            )

    # Hooks -----------------------------------------------------------------------------------------------

    refines = False
    """Whether `_refine` does anything."""

    def _conditions(self, request: Request, rows: slice) -> dict[str, torch.Tensor]:
        """What the network is told, by name, on its device."""
        return {name: tensor[rows].to(self.execution_device) for name, tensor in request.tensors.items()}

    def _first_step(self, request: Request, scheduler: Any) -> int:
        """Position in `scheduler.timesteps` to start from."""
        return 0

    def _noise(self, request: Request, rows: slice, generator: Generators) -> torch.Tensor:
        """Standard normal noise for the rows, given or drawn; float32 even for a network in half precision."""
        device, dtype = self.execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        if request.latents is not None:
            return request.latents[rows].to(device, dtype)
        return randn((rows.stop - rows.start, *request.shape), generator, device, dtype)

    def _start(self, request: Request, call: PipelineCall, rows: slice, generator: Generators) -> torch.Tensor:
        """Latents before the first step."""
        return self._noise(request, rows, generator) * call.scheduler.init_noise_sigma

    @abstractmethod
    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network's prediction, in the sampler's dtype; guided when the call is."""

    def _refine(self, call: PipelineCall, z: torch.Tensor) -> torch.Tensor:
        """Latents after a step → latents to go on with."""
        return z

    def _picture(self, request: Request, call: PipelineCall, rows: slice, x: torch.Tensor) -> torch.Tensor:
        """Decoded pictures (B, C, H, W) in about [-1, 1] → those handed back."""
        return x


def family_of(scheduler: Any) -> str:
    """`diffusion`, `flow matching` or `tokens`; schedulers of one family may be swapped."""
    if isinstance(scheduler, TokenScheduler):
        return "tokens"
    return "flow matching" if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else "diffusion"
