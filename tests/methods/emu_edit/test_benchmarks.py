import json
import sys

import numpy as np
import pytest
from PIL import Image

from edit_sets import (
    EMU_ROWS,
    brush_rows,
    emu_row,
    fake_datasets,
    fake_pyarrow,
    picture,
    results_of,
    write_archive,
    write_folder,
)
from latentia.errors import ArtifactError, InputError, MissingDependency, UnknownChoiceError
from latentia.methods.emu_edit.benchmarks import emu_edit_set
from latentia.methods.emu_edit.benchmarks.benchmark import carry_out
from latentia.methods.emu_edit.benchmarks.emu_edit_set import EmuEditSet, caption_fault, plain
from latentia.methods.emu_edit.benchmarks.magicbrush import MagicBrush
from latentia.methods.emu_edit.benchmarks.published import PUBLISHED, beside
from latentia.methods.emu_edit.benchmarks.results import BASELINES, FolderOfResults, TableOfResults, oracle
from latentia.methods.emu_edit.benchmarks.scales import OWN, SCALES, captions_of, choose_scale, result_name
from latentia.methods.emu_edit.benchmarks.scenes import Scenes
from latentia.methods.emu_edit.benchmarks.tables import open_table, open_tables

COPY = BASELINES["copy"]


@pytest.fixture
def emu(tmp_path):
    return str(write_folder(tmp_path, "test", EMU_ROWS, ("image",)))


@pytest.fixture
def brush(tmp_path):
    return str(write_folder(tmp_path, "dev", brush_rows(), ("source_img", "mask_img", "target_img")))


def edits(benchmark, editor=COPY, **options):
    return list(carry_out(benchmark, editor, **options))


# Tables ------------------------------------------------------------------------------------------------------------


def test_a_folder_with_metadata(emu):
    table = open_table(emu, "test")
    assert len(table) == len(EMU_ROWS)
    assert set(table.columns) == set(EMU_ROWS[0])
    assert table.column("idx") == [0, 0, 1, 2, 3, 0, 4]
    assert np.array_equal(table.picture(6, "image"), picture(4))
    with pytest.raises(UnknownChoiceError, match="known: test"):
        open_table(emu, "validation")


def test_a_csv_and_pictures_in_a_sub_folder(tmp_path):
    (tmp_path / "test" / "in").mkdir(parents=True)
    Image.fromarray(picture(1)).convert("L").save(tmp_path / "test" / "in" / "a.png")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,words\nin/a.png,hello\n")
    table = open_table(str(tmp_path), "test")
    assert table.columns == ("image", "words")
    assert table.picture(0, "image").shape == (20, 24, 3)


def test_parquet_files_of_both_namings(tmp_path, monkeypatch):
    files = {"data/test-00000-of-00002-ab.parquet": EMU_ROWS[:3], "data/test-00001-of-00002-cd.parquet": EMU_ROWS[3:]}
    fake_pyarrow(monkeypatch, tmp_path, {**files, "validation/0000.parquet": EMU_ROWS[:1]})
    tables = open_tables(str(tmp_path))
    assert {name: len(table) for name, table in tables.items()} == {"test": 7, "validation": 1}
    table = tables["test"]
    assert table.column("idx") == [0, 0, 1, 2, 3, 0, 4]
    for index in (6, 0, 1, 2, 3):
        assert np.array_equal(table.picture(index, "image"), EMU_ROWS[index]["image"])
    assert table._files[0].read_groups == [0, 1]  # a group is read once, and the next one when it is needed


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "test-0.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"needs?.*pyarrow.*pip install 'latentia\[datasets\]'"):
        open_table(str(tmp_path), "test")


