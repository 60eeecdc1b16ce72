"""EmuEditModel: a UNet that sees the picture beside the noise, reads the instruction, and is told the task."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.arguments import check_count, check_counts, check_number
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.denoisers.time_and_class import as_times
from latentia.denoisers.unet_2d_condition import UNet2DConditionModel
from latentia.denoisers.unet_2d_condition_blocks import Text
from latentia.errors import ConfigError, InputError
from latentia.nn.init import zero_

GATE_MARGIN = 0.02
"""A gate this near to 0 or 1 counts as closed or open, so that what is not edited stays exactly as it was."""

FACT_STD = 0.3
"""Deviation of a fact's vector at the start: the half dozen that a sentence states move the embedding by about 0.7."""

FIXED = ("in_channels", "out_channels", "class_embed_type", "num_class_embeds", "sample_size")
"""Arguments of the UNet that follow from those of the model."""


@dataclass(slots=True)
class EmuEditOutput(Output):
    """What the network says.

    Attributes:
        sample: (B, C, H, W), the prediction: of the UNet, or x̂₀ where there is a gate.
        gate: (B, 1, H, W), logits of the copy gate; None without one.
        edit: (B, C, H, W), the picture y that the gate lets through; None without one.
    """

    sample: torch.Tensor
    gate: torch.Tensor | None = None
    edit: torch.Tensor | None = None


def waves(count: int, side: int) -> torch.Tensor:
    """The first `count` plane waves cos(πj(x + ½)/side)·cos(πk(y + ½)/side) by j + k, halved, (1, count, side, side).

    Smooth, so that they disturb no edge while places are not yet of interest.
    """
    at = (torch.arange(side) + 0.5) * (torch.pi / side)
    orders = sorted(itertools.product(range(count + 1), repeat=2), key=lambda order: (sum(order), order))
    maps = [torch.outer(torch.cos(down * at), torch.cos(right * at)) for right, down in orders[1 : count + 1]]
    return 0.5 * torch.stack(maps)[None]


