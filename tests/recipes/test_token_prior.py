"""The priors over tokens, with two steps of tiny networks: everything that a user would type afterwards works."""

import json

import pytest
import torch
from PIL import Image

from latentia import AutoregressivePipeline, DiffusionPipeline, MaskedPipeline
from latentia.errors import InputError, LatentiaError
from latentia.methods.flowmo.codecs import FlowMo
from latentia.recipes import evaluation, registry
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe
from latentia.recipes.sampling import Request, open_pipeline, sample, sample_to

TINY = ("steps=2", "batch_size=8", "transformer.width=8", "transformer.layers=1", "transformer.heads=2", "device=cpu")
TINY += ("pictures=40", "judge_steps=2", "image_size=16", "preview_every=2", "label_dropout=0.1")
CODEC = ("tokenizer.steps=2", "tokenizer.batch_size=8", "tokenizer.channels=8,", "tokenizer.latent_channels=4")
CODEC += ("tokenizer.code_dim=2", "tokenizer.codes=16", "tokenizer.groups=4")


SMALL_TOWER = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """The folder of a finished run of a tiny `maskgit-digits`; read it only."""
    out = tmp_path_factory.mktemp("runs") / "masked"
    run_recipe(override(registry.recipe("maskgit-digits"), [*TINY, *CODEC]), out, progress=False)
    return out


@pytest.fixture(scope="module")
def gpt_run(masked_run, tmp_path_factory):
    """A tiny `gpt-digits` on the codec of the other run."""
    out = tmp_path_factory.mktemp("runs") / "gpt"
    run_recipe(override(registry.recipe("gpt-digits"), [*TINY, f"codec={masked_run}"]), out, progress=False)
    return out


@pytest.fixture(params=["masked_run", "gpt_run"])
def run(request):
    return request.getfixturevalue(request.param)


def test_a_run_leaves_pipeline_judge_and_report(run):
    left = {path.name for path in run.iterdir()}
    assert {"pipeline", "judge", "report.html", "report.json", "samples.png", "samples", "metrics.jsonl"} <= left
    told = json.loads((run / "report.json").read_text())
    assert set(told["held_out_bits"]) == {"train", "test"}
    for row in told["rows"]:
        assert row["numbers"]["accuracy_digits"]["n_generated"] == row["n"] == 40
        assert row["seconds_alone"] > 0
    assert told["codec"]["bits_per_pixel"] == 16 * 4 / 256
    page = (run / "report.html").read_text()
    assert "Memorised or made?" in page
    assert page.count("<img") >= 3
    with Image.open(run / "samples.png") as sheet:
        assert sheet.width > sheet.height


@pytest.mark.parametrize("quantizer", ["lfq", "vq_ema"])
@pytest.mark.parametrize("name", ["maskgit-digits", "gpt-digits"])
def test_priors_learn_the_codes_of_a_flowmo(name, quantizer, tmp_path):
    torch.manual_seed(0)
    half = {f"{part}_{size}": value for part in ("encoder", "decoder") for size, value in SMALL_TOWER.items()}
    options = {"group_bits": 3} if quantizer == "lfq" else {"num_codes": 16}
    sizes = {"image_size": 16, "in_channels": 1, "patch_size": 8, "code_length": 4, "code_dim": 6}
    codec = FlowMo(**sizes, **half, quantizer=quantizer, quantizer_options=options, num_inference_steps=2)
    codec.save_pretrained(tmp_path / "codec")
    one_by_one = {} if name == "gpt-digits" else {"patch_size": 1}
    shared = [each.replace("pictures=40", "pictures=0") for each in TINY]
    changes = [*shared, f"codec={tmp_path / 'codec'}", *(f"{k}={v}" for k, v in one_by_one.items())]
    run_recipe(override(registry.recipe(name), changes), tmp_path / "run", progress=False)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run/pipeline")
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe(class_labels=[3, 4], seed=0, output_type="latent").images
    assert tokens.shape == (2, *codec.token_shape((1, 16, 16)))
    assert int(tokens.max()) < codec.num_codes
    assert pipe(class_labels=[3, 4], seed=0, output_type="pt").images.shape == (2, 1, 16, 16)


def test_the_codec_is_trained_once(masked_run, gpt_run):
    a, b = (DiffusionPipeline.from_pretrained(run / "pipeline") for run in (masked_run, gpt_run))
    assert isinstance(a, MaskedPipeline)
    assert isinstance(b, AutoregressivePipeline)
    for key, value in a.vqvae.state_dict().items():
        assert torch.equal(value, b.vqvae.state_dict()[key]), key
    told = json.loads((gpt_run / "report.json").read_text())
    assert list(told["training"]) == ["judge", "prior"]


