"""Stable Diffusion 1.5 at its own size with random weights, and one run of either library in a process of its own.

`save_full_size_sd` makes the folder (4.3 GB in float32) with Diffusers and transformers; `measure` loads it in a new
process with one library, samples, and says how long that took and how much memory it needed at most.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
HALF_WIDTH = (
    UNET | {"block_out_channels": (160, 320, 640, 640), "cross_attention_dim": 384},
    VAE | {"block_out_channels": (64, 128, 256, 256)},
    CLIP_L | {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
)
"""Everything at half its width: about 0.27 billion parameters."""
SCHEDULERS = {
    "DDIMScheduler": {},
    "PNDMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "dpmsolver++"},
    "EulerDiscreteScheduler": {},
}


def save_full_size_sd(folder: str | os.PathLike[str], parts: tuple[dict[str, Any], ...] = (UNET, VAE, CLIP_L)) -> Path:
    """Write the folder in a process of its own, so that its memory is given back; the seed is fixed."""
    code = f"import full_size_sd; full_size_sd._write({str(folder)!r}, {parts!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=_environment())
    return Path(folder)


def _write(folder: str, parts: tuple[dict[str, Any], ...]) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from tiny_sd import clip_tokenizer, scheduler_for

    unet, vae, text = parts
    torch.manual_seed(0)
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**unet),
        scheduler=scheduler_for("sd1"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def measure(
    library: str, folder: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any
) -> dict[str, Any]:
    """Load `folder` with `latentia` or `diffusers` in a new process and sample with each of `SCHEDULERS`.

    Args:
        library: which of the two.
        folder: a pipeline's folder.
        out: where the latents are written, as safetensors, by scheduler.
        options: `steps` (3), `size` (256), `schedulers` (all), `threads` (all), `warm` (a small folder that is loaded
            first, so that what is imported on the way does not count).

    Returns:
        `load_seconds`, `baseline` and `peak` in bytes (before the load, and at most until its end), `sampling_peak`,
        `seconds` by scheduler, `keys` (component → key → shape) and `parameters` by component.
    """
    code = f"import full_size_sd; full_size_sd._measure({library!r}, {str(folder)!r}, {str(out)!r}, **{options!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(name: str) -> int:
    """Bytes: `VmRSS` what this process holds now, `VmHWM` what it held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _measure(
    library: str,
    folder: str,
    out: str,
    steps: int = 3,
    size: int = 256,
    schedulers: dict[str, dict[str, Any]] | None = None,
    threads: int | None = None,
    warm: str | None = None,
) -> None:
    import gc
    import importlib
    import time
    import warnings

    from safetensors.torch import save_file

    warnings.simplefilter("ignore")
    package = importlib.import_module(library)
    if threads:
        torch.set_num_threads(threads)
    schedulers = SCHEDULERS if schedulers is None else schedulers
    for name in schedulers:
        getattr(package, name)
    cls = package.StableDiffusionPipeline
    if warm is not None:
        cls.from_pretrained(warm)
        gc.collect()
    forget_peak()
    baseline, start = memory("VmRSS"), time.perf_counter()
    pipe = cls.from_pretrained(folder)
    found: dict[str, Any] = {"load_seconds": time.perf_counter() - start, "baseline": baseline, "seconds": {}}
    found["peak"] = memory("VmHWM")
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    found["keys"] = {n: {k: tuple(v.shape) for k, v in part.state_dict().items()} for n, part in networks.items()}
    found["parameters"] = {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()}
    pipe.set_progress_bar_config(disable=True)
    latents = {}
    for name, extra in schedulers.items():
        pipe.scheduler = getattr(package, name).from_config(pipe.scheduler.config, **extra)
        start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
        call = {"height": size, "width": size, "num_inference_steps": steps, "generator": generator}
        latents[name] = pipe("a red cube", **call, output_type="latent").images.contiguous()
        found["seconds"][name] = time.perf_counter() - start
    found["sampling_peak"] = memory("VmHWM")
    save_file(latents, out)
    print(json.dumps(found))
