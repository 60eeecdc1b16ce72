import json

import pytest
import torch

from latentia.errors import InputError
from latentia.methods.flowmo.codecs import ContinuousFlowMo, FlowMo
from latentia.recipes.flowmo_digits import ABLATIONS, flowmo_digits
from latentia.recipes.flowmo_judging import finish_curve, read_curve, samplers
from latentia.recipes.flowmo_paper import flowmo_hi, flowmo_lo, flowmo_small
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

QUICK = (
    "steps=3",
    "regression_steps=0",
    "batch_size=4",
    "post.steps=2",
    "post.batch_size=4",
    "post.chain_steps=2",
    "perceptual.steps=2",
    "sizes.encoder.width=16",
    "sizes.encoder.depth=1",
    "sizes.decoder.width=16",
    "sizes.decoder.depth=1",
    "sampling.steps=2",
    "judged=false",
    "preview_every=0",
)


def quick(*changes):
    merged = {each.partition("=")[0]: each for each in (*QUICK, *changes)}
    return override(flowmo_digits(), list(merged.values()))


@pytest.mark.parametrize(
    ("build", "bits", "parameters", "flops"),
    [
        (flowmo_lo, 4608, 865_533_730, 4.459e12),
        (flowmo_hi, 14336, 865_606_728, 4.459e12),
        (flowmo_small, 4608, 445_287_250, 0.537e12),
    ],
)
def test_the_paper_models(build, bits, parameters, flops):
    """Bits of a picture; 79.8 M parameters fewer than published, which nothing ever reads."""
    recipe = build()
    with torch.device("meta"):
        codec = recipe.build_codec()
    assert codec.bits((3, 256, 256)) == bits
    assert codec.num_parameters() == parameters
    main = recipe.plan(measure=False).rows[-1]
    assert main.phase == "pretraining"
    assert main.forward_flops == pytest.approx(flops, rel=2e-3)
    assert recipe.optim.build().clip is None
    assert codec.default_sampler().num_inference_steps == 25


def test_the_length_of_the_published_training():
    assert flowmo_lo().steps + flowmo_lo().frozen_steps == 1_300_000
    assert flowmo_hi().steps + flowmo_hi().frozen_steps == 800_000
    assert flowmo_lo().steps == 200_000
    assert [name for name, _ in flowmo_lo().phases(Bench())] == ["pretraining", "frozen", "post-training"]
    assert [name for name, _ in flowmo_small().phases(Bench())] == ["pretraining", "frozen"]


def test_missing_perceptual_weights_are_said_before_anything_is_built():
    with pytest.raises(InputError, match=r"perceptual.kind=lpips-vgg needs perceptual.weights"):
        flowmo_lo().check()
    with pytest.raises(InputError, match=r"post.perceptual.kind=resnet50-logits needs"):
        override(flowmo_lo(), ["perceptual.kind=none"]).check()
    override(flowmo_lo(), ["perceptual.kind=none", "post.steps=0"]).check()


