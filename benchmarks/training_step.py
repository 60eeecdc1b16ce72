"""One step of latent-diffusion training: encoding on the fly against cached latents, Diffusers against Latentia.

Five ways to take the same step (same weights and sizes) alternate step by step; medians, and medians of the ratios:

    script          Diffusers' networks, the VAE encodes every batch, AdamW, EMAModel: what its examples do
    + cached        the same with posteriors encoded once: a change to the script, open to everyone
    + fused AdamW   the same with `fused=True`: a PyTorch switch, open to everyone
    latentia        Latentia's networks and inner step, cached posteriors, fused AdamW
    on the fly      Latentia's, but encoding every batch

What caching saves is the encoder's share of the step, which the sizes decide: two cases, and for the published
sizes the share by FLOPs (a backward pass counted as two forwards), which no CPU need run.

Run: `python benchmarks/training_step.py` (set OMP_NUM_THREADS to choose the threads).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers.training_utils import EMAModel as PeerEMA
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentia import AutoencoderKL, DDPMScheduler, UNet2DModel
from latentia.data.dataset import TensorDataset
from latentia.training.latents import cache_latents
from latentia.training.objectives import DiffusionObjective
from latentia.training.optim import clip_gradients, learning_rate
from latentia.training.order import DataOrder
from latentia.training.parallel import start_accelerator
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings
from latentia.training.state import PhaseState

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison: pictures (3 channels) of `size` in batches, a VAE, a UNet on its latents."""

    name: str
    size: int
    batch: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    latent_channels: int = 4
    groups: int = 16

    def vae(self) -> dict[str, object]:
        """Arguments of `AutoencoderKL`."""
        stages = len(self.vae_channels)
        return {
            "block_out_channels": self.vae_channels,
            "down_block_types": ("DownEncoderBlock2D",) * stages,
            "up_block_types": ("UpDecoderBlock2D",) * stages,
            "layers_per_block": self.vae_layers,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.groups,
            "sample_size": self.size,
        }

    def unet(self) -> dict[str, object]:
        """Arguments of `UNet2DModel`; attention everywhere but at the highest resolution."""
        stages = len(self.unet_channels)
        return {
            "sample_size": self.size // 2 ** (len(self.vae_channels) - 1),
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "block_out_channels": self.unet_channels,
            "layers_per_block": self.unet_layers,
            "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * (stages - 1)),
            "up_block_types": (*("AttnUpBlock2D",) * (stages - 1), "UpBlock2D"),
            "norm_num_groups": self.groups,
            "attention_head_dim": 16,
        }


MEASURED = (
    Case("the demo's sizes, 32 px, f4", 32, 64, (16, 32, 48), 1, (48, 64), 1, groups=8),
    Case("64 px, f4", 64, 16, (32, 64, 64), 1, (48, 80), 1),
    Case("64 px, f8", 64, 16, (32, 64, 64, 64), 1, (64, 128), 1),
)
PUBLISHED = (
    Case("LDM-4 ImageNet, 256 px", 256, 1, (128, 256, 512), 2, (192, 384, 576, 960), 2, 3, 32),
    Case("LDM-8 ImageNet, 256 px", 256, 1, (128, 256, 512, 512), 2, (256, 512, 1024), 2, 4, 32),
)


