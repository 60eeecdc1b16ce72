"""Priors over tokens: tokens a second with and without a memory, and MaskGIT's 8 rounds against one token at a time.

Codec and tokens (8×8, K = 32) are those of the digit recipes; weights are random, which costs the same. The
candidates alternate call by call, so that noise of the machine hits all alike; medians, and ratios of medians, in
CPU time of one thread. Run: `python -m benchmarks tokens`.
"""

import statistics
import time
from collections.abc import Callable

import torch

from latentia import (
    AutoregressivePipeline,
    AutoregressiveScheduler,
    AutoregressiveTransformer,
    MaskedPipeline,
    MaskedScheduler,
    MaskedTransformer,
    VQModel,
)
from latentia.schedulers.tokens import draw, uniform

CODES, SIDE = 32, 8
ROUNDS = 8
BATCHES = (1, 64)
NETWORKS = {
    "autoregressive": {"width": 96, "num_layers": 4, "num_heads": 4},
    "masked": {"width": 96, "num_layers": 4, "num_heads": 4, "patch_size": 1},
    "maskgit-digits": {"width": 128, "num_layers": 1, "num_heads": 4, "patch_size": 2},
}
GUIDANCE = 1.5
"""What `gpt-digits` needs for pictures as right as those of `maskgit-digits`, which needs none."""


def codec() -> VQModel:
    """The one of `maskgit-digits` and `gpt-digits`."""
    from latentia.recipes.token_prior_digits import digit_tokenizer

    return digit_tokenizer().build(32, 1).eval()


def pipelines() -> dict[str, Callable[[int], object]]:
    """Name → a call for so many pictures."""
    shared = codec()
    made: dict[str, Callable[[int], object]] = {}
    for name, sizes in NETWORKS.items():
        kinds = (
            (AutoregressivePipeline, AutoregressiveTransformer, AutoregressiveScheduler)
            if name == "autoregressive"
            else (MaskedPipeline, MaskedTransformer, MaskedScheduler)
        )
        network = kinds[1](num_codes=CODES, token_shape=(SIDE, SIDE), num_class_embeds=11, **sizes).eval()
        pipe = kinds[0](shared, network, kinds[2](mask_token_id=CODES))
        pipe.set_progress_bar_config(disable=True)
        steps = {} if name == "autoregressive" else {"num_inference_steps": ROUNDS}
        made[name] = lambda n, pipe=pipe, steps=steps: pipe(class_labels=[3] * n, seed=0, output_type="pt", **steps)
        if name == "autoregressive":
            made["without a memory"] = lambda n, pipe=pipe: without_memory(pipe, n)
            made["gpt-digits, guided"] = lambda n, pipe=pipe: pipe(
                class_labels=[3] * n, seed=0, output_type="pt", guidance_scale=GUIDANCE
            )
    return made


@torch.no_grad()
def without_memory(pipe: AutoregressivePipeline, n: int) -> torch.Tensor:
    """The same tokens with a whole forward pass over all that is known for each."""
    network, count = pipe.transformer, SIDE * SIDE
    prefix = network.prefix(n, torch.full((n,), 3))
    x, u = torch.zeros(n, 0, dtype=torch.int64), uniform((n, count), None, torch.device("cpu"))
    for i in range(count):
        logits = network.next_logits(torch.cat([prefix, network.tokens(x)], 1), network.memory())
        x = torch.cat([x, draw(logits, u[:, i])[:, None]], 1)
    return pipe.decode(x.view(n, SIDE, SIDE))


def medians(calls: dict[str, Callable[[int], object]], batch: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call, by turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call(batch)
            if turn:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Print the tables."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"{SIDE * SIDE} tokens of {CODES} codes, {ROUNDS} rounds, torch {torch.__version__}, 1 thread, CPU time")
    print(f"{'drawn by':18} {'batch':>5} {'ms a picture':>13} {'tokens/s':>9} {'vs one by one':>14} {'vs guided':>10}")
    for batch in BATCHES:
        found = medians(pipelines(), batch, 9 if batch == 1 else 3)
        for name, seconds in found.items():
            each = seconds / batch
            ratio = found["autoregressive"] / seconds
            guided = found["gpt-digits, guided"] / seconds
            print(f"{name:18} {batch:5} {1e3 * each:13.2f} {SIDE * SIDE / each:9.0f} {ratio:13.2f}x {guided:9.2f}x")
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
