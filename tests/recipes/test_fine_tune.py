"""The fine-tuning recipes, each run on a tiny Stable Diffusion with random weights."""

import functools
import json
import logging
import shutil
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from latentia import DiffusionPipeline, UNet2DConditionModel
from latentia.conditioners.prompts import token_ids
from latentia.core.weight_files import read_header
from latentia.errors import ArtifactError, InputError
from latentia.formats.lora import read_lora
from latentia.formats.single_file import to_single_file
from latentia.nn.adapted import adaptable
from latentia.nn.lora import load_adapter
from latentia.pipelines import single_file
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe
from latentia.recipes.stable_diffusion import blueprint, open_base
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.checkpoint import read_checkpoint
from latentia.training.steering import ControlNetObjective, InpaintingObjective, widened
from latentia.training.text_objective import TextDiffusionObjective
from tiny_sd import SENTENCES, save_tiny_sd, tiny_sd

TINY = (
    *("image_size=16", "steps=8", "batch_size=4", "accumulate=2", "save_every=4", "log_every=1", "device=cpu"),
    *("precision=no", "optim.warmup=0", "optim.schedule=constant", "optim.clip=none"),
)
OWN = {
    "sd-finetune": ("optim.lr=2e-3", "ema.decay=0.5"),
    "sd-lora": ("optim.lr=1e-2", "train_text_encoder=true", "lora.alpha=8"),
    "sd-dreambooth": ("optim.lr=2e-3", "class_prompt=a dog", "num_class_images=3", "class_steps=2", "class_batch=2"),
    "sd-controlnet": ("optim.lr=2e-3", "crop=random", "views=2"),
    "sd-inpaint": ("optim.lr=2e-3", "ema.decay=0", "cache=false"),
}
TRAINED = {
    "sd-finetune": {"unet"},
    "sd-lora": {"unet", "text_encoder"},
    "sd-dreambooth": {"unet"},
    "sd-controlnet": {"controlnet"},
    "sd-inpaint": {"unet"},
}
CLASSES = {"sd-controlnet": "StableDiffusionControlNetPipeline", "sd-inpaint": "StableDiffusionInpaintPipeline"}
every = pytest.mark.parametrize("name", OWN)