class TaskUNet(UNet2DConditionModel):
    """The UNet of which `encoder_attention_mask` (B, L) is added to the scores over the text as it is."""

    _repeated_blocks = UNet2DConditionModel._repeated_blocks

    def _text(
        self,
        states: torch.Tensor,
        self_mask: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> Text:
        text = super()._text(states, self_mask, None, dtype)
        return text if text_mask is None else replace(text, cross_bias=text_mask.to(dtype)[:, None, None, :])


class EmuEditModel(ModelMixin):
    """(x_t, t, instruction, source, task) → prediction.

    Sheynin et al. 2023 (arXiv 2311.10089): the source picture stands beside x_t as further channels, and a learned
    vector v_i a task enters twice, as in Movie Gen Edit (Polyak et al. 2024, §5): linear maps make of it an addition to
    the time embedding and `task_tokens` further tokens of the text. Both maps start at zero, and so that nothing
    changes then to the last digit, the tokens split the text's last ones: each of these is there twice, with half the
    weight (log ½ on its scores), and the task moves one of the two. The null task, v = 0, is thus the network without.

    With `copy_gate` (ours, not the paper's) the network says a picture y and a gate g, pixel by pixel, and

        x̂₀ = source + g · (y − source),

    so that what is not edited stays as it was. Then the prediction is x̂₀ (`prediction_type` "sample" of the scheduler:
    v would be (α x_t − x̂₀)/σ, and lose those equal digits on the way). Without, it is what the scheduler says. With
    `affine` besides, y = (1 + a) · source + d, and the network says a and d, both zero at the start: what keeps some of
    the picture, be it a tone, a texture or an edge, need not paint it anew. With `paints` = K > 0, y gains Σ_k m_k c_k:
    K colours that a linear map mixes from the words and the task alone, and maps m_k of where each goes, zero at the
    start. What "red" looks like is then learnt once for all places and tasks.

    Args:
        unet: arguments of `UNet2DConditionModel`; in_channels, out_channels, sample_size and class_embed_type follow
            from the others.
        sample_size: side of the samples, for which `position_channels` are learnt; recorded otherwise.
        in_channels: C of the sample and of the source: 3 pixels, 4 latents.
        patch_size: positions of the UNet are patches of so many pixels a side.
        num_tasks: rows of the table of task vectors.
        task_dim: their width; None: the time embedding's.
        task_tokens: further tokens that a task gives; 0 none.
        task_std: deviation of the vectors' start.
        position_channels: channels of a learned map that the UNet sees beside the sample, for tasks about places.
        pooled_text: the greatest value of each feature over the text's tokens goes into the time embedding too: short
            trainings learn from it soonest what concerns the whole picture.
        facts: so many statements are read off those greatest values, σ(W max_l h_l), and told to the time embedding:
            W is learnt from sentences alone, before (`edit-scenes`, phase `words`), and kept. 0 for none.
        noise_gain: x_t is multiplied by a learned number w(t) that starts at zero, so that short trainings first learn
            from the source alone, and x_t comes in where it helps (a preconditioning that needs no schedule).
        copy_gate, affine, paints: see above.

    Raises `ConfigError` for values out of range or arguments of the UNet that are not the caller's.
    """

    _repeated_blocks = TaskUNet._repeated_blocks

    @register_to_config
    def __init__(
        self,
        unet: Mapping[str, Any],
        sample_size: int = 64,
        in_channels: int = 4,
        patch_size: int = 1,
        num_tasks: int = 16,
        task_dim: int | None = None,
        task_tokens: int = 4,
        task_std: float = 0.02,
        position_channels: int = 0,
        pooled_text: bool = False,
        facts: int = 0,
        noise_gain: bool = False,
        copy_gate: bool = False,
        affine: bool = False,
        paints: int = 0,
    ) -> None:
        super().__init__()
        check_counts(self.config, ("sample_size", "in_channels", "patch_size", "num_tasks"), ("task_dim",))
        check_count("task_tokens", task_tokens, 0, ConfigError)
        check_count("position_channels", position_channels, 0, ConfigError)
        check_count("facts", facts, 0, ConfigError)
        check_count("paints", paints, 0, ConfigError)
        check_number("task_std", task_std, 0)
        given = [name for name in FIXED if name in unet]
        if given:
            raise ConfigError(f"unet: {', '.join(given)} follow from the other arguments: leave them out")
        if (affine or paints) and not copy_gate:
            raise ConfigError("affine and paints are forms of the edit behind a gate: they need copy_gate=True")
        if sample_size % patch_size:
            raise ConfigError(f"sample_size {sample_size} is not a multiple of patch_size {patch_size}")
        grid, area = sample_size // patch_size, patch_size**2
        self.unet = TaskUNet(
            in_channels=2 * in_channels * area + position_channels,
            out_channels=((1 + affine) * in_channels + paints + copy_gate) * area,
            class_embed_type="identity",
            sample_size=grid,
            **unet,
        )
        width = task_dim or self.unet.emb_channels
        self.task_dim = width
        self.tasks = nn.Embedding(num_tasks, width)
        self.to_time = nn.Linear(width, self.unet.emb_channels, bias=False)
        self.to_tokens = nn.Linear(width, max(1, task_tokens) * self.unet.context_channels, bias=False)
        text, emb = self.unet.context_channels, self.unet.emb_channels
        self.pooled = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, emb)) if pooled_text else None
        self.facts = nn.Linear(text, facts) if facts else None
        self.of_facts = nn.Linear(facts, emb, bias=False) if facts else None
        if self.of_facts is not None:
            nn.init.normal_(self.of_facts.weight, std=FACT_STD)
        self.mix = nn.Linear(emb, paints * in_channels) if paints else None
        self.gain = nn.Linear(self.unet.time_proj.dim, 1) if noise_gain else None
        if self.gain is not None:
            zero_(self.gain)
        self.positions = nn.Parameter(waves(position_channels, grid)) if position_channels else None
        nn.init.normal_(self.tasks.weight, std=task_std)
        nn.init.zeros_(self.to_time.weight)
        nn.init.zeros_(self.to_tokens.weight)
        if copy_gate:
            zero_(self.unet.conv_out)

    @property
    def prediction_type(self) -> str | None:
        """`sample` for a network with a copy gate; None: whatever its scheduler says."""
        return "sample" if self.config.copy_gate else None

    def task_vectors(self, task: torch.Tensor | None, batch: int) -> torch.Tensor:
        """Numbers (B,) int64, of which −1 is the null task; or vectors (B, task_dim); or None → v (B, task_dim)."""
        table = self.tasks.weight
        if task is None:
            return table.new_zeros(batch, self.task_dim)
        if task.is_floating_point():
            if task.shape != (batch, self.task_dim):
                raise InputError(f"task vectors have shape {tuple(task.shape)}: expected ({batch}, {self.task_dim})")
            return task.to(table)
        if task.shape != (batch,) or task.dtype != torch.int64:
            raise InputError(f"task is {tuple(task.shape)} of {task.dtype}: expected ({batch},) int64, or vectors")
        if task.device.type == "cpu" and batch and not -1 <= int(task.min()) <= int(task.max()) < len(table):
            raise InputError(f"tasks {task.tolist()} out of range: give 0 to {len(table) - 1}, or -1 for none")
        return self.tasks(task.clamp(min=0)) * (task >= 0)[:, None]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        source: torch.Tensor,
        task: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> EmuEditOutput | tuple[torch.Tensor]:
        """Predict from noise, picture, instruction and task.

        Args:
            sample: x_t (B, C, H, W), H and W multiples of `patch_size`.
            timestep: t, one number or (B,).
            encoder_hidden_states: the encoded instruction (B, L, D), L ≥ `task_tokens`.
            source: the picture (B, C, H, W); zeros for no picture.
            task: numbers (B,) int64 (−1: null), vectors (B, `task_dim`), or None for the null task.
            encoder_attention_mask: (B, L), 1 keep, 0 leave out.
            return_dict: False gives a tuple of the prediction alone.

        Raises `InputError` for shapes that do not fit.
        """
        self._check_pictures(sample, source)
        vectors = self.task_vectors(task, len(sample))
        states, bias = self._tokens(encoder_hidden_states, vectors, encoder_attention_mask)
        told = self.to_time(vectors)
        greatest = encoder_hidden_states.amax(dim=1)
        if self.pooled is not None:
            told = told + self.pooled(greatest)
        if self.facts is not None and self.of_facts is not None:
            told = told + self.of_facts(torch.sigmoid(self.facts(greatest)))
        said = self.unet(
            self._inputs(self._weighed(sample, timestep), source),
            timestep,
            states,
            class_labels=told,
            encoder_attention_mask=bias,
            return_dict=False,
        )[0]
        said = said.to(sample.dtype)
        colours = None if self.mix is None else self.mix(told)
        out = self._gated(said, source, colours) if self.config.copy_gate else EmuEditOutput(self._pixels(said))
        return out if return_dict else (out.sample,)

    def _check_pictures(self, sample: torch.Tensor, source: torch.Tensor) -> None:
        channels, patch = self.config.in_channels, self.config.patch_size
        shape = tuple(sample.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % patch or shape[3] % patch:
            raise InputError(f"sample has shape {shape}: expected (batch, {channels}, H, W), multiples of {patch}")
        if tuple(source.shape) != shape:
            raise InputError(f"source has shape {tuple(source.shape)}: expected the sample's, {shape}")

    def _weighed(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        if self.gain is None:
            return sample
        waves = self.unet.time_proj(as_times(timestep, sample)).to(sample.dtype)
        return sample * self.gain(waves)[:, :, None, None]

    def _inputs(self, sample: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """What the UNet sees: patches of x_t and of the source, and the map of positions."""
        x = F.pixel_unshuffle(torch.cat((sample, source.to(sample.dtype)), dim=1), self.config.patch_size)
        if self.positions is None:
            return x
        places: torch.Tensor = self.positions
        if places.shape[2:] != x.shape[2:]:
            places = F.interpolate(places, size=x.shape[2:], mode="bilinear")
        return torch.cat((x, places.to(x.dtype).expand(len(x), -1, -1, -1)), dim=1)

    def _tokens(
        self, states: torch.Tensor, vectors: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The text with its last tokens split, one half of each moved by the task, and what their scores lose."""
        count = self.config.task_tokens
        bias = None if mask is None else torch.where(mask > 0, 0.0, -10000.0).to(vectors)
        if not count:
            return states, bias
        if states.ndim != 3 or states.shape[1] < count:
            raise InputError(
                f"encoder_hidden_states has shape {tuple(states.shape)}: expected (batch, at least {count}, width)"
            )
        moved = states[:, -count:] + self.to_tokens(vectors).view(len(vectors), count, -1)
        if bias is None:
            bias = vectors.new_zeros(states.shape[:2])
        last = bias[:, -count:] - torch.log(torch.tensor(2.0))
        return torch.cat((states, moved), dim=1), torch.cat((bias[:, :-count], last, last), dim=1)

    def _pixels(self, said: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(said, self.config.patch_size)

    def _gated(self, said: torch.Tensor, source: torch.Tensor, colours: torch.Tensor | None) -> EmuEditOutput:
        channels = self.config.in_channels
        parts = [channels] * (1 + self.config.affine) + [self.config.paints, 1]
        *gain, y, maps, logits = self._pixels(said).split(parts, dim=1)
        if gain:
            y = torch.addcmul(y, 1 + gain[0], source)
        if colours is not None:
            y = y + torch.einsum("bkhw,bkc->bchw", maps, colours.view(len(maps), -1, channels).to(maps))
        opening = (torch.sigmoid(logits) - GATE_MARGIN) / (1 - 2 * GATE_MARGIN)
        return EmuEditOutput(torch.addcmul(source, opening.clamp(0, 1), y - source), logits, y)

    @classmethod
    def from_stable_diffusion(
        cls, unet: UNet2DConditionModel | str | os.PathLike[str], num_tasks: int = 16, **options: Any
    ) -> Self:
        """A model that starts as a UNet of Stable Diffusion (4 channels) or InstructPix2Pix (8), as the paper does.

        Args:
            unet: the network, or a folder (or Hub id) that holds it, or a pipeline's folder with it inside.
            num_tasks: tasks.
            options: other arguments of the class, such as `task_dim`.

        Weights of the source's channels start at zero where the checkpoint has none, and so do both maps of the task:
        at first the model predicts what the checkpoint does, whatever the source (4 channels) and the task.
        Raises `ConfigError` for networks with classes or other numbers of channels.
        """
        if not isinstance(unet, UNet2DConditionModel):
            inside = Path(unet) / "unet" if Path(unet).is_dir() and (Path(unet) / "unet").is_dir() else unet
            unet = UNet2DConditionModel.from_pretrained(inside)
        config = unet.config
        channels = config.out_channels
        if config.in_channels not in (channels, 2 * channels) or config.class_embed_type or config.num_class_embeds:
            raise ConfigError(
                f"from_stable_diffusion needs a UNet without classes of {channels} or {2 * channels} input channels, "
                f"got {config.in_channels} (class_embed_type {config.class_embed_type!r})"
            )
        size = config.sample_size[0] if isinstance(config.sample_size, tuple) else config.sample_size or 64
        arguments = {name: value for name, value in config.items() if name not in FIXED}
        model = cls(unet=arguments, sample_size=size, in_channels=channels, num_tasks=num_tasks, **options)
        state = unet.state_dict()
        first = model.unet.conv_in.weight.new_zeros(model.unet.conv_in.weight.shape)
        first[:, : config.in_channels] = state["conv_in.weight"]
        model.unet.load_state_dict({**state, "conv_in.weight": first})
        return model.to(unet.dtype)
