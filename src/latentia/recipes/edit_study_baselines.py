"""SDEdit-style img2img by an editor: noise the picture half away, denoise it by the words; no source is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentia.conditioners.prompts import encode_prompts
from latentia.core.images import to_uint8
from latentia.core.rng import randn, sample_generators
from latentia.data.decode import to_unit
from latentia.recipes.edit_inversion_judging import MOST

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.rows import Row


def sdedit(
    pipe: EmuEditPipeline, rows: Sequence[Row], strength: float, steps: int = 20, seed: int = 0
) -> list[np.ndarray]:
    """Edits of the rows, uint8 (H, W, 3) each (Meng et al. 2022, arXiv 2108.01073).

    x_t = α_t x + σ_t ε at t = `strength` of the way, then the sampler, told the instruction but neither the picture
    nor a task; row i's noise is drawn from (seed, i). `strength` 1 starts from pure noise.
    """
    made: list[np.ndarray] = []
    for start in range(0, len(rows), MOST):
        some = rows[start : start + MOST]
        made += _some(pipe, some, strength, steps, sample_generators(seed, range(start, start + len(some))))
    return made


@torch.no_grad()
def _some(pipe: EmuEditPipeline, rows: Sequence[Row], strength: float, steps: int, generators: Any) -> list[np.ndarray]:
    device, model = pipe.execution_device, pipe.model
    x = to_unit(torch.from_numpy(np.stack([row.image for row in rows])).movedim(-1, 1).contiguous()).to(device)
    z = x if pipe.codec is None else pipe.codec.to_latents(x)
    states = encode_prompts(pipe.tokenizer, pipe.text_encoder, [row.instruction for row in rows]).to(
        device, model.dtype
    )
    scheduler = pipe.scheduler.fresh()
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[-max(1, round(strength * steps)) :]
    noise = randn(z.shape, generators).to(z)
    z = scheduler.add_noise(z, noise, times[:1].expand(len(rows)))
    nothing = torch.zeros_like(z)
    for t in times:
        said = model(z.to(model.dtype), t, states, nothing.to(model.dtype)).sample.to(z)
        z = scheduler.step(said, t, z).prev_sample
    return list(to_uint8(pipe.decode(z)))