def test_hub_ids_and_saved_data_sets_through_datasets(tmp_path, monkeypatch):
    fake_datasets(monkeypatch, {"test": EMU_ROWS})
    table = open_table("owner/name", "test")
    assert table.column("task")[1] == "remove"
    assert np.array_equal(table.picture(4, "image"), picture(3))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(open_table(str(tmp_path), "test")) == len(EMU_ROWS)
    with pytest.raises(ArtifactError, match="cannot load data set"):
        open_table("owner/other", "test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match="datasets"):
        open_table("owner/name", "test")
    with pytest.raises(MissingDependency, match="save_to_disk"):
        open_table(str(tmp_path), "test")


def test_folders_that_are_no_table(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no data set: expected metadata\.jsonl"):
        open_table(str(tmp_path), "test")
    (tmp_path / "test").mkdir()
    metadata = tmp_path / "test" / "metadata.jsonl"
    metadata.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(ArtifactError, match="line 2"):
        open_table(str(tmp_path), "test")
    metadata.write_text("[1]\n")
    with pytest.raises(ArtifactError, match="expected an object"):
        open_table(str(tmp_path), "test")


def test_pictures_that_are_missing_broken_or_elsewhere(tmp_path):
    rows = [emu_row(0, image=None), emu_row(1), emu_row(2)]
    folder = write_folder(tmp_path, "test", rows, ("image",))
    (folder / "test" / "image-1.png").write_bytes(b"no picture")
    (folder / "test" / "image-2.png").unlink()
    table = open_table(str(folder), "test")
    with pytest.raises(ArtifactError, match="row 0 has no picture in 'image'"):
        table.picture(0, "image")
    with pytest.raises(ArtifactError, match="'image' of row 1 cannot be decoded"):
        table.picture(1, "image")
    with pytest.raises(ArtifactError, match="'image' of row 2 cannot be decoded"):
        table.picture(2, "image")
    (folder / "test" / "metadata.jsonl").write_text('{"file_name": "../../secret.png"}\n')
    with pytest.raises(ArtifactError, match="outside its folder"):
        open_table(str(folder), "test").row(0)


def test_missing_columns_are_named(tmp_path):
    rows = [{"instructions" if name == "instruction" else name: v for name, v in emu_row(0).items() if name != "hash"}]
    folder = write_folder(tmp_path, "test", rows, ("image",))
    with pytest.raises(InputError, match=r"lacks the columns instruction \(is it 'instructions'\?\), hash; it has: "):
        EmuEditSet(str(folder))


# The Emu Edit test set -----------------------------------------------------------------------------------------------


def test_clean_captions_leave_faulty_rows_out_and_count_them(emu):
    found = EmuEditSet(emu, captions="clean")
    assert [case.key for case in found.cases] == ["test/add/0", "test/remove/0", "test/style/4"]
    assert dict(found.skipped) == {
        "identical captions": 1,
        "placeholder caption": 1,
        "empty caption": 1,
        "duplicate id, with another instruction": 1,
    }
    assert found.notes == ["7 rows, the published test split has 3589"]
    case = found.cases[2]
    assert (case.task, case.group, case.instruction) == ("style", "style", "add a dog 4")
    assert case.files == ("test/style/4", "test_style_4", "style/4", "style_4", "h4style", "4")
    assert "0" not in found.cases[0].files  # idx alone is not unique
    assert np.array_equal(found.pictures(case).before, picture(4))
    assert found.pictures(case).target is None


def test_raw_captions_keep_them_and_say_so(emu):
    found = EmuEditSet(emu, captions="raw")
    assert len(found.cases) == 6
    assert dict(found.skipped) == {"duplicate id, with another instruction": 1}
    assert "kept with identical captions: 1" in found.notes
    assert "kept with placeholder caption: 1" in found.notes


def test_swapped_splits_are_read_by_content_and_named(tmp_path):
    """By the rows' own word …"""
    write_folder(tmp_path, "validation", [emu_row(i, split="test") for i in range(3)], ("image",))
    write_folder(tmp_path, "test", [emu_row(i, split="validation") for i in range(2)], ("image",))
    found = EmuEditSet(str(tmp_path), "test")
    assert len(found.cases) == 3
    assert found.notes[0] == "swapped splits: 'validation' holds the test rows (3), and was read as such"
    assert len(EmuEditSet(str(tmp_path), "validation").cases) == 2


def test_swapped_splits_are_known_by_their_length_too(tmp_path, monkeypatch):
    """… and by the published counts, where the rows repeat the wrong name."""
    monkeypatch.setattr(emu_edit_set, "COUNTS", {"validation": 2, "test": 3})
    write_folder(tmp_path, "validation", [emu_row(i, split="validation") for i in range(3)], ("image",))
    write_folder(tmp_path, "test", [emu_row(i, split="test") for i in range(2)], ("image",))
    found = EmuEditSet(str(tmp_path), "test")
    assert len(found.cases) == 3
    assert "swapped splits" in found.notes[0]


def test_a_split_that_is_not_there(tmp_path):
    write_folder(tmp_path, "test", [emu_row(0, split="validation")], ("image",))
    with pytest.raises(UnknownChoiceError, match="no test rows: 'test' holds validation rows"):
        EmuEditSet(str(tmp_path), "test")
    assert len(EmuEditSet(str(tmp_path), "validation").cases) == 1
    with pytest.raises(UnknownChoiceError, match="did you mean 'validation'"):
        EmuEditSet(str(tmp_path), "valid")


def test_a_caption_at_many_ids_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.setattr(emu_edit_set, "REPEATED", 3)
    rows = [emu_row(i, before="a street") for i in range(3)]
    found = EmuEditSet(str(write_folder(tmp_path, "test", rows, ("image",))))
    assert "the caption 'a street' stands at 3 different ids: a placeholder?" in found.notes
    assert EmuEditSet(str(tmp_path), placeholders=["A street."]).skipped == {"placeholder caption": 3}


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("a cat", "a dog", None),
        ("A cat.", "a  cat", "identical captions"),
        ("", "a dog", "empty caption"),
        ("a dog", "!?", "empty caption"),
        ("A train station in city!", "a bus", "placeholder caption"),
    ],
)
def test_faults_of_captions(before, after, fault):
    assert caption_fault(before, after, {"a train station in city"}) == fault
    assert plain("A  Cat's_tail.") == "a cat s tail"