def picture(i):
    grey = Image.linear_gradient("L").resize((24, 16)).rotate(90 * i)
    return Image.merge("RGB", [grey, grey.rotate(120), grey.rotate(240)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five pictures with captions, each with one to steer by."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(5):
        picture(i).save(folder / f"{i}.png")
        picture(i).convert("L").save(folder / f"edges{i}.png")
        lines.append({"file_name": f"{i}.png", "text": SENTENCES[i], "conditioning_image": f"edges{i}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def tune(data):
    """`tune(name, *settings)`: the recipe at tiny size."""
    return lambda name, *settings: override(
        registry.recipe(name), [f"base={tiny_sd()}", f"data={data}", *TINY, *OWN[name], *settings]
    )


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """`runs(name)`: the folder of a finished run; read it only."""

    @functools.cache
    def run(name):
        out = tmp_path_factory.mktemp(name)
        recipe = override(registry.recipe(name), [f"base={tiny_sd()}", f"data={data}", *TINY, *OWN[name]])
        run_recipe(recipe, out, progress=False)
        return out

    return run


def weights(pipe):
    """The networks' weights by name."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: part.state_dict() for name, part in parts.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What a run leaves -----------------------------------------------------------------------------------------


@every
def test_a_run_leaves_a_pipeline_that_changed_only_where_it_was_trained(name, runs):
    pipe = DiffusionPipeline.from_pretrained(runs(name) / "pipeline")
    assert type(pipe).__name__ == CLASSES.get(name, "StableDiffusionPipeline")
    before, after = weights(DiffusionPipeline.from_pretrained(tiny_sd())), weights(pipe)
    assert {part for part in after if part not in before or not same(after[part], before[part])} == TRAINED[name]
    assert {value.dtype for state in after.values() for value in state.values()} == {torch.float32}
    assert pipe.scheduler.config["prediction_type"] == "epsilon"
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"


def trained_loss(name, parts, pictures):
    """The mean loss of a recipe's objective over four draws of noise."""
    ids = token_ids(parts["tokenizer"], [*SENTENCES[:5]])[:, 0]
    options = {
        "scheduler": DDPMScheduler.from_config(parts["scheduler"].config),
        "text_encoder": parts["text_encoder"],
        "empty_ids": token_ids(parts["tokenizer"], "")[0, 0],
        "caption_dropout": 0.0,
    }
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": ids, "pixels": pictures, "condition": ((pictures + 1) * 127.5).byte()}
    if name == "sd-dreambooth":
        batch["input_ids"] = token_ids(parts["tokenizer"], ["a photo of sks dog"] * 5)[:, 0]
    with torch.no_grad():
        batch["x"] = parts["vae"].to_latents(pictures, generator)
        if name == "sd-controlnet":
            batch["condition"] = ((pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1) + 1) * 127.5).byte()
            objective = ControlNetObjective(parts["unet"], controlnet=parts["controlnet"], **options)
        elif name == "sd-inpaint":
            objective = InpaintingObjective(widened(parts["unet"], 9), vae=parts["vae"], **options)
        else:
            objective = TextDiffusionObjective(parts["unet"], **options)
        total = 0.0
        for seed in range(4):
            torch.manual_seed(seed)
            total += objective(batch).total.item() / 4
    return total


@every
def test_training_lowers_the_loss(name, runs, tune):
    pictures = tune("sd-finetune").pictures().batch(range(5))["x"]
    before = DiffusionPipeline.from_pretrained(tiny_sd()).components
    after = DiffusionPipeline.from_pretrained(runs(name) / "pipeline").components
    start = trained_loss("sd-finetune" if name == "sd-controlnet" else name, before, pictures)
    assert trained_loss(name, after, pictures) < 0.9 * start


def test_the_pipeline_holds_the_average(runs):
    final = runs("sd-finetune") / "checkpoints" / "unet" / "final"
    saved = DiffusionPipeline.from_pretrained(runs("sd-finetune") / "pipeline").unet.state_dict()
    averaged, raw = load_file(final / "averaged.safetensors"), load_file(final / "weights.safetensors")
    assert same({f"denoiser.{key}": value for key, value in saved.items()}, averaged)
    assert not same(averaged, raw)


@every
def test_resumed_is_uninterrupted(name, runs, tune, tmp_path):
    run_recipe(override(tune(name), ["steps=4"]), tmp_path, progress=False)
    run_recipe(tune(name), tmp_path, resume=True, progress=False)
    ours, theirs = (weights(DiffusionPipeline.from_pretrained(out / "pipeline")) for out in (tmp_path, runs(name)))
    assert all(same(ours[part], theirs[part]) for part in theirs)


def lora_file(out):
    return out / "lora" / "pytorch_lora_weights.safetensors"


def test_the_lora_file_on_the_base_is_the_fused_pipeline(runs):
    out = runs("sd-lora")
    state = load_file(lora_file(out))
    assert {key.split(".")[0] for key in state} == {"unet", "text_encoder"}
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in state)
    assert {min(value.shape) for value in state.values()} == {4}
    base = open_base(str(tiny_sd()))
    networks = {name: base[name] for name in ("unet", "text_encoder")}
    layers = {name: adaptable(network) for name, network in networks.items()}
    found = read_lora(state, layers, read_header(lora_file(out)).metadata)
    assert {alpha for part in found.values() for _, _, alpha in part.values()} == {8.0}
    for name, network in networks.items():
        load_adapter(network, "learnt", found[name])
    fused = DiffusionPipeline.from_pretrained(out / "pipeline")
    x, t, ids = torch.randn(1, 4, 8, 8), torch.tensor([500]), token_ids(base["tokenizer"], "a cat")[0]
    with torch.no_grad():
        mine = networks["unet"](x, t, networks["text_encoder"](ids).last_hidden_state).sample
        theirs = fused.unet(x, t, fused.text_encoder(ids).last_hidden_state).sample
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


def test_without_fusing_the_pipeline_is_the_base(tune, tmp_path):
    recipe = override(tune("sd-lora"), ["fuse=false", "steps=1", "train_text_encoder=false", "preview_every=1"])
    run_recipe(override(recipe, ["preview_steps=1", "preview_prompts=a cat | a dog"]), tmp_path, progress=False)
    after = weights(DiffusionPipeline.from_pretrained(tmp_path / "pipeline"))
    before = weights(DiffusionPipeline.from_pretrained(tiny_sd()))
    assert all(same(after[part], before[part]) for part in before)
    checkpoint = load_file(tmp_path / "checkpoints" / "unet" / "final" / "weights.safetensors")
    assert all(key.startswith("adapters.denoiser.") for key in checkpoint)
    assert (tmp_path / "samples" / "unet-00000001.png").is_file()


# The same by Diffusers -------------------------------------------------------------------------------------


@every
def test_diffusers_reads_the_pipeline_and_computes_the_same(name, runs):
    diffusers = pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.DiffusionPipeline.from_pretrained(runs(name) / "pipeline", safety_checker=None)
    mine = DiffusionPipeline.from_pretrained(runs(name) / "pipeline")
    assert type(theirs).__name__ == type(mine).__name__
    ids = token_ids(mine.tokenizer, "two cats and three dogs in a garden")[0]
    assert torch.equal(ids, theirs.tokenizer(["two cats and three dogs in a garden"], padding="max_length",
                                             return_tensors="pt").input_ids)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, mine.unet.config.in_channels, 8, 8, generator=generator)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    outputs = []
    with torch.no_grad():
        for pipe in (mine, theirs):
            text, t, added = pipe.text_encoder(ids).last_hidden_state, torch.tensor([601]), {}
            if name == "sd-controlnet":
                down, mid = pipe.controlnet(x, t, text, image, return_dict=False)
                added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            outputs.append(pipe.unet(x, t, text, **added).sample)
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-5)


# Precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd-lora", "sd-controlnet"])
def test_a_base_in_half_precision_trains_float32_weights(name, tune, tmp_path):
    """What breaks every script once ("Attempting to unscale FP16 gradients") cannot happen."""
    base = save_tiny_sd(tmp_path / "half", variant="fp16", dtype=torch.float16)
    settings = ["precision=bf16", "steps=2", "preview_every=2", "preview_steps=1", "gradient_checkpointing=true"]
    run_recipe(override(tune(name), [f"base={base}", "variant=fp16", *settings]), tmp_path / "run", progress=False)
    trained = load_file(next((tmp_path / "run" / "checkpoints").glob("*/final/weights.safetensors")))
    assert {value.dtype for value in trained.values()} == {torch.float32}
    saved = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    stored = DiffusionPipeline.from_pretrained(base, variant="fp16")
    assert same(saved.vae.state_dict(), stored.vae.state_dict())  # not rounded on its way through training
    if name != "sd-lora":
        assert same(saved.text_encoder.state_dict(), stored.text_encoder.state_dict())
    if name == "sd-controlnet":
        assert same(saved.unet.state_dict(), stored.unet.state_dict())


# DreamBooth ------------------------------------------------------------------------------------------------


def test_the_class_is_drawn_once_and_goes_on_where_it_was(runs, tune, tmp_path):
    drawn = sorted((runs("sd-dreambooth") / "class_images").iterdir())
    assert [path.name for path in drawn] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(drawn[1]) as first:
        assert first.size == (16, 16)
        assert json.loads(first.text["latentia"]) == {"prompt": "a dog", "seed": 0, "index": 1}
    lines = (runs("sd-dreambooth") / "metrics.jsonl").read_text().splitlines()
    assert {"instance", "prior", "loss"} <= set(json.loads(lines[0]))
    recipe = override(tune("sd-dreambooth"), ["steps=1", "num_class_images=4"])
    shutil.copytree(runs("sd-dreambooth") / "class_images", tmp_path / "class_images")
    (tmp_path / "class_images" / "00001.png").unlink()
    kept = (tmp_path / "class_images" / "00000.png").stat().st_mtime_ns
    run_recipe(recipe, tmp_path, progress=False)
    assert (tmp_path / "class_images" / "00000.png").stat().st_mtime_ns == kept
    assert sorted(path.name for path in (tmp_path / "class_images").iterdir())[-1] == "00003.png"
    again = tmp_path / "class_images" / "00001.png"
    with Image.open(again) as one, Image.open(drawn[1]) as other:
        assert one.tobytes() == other.tobytes()


