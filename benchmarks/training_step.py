"""One step of latent-diffusion training: encoding on the fly against cached latents, Diffusers against Latentia.

Five ways to take the same step (same weights and sizes) alternate step by step; medians, and medians of the ratios:

    script          Diffusers' networks, the VAE encodes every batch, AdamW, EMAModel: what its examples do
    + cached        the same with posteriors encoded once: a change to the script, open to everyone
    + fused AdamW   the same with `fused=True`: a PyTorch switch, open to everyone
    latentia        Latentia's networks and inner step, cached posteriors, fused AdamW
    on the fly      Latentia's, but encoding every batch

Run: `python benchmarks/training_step.py` (set OMP_NUM_THREADS to choose the threads).
"""

import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from diffusers.training_utils import EMAModel as PeerEMA
from torch import nn

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

BATCH = 16
VAE = {  # 0.9 M parameters, 64×64×3 → 16×16×4
    "block_out_channels": (32, 48, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 16,
    "sample_size": 64,
}
UNET = {  # 1.0 M parameters
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (48, 80),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 16,
    "attention_head_dim": 16,
}
Step = Callable[[], object]


def script_steps(vae: nn.Module, unet: nn.Module, images: torch.Tensor) -> dict[str, Step]:
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
            z = latents(torch.randint(0, len(images), (BATCH,)))
            noise = torch.randn_like(z)
            t = torch.randint(0, 1000, (BATCH,))
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


def latentia_steps(vae: AutoencoderKL, unet: UNet2DModel, images: torch.Tensor) -> dict[str, Step]:
    """The loop's inner step on cached posteriors, and on images that are encoded every time."""
    accelerator = start_accelerator(Settings(device="cpu"))
    plain = TensorDataset({"x": images})

    def build(data: TensorDataset, encode: bool) -> Step:
        phase = Phase("p", DiffusionObjective(unet, DDPMScheduler()), data, 10**6, BATCH, Optim(lr=1e-6), ema=EMA())
        state = PhaseState(phase, accelerator, Settings(device="cpu"))
        order = DataOrder(len(data), BATCH, 0, "p")

        def step() -> None:
            batch = data.batch(order.share(state.step, 0, 1, 1)[0])
            if encode:
                with torch.no_grad():
                    batch = {"x": vae.to_latents(batch["x"])}
            for turn in state.turns:
                turn.set_lr(learning_rate(turn.optim, state.step, phase.steps))
                total, parts = state.forward_backward(turn, [batch])
                loss, norm = torch.stack([total, state.gradient_norm(turn)]).tolist()
                clip_gradients(turn.parameters, turn.optim.clip, norm)
                state.update(turn)
                state.note(turn, total, parts, norm)
            state.average()
            state.step += 1

        return step

    return {"latentia": build(cache_latents(vae, plain), False), "on the fly": build(plain, True)}


def main(seconds: float = 20.0) -> None:
    """Print the table."""
    torch.manual_seed(0)
    vae, unet = AutoencoderKL(**VAE).eval(), UNet2DModel(**UNET)
    peer_vae, peer_unet = diffusers.AutoencoderKL(**VAE).eval(), diffusers.UNet2DModel(**UNET)
    peer_vae.load_state_dict(vae.state_dict())
    peer_unet.load_state_dict(unet.state_dict())
    images = torch.rand(64, 3, 64, 64) * 2 - 1
    steps = script_steps(peer_vae, peer_unet, images) | latentia_steps(vae, unet, images)
    for step in list(steps.values()) * 3:
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
    print(f"latent-diffusion training step, batch {BATCH}, {torch.get_num_threads()} threads, {len(rows)} rounds")
    print(f"VAE {vae.num_parameters() / 1e6:.2f} M, UNet {unet.num_parameters() / 1e6:.2f} M parameters")
    for name in steps:
        median = 1e3 * statistics.median(row[name] for row in rows)
        ratio = statistics.median(row["script"] / row[name] for row in rows)
        print(f"{name:15} {median:8.1f} ms   {ratio:5.2f}x the script's speed")
    own = statistics.median(row["on the fly"] / row["latentia"] for row in rows)
    fair = statistics.median(row["+ fused AdamW"] / row["latentia"] for row in rows)
    print(f"caching alone, within Latentia: {own:.2f}x; Latentia against the fastest script: {fair:.2f}x")


if __name__ == "__main__":
    main()
