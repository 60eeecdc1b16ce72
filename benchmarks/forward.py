"""One forward pass of Latentia and of Diffusers on the same weights: paired medians and their ratio.

The two alternate call by call, so that noise of the machine hits both; the ratio is the median of the pairs' ratios.
Run: `python benchmarks/forward.py` (set OMP_NUM_THREADS to choose the threads).
"""

import statistics
import time
from collections.abc import Callable

import diffusers
import torch

from latentia import AutoencoderKL, UNet2DConditionModel, UNet2DModel

SMALL_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "layers_per_block": 1,
}
TINY_UNET = {**SMALL_UNET, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
DIGITS_UNET = {**SMALL_UNET, "block_out_channels": (64, 128), "layers_per_block": 2, "num_class_embeds": 11}
DDPM_UNET = {  # the layout of DDPM CIFAR-10 at half its width
    "block_out_channels": (64, 128, 128, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
TINY_TEXT_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
SD_UNET = {  # the layout of Stable Diffusion 1 at a fifth of its width
    "block_out_channels": (64, 128, 256, 256),
    "cross_attention_dim": 160,
    "attention_head_dim": 4,
}
SMALL_VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def paired(
    ours: Callable[[], object],
    peer: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median milliseconds of each and the median ratio peer / ours over alternating calls."""
    for call in (ours, peer) * 3:
        call()
    times: list[tuple[float, float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 10:
        pair = {}
        order = (ours, peer) if len(times) % 2 else (peer, ours)
        for call in order:
            start = clock()
            call()
            pair[call] = clock() - start
        times.append((pair[ours], pair[peer]))
    a, b = (1e3 * statistics.median(column) for column in zip(*times))
    return a, b, statistics.median(peer_s / ours_s for ours_s, peer_s in times)


def unet_pair(config: dict, batch: int, size: int) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Both forwards at one timestep, and the largest difference of their outputs."""
    torch.manual_seed(0)
    ours = UNet2DModel(**config).eval()
    peer = diffusers.UNet2DModel(**config).eval()
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(batch, ours.config.in_channels, size, size)
    labels = {"class_labels": torch.arange(batch) % 11} if config.get("num_class_embeds") else {}
    calls = (lambda: ours(x, 500, **labels).sample, lambda: peer(x, 500, **labels).sample)
    return *calls, float((calls[0]() - calls[1]()).abs().max())


def text_unet_pair(
    config: dict, batch: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Both forwards on one text of 77 tokens, with one set of weights, and the largest difference of their outputs."""
    torch.manual_seed(0)
    ours = UNet2DConditionModel(**config).eval().to(dtype)
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel(**config).eval()
    peer.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(batch, ours.config.in_channels, size, size, dtype=dtype)
    text = torch.randn(batch, 77, ours.config.cross_attention_dim, dtype=dtype)
    calls = (lambda: ours(x, 500, text).sample, lambda: peer(x, 500, text).sample)
    return *calls, float((calls[0]() - calls[1]()).abs().max())


def vae_pair(config: dict, batch: int, size: int) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Both decoders on the same latents (side `size`), and the largest difference of their outputs."""
    torch.manual_seed(0)
    ours = AutoencoderKL(**config).eval()
    peer = diffusers.AutoencoderKL(**config).eval()
    peer.load_state_dict(ours.state_dict())
    z = torch.randn(batch, 4, size, size)
    calls = (lambda: ours.decode(z).sample, lambda: peer.decode(z).sample)
    return *calls, float((calls[0]() - calls[1]()).abs().max())


@torch.no_grad()
def main(seconds: float = 4.0) -> None:
    """Print one line a case."""
    cases = [
        ("unet 8,16 at 8x8", unet_pair, TINY_UNET, 1, 8),
        *(("unet 32,64 at 16x16", unet_pair, SMALL_UNET, batch, 16) for batch in (1, 8)),
        *(("unet 64,128 at 8x8, classes", unet_pair, DIGITS_UNET, batch, 8) for batch in (1, 8)),
        *(("unet ddpm/2 at 32x32", unet_pair, DDPM_UNET, batch, 32) for batch in (1, 8)),
        ("text unet 8,16 at 8x8", text_unet_pair, TINY_TEXT_UNET, 1, 8),
        ("text unet sd2/5 at 16x16", text_unet_pair, {**SD_UNET, "use_linear_projection": True}, 1, 16),
        *(("text unet sd1/5 at 32x32", text_unet_pair, SD_UNET, batch, 32) for batch in (1, 2)),
        *(("vae decode 32,64 to 32x32", vae_pair, SMALL_VAE, batch, 16) for batch in (1, 8)),
    ]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, diffusers {diffusers.__version__}; fp32, eager"
    )
    print(f"{'case':30} {'batch':>5} {'ours ms':>9} {'peer ms':>9} {'peer/ours':>9} {'max diff':>9}")
    for name, build, config, batch, size in cases:
        ours, peer, difference = build(config, batch, size)
        a, b, ratio = paired(ours, peer, seconds)
        print(f"{name:30} {batch:5d} {a:9.2f} {b:9.2f} {ratio:9.2f} {difference:9.1e}")


if __name__ == "__main__":
    main()
