import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentia.errors import ArtifactError, InputError
from latentia.metrics.features import PixelFeatures
from latentia.metrics.frechet import frechet
from latentia.metrics.measurement import Measurement
from latentia.metrics.reference import Protocol, Reference, load_npz_statistics


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def real():
    return normal(30, 1, 2, 2)


@pytest.fixture
def reference(real):
    return Reference.measure(PixelFeatures(), real, "none", "normal/all")


def test_round_trip_gives_the_same_distance(reference, real, tmp_path):
    loaded = Reference.load(reference.save(tmp_path / "a" / "reference.safetensors"))
    assert loaded.protocol == Protocol("frechet_pixels", 2, "none", "normal/all")
    assert loaded.gaussian.n == 30
    fake = normal(20, 1, 2, 2, seed=1)
    assert loaded.distance(PixelFeatures(), fake) == frechet(PixelFeatures(), real, fake)


def test_another_protocol_is_refused(reference):
    message = r"ruler 'frechet_pixels4' against 'frechet_pixels', resolution 4 against 2"
    with pytest.raises(InputError, match=message):
        reference.distance(PixelFeatures(4), normal(20, 1, 4, 4))


def test_bad_files(tmp_path):
    with pytest.raises(ArtifactError, match="no reference statistics at"):
        Reference.load(tmp_path / "none")
    save_file({"mean": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="no reference statistics of ours"):
        Reference.load(tmp_path / "foreign")
    (tmp_path / "cut").write_bytes(b"123")
    with pytest.raises(ArtifactError, match="no reference statistics of ours"):
        Reference.load(tmp_path / "cut")


def test_statistics_of_pytorch_fid(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.arange(3.0), sigma=np.eye(3))
    loaded = load_npz_statistics(tmp_path / "s.npz", n=50_000)
    assert loaded.mean.tolist() == [0, 1, 2]
    assert loaded.n == 50_000
    np.savez(tmp_path / "object.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ArtifactError, match="no arrays `mu` and `sigma`"):
        load_npz_statistics(tmp_path / "object.npz", n=2)
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_npz_statistics(tmp_path / "shape.npz", n=2)
    with pytest.raises(ArtifactError, match="no statistics at"):
        load_npz_statistics(tmp_path / "none.npz", n=2)


def test_a_measurement_is_json_able():
    assert float(Measurement("psnr", 3.0, 2)) == 3.0
    assert Measurement("psnr", float("inf"), 2, details={"k": 3}).to_dict() == {
        "name": "psnr",
        "value": "inf",
        "n_generated": 2,
        "n_real": 0,
        "seed": None,
        "k": 3,
    }
