import json

import pytest
import torch
from PIL import Image

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.recipes.samplers import SAMPLERS, make_sampler
from latentia.recipes.sampling import Request, labels_of, open_pipeline, sample, sample_to
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "flow"])
def test_every_sampler_makes_pictures(ldm_run, name):
    request = Request(count=2, steps=4, scheduler=name, classes=("3",))
    pictures = sample(open_pipeline(ldm_run, request), request)
    assert pictures.shape == (2, 1, 32, 32)
    assert float(pictures.std()) > 0


def test_samplers_keep_what_the_network_was_trained_with():
    trained = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, prediction_type="v_prediction"
    )
    for name in SAMPLERS:
        if name != "flow":
            config = make_sampler(name, trained).config
            assert (config.beta_end, config.prediction_type) == (0.0195, "v_prediction")
            assert all(config[key] == value for key, value in SAMPLERS[name][1].items())


def test_flow_and_diffusion_do_not_mix():
    with pytest.raises(InputError, match="trained by diffusion: use any but flow"):
        make_sampler("flow", DDPMScheduler())
    with pytest.raises(InputError, match="trained by flow matching: use flow"):
        make_sampler("ddim", FlowMatchEulerDiscreteScheduler())
    assert isinstance(make_sampler("flow", FlowMatchEulerDiscreteScheduler()), FlowMatchEulerDiscreteScheduler)


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(UnknownChoiceError, match=r"unknown scheduler 'dmp\+\+': did you mean 'dpm\+\+'"):
        make_sampler("dmp++", DDPMScheduler())


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [((), [0, 1, 2, 3]), (("all",), [0, 1, 2, 3]), (("7",), [7] * 4), ((7, "2"), [7, 2, 7, 2]), (("10",), [10] * 4)],
)
def test_classes_are_taken_in_turn(ldm_run, classes, wanted):
    request = Request(count=4, classes=classes)
    assert labels_of(open_pipeline(ldm_run, request), request) == wanted


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("11",), "class 11 is out of range"),
        (("cat",), "has no id2label"),
        (("all", "3"), "one or the other"),
        (("-1",), "-1"),
    ],
)
def test_wrong_classes(ldm_run, classes, message):
    request = Request(classes=classes)
    with pytest.raises(InputError, match=message):
        labels_of(open_pipeline(ldm_run, request), request)


def test_names_of_classes(ldm_run):
    request = Request(count=3, classes=("two",))
    pipe = open_pipeline(ldm_run, request)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    named = type(pipe)(**pipe.components, id2label=dict(enumerate(words)))
    assert labels_of(named, request) == [2, 2, 2]
    with pytest.raises(UnknownChoiceError, match="unknown class 'tow': did you mean 'two'"):
        labels_of(named, Request(classes=("tow",)))


def test_an_unconditional_pipeline_has_no_classes(ddpm_run):
    request = Request(classes=("3",))
    pipe = open_pipeline(ddpm_run, request)
    pipe.unet.register_parameter("unused", None)
    bare = type(pipe.unet).from_config(pipe.unet.config, num_class_embeds=None)
    unconditional = type(pipe)(unet=bare, scheduler=pipe.scheduler)
    assert labels_of(unconditional, Request(classes=("all",))) is None
    with pytest.raises(InputError, match="class '3' was asked for, but this pipeline is unconditional"):
        labels_of(unconditional, request)


@pytest.mark.parametrize(("field", "value"), [("count", 0), ("steps", -1), ("batch_size", 0), ("seed", -1)])
def test_requests_are_checked(field, value):
    with pytest.raises(InputError, match=str(value)):
        Request(**{field: value})


def test_a_folder_and_a_grid_hold_the_same_pictures(ldm_run, tmp_path):
    request = Request(count=5, steps=2, seed=3, batch_size=2)
    pipe = open_pipeline(ldm_run, request)
    files = sample_to(pipe, request, tmp_path / "five")
    assert [file.name for file in files] == ["00000-0.png", "00001-1.png", "00002-2.png", "00003-3.png", "00004-4.png"]
    (sheet,) = sample_to(pipe, request, tmp_path / "five.png", scale=1)
    with Image.open(sheet) as whole:
        assert whole.size == (3 * 34 + 2, 2 * 34 + 2)
        for i, file in enumerate(files):
            left, top = 2 + (i % 3) * 34, 2 + (i // 3) * 34
            with Image.open(file) as one:
                assert one.tobytes() == whole.crop((left, top, left + 32, top + 32)).tobytes()
                assert json.loads(one.text["latentia"]) == {
                    "seed": 3,
                    "steps": 2,
                    "index": i,
                    "class": i,
                }


@pytest.mark.parametrize(
    ("name", "said"), [("seven.jpg", r"written as PNG, not \.jpg"), ("notes.txt", "notes.txt is a file")]
)
def test_pictures_go_to_a_png_or_a_folder(tmp_path, name, said):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=said):
        sample_to(None, Request(), tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_small_pictures_are_enlarged_in_a_grid(ldm_run, tmp_path):
    request = Request(count=1, steps=1)
    sample_to(open_pipeline(ldm_run, request), request, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.size == (68, 68)


def test_a_picture_does_not_depend_on_its_batch(ldm_run):
    request = Request(count=6, steps=3, seed=1)
    pipe = open_pipeline(ldm_run, request)
    whole = sample(pipe, request)
    split = sample(pipe, Request(count=6, steps=3, seed=1, batch_size=4))
    torch.testing.assert_close(whole, split, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, sample(pipe, Request(count=6, steps=3, seed=2)), atol=1e-3)


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(ArtifactError):
        open_pipeline(tmp_path / "nothing", Request())
    with pytest.raises(InputError, match="device 'tpu'"):
        open_pipeline(tmp_path, Request(device="tpu"))
