import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from edit_sets import EMU_ROWS, brush_rows, picture, results_of, write_archive, write_folder
from latentia.errors import InputError
from latentia.methods.emu_edit.measures import pretrained
from latentia.methods.emu_edit.measures.clip import ClipFeatures
from latentia.methods.emu_edit.measures.dino import DinoFeatures
from latentia.methods.emu_edit.measures.towers import SceneTowers
from latentia.recipes import scene_towers
from latentia.recipes.edit_evaluation import EditRequest, evaluate_edits, towers_beside
from tiny_editor import editor
from tiny_extractors import save_clip, save_dino
from tiny_sd import tiny_sd


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder of towers that have learned nothing."""
    torch.manual_seed(0)
    return SceneTowers(channels=(8, 8, 8), feature_dim=8).save_pretrained(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino"))


def numbers(told, editor="edited"):
    return {each["name"]: each["value"] for each in told["editors"][editor]["measurements"]}


def test_scenes_with_their_own_network(cli, towers, tmp_path):
    out = tmp_path / "r.json"
    result = cli(
        "evaluate", "edit", "oracle", "--towers", towers, "-n", 12, "--size", 32, "--baseline", "copy",
        "--baseline", "grey", "--out", out, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("scenes/test own: clip_dir[scenes]", "success[exact]", "edited", "copy", "grey", "is a small network"):
        assert text in result.output
    told = json.loads(out.read_text())
    assert (told["benchmark"], told["scale"], told["n"], told["clip"]) == ("scenes", "own", 12, "scenes")
    edited, copied = numbers(told), numbers(told, "copy")
    assert edited["scenes/test own: success[exact]"] == 1
    assert copied["scenes/test own: success[exact]"] == 0
    assert edited["scenes/test own: l1_target[pixels]"] == 0 == copied["scenes/test own: l1_input[pixels]"]
    assert copied["scenes/test own: unchanged"] == 1
    assert set(told["editors"]["edited"]["exact"]) == set(told["editors"]["edited"]["groups"])
    assert told["published"] == []


def test_a_folder_of_results_on_the_emu_edit_set(cli, clip, dino, tmp_path):
    data = write_folder(tmp_path / "emu", "test", EMU_ROWS, ("image",))
    folder = results_of(tmp_path / "out", ["add/0", "remove/0", "style_4"], picture(3, 30, 30))
    arguments = ["evaluate", "edit", folder, "--benchmark", "emu-edit", "--data", data, "--clip", clip, "--dino", dino]
    result = cli(*arguments, "--out", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    for text in (
        "skipped, identical captions: 1",
        "skipped, placeholder caption: 1",
        "the published test split has 3589",
    ):
        assert text in result.output
    told = json.loads((tmp_path / "r.json").read_text())
    digest = pretrained.weights_digest(clip)
    assert told["scale"] == "own"
    assert f"emu-edit/test own: clip_out[clip-{digest}]" in numbers(told)
    assert list(told["editors"]["edited"]["groups"]) == ["add", "remove", "style"]
    (folder / "add" / "0.png").unlink()
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "lacks 1 of 3 results: test/add/0 or test_add_0 or add/0 or add_0" in result.stderr


def test_published_numbers_stand_beside_the_same_scale(clip, dino, tmp_path, monkeypatch):
    """Networks that are what they are called for this test only."""
    monkeypatch.setattr("latentia.methods.emu_edit.measures.clip.clip_name", lambda config, digest: "ViT-B/32")
    monkeypatch.setattr("latentia.methods.emu_edit.measures.dino.dino_name", lambda config, digest: "dino_vits16")
    assert (ClipFeatures(clip).name, DinoFeatures(dino).name) == ("ViT-B/32", "dino_vits16")
    data = str(write_folder(tmp_path, "test", EMU_ROWS, ("image",)))
    both = {"clip": str(clip), "dino": str(dino), "data": data, "device": "cpu"}
    clean = evaluate_edits("copy", EditRequest("emu-edit", **both, baselines=()))
    assert (clean.what["scale"], clean.what["n"]) == ("C", 3)
    assert [row.source for row in clean.published] == ["ICEdit"]
    assert "emu-edit/test C: clip_im[ViT-B/32]" in [each.name for each in clean.editors["edited"].numbers]
    raw = evaluate_edits("copy", EditRequest("emu-edit", **both, scale="B", baselines=()))
    assert (raw.what["scale"], raw.what["n"]) == ("B", 6)
    assert {row.source for row in raw.published} == {"UltraEdit"}
    part = evaluate_edits("copy", EditRequest("emu-edit", **both, count=2, baselines=()))
    assert part.published == []
    assert part.notes[-1].startswith("a part of the set")
    archive = write_archive(tmp_path / "brush")
    brush = {**both, "data": str(archive), "split": "test", "captions": archive / "local_descriptions.json"}
    judged = evaluate_edits("oracle", EditRequest("magicbrush", **brush))
    values = {each.name: each.value for each in judged.editors["edited"].numbers}
    assert values["magicbrush/test single-turn M: clip_i[ViT-B/32]"] == pytest.approx(1)
    assert values["magicbrush/test single-turn M: l2_target[pixels]"] == 0
    own = values["magicbrush/test single-turn M: clip_t_of_target[ViT-B/32]"]
    assert values["magicbrush/test single-turn M: clip_t[ViT-B/32]"] == pytest.approx(own)
    assert "magicbrush/test single-turn own: clip_im[ViT-B/32]" in values
    assert len(judged.published) == 7
    assert sorted(judged.editors["copy"].groups) == ["turn 1", "turn 2", "turn 3"]


def test_magicbrush_without_networks_measures_pixels(cli, tmp_path):
    data = write_folder(tmp_path, "dev", brush_rows(), ("source_img", "mask_img", "target_img"))
    result = cli("evaluate", "edit", "copy", "--benchmark", "magicbrush", "--data", data, "--protocol", "final-turn")
    assert result.exit_code == 0, result.output
    assert "magicbrush/dev multi-turn own: l1_target[pixels]" in result.output
    assert "no clip and no dino network was given" in result.output
    assert "skipped, duplicate turn: 1" in result.output


def test_an_instruct_pix2pix_pipeline(cli, tmp_path):
    data = write_folder(tmp_path / "emu", "test", EMU_ROWS, ("image",))
    values = []
    for batch_size in (1, 3):
        result = cli(
            "evaluate", "edit", tiny_sd("pix2pix"), "--benchmark", "emu-edit", "--data", data, "--steps", 2, "-n", 2,
            "--batch-size", batch_size, "--device", "cpu", "--out", tmp_path / "r.json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        values.append(numbers(json.loads((tmp_path / "r.json").read_text())))
    assert values[0] == pytest.approx(values[1], rel=1e-4)  # a picture is the same alone and in a batch
    assert values[0]["emu-edit/test own: l1_input[pixels]"] > 0
    result = cli("evaluate", "edit", tiny_sd("sd1"), "--benchmark", "emu-edit", "--data", data, "--device", "cpu")
    assert result.exit_code == 2
    assert "StableDiffusionPipeline, which takes no instructions" in result.stderr


def test_an_emu_edit_pipeline(cli, towers, tmp_path):
    editor().save_pretrained(tmp_path / "run" / "pipeline")
    data = write_folder(tmp_path / "emu", "test", EMU_ROWS, ("image",))
    values, said = {}, {}
    for name, options in {"one": ["--batch-size", 1], "all": [], "told": ["--tell-task"]}.items():
        result = cli(
            "evaluate", "edit", tmp_path / "run", "--benchmark", "emu-edit", "--data", data, "--steps", 2, *options,
            "--device", "cpu", "--towers", towers, "--guidance", 1, "--image-guidance", 1, "--out", tmp_path / "r.json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        told = json.loads((tmp_path / "r.json").read_text())
        values[name], said[name] = numbers(told), " ".join(told["notes"])
    assert values["one"] == pytest.approx(values["all"], rel=1e-4)
    assert values["one"] != pytest.approx(values["told"], rel=1e-3)
    assert "of 3 instructions for the benchmark's task" in said["one"]
    assert "instructions" not in said["told"]
    assert values["one"]["emu-edit/test own: clip_im[scenes]"] < 1


def test_the_network_that_a_run_has_kept_is_used(towers, tmp_path):
    shutil.copytree(towers, tmp_path / "towers")
    pipeline = tmp_path / "pipeline"
    assert towers_beside(tmp_path) == towers_beside(pipeline) == tmp_path / "towers"
    assert towers_beside(tmp_path / "towers" / "x") is None
    folder = results_of(tmp_path / "results", ["00000", "00001"], picture(1, 32, 32))
    report = evaluate_edits(folder, EditRequest("scenes", count=2, size=32, device="cpu", baselines=()))
    assert report.what["clip"] == "scenes"


def test_another_program_edits_what_was_exported(cli, towers, tmp_path):
    common = ["--towers", towers, "-n", 4, "--size", 32, "--device", "cpu"]
    assert cli("evaluate", "edit", "copy", *common, "--export", tmp_path / "work").exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "work" / "instructions.jsonl").read_text().splitlines()]
    assert [line["result"] for line in lines] == [f"test/{i:05d}.png" for i in range(4)]
    for line in lines:
        made = tmp_path / "results" / line["result"]
        made.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(tmp_path / "work" / line["input"]) as given:
            given.save(made)
    result = cli("evaluate", "edit", tmp_path / "results", *common, "--out", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "r.json").read_text())
    assert numbers(told) == numbers(told, "copy")


def test_any_function_can_be_judged(towers):
    seen = []

    def editor(cases, images):
        seen.extend(case.instruction for case in cases)
        return [np.full_like(image, 200) for image in images]

    request = EditRequest("scenes", towers=towers, count=5, size=32, batch_size=2, device="cpu", baselines=())
    report = evaluate_edits(editor, request)
    assert len(seen) == 5
    assert report.what["edited"] == "an editor"
    again = evaluate_edits(editor, request)
    assert [each.value for each in report.editors["edited"].numbers] == [
        each.value for each in again.editors["edited"].numbers
    ]


def test_towers_are_trained_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_towers, "STEPS", 2)
    monkeypatch.setattr(scene_towers, "BATCH", 4)
    first = scene_towers.scene_towers(tmp_path / "towers")
    monkeypatch.setattr(scene_towers, "train_towers", lambda **_: pytest.fail("trained again"))
    second = scene_towers.scene_towers(tmp_path / "towers")
    assert torch.equal(first.texts(["a red star"]), second.texts(["a red star"]))
    assert not any(p.requires_grad for p in second.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["copy", "--benchmark", "emu"], "unknown benchmark 'emu': did you mean 'emu-edit'?"),
        (["copy", "--benchmark", "emu-edit"], "emu-edit is not shipped: give its folder or Hub id"),
        (["copy", "--baseline", "gray"], "unknown baseline 'gray': did you mean 'grey'?"),
        (["copy", "--scale", "A", "--towers", "T"], "these are not numbers of scale A"),
        (["copy", "--scale", "Z", "--towers", "T"], "unknown scale 'Z'"),
        (["copy", "--towers", "T", "--clip", "runs/clip"], "not both"),
        (["copy", "--clip", "runs/clip"], "no folder 'clip'"),
        (["copy", "--split", "tests", "--towers", "T"], "unknown split 'tests': did you mean 'test'?"),
        (["runs/none", "--towers", "T"], "runs/none"),
    ],
)
def test_errors_are_one_line(cli, towers, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    result = cli("evaluate", "edit", *(towers if each == "T" else each for each in arguments), "-n", 2, "--size", 32)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_evaluate_still_evaluates_folders(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no config.json" in cli("evaluate", "runs/none", "--data", "digits").stderr
    assert "evaluate edit" in cli("evaluate", "edit", "--help").output


def test_requests_are_checked():
    with pytest.raises(InputError, match="not shipped"):
        EditRequest("magicbrush")
