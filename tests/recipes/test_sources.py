import pytest
import torch
from PIL import Image

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.denoisers.unet_2d import UNet2DModel
from latentia.errors import ArtifactError, InputError
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.sources import (
    MirroredDataset,
    class_names,
    codec_like,
    load_codec,
    open_data,
    resolve_device,
    resolve_precision,
)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of train pictures, one of test, 8×8."""
    for split, kind, count in (("train", "cat", 3), ("train", "dog", 2), ("test", "cat", 1)):
        for i in range(count):
            path = tmp_path / split / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").resize((8, 8)).rotate(90 * i).save(path)
    return tmp_path


def test_digits_by_name():
    data = open_data("digits", "train", 16, 1, num_classes=10)
    assert len(data) == 1257
    assert data.batch([0])["x"].shape == (1, 1, 16, 16)


def test_photos_by_name():
    assert open_data("photos", "test", 64, 3).batch([0])["x"].shape == (1, 3, 64, 64)


def test_folders_with_and_without_splits(pictures):
    train, test = (open_data(str(pictures), split, 8, 1) for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 1)
    assert train.batch(range(5))["label"].tolist() == [0, 0, 0, 1, 1]
    assert len(open_data(str(pictures / "train"), "all", 8, 1, num_classes=2)) == 5


def test_a_wrong_number_of_classes_is_an_error(pictures):
    with pytest.raises(InputError, match="has 2 classes and num_classes=1000: set num_classes=2"):
        open_data(str(pictures), "train", 8, 1, num_classes=1000)
    with pytest.raises(InputError, match="has 0 classes and num_classes=2: set num_classes=0"):
        open_data(str(pictures / "train" / "cat"), "train", 8, 1, num_classes=2)
    with pytest.raises(InputError, match="'digits' has 10 classes and num_classes=20"):
        open_data("digits", "test", 8, 1, num_classes=20)
    assert len(open_data("photos", "test", 64, 3, num_classes=8)) > 0


def test_a_class_has_one_number_in_every_split(pictures):
    (pictures / "test" / "cat").rename(pictures / "test" / "dog")
    assert open_data(str(pictures), "test", 8, 1, num_classes=2).batch([0])["label"].tolist() == [1]
    whole = open_data(str(pictures), "all", 8, 1, num_classes=2)
    assert whole.batch(range(6))["label"].tolist() == [0, 0, 0, 1, 1, 1]
    alone = open_data(str(pictures), "test", 8, 1)
    assert torch.equal(whole.batch([5])["x"], alone.batch([0])["x"])


def test_a_class_that_only_the_test_split_has(pictures):
    (pictures / "test" / "cat").rename(pictures / "test" / "ant")
    assert open_data(str(pictures), "all", 8, 1).batch(range(6))["label"].tolist() == [1, 1, 1, 2, 2, 0]


def test_a_split_that_is_not_there(pictures):
    with pytest.raises(InputError, match="has no folder 'report', but train, test"):
        open_data(str(pictures), "report", 8, 1)


def test_class_names(pictures):
    for flip in (False, True):
        assert class_names(open_data(str(pictures), "train", 8, 1, flip=flip)) == {0: "cat", 1: "dog"}
    assert class_names(open_data(str(pictures / "train" / "cat"), "all", 8, 1)) is None
    assert class_names(open_data("digits", "test", 8, 1)) is None


@pytest.mark.parametrize("name", ["digit", "imagenet", "runs/none"])
def test_unknown_data(name):
    with pytest.raises(InputError, match=f"no data called '{name}'.*known: digits, photos, hf:NAME, or a folder"):
        open_data(name, "train", 8, 1)


def test_nearest_data_is_named():
    with pytest.raises(InputError, match="did you mean 'digits'"):
        open_data("digit", "train", 8, 1)


def test_mirrored_pictures_stand_behind_the_plain_ones(pictures):
    plain = open_data(str(pictures), "train", 8, 1)
    both = open_data(str(pictures), "train", 8, 1, flip=True)
    assert isinstance(both, MirroredDataset)
    assert len(both) == 10
    batch = both.batch([1, 6, 4, 9])
    wanted = plain.batch([1, 1, 4, 4])
    assert torch.equal(batch["x"][[0, 2]], wanted["x"][[0, 2]])
    assert torch.equal(batch["x"][[1, 3]], wanted["x"][[1, 3]].flip(-1))
    assert torch.equal(batch["label"], wanted["label"])


def test_codecs_are_found_in_models_pipelines_and_runs(ldm_run):
    for folder in (ldm_run, ldm_run / "pipeline", ldm_run / "pipeline" / "vae"):
        codec = load_codec(folder)
        assert type(codec) is AutoencoderKL
        assert codec_like(folder).config == codec.config


def test_vector_quantised_codecs_are_found(tmp_path):
    VQModel(norm_num_groups=4, block_out_channels=(4,), num_vq_embeddings=3).save_pretrained(tmp_path / "vqvae")
    codec = load_codec(tmp_path)
    assert type(codec) is VQModel
    assert codec_like(tmp_path).config == codec.config


def test_other_models_are_no_codecs(tmp_path):
    UNet2DModel(4, block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                norm_num_groups=2, attention_head_dim=None).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ArtifactError, match="holds a UNet2DModel, which is no codec"):
        load_codec(tmp_path)
    with pytest.raises(ArtifactError, match=r"no config.json"):
        load_codec(tmp_path / "nothing")


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto").partition(":")[0] in ("cpu", "cuda", "mps")
    for missing in ("tpu", "cuda:0") if not torch.cuda.is_available() else ("tpu",):
        with pytest.raises(InputError, match=f"device '{missing}' is not available here"):
            resolve_device(missing)


@pytest.mark.parametrize(
    ("instructions", "expected"), [((), "no"), (("avx512_bf16",), "bf16"), (("amx_tile",), "bf16")]
)
def test_automatic_precision_is_what_the_cpu_has_instructions_for(monkeypatch, instructions, expected):
    for each in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{each}_supported", lambda each=each: each in instructions, raising=False)
    assert resolve_precision("auto", "cpu") == expected
    assert [resolve_precision(name, "cpu") for name in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
    recipe = override(registry.recipe("digits-ddpm"), ["precision=auto", "device=cpu"])
    assert recipe.settings().precision == recipe.autocast == expected
    assert recipe.precision == "auto"