def test_a_quick_run_saves_a_codec_that_makes_tokens(tmp_path):
    run_recipe(quick(), tmp_path / "run", progress=False)
    codec = FlowMo.from_pretrained(tmp_path / "run/pipeline")
    x = quick().images("test").batch([0, 1])["x"]
    tokens = codec.to_tokens(x)
    assert tokens.shape == (2, 16)
    assert codec.bits((1, 16, 16)) == 128
    with torch.no_grad():
        assert codec.from_tokens(tokens, torch.Generator().manual_seed(0)).shape == x.shape
    phases = {json.loads(line)["phase"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()}
    assert phases == {"features", "pretraining", "post-training"}


def test_the_ablation_with_another_encoder_takes_it_over(tmp_path):
    recipe = quick("regression_steps=2", "post.steps=0", "perceptual.kind=none", "frozen_steps=1")
    bench_out = tmp_path / "run"
    run_recipe(recipe, bench_out, progress=False)
    from latentia.core.artifacts import load_state_dict

    saved = load_state_dict(bench_out / "pipeline")
    regressor = load_state_dict(next((bench_out / "checkpoints/regression").glob("**/weights.safetensors")))
    taken = [key for key in saved if key.startswith(("encoder.", "quantizer."))]  # the decoder has learnt on
    assert any(not torch.equal(saved[key], regressor[f"codec.{key}"]) for key in saved if key.startswith("decoder."))
    assert {key.split(".")[0] for key in taken} == {"encoder", "quantizer"}  # codes that another encoder never meant
    assert all(torch.equal(saved[key], regressor[f"codec.{key}"]) for key in taken)


def test_continuous(tmp_path):
    run_recipe(quick("sizes.quantizer=none", "target.noise_sync=0.1", "post.steps=0"), tmp_path / "run", progress=False)
    codec = ContinuousFlowMo.from_pretrained(tmp_path / "run/pipeline")
    assert codec.latent_shape((1, 16, 16)) == (4, 16)


@pytest.mark.parametrize(("name", "changes"), ABLATIONS.items(), ids=ABLATIONS)
def test_every_ablation_can_be_built(name, changes):
    recipe = override(flowmo_digits(), list(changes))
    assert recipe != flowmo_digits()
    with torch.device("meta"):
        codec = recipe.build_codec()
    assert codec.bits((1, 16, 16)) == 128  # at equal bits


def test_samplers_are_the_recipe_s_and_its_ablations():
    found = samplers(flowmo_digits())
    assert {f"{n} steps" for n in (25, 10, 4, 2, 1)} <= set(found)
    assert (found["linear"].rho, found["shifted"].rho) == (1, 4)
    assert found["no guidance"].guidance_scale == 1
    assert found["10 steps"] == override(flowmo_digits(), []).build_codec().default_sampler()


def test_the_curve_counts_training_alone_and_forgets_what_is_done_again(tmp_path, monkeypatch):
    from latentia.recipes import flowmo_judging

    recipe = quick("judged=true")
    few = recipe.images("test").batch(range(12))["x"]
    monkeypatch.setattr(flowmo_judging, "test_pictures", lambda _: few)
    bench = Bench(out=tmp_path)
    bench.keep("features", recipe.feature_network())
    bench.keep("started", 0.0)
    phase = recipe.pretraining_phase(bench)
    clock = iter((10.0, 100.0, 104.0, 200.0, 207.0, 300.0))  # (measured at, done measuring) of every line
    monkeypatch.setattr(flowmo_judging.time, "process_time", lambda: next(clock))
    for step in (4, 9, 9):
        phase.objective.step = step
        flowmo_judging.note(recipe, bench, "pretraining")
    monkeypatch.undo()
    lines = read_curve(tmp_path)
    assert [line["step"] for line in lines] == [5, 10]
    assert [line["cpu_seconds"] for line in lines] == [10.0, 17.0]  # 10, + 4 dropped, + 7
    monkeypatch.setattr(flowmo_judging, "test_pictures", lambda _: few)
    bench.keep("ruler", Pixels())
    finish_curve(recipe, bench, tmp_path)
    assert all({"psnr_4", "frechet_pixels_4", "frechet_pixels_10"} <= set(line) for line in read_curve(tmp_path))
    assert not (tmp_path / "curve").exists()


class Pixels:
    """Four means of a picture."""

    name = "pixels"

    def features(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sizes.patch_size=5", "not a multiple"),
        ("sizes.quantizer=lfq", "does not divide"),
        ("target.noise_sync=0.5", "quantizer=none"),
        ("post.perceptual.kind=none", "post.steps=0"),
        ("sizes.encoder.heads=5", "5 heads"),
    ],
)
def test_values_that_do_not_fit(change, said):
    with pytest.raises(Exception, match=said):
        override(flowmo_digits(), [change])
