"""Settings: how a run is carried out; nothing here says what is learned."""

from dataclasses import dataclass

from latentia.core.arguments import check_count
from latentia.errors import check_choice

PRECISIONS = ("no", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Settings:
    """How a run is carried out.

    Attributes:
        seed: data order, noise, dropout and initial weights are functions of it. ≥ 0.
        device: `auto` (the GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`.
        precision: `no` (float32), or autocast to `bf16` or, on a GPU, `fp16`; weights stay float32.
        save_every: steps between checkpoints; one is always written at a phase's end.
        log_every: steps between lines of `metrics.jsonl`; each is the mean since the line before.
        preview_every: steps between previews; 0 for none.
        fsdp: shard weights, gradients and optimizer state over the processes (FSDP2) instead of copying them (DDP).
        progress: show a progress bar (a line every ten seconds when the output is not a terminal).
        channels_last: hold 4-D weights (with `fsdp` not these) and inputs as NHWC, which is faster on most hardware for
            large convolutions.
        compile: `torch.compile` the forward of the trained modules; a codec, trained by encode and decode, stays as is.
        tensorboard: also write TensorBoard events.

    Raises `InputError` for a value out of range, `UnknownChoiceError` for an unknown device or precision.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "no"
    save_every: int = 500
    log_every: int = 20
    preview_every: int = 0
    fsdp: bool = False
    progress: bool = True
    channels_last: bool = False
    compile: bool = False
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("device", self.device.split(":")[0], DEVICES)
        check_count("seed", self.seed, least=0)
        check_count("save_every", self.save_every)
        check_count("log_every", self.log_every)
        check_count("preview_every", self.preview_every, least=0)
