"""UNet2DModel: the convolutional UNet of DDPM and of unconditional or class-conditional latent diffusion."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from latentia.core.arguments import check_counts, check_number
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.denoisers.unet_2d_blocks import DOWN_BLOCKS, UP_BLOCKS, DownBlock, UpBlock, block_kind
from latentia.errors import ConfigError, InputError, check_choice
from latentia.nn.activations import get_activation, silu_
from latentia.nn.attention import rename_legacy_attention
from latentia.nn.checkpointing import GradientCheckpointing
from latentia.nn.embeddings import FourierFeatures, TimestepEmbedding, Timesteps
from latentia.nn.init import zero_, zero_residual_branches_
from latentia.nn.mid_block import MidBlock
from latentia.nn.resnet import ResnetStyle

TIME_EMBEDDINGS = ("fourier", "learned", "positional")
CLASS_EMBEDDINGS = ("identity", "timestep")
RESAMPLE_TYPES = ("conv", "resnet")


@dataclass(slots=True)
class UNet2DOutput(Output):
    """`sample` (B, out_channels, H, W): the prediction."""

    sample: torch.Tensor


class UNet2DModel(GradientCheckpointing, ModelMixin):
    """(x_t, t, class) → prediction of the shape of x_t: ε, x₀, v or a flow, as the scheduler is told.

    Ho et al. 2020 (the DDPM ports), Rombach et al. 2022 (latent diffusion); arguments, state-dict keys and
    outputs are those of Diffusers' class of the same name.

    Class conditioning: `num_class_embeds` adds one learned vector a class to the time embedding. For
    classifier-free guidance give it the number of classes + 1: **the last index is the null class**, which training
    puts in place of dropped labels and guidance uses as the unconditional one.

    Args:
        sample_size: H = W, or (H, W), of the data; recorded for samplers, not enforced.
        in_channels, out_channels: of the sample and of the prediction.
        center_input_sample: map an input in [0, 1] to [-1, 1] first.
        time_embedding_type: `positional` (sinusoids), `fourier` (random features of ln t; the output is divided
            by t) or `learned` (a table of `num_train_timesteps` rows).
        time_embedding_dim: width of the embedding; None: 4·block_out_channels[0].
        freq_shift, flip_sin_to_cos: convention of the sinusoids, see `latentia.nn.embeddings`.
        down_block_types, up_block_types: one name a stage, see `latentia.denoisers.unet_2d_blocks`. Both left out:
            attention in all stages but the largest, however many there are.
        mid_block_type: `UNetMidBlock2D` or None.
        block_out_channels: width of each stage; every stage but the last halves the resolution.
        layers_per_block: residual blocks a stage (one more on the way up).
        mid_block_scale_factor: the middle's residual sums are divided by this.
        downsample_padding: 1 symmetric, 0 right and below only.
        downsample_type, upsample_type: `conv` or `resnet`, for stages with attention.
        dropout: inside residual blocks.
        act_fn: activation of the residual blocks.
        attention_head_dim: width of a head; None: one head over all channels.
        norm_num_groups, norm_eps: of the group normalisations.
        attn_norm_num_groups: groups before the middle attention; None: `norm_num_groups`, but no normalisation
            with `scale_shift` (as in Diffusers).
        resnet_time_scale_shift: `default` or `scale_shift`.
        add_attention: attention in the middle.
        class_embed_type: None (a table of `num_class_embeds` rows), `timestep` (labels are numbers, embedded like
            time) or `identity` (labels are embeddings (B, time_embedding_dim)).
        num_class_embeds: number of classes, the null class included.
        num_train_timesteps: rows of the `learned` table.
        zero_init: start residual branches and the output at zero, so that the first prediction is 0
            (Ho et al.'s initialisation; Latentia's own argument, for training from scratch).

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for lengths and widths that do not fit,
    `InputError` for other numbers out of range.
    """

    extensions = frozenset({"zero_init"})

    _repeated_blocks = ("ResnetBlock", "SelfAttention")

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self._choose_blocks()
        self._check_config()
        emb_channels = time_embedding_dim or 4 * block_out_channels[0]
        style = ResnetStyle(emb_channels, norm_num_groups, norm_eps, act_fn, dropout, resnet_time_scale_shift)
        self.factor: int = 2 ** (len(block_out_channels) - 1)
        self.skips_per_stage: int = layers_per_block + 1
        self.centers = center_input_sample
        self.time_kind, self.class_kind = time_embedding_type, class_embed_type
        self.emb_act = get_activation(act_fn)

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)
        self._build_embeddings(block_out_channels[0], emb_channels)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        skip_channels = self._build_down(style)
        self._build_up(style, skip_channels)
        self.mid_block = self._build_mid(style) if mid_block_type is not None else None
        self.conv_norm_out = style.group_norm(block_out_channels[0])
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, 3, padding=1)
        if zero_init:
            zero_residual_branches_(self)
            zero_(self.conv_out)

    def _choose_blocks(self) -> None:
        """Other than four stages without a word about their blocks: attention in all but the largest, as by default."""
        c, names = self.config, {"down_block_types", "up_block_types"}
        deep = len(c.block_out_channels) - 1
        if names <= c.defaulted and deep >= 0 and deep + 1 != len(c.down_block_types):
            down, up = ("DownBlock2D", *["AttnDownBlock2D"] * deep), (*["AttnUpBlock2D"] * deep, "UpBlock2D")
            self.record(down_block_types=down, up_block_types=up)

    def _check_config(self) -> None:
        c = self.config
        stages = len(c.block_out_channels)
        if not stages or not stages == len(c.down_block_types) == len(c.up_block_types):
            raise ConfigError(
                f"block_out_channels, down_block_types and up_block_types must be equally long, got "
                f"{stages}, {len(c.down_block_types)} and {len(c.up_block_types)} entries"
            )
        check_counts(
            c,
            ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"),
            ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim", "num_class_embeds", "sample_size"),
        )
        check_number("dropout", c.dropout, 0, 1)
        check_number("norm_eps", c.norm_eps, 0)
        check_number("mid_block_scale_factor", c.mid_block_scale_factor, 0, open_low=True)
        if c.downsample_padding not in (0, 1):
            raise ConfigError(f"downsample_padding must be 0 or 1, got {c.downsample_padding!r}")
        check_choice("time_embedding_type", c.time_embedding_type, TIME_EMBEDDINGS)
        if c.mid_block_type is not None:
            check_choice("mid_block_type", c.mid_block_type, ("UNetMidBlock2D",))
        if c.class_embed_type is not None:
            check_choice("class_embed_type", c.class_embed_type, CLASS_EMBEDDINGS)
        check_choice("downsample_type", c.downsample_type, RESAMPLE_TYPES)
        check_choice("upsample_type", c.upsample_type, RESAMPLE_TYPES)
        if c.time_embedding_type == "learned" and c.num_train_timesteps is None:
            raise ConfigError(
                "time_embedding_type 'learned' needs num_train_timesteps, the number of rows of its table"
            )

    def _build_embeddings(self, width: int, emb_channels: int) -> None:
        c = self.config
        features = width
        if c.time_embedding_type == "fourier":
            features = 2 * width
            self.time_proj: nn.Module = FourierFeatures(width)
        elif c.time_embedding_type == "positional":
            self.time_proj = Timesteps(width, c.flip_sin_to_cos, c.freq_shift)
        else:
            self.time_proj = nn.Embedding(c.num_train_timesteps, width)
        self.time_embedding = TimestepEmbedding(features, emb_channels)
        self.class_embedding: nn.Module | None = None
        if c.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(features, emb_channels)
        elif c.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif c.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(c.num_class_embeds, emb_channels)

    def _build_down(self, style: ResnetStyle) -> list[int]:
        c = self.config
        width = c.block_out_channels[0]
        skips = [width]
        last = len(c.block_out_channels) - 1
        for i, (name, channels) in enumerate(zip(c.down_block_types, c.block_out_channels)):
            kind = block_kind(name, DOWN_BLOCKS)
            resample = None if i == last else kind.resample or c.downsample_type
            self.down_blocks.append(
                DownBlock(
                    width,
                    channels,
                    c.layers_per_block,
                    style,
                    kind.attention,
                    c.attention_head_dim,
                    resample,
                    c.downsample_padding,
                )
            )
            skips += [channels] * (c.layers_per_block + (resample is not None))
            width = channels
        return skips

    def _build_up(self, style: ResnetStyle, skips: list[int]) -> None:
        c = self.config
        width = c.block_out_channels[-1]
        last = len(c.block_out_channels) - 1
        for i, (name, channels) in enumerate(zip(c.up_block_types, reversed(c.block_out_channels))):
            kind = block_kind(name, UP_BLOCKS)
            resample = None if i == last else kind.resample or c.upsample_type
            read = [skips.pop() for _ in range(c.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(width, channels, read, style, kind.attention, c.attention_head_dim, resample))
            width = channels

    def _build_mid(self, style: ResnetStyle) -> MidBlock:
        c = self.config
        groups = c.attn_norm_num_groups
        if groups is None and c.resnet_time_scale_shift == "default":
            groups = c.norm_num_groups
        scaled = replace(style, output_scale=c.mid_block_scale_factor)
        return MidBlock(c.block_out_channels[-1], scaled, c.attention_head_dim, groups, c.add_attention)

    @classmethod
    def convert_legacy_keys(cls, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights saved in 2022 with today's names of the attention projections."""
        return rename_legacy_attention(state_dict)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict from a noisy sample.

        Args:
            sample: x_t (B, in_channels, H, W), H and W divisible by 2^(stages − 1).
            timestep: t, one number or a tensor of one or B numbers; fractions are kept.
            class_labels: (B,) int64 in [0, num_class_embeds); the last index is the null class by convention.
                (B,) numbers with `class_embed_type="timestep"`, (B, time_embedding_dim) with `"identity"`.
            return_dict: False returns the tuple `(sample,)`.

        Raises `InputError` for wrong shapes, and for labels that are missing, not wanted or out of range
        (the range is checked on the CPU only: on a GPU the check would stall it).
        """
        self._check_sample(sample)
        t = self._time(timestep, sample)
        emb = self._embed(t, class_labels, sample.shape[0])

        h = self.conv_in(2 * sample - 1 if self.centers else sample)
        skips = [h]
        for down in self.down_blocks:
            h, results = down(h, emb)
            skips += results
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        for up in self.up_blocks:
            first = len(skips) - self.skips_per_stage
            h = up(h, skips[first:], emb)
            del skips[first:]
        out = self.conv_out(silu_(self.conv_norm_out(h)))
        if self.time_kind == "fourier":
            out = out / t.view(-1, 1, 1, 1)
        return UNet2DOutput(out) if return_dict else (out,)

    def _check_sample(self, sample: torch.Tensor) -> None:
        shape, channels, factor = sample.shape, self.conv_in.in_channels, self.factor
        if len(shape) != 4 or shape[1] != channels or shape[2] % factor or shape[3] % factor:
            raise InputError(
                f"sample has shape {tuple(shape)}: expected (batch, {channels}, height, width) "
                f"with height and width divisible by {factor}"
            )

    def _time(self, timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
        """One time for the whole batch (1,) or one a sample (B,), on the sample's device."""
        t = timestep if isinstance(timestep, torch.Tensor) else _as_tensor(timestep)
        t = t.reshape(1) if t.ndim == 0 else t
        if t.ndim != 1 or t.shape[0] not in (1, sample.shape[0]):
            raise InputError(
                f"timestep has shape {tuple(t.shape)}: expected one number, or one for each of "
                f"{sample.shape[0]} samples"
            )
        return t.to(sample.device)

    def _embed(self, t: torch.Tensor, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The activated embedding of time and class, (B, E) or (1, E)."""
        dtype = self.conv_in.weight.dtype
        if self.time_kind == "learned":
            features = _look_up(self.time_proj, t.long(), "timestep")
        else:
            features = self.time_proj(t)
        emb: torch.Tensor = self.time_embedding(features.to(dtype))
        if self.class_embedding is not None:
            emb = emb + self._embed_classes(labels, batch).to(dtype)
        elif labels is not None:
            raise InputError("class_labels given to a model without classes: leave them out, or set num_class_embeds")
        return self.emb_act(emb)

    def _embed_classes(self, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        assert self.class_embedding is not None
        kind = self.class_kind
        if labels is None:
            count = self.config.num_class_embeds
            raise InputError(
                "this model is class-conditional: give class_labels (B,)"
                + (f" in [0, {count}), {count - 1} for the null class if it was trained with one" if count else "")
            )
        if not isinstance(labels, torch.Tensor):
            raise InputError(f"class_labels must be a tensor, got {labels!r}: torch.tensor(...) makes one")
        if labels.ndim != (2 if kind == "identity" else 1) or labels.shape[0] != batch:
            raise InputError(f"class_labels have shape {tuple(labels.shape)}: expected one for each of {batch} samples")
        if kind == "timestep":
            labels = self.time_proj(labels).to(self.conv_in.weight.dtype)
        elif kind is None:
            if labels.dtype not in (torch.int64, torch.int32):
                raise InputError(f"class_labels have dtype {labels.dtype}: expected int64")
            return _look_up(self.class_embedding, labels, "class_labels")
        embedded: torch.Tensor = self.class_embedding(labels)
        return embedded


def _as_tensor(timestep: float | int) -> torch.Tensor:
    try:
        return torch.tensor(timestep)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"timestep must be a number or a tensor of numbers, got {timestep!r}") from None


def _look_up(table: nn.Module, indices: torch.Tensor, name: str) -> torch.Tensor:
    """Rows of an `nn.Embedding`; an index out of range raises `InputError` where the kernel notices (on the CPU)."""
    try:
        rows: torch.Tensor = table(indices)
    except IndexError:
        last = next(table.parameters()).shape[0] - 1
        raise InputError(f"{name} {indices.tolist()} out of range: give 0 to {last}") from None
    return rows