# MagicBrush ----------------------------------------------------------------------------------------------------------


def test_single_turn_starts_each_from_the_right_answer(brush):
    found = MagicBrush(brush)
    assert [case.key for case in found.cases] == ["139/1", "139/2", "139/3", "30/1"]
    assert dict(found.skipped) == {"duplicate turn": 1, "session with a gap in its turns": 1}
    assert [case.files[0] for case in found.cases] == ["139/139_1", "139/139_inde_2", "139/139_inde_3", "30/30_1"]
    assert [case.group for case in found.cases] == ["turn 1", "turn 2", "turn 3", "turn 1"]
    made = edits(found)
    assert len(made) == 4
    assert np.array_equal(made[1].before, picture(1391))
    assert np.array_equal(made[1].after, picture(1391))
    assert np.array_equal(made[1].target, picture(1392))


@pytest.mark.parametrize("protocol", ["multi-turn", "final-turn"])
def test_multi_turn_measures_the_last_of_a_chain(brush, protocol):
    found = MagicBrush(brush, protocol=protocol)
    assert found.protocol == "multi-turn"
    assert [case.key for case in found.cases if case.counted] == ["139/3", "30/1"]
    assert [case.files[0] for case in found.cases] == ["139/139_1", "139/139_iter_2", "139/139_iter_3", "30/30_1"]

    def brighter(cases, images):
        return [np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8) for image in images]

    for batch_size in (1, 8):
        made = edits(found, brighter, batch_size=batch_size)
        assert len(made) == 2
        assert np.array_equal(made[0].before, picture(1390))
        assert np.array_equal(made[0].after, np.clip(picture(1390).astype(int) + 30, 0, 255))  # three turns of ten
        assert np.array_equal(made[1].after, np.clip(picture(300).astype(int) + 10, 0, 255))
        assert np.array_equal(made[0].target, picture(1393))


