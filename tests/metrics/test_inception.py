"""FID's network: architecture, weights from a file, and its name. The real weights are not here."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.metrics.frechet import frechet_name
from latentia.metrics.inception import InceptionV3, block_a, block_b, block_c, block_d, block_e
from latentia.metrics.inception_features import WEIGHTS, InceptionFeatures


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InceptionV3().eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path


def test_published_number_of_parameters(network):
    with torch.device("meta"):
        usual = InceptionV3(num_classes=1000)
    assert sum(p.numel() for p in usual.parameters()) == 23_834_568
    assert network.fc.weight.shape == (1008, 2048)


def test_names_and_shapes(network):
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 94 * 6 + 2
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6a.branch3x3dbl_3.bn.running_var"] == (96,)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7a.branch7x7x3_2.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


@pytest.mark.parametrize(
    ("block", "n_in", "side", "n_out"),
    [
        (block_a(192, 32), 192, 9, 256),
        (block_b(288), 288, 9, 768),
        (block_c(768, 128), 768, 5, 768),
        (block_d(768), 768, 9, 1280),
        (block_e(1280, "average"), 1280, 3, 2048),
        (block_e(2048, "maximum"), 2048, 3, 2048),
    ],
)
def test_block_shapes(block, n_in, side, n_out):
    out = block.eval()(torch.zeros(1, n_in, side, side))
    assert out.shape == (1, n_out, *([(side - 3) // 2 + 1] * 2 if block.pool_stride == 2 else [side] * 2))


@pytest.mark.parametrize("pool", ["average", "maximum"])
def test_last_blocks_wired_by_hand(pool):
    torch.manual_seed(1)
    b = block_e(16, pool).eval()
    x = torch.randn(1, 16, 4, 4)
    part, double = b.branch3x3_1(x), b.branch3x3dbl_2(b.branch3x3dbl_1(x))
    if pool == "maximum":
        pooled = F.max_pool2d(x, 3, 1, 1)
    else:
        counts = F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), padding=1)
        pooled = F.conv2d(x, torch.ones(16, 1, 3, 3), padding=1, groups=16) / counts
    outputs = [b.branch1x1(x), b.branch3x3_2a(part), b.branch3x3_2b(part)]
    outputs += [b.branch3x3dbl_3a(double), b.branch3x3dbl_3b(double), b.branch_pool(pooled)]
    assert torch.allclose(b(x), torch.cat(outputs, 1), atol=1e-5)


def test_a_block_of_the_middle_wired_by_hand():
    torch.manual_seed(2)
    b = block_c(8, 4).eval()
    x = torch.randn(1, 8, 8, 8)
    double = x
    for i in range(1, 6):
        double = b.get_submodule(f"branch7x7dbl_{i}")(double)
    single = b.branch7x7_3(b.branch7x7_2(b.branch7x7_1(x)))
    pooled = b.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    assert torch.equal(b(x), torch.cat([b.branch1x1(x), single, double, pooled], 1))


def test_weights_from_a_file(weights, network, tmp_path):
    ruler = InceptionFeatures(weights)
    assert not ruler.verified
    assert frechet_name(ruler) == f"frechet_inception-{ruler.origin[:8]}"
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rounded = ((x * 127.5 + 127.5).round() / 127.5 - 1).repeat(1, 3, 1, 1)
    with torch.no_grad():
        expected = network(F.interpolate(rounded, size=(299, 299), mode="bilinear", align_corners=False))
    assert torch.allclose(ruler.features(x), expected, atol=1e-6)
    again = InceptionFeatures(ruler.save(tmp_path / "copy.safetensors"))
    assert again.origin == ruler.origin
    assert torch.equal(again.network.fc.weight, network.fc.weight)


def test_only_the_standard_file_gives_fid(weights):
    ruler = InceptionFeatures(weights)
    ruler.verified = True  # as a file of the standard SHA-256 would set
    assert frechet_name(ruler) == "fid"


def test_no_weights_says_which_file():
    with pytest.raises(InputError, match=WEIGHTS):
        InceptionFeatures(None)
    with pytest.raises(ArtifactError, match=f"no Inception weights at nowhere.pth.*{WEIGHTS}"):
        InceptionFeatures("nowhere.pth")


def test_foreign_truncated_and_unsafe_files(tmp_path, weights):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ArtifactError, match=r"is not FID's Inception: 472 missing .* 1 unknown \['conv.weight'\]"):
        InceptionFeatures(tmp_path / "foreign.safetensors")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"cannot read Inception weights|not loaded"):
        InceptionFeatures(tmp_path / "cut.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ArtifactError, match="more than tensors and was not loaded"):
        InceptionFeatures(tmp_path / "code.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="no flat dictionary"):
        InceptionFeatures(tmp_path / "list.pth")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(UnknownChoiceError, match="weights file type"):
        InceptionFeatures(tmp_path / "w.npz")


def test_wrong_channels(weights):
    with pytest.raises(InputError, match=r"got \(1, 2, 8, 8\)"):
        InceptionFeatures(weights).features(torch.zeros(1, 2, 8, 8))