def test_a_given_class_and_adapters(tune, data, tmp_path):
    settings = [f"class_data={data}", "lora.rank=2", "steps=2", "prior_weight=0.5"]
    recipe = override(tune("sd-dreambooth"), settings)
    assert [row.network for row in recipe.plan(measure=False).rows] == ["vae", "text encoder", "unet"]
    assert recipe.num_images() == 10
    run_recipe(recipe, tmp_path, progress=False)
    assert not (tmp_path / "class_images").exists()
    assert lora_file(tmp_path).is_file()


# What does not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sd-finetune", ["base=sd-1.5"], r"has no weights: give base=FOLDER"),
        ("sd-finetune", ["image_size=17"], "image_size 17 is not divisible by 2: take 16"),
        ("sd-finetune", ["base=INPAINT"], "a UNet of 9 input channels; sd-finetune wants 4"),
        ("sd-controlnet", ["base=PIX2PIX"], "a UNet of 8 input channels; sd-controlnet wants 4"),
        ("sd-inpaint", ["base=PIX2PIX"], "a UNet of 8 input channels; sd-inpaint wants 4 or 9"),
        ("sd-lora", ["base=LDM"], "is a LDMTextToImagePipeline without vae, text_encoder"),
        ("sd-lora", ["base=runs/none"], "runs/none"),
        ("sd-lora", ["data=none"], "no data called 'none': give hf:NAME, or a folder of images with captions"),
        ("sd-lora", ["data=BARE"], r"2 of 2 pictures have no caption, e.g. 0.png, 1.png: write NAME.txt"),
        ("sd-controlnet", ["data=BARE", "caption=x"], "not every picture has one to steer by"),
        ("sd-dreambooth", ["class_data=nothing"], "no data called 'nothing'"),
        ("sd-lora", ["lora.targets=to_x,"], "no layer of UNet2DConditionModel matches 'to_x'"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(tune, tmp_path, name, settings, message):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i in range(2):
        picture(i).save(bare / f"{i}.png")
    places = {"BARE": bare, "INPAINT": tiny_sd("inpaint"), "PIX2PIX": tiny_sd("pix2pix"), "LDM": tiny_sd("ldm")}
    for word, place in places.items():
        settings = [text.replace(word, str(place)) for text in settings]
    with pytest.raises((InputError, ArtifactError), match=message):
        run_recipe(override(tune(name), settings), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("sd-lora", "lora.rank=0", "trains whole networks: use sd-finetune"),
        ("sd-lora", "fsdp=true", "fsdp shards weights that are trained"),
        ("sd-finetune", "views=2", "views=2 of the same centre: set crop=random"),
        ("sd-dreambooth", "caption=a dog", "every picture's caption is instance_prompt"),
        ("sd-dreambooth", "class_data=x", "class_data needs class_prompt"),
    ],
)
def test_settings_that_contradict(name, setting, message):
    with pytest.raises(InputError, match=message):
        override(registry.recipe(name), [setting])