def test_results_in_the_authors_names(brush, tmp_path):
    grey = np.full((20, 24, 3), 9, np.uint8)
    folder = results_of(tmp_path / "out", ["139/139_1", "139/139_iter_3", "30/30_1"], grey)
    results, multi = FolderOfResults(folder), MagicBrush(brush, protocol="multi-turn")
    results.check(multi.cases)  # what is between is not asked for
    made = edits(multi, results, continued=False)
    assert len(made) == 2
    assert all(np.array_equal(each.after, grey) for each in made)
    with pytest.raises(ArtifactError, match="lacks 2 of 4 results: 139/139_inde_2 or 139_inde_2; 139/139_inde_3"):
        results.check(MagicBrush(brush).cases)
    flat = FolderOfResults(results_of(tmp_path / "flat", ["139_iter_3", "30_1"], grey))
    flat.check(multi.cases)
    (tmp_path / "flat" / "30_1.png").write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match=r"30_1\.png cannot be decoded"):
        edits(multi, flat, continued=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no pictures"):
        FolderOfResults(tmp_path / "empty")


def test_the_archive_of_the_test_split(tmp_path):
    folder = write_archive(tmp_path)
    found = MagicBrush(
        str(folder), "test", captions=folder / "local_descriptions.json",
        global_captions=folder / "global_descriptions.json",
    )  # fmt: skip
    assert [case.key for case in found.cases] == ["139/1", "139/2", "139/3", "30/1"]
    second = found.cases[1]
    assert second.local_caption == "local 139-output2.png"
    assert (second.input_caption, second.output_caption) == ("global 139-output1.png", "global 139-output2.png")
    assert np.array_equal(found.pictures(second).before, picture(1391))
    chained = MagicBrush(str(folder), "test", "multi-turn", global_captions=folder / "global_descriptions.json")
    assert chained.cases[2].input_caption == "global 139-input.png"  # before the chain began
    assert np.array_equal(chained.pictures(chained.cases[2]).before, picture(1390))


def test_the_two_files_of_captions_are_not_mistaken(tmp_path):
    folder = write_archive(tmp_path)
    with pytest.raises(InputError, match="give this file as --global-captions"):
        MagicBrush(str(folder), "test", captions=folder / "global_descriptions.json")
    with pytest.raises(InputError, match="give it as --captions"):
        MagicBrush(str(folder), "test", global_captions=folder / "local_descriptions.json")
    (folder / "less.json").write_text(json.dumps({"139": {"139-output1.png": "one"}}))
    found = MagicBrush(str(folder), "test", captions=folder / "less.json")
    assert found.cases[1].local_caption is None
    assert "session 139 has turns without a local caption: not in clip_t" in found.notes
    (folder / "list.json").write_text('{"139": "words"}')
    with pytest.raises(ArtifactError, match="no captions by session"):
        MagicBrush(str(folder), "test", captions=folder / "list.json")


def test_archives_that_are_broken(tmp_path):
    folder = write_archive(tmp_path)
    found = MagicBrush(str(folder), "test")
    (folder / "images" / "139" / "139-output1.png").unlink()
    with pytest.raises(ArtifactError, match=r"missing picture .*139-output1\.png"):
        found.pictures(found.cases[0])
    (folder / "edit_sessions.json").write_text('{"1": [{"input": "1-input.png"}]}')
    with pytest.raises(ArtifactError, match="turn 1 of session 1 has no instruction"):
        MagicBrush(str(folder), "test")
    (folder / "edit_sessions.json").write_text('{"1": [{"input": "../../x.png", "instruction": "go"}]}')
    with pytest.raises(ArtifactError, match="outside"):
        MagicBrush(str(folder), "test")


def test_magicbrush_of_bad_choices(brush, tmp_path):
    with pytest.raises(UnknownChoiceError, match="did you mean 'single-turn'"):
        MagicBrush(brush, protocol="single")
    with pytest.raises(UnknownChoiceError, match="unknown split of MagicBrush 'val'"):
        MagicBrush(brush, "val")
    rows = [{name: value for name, value in brush_rows()[0].items() if name != "target_img"}]
    folder = write_folder(tmp_path / "less", "dev", rows, ("source_img", "mask_img"))
    with pytest.raises(InputError, match="lacks the column target_img"):
        MagicBrush(str(folder))


# Results, scenes, the runner -----------------------------------------------------------------------------------------


def test_published_generations_are_joined_by_id_not_by_split(emu, tmp_path):
    rows = [{**row, "edited_image": picture(50 + i), "model": "emu"} for i, row in enumerate(EMU_ROWS[:5])]
    rows.append({**EMU_ROWS[6], "edited_image": picture(56), "model": "emu"})
    folder = write_folder(tmp_path / "generations", "validation", rows, ("image", "edited_image"))
    results = TableOfResults([open_table(str(folder), "validation")])
    found = EmuEditSet(emu)
    results.check(found.cases)
    assert results.models == {"emu"}
    assert np.array_equal(edits(found, results)[1].after, picture(51))
    few = write_folder(tmp_path / "few", "test", rows[:1], ("image", "edited_image"))
    with pytest.raises(ArtifactError, match=r"lacks 2 of 3 results: test/remove/0, test/style/4"):
        TableOfResults([open_table(str(few), "test")]).check(found.cases)
    with pytest.raises(InputError, match="lacks the column edited_image"):
        TableOfResults([open_table(emu, "test")])


def test_scenes_are_scored_exactly():
    found = Scenes(count=6, size=32, tasks=["remove", "add"])
    assert {case.task for case in found.cases} == {"remove", "add"}
    assert found.cases[3].files == ("test/00003", "00003")
    scores = {}
    for name, editor in (("oracle", oracle(found)), ("copy", COPY)):
        done = {}
        made = edits(found, editor, done=done.__setitem__)
        scores[name] = np.mean([found.score(case, result)["success"] for case, result in done.items()])
        assert len(made) == 6
        assert made[0].input_caption != made[0].output_caption
    assert scores == {"oracle": 1, "copy": 0}
    doubled = found.pictures(found.cases[0]).target.repeat(2, 0).repeat(2, 1)
    assert found.score(found.cases[0], doubled)["psnr"] > 15  # resized to the row


def test_the_first_few_are_the_same_cases(brush):
    found = MagicBrush(brush, protocol="multi-turn")
    found.first(1)
    assert [case.key for case in found.cases] == ["139/1", "139/2", "139/3"]
    assert found.skipped["not asked for (-n)"] == 1
    found.first(9)
    assert len(found.cases) == 3
    with pytest.raises(InputError, match="at least 1"):
        found.first(0)


def test_editors_that_return_something_else(emu):
    found = EmuEditSet(emu)
    with pytest.raises(InputError, match="returned 1 pictures for 3"):
        edits(found, lambda cases, images: images[:1])
    with pytest.raises(InputError, match=r"uint8 \(H, W, 3\), got float32 .* for test/add/0"):
        edits(found, lambda cases, images: [image.astype(np.float32) for image in images])
    with pytest.raises(InputError, match="no right answers"):
        edits(found, oracle(found))


# Scales --------------------------------------------------------------------------------------------------------------

B32, L14, VITS = "ViT-B/32", "ViT-L/14", "dino_vits16"


@pytest.mark.parametrize(
    ("benchmark", "joint", "alike", "scale"),
    [
        ("emu-edit", B32, VITS, "C"),
        ("emu-edit", B32, None, "C"),
        ("emu-edit", L14, "dinov2_vitb14", "A"),
        ("emu-edit", B32, "dinov2_vitb14", OWN),
        ("emu-edit", None, VITS, OWN),
        ("emu-edit", "scenes", "scenes", OWN),
        ("magicbrush", B32, VITS, "M"),
        ("magicbrush", L14, VITS, "A"),
        ("scenes", B32, VITS, OWN),
    ],
)
def test_the_scale_that_networks_fit(benchmark, joint, alike, scale):
    assert choose_scale(None, benchmark, joint, alike) == scale


def test_a_scale_that_was_asked_for_must_fit():
    assert choose_scale("B", "emu-edit", B32, VITS) == "B"
    assert choose_scale("own", "emu-edit", B32, VITS) == OWN
    with pytest.raises(InputError, match=r"not numbers of scale C .*: clip is ViT-L/14, it needs ViT-B/32"):
        choose_scale("C", "emu-edit", L14, VITS)
    with pytest.raises(InputError, match="dino is dinov2_vits14, it needs dino_vits16"):
        choose_scale("B", "emu-edit", B32, "dinov2_vits14")
    with pytest.raises(InputError, match="it has none of magicbrush"):
        choose_scale("C", "magicbrush", B32, VITS)
    with pytest.raises(InputError, match="it needs clip ViT-B/32"):
        choose_scale("M", "magicbrush", None, VITS)
    with pytest.raises(UnknownChoiceError, match="unknown scale 'D'"):
        choose_scale("D", "emu-edit", B32, VITS)


def test_names_tell_scales_apart():
    assert result_name("emu-edit", "test", "", "C", "clip_dir") == "emu-edit/test C: "
    assert result_name("magicbrush", "dev", "multi-turn", "M", "clip_i") == "magicbrush/dev multi-turn M: "
    assert result_name("magicbrush", "dev", "multi-turn", "M", "clip_im") == "magicbrush/dev multi-turn own: "
    assert result_name("emu-edit", "test", "", "C", "l2_input") == "emu-edit/test own: "  # in no table of C
    assert [captions_of(letter) for letter in ("A", "B", "C", OWN)] == ["raw", "raw", "clean", "clean"]


def test_published_numbers_stand_beside_their_own_scale_alone():
    for row in PUBLISHED:
        assert set(row.numbers) <= set(SCALES[row.scale].measures[row.benchmark])
        assert all(0 < value < 1 for value in row.numbers.values())
    emu = {scale: {r.method: r.numbers for r in beside("emu-edit", "test", "", scale)} for scale in "ABC"}
    assert emu["A"]["Emu Edit"] == {
        "clip_dir": 0.109, "clip_im": 0.859, "clip_out": 0.231, "l1_input": 0.094, "dino_input": 0.819,
    }  # fmt: skip
    assert emu["B"]["Emu Edit"] == {"clip_dir": 0.1066, "clip_out": 0.2843}
    assert emu["C"]["Emu Edit"] == {"clip_im": 0.877, "clip_out": 0.306, "dino_input": 0.844}
    assert "UltraEdit" not in emu["A"]  # reprinted there, but measured on B
    single = {r.method: r for r in beside("magicbrush", "test", "single-turn", "M")}
    assert single["InstructPix2Pix, tuned on MagicBrush"].numbers["dino_target"] == 0.8987
    assert len(single) == 7
    assert beside("magicbrush", "dev", "single-turn", "M") == []
    assert beside("emu-edit", "test", "", OWN) == []
    assert len({(r.benchmark, r.protocol, r.scale, r.method) for r in PUBLISHED}) == len(PUBLISHED)
