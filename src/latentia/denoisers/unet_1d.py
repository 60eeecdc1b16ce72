"""UNet1D: a convolutional UNet over sequences (B, C, L), such as the latents of network parameters."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.arguments import check_counts, check_number
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.denoisers.time_and_class import ActivatedTimestepEmbedding, ClassConditioning, as_times
from latentia.errors import ConfigError, InputError
from latentia.nn.activations import get_activation, silu_
from latentia.nn.checkpointing import CheckpointedBlock, GradientCheckpointing
from latentia.nn.embeddings import Timesteps
from latentia.nn.init import zero_
from latentia.nn.resnet import ResnetStyle


@dataclass(slots=True)
class UNet1DOutput(Output):
    """`sample` (B, out_channels, L): the prediction."""

    sample: torch.Tensor


class ResnetBlock1D(nn.Module):
    """x (B, C, L), e (B, E) → x' + conv(act(norm(h + W·e))) with h = conv(act(norm(x))).

    `nn.ResnetBlock` along one axis; x' is x, or its 1×1 convolution when the width changes. The embedding comes in
    already activated.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, style: ResnetStyle) -> None:
        super().__init__()
        self.act = get_activation(style.act, owned=True)
        self.dropout = style.dropout
        self.norm1 = style.group_norm(in_channels)
        self.conv1 = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.time_emb_proj = nn.Linear(style.emb_channels or 0, out_channels)
        self.norm2 = style.group_norm(out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.conv_shortcut = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x (B, C_in, L), activated emb (B or 1, E) → (B, C_out, L)."""
        h = self.conv1(self.act(self.norm1(x)))
        h = self.act(self.norm2(h.add_(self.time_emb_proj(emb).unsqueeze(-1))))
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        summed: torch.Tensor = self.conv2(h).add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
        return summed


class DownStage1D(CheckpointedBlock):
    """Residual blocks, then half the length (rounded up); remembers every block's result for the way up."""

    def __init__(self, widths: list[int], kernel_size: int, style: ResnetStyle, halves: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock1D(a, b, kernel_size, style) for a, b in pairwise(widths))
        self.downsampler = nn.Conv1d(widths[-1], widths[-1], 3, stride=2, padding=1) if halves else None

    def forward(self, h: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """h (B, C_in, L), emb → (B, C_out, L or ⌈L/2⌉) and the results (B, C_out, L)."""
        results = []
        for resnet in self.resnets:
            h = self.run(resnet, h, emb)
            results.append(h)
        return (h if self.downsampler is None else self.downsampler(h)), results


class UpStage1D(CheckpointedBlock):
    """Doubles the length (nearest neighbours, cut to what was remembered), then residual blocks on (h ‖ remembered)."""

    def __init__(self, width: int, channels: int, layers: int, kernel_size: int, style: ResnetStyle, doubles: bool):
        super().__init__()
        self.upsampler = nn.Conv1d(width, width, 3, padding=1) if doubles else None
        inputs = [width] + [channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock1D(a + channels, channels, kernel_size, style) for a in inputs)

    def forward(self, h: torch.Tensor, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        """h (B, C_in, L or ⌈L/2⌉), skips (B, C_out, L), the last read first → (B, C_out, L)."""
        if self.upsampler is not None:
            h = self.upsampler(h.repeat_interleave(2, dim=-1)[..., : skips[-1].shape[-1]])
        for resnet, skip in zip(self.resnets, reversed(skips)):
            h = self.run(resnet, torch.cat((h, skip), dim=1), emb)
        return h


class UNet1D(GradientCheckpointing, ModelMixin):
    """(x_t, t, condition) → prediction of the shape of x_t, for sequences of any length ≥ 1.

    The 1-D UNet with which p-diff (Wang et al. 2024, arXiv:2402.13144, §3.3) denoises the latents of parameters,
    built as Ho et al. 2020 build theirs: residual blocks that are told the time, down and up again with
    remembered maps. A length that does not halve evenly is rounded up on the way down and cut on the way up.
    (Diffusers' `UNet1DModel` is another network, for audio and trajectories; weights do not travel.)

    Conditioning adds a vector to the time embedding: of a class (`num_class_embeds`; for guidance the last index is
    the null class), or of any numbers, such as the code of a task (`class_embed_type="projection"`).

    Args:
        sample_size: length L of the data; recorded for samplers, enforced only with `learned_positions`.
        in_channels, out_channels: of the sample and of the prediction.
        block_out_channels: width of each stage.
        layers_per_block: residual blocks a stage, on either way.
        kernel_size: of the residual blocks' convolutions, odd.
        downsample: every stage but the last halves the length; False keeps it throughout, as the published code does.
        learned_positions: add a learned map (block_out_channels[0], L) after the first convolution. Latents of
            parameters have no translation symmetry, and only this tells their positions apart.
        norm_num_groups, norm_eps: of the group normalisations.
        act_fn: activation of the residual blocks.
        dropout: inside residual blocks.
        time_embedding_dim: width of the embedding; None: 4·block_out_channels[0].
        class_embed_type: None (a table of `num_class_embeds` rows, or no classes), `timestep`, `identity`,
            `projection` or `simple_projection`, see `latentia.denoisers.time_and_class`.
        num_class_embeds: number of classes, the null class included.
        projection_class_embeddings_input_dim: width of the vectors that are projected.
        zero_init: start residual branches and the output at zero, so that the first prediction is 0.

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for sizes that do not fit, `InputError` for other
    numbers out of range.
    """

    _repeated_blocks = ("ResnetBlock1D",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        kernel_size: int = 3,
        downsample: bool = True,
        learned_positions: bool = False,
        norm_num_groups: int = 8,
        norm_eps: float = 1e-5,
        act_fn: str = "silu",
        dropout: float = 0.0,
        time_embedding_dim: int | None = None,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self._check_config()
        widths = list(block_out_channels)
        emb_channels = time_embedding_dim or 4 * widths[0]
        style = ResnetStyle(emb_channels, norm_num_groups, norm_eps, act_fn, dropout)
        self.emb_act = get_activation(act_fn)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, freq_shift=0)
        self.time_embedding = ActivatedTimestepEmbedding(widths[0], emb_channels, act_fn)
        self.classes = ClassConditioning(class_embed_type, num_class_embeds, projection_class_embeddings_input_dim)
        self.class_embedding = self.classes.layer(widths[0], emb_channels, act_fn)

        self.conv_in = nn.Conv1d(in_channels, widths[0], 3, padding=1)
        self.positions = nn.Parameter(torch.zeros(widths[0], sample_size or 0)) if learned_positions else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths)):
            halves = downsample and i < len(widths) - 1
            self.down_blocks.append(DownStage1D([before] + [width] * layers_per_block, kernel_size, style, halves))
        self.mid_block = ResnetBlock1D(widths[-1], widths[-1], kernel_size, style)
        for i, (before, width) in enumerate(zip([widths[-1], *reversed(widths)], reversed(widths))):
            doubles = downsample and i > 0
            self.up_blocks.append(UpStage1D(before, width, layers_per_block, kernel_size, style, doubles))
        self.conv_norm_out = style.group_norm(widths[0])
        self.conv_out = nn.Conv1d(widths[0], out_channels, 3, padding=1)
        if zero_init:
            for module in self.modules():
                if isinstance(module, ResnetBlock1D):
                    zero_(module.conv2)
            zero_(self.conv_out)

    def _check_config(self) -> None:
        c = self.config
        if not c.block_out_channels:
            raise ConfigError("block_out_channels is empty: give one width a stage")
        check_counts(
            c,
            ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "kernel_size", "norm_num_groups"),
            ("sample_size", "time_embedding_dim", "num_class_embeds", "projection_class_embeddings_input_dim"),
        )
        if c.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, so that lengths are kept, got {c.kernel_size}")
        if c.learned_positions and c.sample_size is None:
            raise ConfigError("learned_positions need sample_size, the length of the sequences")
        check_number("dropout", c.dropout, 0, 1)
        check_number("norm_eps", c.norm_eps, 0)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet1DOutput | tuple[torch.Tensor]:
        """Predict from a noisy sample.

        Args:
            sample: x_t (B, in_channels, L).
            timestep: t, one number or a tensor of one or B numbers; fractions are kept.
            class_labels: (B,) int64, or (B, width) numbers for a projection.
            return_dict: False returns the tuple `(sample,)`.

        Raises `InputError` for wrong shapes, and for labels that are missing, not wanted or out of range.
        """
        self._check_sample(sample)
        emb = self._embed(as_times(timestep, sample), class_labels, sample.shape[0])
        h = self.conv_in(sample)
        if self.positions is not None:
            h = h + self.positions
        skips = []
        for down in self.down_blocks:
            h, results = down(h, emb)
            skips.append(results)
        h = self.mid_block(h, emb)
        for up in self.up_blocks:
            h = up(h, skips.pop(), emb)
        out = self.conv_out(silu_(self.conv_norm_out(h)))
        return UNet1DOutput(out) if return_dict else (out,)

    def _check_sample(self, sample: torch.Tensor) -> None:
        shape, channels = sample.shape, self.conv_in.in_channels
        length = None if self.positions is None else self.positions.shape[1]
        if len(shape) != 3 or shape[1] != channels or not shape[2] or length not in (None, shape[2]):
            raise InputError(
                f"sample has shape {tuple(shape)}: expected (batch, {channels}, {length or 'length of at least 1'})"
            )

    def _embed(self, t: torch.Tensor, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The activated embedding of time and condition, (B, E) or (1, E)."""
        dtype = self.conv_in.weight.dtype
        emb: torch.Tensor = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is not None:
            emb = emb + self.classes.embed(self.class_embedding, labels, self.time_proj, batch, dtype)
        elif labels is not None:
            raise InputError("class_labels given to a model without classes: leave them out, or set num_class_embeds")
        return self.emb_act(emb)
