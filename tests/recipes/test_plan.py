import io
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from latentia.errors import InputError
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.plan import A100_PEAK, A100_SHARE, FusedAttention, Work, block_speed, cost
from latentia.recipes.show import count, duration, plan_table


@pytest.mark.parametrize(
    ("name", "parameters", "giga_flops", "latent"),
    [
        ("ddpm-cifar10", 35_746_307, 12.44, (3, 32, 32)),
        ("ldm-celebahq", 274_056_163, 202.4, (3, 64, 64)),
        ("ldm4-imagenet", 263_905_347, 159.3, (3, 64, 64)),
        ("ldm8-imagenet", 258_758_148, 79.7, (4, 32, 32)),
    ],
)
def test_published_networks(name, parameters, giga_flops, latent):
    main = registry.recipe(name).plan(measure=False).rows[-1]
    assert main.parameters == parameters
    assert main.forward_flops / 1e9 == pytest.approx(giga_flops, rel=1e-3)
    assert main.input_shape == latent


def test_first_stage_f8_is_stable_diffusions_size():
    vae = registry.recipe("ldm8-imagenet").plan(measure=False).rows[0]
    assert vae.parameters == 83_653_863
    assert vae.input_shape == (3, 256, 256)


def linear_work(**changes):
    given = {
        "phase": "p", "network": "n", "build": lambda: nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU()),
        "inputs": lambda batch: (torch.zeros(batch, 8),), "samples": 1000, "batch_size": 10, "micro_batch": 5,
    }  # fmt: skip
    return Work(**(given | changes))


def test_cost_of_a_linear_layer_by_hand():
    row = cost(linear_work(averaged=True), "no", torch.device("cpu"), None)
    assert row.parameters == 128
    assert row.forward_flops == 2 * 8 * 16
    assert row.total_flops == 3 * 256 * 1000
    assert row.state_bytes == 4 * 128 * 5  # weights, gradient, two moments, average
    assert row.activation_bytes == 5 * 4 * (8 + 16)  # the input of Linear and the output of ReLU
    assert row.seconds_a100 == pytest.approx(row.total_flops / (A100_PEAK["no"] * A100_SHARE))
    assert row.seconds_here is None


def test_frozen_work_has_no_backward_and_no_optimizer():
    row = cost(linear_work(trained=False), "bf16", torch.device("cpu"), 1e9)
    assert row.total_flops == 256 * 1000
    assert row.state_bytes == 4 * 128
    assert row.measured


def test_large_work_is_estimated_from_the_speed():
    work = linear_work(build=lambda: nn.Linear(20_000, 30_000, bias=False), micro_batch=50,
                       inputs=lambda batch: (torch.zeros(batch, 20_000),))  # fmt: skip
    row = cost(work, "no", torch.device("cpu"), 1e12)
    assert not row.measured
    assert row.seconds_here == pytest.approx(row.total_flops / 1e12)


def test_attention_is_counted_and_not_materialised():
    kept = []
    q, k, v = (torch.zeros(2, 3, 64, 16, device="meta", requires_grad=True) for _ in range(3))
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with hooks, FusedAttention() as fused:
        out = F.scaled_dot_product_attention(q, k, value=v)
    assert out.shape == q.shape
    assert fused.flops == 2 * (2 * 3) * 64 * 64 * (16 + 16)
    assert max(kept) <= q.numel() < 2 * 3 * 64 * 64


def test_measured_plan_of_a_small_recipe():
    settings = ["batch_size=2", "vae.batch_size=2", "vae.channels=8,8,8", "unet.channels=8,16", "vae.groups=4"]
    recipe = override(registry.recipe("digits-ldm"), [*settings, "unet.groups=4", "unet.head_dim=8", "device=cpu"])
    before = torch.random.get_rng_state()
    plan = recipe.plan()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(row.measured for row in plan.rows)
    assert 0 < plan.seconds_here < math.inf
    assert plan.machine.endswith(("CPU thread", "CPU threads"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="device 'cuda' is not available here"):
        override(registry.recipe("digits-ddpm"), ["device=cuda"]).plan(measure=False)


def test_block_speed_is_a_speed():
    assert 1e8 < block_speed(torch.device("cpu"), width=32, side=8, batch=1) < 1e14


def test_a_given_codec_is_not_trained(tmp_path):
    recipe = registry.recipe("ldm8-imagenet")
    with torch.device("meta"):
        recipe.vae.build(256).save_config(tmp_path)
    plan = override(recipe, [f"codec={tmp_path}"]).plan(measure=False)
    assert [(row.phase, row.network, row.trained) for row in plan.rows] == [
        ("unet", "codec", False),
        ("unet", "unet", True),
    ]
    assert plan.parameters == 258_758_148


def test_plan_table_shows_the_numbers():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(plan_table(registry.recipe("ldm-celebahq").plan(measure=False)))
    text = console.export_text()
    for shown in ("274,056,163", "3×64×64", "202 GFLOP", "30 % of 312 TFLOP/s (bf16)", "codec (frozen)"):
        assert shown in text


def test_a_study_s_many_runs_are_lines():
    recipe = override(
        registry.recipe("tokenizers-study"), ["stages=vqvae-digits,fsq-digits,vqgan-digits,flowmo-digits"]
    )
    plan = recipe.plan(measure=False)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    lines = [line for line in console.export_text().splitlines() if ": codec" in line or ": pretraining" in line]
    assert len(plan.rows) > 8
    assert lines[0].split()[:3] == ["vqvae-digits:", "codec", "codec"]
    assert all(line.rstrip().endswith("not measured") for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (35_746_307, "35.7 M"), (1234, "1.23 k"), (3.8e18, "3.8 E")],
)
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not measured"), (0.5, "0.5 s"), (42, "42 s"), (600, "10 min"), (7200, "2 h"), (864000, "10 days")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
