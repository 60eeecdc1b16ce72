import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentia.core.artifacts import save_state_dict
from latentia.core.inspect_path import describe
from latentia.core.transaction import JOURNAL

SINGLE = "diffusion_pytorch_model.safetensors"


def model(folder: Path, class_name: str = "UNet2DModel", **options) -> Path:
    state = {"a": torch.ones(10, 3), "b": torch.ones(5, dtype=torch.float16), "n": torch.tensor(3)}
    text = json.dumps({"_class_name": class_name})
    save_state_dict(state, folder, texts={"config.json": text}, **options)
    return folder


def pipeline(folder: Path, **more) -> Path:
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    model(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (folder / "model_index.json").write_text(
        json.dumps({**index, "safety_checker": [None, None], "flag": True, **more})
    )
    return folder


def files_size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("size", ["10GB", 40])
def test_model_folder(tmp_path, size):
    found = describe(model(tmp_path, max_shard_size=size))
    assert (found.kind, found.class_name, found.parameters) == ("model", "UNet2DModel", 36)
    assert found.dtypes == {"F32": 30, "F16": 5, "I64": 1}
    assert found.bytes == files_size(tmp_path)
    assert found.variants == ("default",)
    assert found.problems == []
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == 36


def test_variants_are_listed_and_counted_once(tmp_path):
    model(tmp_path)
    model(tmp_path, variant="fp16", max_shard_size=40)
    found = describe(tmp_path)
    assert (found.variants, found.parameters, found.problems) == (("default", "fp16"), 36, [])


def test_pipeline_folder(tmp_path):
    found = describe(pipeline(tmp_path))
    assert (found.kind, found.class_name, found.parameters) == ("pipeline", "DDPMPipeline", 36)
    assert {name: (part.kind, part.class_name) for name, part in found.parts.items()} == {
        "scheduler": ("scheduler", "DDIMScheduler"),
        "unet": ("model", "UNet2DModel"),
    }
    assert found.all_problems() == []
    assert found.bytes == files_size(tmp_path)
    assert found.to_dict()["parts"]["unet"]["dtypes"] == {"F32": 30, "F16": 5, "I64": 1}


def test_problems_of_a_pipeline_carry_their_part_s_name(tmp_path):
    pipeline(tmp_path, vae=["diffusers", "AutoencoderKL"], **{"../out": ["diffusers", "UNet2DModel"]})
    model(tmp_path / "unet", class_name="UNet2DModle")
    (tmp_path / "unet" / SINGLE).write_bytes(b"")
    problems = "\n".join(describe(tmp_path).all_problems())
    assert "part 'vae' (AutoencoderKL) has no folder" in problems
    assert "'../out', which lies outside" in problems
    assert "unet: Latentia has no class UNet2DModle (nearest: UNet2DModel)" in problems
    assert "unet: model_index.json says UNet2DModel, its own config UNet2DModle" in problems
    assert "is empty" in problems


def test_run_folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "checkpoints").mkdir()
    found = describe(tmp_path)
    assert (found.kind, found.parts) == ("run", {})
    assert found.problems == ["no pipeline folder yet: the run is not finished; continue it with --resume"]
    pipeline(tmp_path / "pipeline")
    found = describe(tmp_path)
    assert (found.kind, list(found.parts), found.parameters, found.problems) == ("run", ["pipeline"], 36, [])
    codec = tmp_path / "codec run"
    (codec / "checkpoints").mkdir(parents=True)
    model(codec / "pipeline")
    assert describe(codec).parts["pipeline"].kind == "model"


def test_single_files(tmp_path):
    model(tmp_path)
    found = describe(str(tmp_path / SINGLE))
    assert (found.kind, found.parameters, found.bytes) == ("safetensors", 36, (tmp_path / SINGLE).stat().st_size)
    (tmp_path / "x.ckpt").write_bytes(b"boom")
    assert describe(tmp_path / "x.ckpt").kind == "pickle"
    assert "convert to safetensors" in describe(tmp_path / "x.ckpt").problems[0]
    assert describe(tmp_path / "config.json").kind == "file"
    found = describe(tmp_path / "confg.json")
    assert (found.kind, found.problems) == ("missing", ["nothing is there: did you mean 'config.json'?"])
    (tmp_path / "empty").mkdir()
    assert (describe(tmp_path / "empty").kind, describe(tmp_path / "empty").problems) == ("folder", [])


def test_transformers_folder(tmp_path):
    save_state_dict(
        {"w": torch.ones(2)}, tmp_path, stem="model", texts={"config.json": '{"architectures": ["CLIPTextModel"]}'}
    )
    found = describe(tmp_path)
    assert (found.kind, found.class_name, found.parameters, found.problems) == ("model", "CLIPTextModel", 2, [])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json: the class and its arguments are unknown"),
        (lambda d: (d / "config.json").write_text("{"), "is not valid JSON"),
        (lambda d: (d / "config.json").write_text('{"_class_name": ["a.py", "B"]}'), "no _class_name that is a name"),
        (lambda d: (d / SINGLE).unlink(), f"no {SINGLE}"),
        (lambda d: (d / SINGLE).write_bytes((d / SINGLE).read_bytes()[:-1]), "is truncated"),
        (lambda d: (d / "diffusion_pytorch_model.bin").write_bytes(b""), "diffusion_pytorch_model.bin is a pickle"),
        (
            lambda d: (d / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b""),
            "left from another save",
        ),
        (lambda d: (d / f".{SINGLE}.0.tmp").write_bytes(b""), "unfinished files of an interrupted save"),
        (lambda d: (d / JOURNAL).write_text('{"replace": {}, "remove": []}'), "a save was interrupted here"),
        (
            lambda d: (d / JOURNAL).write_text('{"replace": {"a": "../b"}, "remove": []}'),
            "is broken or unsafe: delete it",
        ),
        (lambda d: (d / f"{SINGLE}.index.json").write_text('{"weight_map": {"a": "/x"}}'), "of its own folder only"),
    ],
)
def test_problems_of_a_model_are_found_and_nothing_raises(tmp_path, harm, problem):
    harm(model(tmp_path))
    found = describe(tmp_path)
    assert found.kind == "model"
    assert any(problem in text for text in found.problems), found.problems


def test_description_needs_no_torch_and_is_quick(tmp_path):
    pipeline(tmp_path)
    code = (
        "import sys, time; t = time.process_time(); from latentia.core.inspect_path import describe;"
        f"d = describe({str(tmp_path)!r}); assert d.parameters == 36 and time.process_time() - t < 0.5;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
