"""`latentia convert`, and `latentia info` on what it reads and writes."""

import json
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from latentia import DiffusionPipeline, ModelMixin
from latentia.cli.convert import convert
from latentia.cli.main import Commands
from latentia.core.inspect_path import describe
from latentia.formats.recognise import recognise
from tiny_sd import tiny_sd

# A group of its own, so that these tests tell about the command and not about its place among the others.
APP = typer.Typer(cls=Commands)
APP.command()(convert)
APP.callback()(lambda: None)


@pytest.fixture
def run():
    def call(*arguments, code=0):
        result = CliRunner().invoke(APP, ["convert", *map(str, arguments)], env={"COLUMNS": "400", "NO_COLOR": "1"})
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("convert") / "model.safetensors"
    result = CliRunner().invoke(APP, ["convert", str(tiny_sd()), str(path)], env={"NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return path


def save(path, state):
    save_file(state, path)
    return path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore:.*cannot say:UserWarning", "ignore:.*do not tell:UserWarning")
@pytest.mark.parametrize("kind", ["sd1", "sd2", "pix2pix"])
def test_folder_to_file_and_back(run, tmp_path, kind):
    said = run(tiny_sd(kind), tmp_path / "model.safetensors")
    assert "UNet2DConditionModel, " in said
    assert said.splitlines()[-1].startswith(f"saved {tmp_path / 'model.safetensors'}: ")
    said = run(tmp_path / "model.safetensors", tmp_path / "folder", "--tokenizer", tiny_sd(kind))
    assert f"saved {tmp_path / 'folder'}: " in said
    again, first = (DiffusionPipeline.from_pretrained(f) for f in (tmp_path / "folder", tiny_sd(kind)))
    assert type(again) is type(first)
    assert all(same(getattr(again, name), getattr(first, name)) for name in ("unet", "vae", "text_encoder"))
    assert again.tokenizer("a red cube").input_ids == first.tokenizer("a red cube").input_ids
    assert describe(tmp_path / "folder").all_problems() == []
    peer = getattr(diffusers, type(first).__name__).from_pretrained(tmp_path / "folder")
    assert all(torch.equal(v, first.unet.state_dict()[k]) for k, v in peer.unet.state_dict().items())
    assert all(torch.equal(v, first.vae.state_dict()[k]) for k, v in peer.vae.state_dict().items())


def test_what_a_file_cannot_say_is_warned_about(run, tmp_path):
    with pytest.warns(UserWarning, match=r"cannot say that text_encoder.num_attention_heads is 4, unet.attention_head"):
        run(tiny_sd(), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="norm_num_groups is 8"):
        run(tiny_sd() / "vae", tmp_path / "vae.safetensors", "--half")
    written = load_file(tmp_path / "vae.safetensors")
    assert written["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert {t.dtype for t in written.values()} == {torch.float16}


@pytest.mark.filterwarnings("ignore:.*cannot say:UserWarning")
def test_without_tokenizer_everything_else_is_written(run, tmp_path, single):
    said = run(single, tmp_path / "folder")
    assert f"{tmp_path / 'folder' / 'tokenizer'} is missing" in said
    assert "--tokenizer FOLDER" in said
    shutil.copytree(tiny_sd() / "tokenizer", tmp_path / "folder" / "tokenizer")
    assert DiffusionPipeline.from_pretrained(tmp_path / "folder").tokenizer("a").input_ids


def test_one_model_becomes_a_model_s_folder(run, tmp_path, single):
    state = {k.removeprefix("first_stage_model."): v for k, v in load_file(single).items() if k.startswith("first_")}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "stage.ckpt")
    said = run(tmp_path / "stage.ckpt", tmp_path / "vae", "--dtype", "bf16")
    assert f"{tmp_path / 'vae'}: AutoencoderKL, 658,375 parameters, bfloat16" in said
    assert describe(tmp_path / "vae").dtypes == {"BF16": 658375}
    assert type(ModelMixin.from_pretrained(tmp_path / "vae")).__name__ == "AutoencoderKL"


def test_pickle_to_safetensors(run, tmp_path):
    state = {"a.weight": torch.randn(3, 4), "n": torch.tensor([1, 2])}
    torch.save(state, tmp_path / "x.bin")
    said = run(tmp_path / "x.bin", tmp_path / "x.safetensors")
    assert said == f"saved {tmp_path / 'x.safetensors'}: 2 tensors, 14 numbers, float32, int64\n"
    assert all(torch.equal(v, state[k]) for k, v in load_file(tmp_path / "x.safetensors").items())
    run(tmp_path / "x.safetensors", tmp_path / "half.safetensors", "--half")
    assert load_file(tmp_path / "half.safetensors")["a.weight"].dtype == torch.float16


def test_averages_prediction_and_names_to_ignore(run, tmp_path, single):
    state = load_file(single)
    unet = [k for k in state if k.startswith("model.diffusion_model.")]
    averages = {"model_ema." + k.removeprefix("model.").replace(".", ""): state[k] * 2 for k in unet}
    save_file(state | averages, tmp_path / "both.safetensors")
    run(tmp_path / "both.safetensors", tmp_path / "ema", "--ema", "--prediction-type", "v_prediction")
    weight = load_file(tmp_path / "ema" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(weight, 2 * state["model.diffusion_model.input_blocks.0.0.weight"])
    scheduler = json.loads((tmp_path / "ema" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert "by ignore (--ignore)" in run(
        save(tmp_path / "odd.safetensors", state | {"x.y": torch.zeros(1)}), tmp_path / "no", code=2
    )
    run(tmp_path / "odd.safetensors", tmp_path / "odd", "--ignore", "x.")
    assert "has no averaged weights" in run(single, tmp_path / "no", "--ema", code=2)
    assert not (tmp_path / "no").exists()


def test_lora_to_the_other_layout_and_back(run, tmp_path):
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    name = "lora_unet_" + path.replace(".", "_")
    text = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    kohya = {}
    for begin in (name, text):
        kohya |= {f"{begin}.lora_down.weight": torch.randn(2, 8), f"{begin}.lora_up.weight": torch.randn(8, 2)}
        kohya[f"{begin}.alpha"] = torch.tensor(1.5)
    save_file(kohya, tmp_path / "kohya.safetensors")
    assert "the LoRA in the layout of diffusers" in run(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors")
    peft = load_file(tmp_path / "peft.safetensors")
    assert torch.equal(peft[f"unet.{path}.lora_A.weight"], kohya[f"{name}.lora_down.weight"])
    run(tmp_path / "peft.safetensors", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert set(again) == set(kohya)
    assert all(torch.equal(again[k], v) for k, v in kohya.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{single}", "{there}"), "is there already: give --force"),
        (("{single}", "{single}"), "cannot be converted into itself"),
        (("{nothing}", "out"), "nothing at"),
        (("{folder}", "out"), "is a folder: give a file NAME.safetensors"),
        (("{single}", "out.ckpt"), "nothing is pickled"),
        (("{single}", "{there}/x.safetensors", "--ema"), "--ema means nothing for a file that stays a file"),
        (("{single}", "{new}", "--dtype", "fp8"), "known: bf16, bfloat16, float16, float32, fp16, fp32"),
        (("{single}", "{new}", "--half", "--dtype", "bf16"), "contradict each other"),
        (("{single}", "{new}", "--tokenizer", "{nothing}"), "no folder"),
        (("{folder}", "{there}/x.safetensors", "--tokenizer", "{folder}"), "--tokenizer means nothing for a folder"),
        (("{text}", "{new}"), "is not a safetensors file"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(run, tmp_path, single, arguments, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    (tmp_path / "text.safetensors").write_text("what is this, some text that is no header at all")
    places = {"single": single, "there": tmp_path / "there", "nothing": tmp_path / "nothing", "folder": tiny_sd()}
    places |= {"new": tmp_path / "new", "text": tmp_path / "text.safetensors"}
    assert message in run(*(a.format(**places) for a in arguments), code=2)
    assert not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:.*cannot say:UserWarning")
def test_force_overwrites(run, tmp_path, single):
    target = shutil.copy(single, tmp_path / "a.safetensors")
    run(tiny_sd(), target, "--force")
    assert load_file(target).keys() == load_file(single).keys()


def test_info_on_single_files(tmp_path, single):
    found = describe(single, recognise)
    assert (found.kind, found.class_name, found.problems) == ("safetensors", "Stable Diffusion 1", [])
    parts = {name: (part.class_name, part.parameters) for name, part in found.parts.items()}
    assert parts == {
        "unet": ("UNet2DConditionModel", 792964),
        "vae": ("AutoencoderKL", 658375),
        "text_encoder": ("CLIPTextModel", 39552),
    }
    assert sum(part.bytes for part in found.parts.values()) == 4 * found.parameters
    state = load_file(single)
    save_file(
        {k: v for k, v in state.items() if not k.startswith("cond")} | {"model_ema.diffusion_modelx": torch.zeros(1)},
        tmp_path / "ema.safetensors",
    )
    found = describe(tmp_path / "ema.safetensors", recognise)
    assert found.variants == ("default", "ema")
    assert found.problems == ["it has no text_encoder: pass one to load it as a pipeline"]
    save_file({"joint_blocks.0.x": torch.zeros(2)}, tmp_path / "sd3.safetensors")
    found = describe(tmp_path / "sd3.safetensors", recognise)
    assert (found.class_name, found.parameters, found.parts) == ("Stable Diffusion 3", 2, {})
    save_file(state | {"what.is.this": torch.zeros(1)}, tmp_path / "odd.safetensors")
    found = describe(tmp_path / "odd.safetensors", recognise)
    assert found.class_name is None
    assert (
        "1 tensors belong to no part that was recognised (unet, vae, text_encoder): what.is.this" in found.problems[0]
    )
    torch.save(state, tmp_path / "old.ckpt")
    assert "latentia convert old.ckpt old.safetensors" in describe(tmp_path / "old.ckpt", recognise).problems[0]


def test_info_needs_no_torch(single):
    code = (
        "import sys; from latentia.core.inspect_path import describe; from latentia.formats.recognise import recognise;"
        f"assert len(describe({str(single)!r}, recognise).parts) == 3; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