def test_long_captions_are_cut_and_counted(tune, tmp_path, data, caplog):
    folder = tmp_path / "long"
    folder.mkdir()
    for i, text in enumerate(["a cat " * 60, "a dog"]):
        picture(i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(text)
    with caplog.at_level(logging.WARNING, logger="latentia"):
        run_recipe(override(tune("sd-lora"), [f"data={folder}", "steps=1"]), tmp_path / "run", progress=False)
    assert "1 of 2 captions have more than 77 tokens and are cut" in caplog.text


# Bases and dry runs ----------------------------------------------------------------------------------------


def test_the_prediction_type_is_the_bases(tune, tmp_path):
    recipe = override(tune("sd-lora"), [f"base={tiny_sd('sd2')}", "steps=1", "save_every=1", "lora.rank=1"])
    run_recipe(recipe, tmp_path, progress=False)
    state = read_checkpoint(tmp_path / "checkpoints" / "unet" / "final").state
    assert state["agreed"]["objective.scheduler.prediction_type"] == "v_prediction"
    assert DiffusionPipeline.from_pretrained(tmp_path / "pipeline").scheduler.config.prediction_type == "v_prediction"


def test_a_single_file_can_be_the_base(tmp_path, monkeypatch):
    parts = open_base(str(tiny_sd()))
    states = {name: parts[name].state_dict() for name in ("unet", "vae", "text_encoder")}
    save_file(to_single_file(states), tmp_path / "sd.safetensors")
    with pytest.raises(InputError, match="tokenizer"):
        open_base(str(tmp_path / "sd.safetensors"))
    untold = {
        "unet": {"norm_num_groups": 8, "attention_head_dim": 2, "sample_size": 8},
        "vae": {"norm_num_groups": 8, "sample_size": 16},
        "text_encoder": {"num_attention_heads": 4},
    }
    tiny = functools.partial(single_file.load_single_file, overrides=untold)
    monkeypatch.setattr(single_file, "load_single_file", tiny)
    found = open_base(str(tmp_path / "sd.safetensors"), str(tiny_sd()))
    assert all(same(found[name].state_dict(), state) for name, state in states.items())
    shapes = blueprint(str(tmp_path / "sd.safetensors"), str(tiny_sd()))
    assert (shapes.length, shapes.width) == (77, 32)
    assert shapes.unet().config == parts["unet"].config


def test_a_run_can_be_the_base_of_another(runs, tune, tmp_path):
    recipe = override(tune("sd-inpaint"), [f"base={runs('sd-inpaint')}", "steps=1", "optim.lr=1e-12", "cache=true"])
    run_recipe(recipe, tmp_path, progress=False)
    ours, theirs = (
        UNet2DConditionModel.from_pretrained(out / "pipeline" / "unet") for out in (tmp_path, runs("sd-inpaint"))
    )
    assert all(torch.allclose(v, theirs.state_dict()[k], atol=1e-6) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "settings", "trained", "whole", "giga_flops"),
    [
        ("sd-finetune", [], 859_520_964, 859_520_964, 803.3),
        ("sd-lora", [], 797_184, 860_318_148, 804.4),
        ("sd-dreambooth", ["class_prompt=a photo of dog"], 859_520_964, 859_520_964, 2 * 803.3),
        ("sd-controlnet", [], 361_279_120, 1_220_800_084, 1086.6),
        ("sd-inpaint", [], 859_535_364, 859_535_364, 803.4),
    ],
)
def test_dry_run_at_the_size_of_stable_diffusion(name, settings, trained, whole, giga_flops):
    plan = override(registry.recipe(name), settings).plan(measure=False)
    main, vae, text = plan.rows[-1], plan.rows[-3], plan.rows[-2]
    assert (main.trained_parameters, main.parameters) == (trained, whole)
    assert main.input_shape == main.output_shape == (4, 64, 64)
    assert main.forward_flops / 1e9 == pytest.approx(giga_flops, rel=1e-3)
    assert (vae.parameters, text.parameters) == (83_653_863, 123_060_480)
    assert plan.parameters == trained


def test_dry_run_of_adapters_counts_what_they_spare():
    row = registry.recipe("sd-lora").plan(measure=False).rows[-1]
    assert row.state_bytes == 16 * 797_184 + 2 * 859_520_964
    again = override(registry.recipe("sd-lora"), ["gradient_checkpointing=true"]).plan(measure=False).rows[-1]
    assert again.total_flops == pytest.approx(row.total_flops + row.forward_flops * row.samples, rel=1e-12)


def test_dry_run_of_a_folder_reads_no_weights(tmp_path, tune, data):
    shutil.copytree(tiny_sd(), tmp_path / "base")
    for file in (tmp_path / "base").rglob("*.safetensors"):
        file.unlink()
    rows = override(tune("sd-lora"), [f"base={tmp_path / 'base'}"]).plan(measure=True).rows
    assert [row.network for row in rows] == ["vae", "text encoder", "unet"]
    assert rows[1].trained
    assert [row.samples for row in rows] == [5, 32, 32]
    assert all(row.seconds_here > 0 for row in rows)