def script_steps(vae: nn.Module, unet: nn.Module, images: torch.Tensor, size: int) -> dict[str, Step]:
    """The three steps of a Diffusers script."""
    scheduler = diffusers.DDPMScheduler()
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    moments = posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor

    def on_the_fly(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return vae.encode(images[rows]).latent_dist.sample() * vae.config.scaling_factor

    def cached(rows: torch.Tensor) -> torch.Tensor:
        mean, std = (part[rows] for part in moments)
        return mean + std * torch.randn_like(mean)

    def build(latents: Callable[[torch.Tensor], torch.Tensor], fused: bool) -> Step:
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=fused)
        ema = PeerEMA(unet.parameters())

        def step() -> None:
            z = latents(torch.randint(0, len(images), (size,)))
            noise = torch.randn_like(z)
            t = torch.randint(0, 1000, (size,))
            loss = nn.functional.mse_loss(unet(scheduler.add_noise(z, noise, t), t).sample, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            loss.item()

        return step

    return {
        "script": build(on_the_fly, fused=False),
        "+ cached": build(cached, fused=False),
        "+ fused AdamW": build(cached, fused=True),
    }


def latentia_steps(vae: AutoencoderKL, unet: UNet2DModel, images: torch.Tensor, size: int) -> dict[str, Step]:
    """The loop's inner step on cached posteriors, and on images that are encoded every time."""
    accelerator = start_accelerator(Settings(device="cpu"))
    plain = TensorDataset({"x": images})

    def build(data: TensorDataset, encode: bool) -> Step:
        phase = Phase("p", DiffusionObjective(unet, DDPMScheduler()), data, 10**6, size, Optim(lr=1e-6), ema=EMA())
        state = PhaseState(phase, accelerator, Settings(device="cpu"))
        order = DataOrder(len(data), size, 0, "p")

        def step() -> None:
            batch = data.batch(order.share(state.step, 0, 1, 1)[0])
            if encode:
                with torch.no_grad():
                    batch = {"x": vae.to_latents(batch["x"])}
            for turn in state.turns:
                turn.set_lr(learning_rate(turn.optim, state.step, phase.steps))
                total, parts = state.forward_backward(turn, [batch])
                _loss, norm = torch.stack([total, state.gradient_norm(turn)]).tolist()
                clip_gradients(turn.parameters, turn.optim.clip, norm)
                state.update(turn)
                state.note(turn, total, parts, norm)
            state.average()
            state.step += 1

        return step

    return {"latentia": build(cache_latents(vae, plain), False), "on the fly": build(plain, True)}


def measure(case: Case, seconds: float) -> None:
    """Print one case's table."""
    torch.manual_seed(0)
    vae, unet = AutoencoderKL(**case.vae()).eval(), UNet2DModel(**case.unet())
    peer_vae, peer_unet = diffusers.AutoencoderKL(**case.vae()).eval(), diffusers.UNet2DModel(**case.unet())
    peer_vae.load_state_dict(vae.state_dict())
    peer_unet.load_state_dict(unet.state_dict())
    images = torch.rand(2 * case.batch, 3, case.size, case.size) * 2 - 1
    steps = script_steps(peer_vae, peer_unet, images, case.batch) | latentia_steps(vae, unet, images, case.batch)
    for step in list(steps.values()) * 2:
        step()
    rows: list[dict[str, float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rows) < 10:
        names = list(steps)[len(rows) % 5 :] + list(steps)[: len(rows) % 5]
        row = {}
        for name in names:
            start = time.perf_counter()
            steps[name]()
            row[name] = time.perf_counter() - start
        rows.append(row)
    sizes = f"VAE {vae.num_parameters() / 1e6:.2f} M, UNet {unet.num_parameters() / 1e6:.2f} M"
    print(f"\n{case.name}: batch {case.batch}, {sizes} parameters, {len(rows)} rounds")
    for name in steps:
        median = 1e3 * statistics.median(row[name] for row in rows)
        ratio = statistics.median(row["script"] / row[name] for row in rows)
        print(f"  {name:15} {median:8.1f} ms   {ratio:5.2f}x the script's speed")
    own = statistics.median(row["on the fly"] / row["latentia"] for row in rows)
    fair = statistics.median(row["+ fused AdamW"] / row["latentia"] for row in rows)
    print(f"  caching alone, within Latentia: {own:.2f}x; Latentia against the fastest script: {fair:.2f}x")


def count(case: Case) -> None:
    """Print by how much caching shortens a step, by FLOPs."""
    with torch.device("meta"):
        vae, unet = AutoencoderKL(**case.vae()), UNet2DModel(**case.unet())
        x = torch.zeros(1, 3, case.size, case.size)
        side = case.size // vae.factor
        z, t = torch.zeros(1, case.latent_channels, side, side), torch.zeros(1)
    flops = []
    for call in (lambda: vae.encode(x), lambda: unet(z, t)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        flops.append(counter.get_total_flops())
    encode, forward = flops
    print(f"  {case.name:24} {encode / 1e9:7.0f} + 3 x {forward / 1e9:5.0f} GFLOPs: {1 + encode / (3 * forward):.2f}x")


def main(seconds: float = 12.0) -> None:
    """Print the tables."""
    print(f"one step of latent-diffusion training, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for case in MEASURED:
        measure(case, seconds)
    print("\nby FLOPs at published sizes: encoding + training the UNet, and what caching gains")
    for case in PUBLISHED:
        count(case)


if __name__ == "__main__":
    main()