def test_sampling_as_from_the_command_line(run, tmp_path):
    request = Request(count=5, classes=("7",), seed=3, batch_size=2)
    pipe = open_pipeline(str(run), request)
    files = sample_to(pipe, request, tmp_path / "sevens")
    assert [file.name for file in files] == [f"{i:05d}-7.png" for i in range(5)]
    with Image.open(files[0]) as picture:
        assert picture.size == (16, 16)
        assert json.loads(picture.text["latentia"]) == {"seed": 3, "index": 0, "class": 7}
    whole = sample(pipe, request)
    torch.testing.assert_close(whole, sample(pipe, Request(count=5, classes=(7,), seed=3)), atol=1e-5, rtol=0)
    guided = sample(pipe, Request(count=5, classes=(7,), seed=3, guidance=30.0))
    assert guided.shape == whole.shape == (5, 1, 16, 16)


def test_steps_are_rounds_or_have_no_meaning(masked_run, gpt_run, tmp_path):
    request = Request(count=1, steps=3)
    pipe = open_pipeline(masked_run, request)
    seen = []
    pipe.scheduler.__class__.set_timesteps, kept = (
        lambda self, n, device=None: (seen.append(n), kept(self, n, device))[1],
        pipe.scheduler.__class__.set_timesteps,
    )
    try:
        sample_to(pipe, request, tmp_path / "one")
        sample(pipe, Request(count=1))
    finally:
        pipe.scheduler.__class__.set_timesteps = kept
    assert seen == [3, 8]
    with Image.open(tmp_path / "one" / "00000-0.png") as picture:
        assert json.loads(picture.text["latentia"])["steps"] == 3
    with pytest.raises(InputError, match="16 tokens, drawn one a step: leave the number of steps out"):
        sample(open_pipeline(gpt_run, request), request)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "flow"])
def test_samplers_of_noise_are_refused_by_name(run, name):
    with pytest.raises(InputError, match=r"draws tokens, by its (Masked|Autoregressive)Scheduler: leave it out"):
        open_pipeline(run, Request(scheduler=name))


def test_evaluating_as_from_the_command_line(run):
    numbers = evaluation.evaluate_pipeline(str(run), "digits", Request(count=40), evaluation.Rulers())
    found = {each.name: each.value for each in numbers}
    assert {"accuracy_digits", "frechet_digits", "nearest_pixels_ratio"} <= set(found)


def test_latent_diffusion_on_latents_of_a_vq_codec(masked_run, tmp_path):
    """Continuous latents before quantisation are learned; the decoder quantises."""
    tiny = ("steps=2", "batch_size=8", "unet.channels=8,16", "unet.groups=4", "unet.head_dim=8", "device=cpu")
    given = [*tiny, "image_size=16", "center=false", f"codec={masked_run}"]
    out = run_recipe(override(registry.recipe("digits-ldm"), given), tmp_path / "ldm", progress=False)
    pipe = DiffusionPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.vae).__name__ == "VQModel"
    assert pipe(class_labels=3, seed=1, num_inference_steps=2, output_type="pt").images.shape == (1, 1, 16, 16)
    z = pipe(class_labels=3, seed=1, num_inference_steps=2, output_type="latent").images
    assert not torch.equal(z, pipe.vae.quantize(z).values)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["num_classes=0"], "label_dropout=0.1 needs classes"),
        (["num_classes=7"], "pictures=40 are judged by class"),
        (["transformer.heads=5"], "5 heads do not divide"),
        (["label_dropout=0", "guidance=2"], "guidance=2.0 needs a null class"),
        (["num_classes=5"], "10 classes and num_classes=5"),
        (["data=nothing"], "no data called 'nothing'"),
        (["image_size=18"], "divisible by 4"),
    ],
)
def test_mistakes_are_found_before_any_work(given, said, tmp_path):
    settings = {each.partition("=")[0]: each for each in (*TINY, *CODEC, *given)}
    with pytest.raises(LatentiaError, match=said):
        run_recipe(override(registry.recipe("maskgit-digits"), [*settings.values()]), tmp_path / "x", progress=False)
    assert not (tmp_path / "x" / "checkpoints").exists()


def test_a_codec_without_tokens(ldm_run, tmp_path):
    recipe = override(registry.recipe("gpt-digits"), [*TINY, f"codec={ldm_run}"])
    with pytest.raises(InputError, match="holds AutoencoderKL, which has no tokens"):
        run_recipe(recipe, tmp_path / "x", progress=False)
