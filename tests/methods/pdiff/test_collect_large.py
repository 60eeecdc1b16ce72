"""Collecting from a data set: the same numbers as from memory, and exact resumption, crops and 16 bits besides."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, NonFiniteError, TrainingError, UnknownChoiceError
from latentia.methods.pdiff.augmentation import Augmentation, CentreCrop, Part, centre
from latentia.methods.pdiff.collect import PRESETS, train_trajectory
from latentia.methods.pdiff.collect_large import fingerprint, train_trajectory_large
from latentia.methods.pdiff.networks import ResNetDigits
from latentia.methods.pdiff.tasks import digits_task

BUILD = partial(ResNetDigits, width=4, blocks=(1, 1))
NORMS = ["layer2.0.bn*"]


@pytest.fixture(scope="module")
def images():
    return digits_task(128).fit


def data_of(images):
    return TensorDataset({"x": images[0], "label": images[1]})


def short(name="adamw"):
    preset = PRESETS[name]
    return replace(preset, main=replace(preset.main, epochs=1, lr=0.01, batch_size=32))


@pytest.mark.parametrize("edition", ["sgd", "adamw"])
@pytest.mark.parametrize("workers", [0, 2])
def test_bit_equal_to_images_in_memory(images, edition, workers):
    small = train_trajectory(BUILD, images, NORMS, 6, short(edition), seed=2)
    large = train_trajectory_large(BUILD, data_of(images), NORMS, 6, short(edition), seed=2, workers=workers)
    assert torch.equal(small.vectors, large.vectors)
    assert all(torch.equal(tensor, large.base[name]) for name, tensor in small.base.items())


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 7])
def test_a_stopped_run_goes_on_exactly(images, tmp_path, stop):
    run = partial(
        *(train_trajectory_large, BUILD, data_of(images), NORMS, 6, short()),
        augmentation=Augmentation(8, "shift", pad=1, rotate=10),
        save_every=1,
    )
    whole = run()

    def progress(done, total):
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        run(folder=tmp_path, progress=progress)
    gone_on = run(folder=tmp_path)
    assert torch.equal(whole.vectors, gone_on.vectors)
    assert torch.equal(run(folder=tmp_path).vectors, whole.vectors)
    with pytest.raises(TrainingError, match="precision = 'no' there, 'bf16' here"):
        run(folder=tmp_path, precision="bf16")


def test_sixteen_bits_and_nhwc_train_too(images, capsys):
    found = train_trajectory_large(
        BUILD, data_of(images), NORMS, 4, short(), precision="bf16", channels_last=True, show=True
    )
    plain = train_trajectory(BUILD, images, NORMS, 4, short())
    assert found.vectors.dtype == torch.float32
    assert 0 < (found.vectors - plain.vectors).abs().max() < 0.2
    assert "originals: 9/9  loss" in capsys.readouterr().err


def test_bad_input(images):
    with pytest.raises(UnknownChoiceError, match="precision"):
        train_trajectory_large(BUILD, data_of(images), NORMS, 4, short(), precision="fp8")
    with pytest.raises(InputError, match="no images"):
        train_trajectory_large(BUILD, data_of((images[0][:0], images[1][:0])), NORMS, 4, short())
    broken = data_of((images[0] * float("nan"), images[1]))
    with pytest.raises(NonFiniteError, match="loss is nan at step 1"):
        train_trajectory_large(BUILD, broken, NORMS, 4, short())


def test_a_fingerprint_tells_data_apart(images):
    other = (images[0].clone(), images[1])
    other[0][0, 0, 0, 0] += 1
    assert fingerprint(data_of(images)) == fingerprint(data_of(images))
    assert fingerprint(data_of(images)) != fingerprint(data_of(other))


def test_shifted_crops_copy_pixels():
    x = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    made = Augmentation(4, "shift", pad=1)(x.expand(2, 1, 6, 6), seed=5)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    for image, source in zip(made[:, 0], padded[:, 0]):
        windows = source.unfold(0, 4, 1).unfold(1, 4, 1).flatten(0, 1)
        assert (windows == image).all((1, 2)).sum() == 1


def test_flips_mirror_about_half_and_draws_repeat():
    x = torch.randn(400, 1, 4, 4)
    flip = Augmentation(4, flip=True)
    made = flip(x, seed=1)
    mirrored = (made == x.flip(-1)).all((1, 2, 3))
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(made[~mirrored], x[~mirrored])
    assert torch.equal(made, flip(x, seed=1))
    assert not torch.equal(made, flip(x, seed=2))


def test_a_whole_resized_crop_is_a_resize():
    ramp = torch.linspace(-1, 1, 8).expand(64, 1, 8, 8)
    made = Augmentation(4, "resized", scale=(1, 1))(ramp, seed=0)
    assert made.shape == (64, 1, 4, 4)
    rising = (made.diff(dim=-1) > 0).all()
    assert rising
    assert made.abs().max() <= 1
    half = Augmentation(8, "resized", scale=(0.25, 0.25))(ramp, seed=0)
    span = (half[..., -1] - half[..., 0]).mean()
    assert float(span) == pytest.approx(0.5 * 2, rel=0.1)


def test_rotation_keeps_a_disc_and_bounds():
    grid = torch.linspace(-1, 1, 32)
    disc = ((grid[:, None] ** 2 + grid**2) < 0.5).float().expand(8, 1, 32, 32) * 2 - 1
    made = Augmentation(32, rotate=90)(disc, seed=0)
    assert float((made - disc).abs().mean()) < 0.05


def test_parts_and_centre_crops(images):
    part = Part(data_of(images), torch.tensor([5, 3]))
    assert len(part) == 2
    assert torch.equal(part.batch([1])["x"], images[0][3:4])
    cut = CentreCrop(part, 4)
    assert torch.equal(cut.batch([0])["x"], images[0][5:6, :, 2:6, 2:6])
    with pytest.raises(InputError, match="too small"):
        centre(images[0], 9)
    with pytest.raises(InputError, match="scale"):
        Augmentation(8, scale=(0.5, 0.1))
    with pytest.raises(UnknownChoiceError, match="crop"):
        Augmentation(8, "random")
