"""Perceptual distances against a computation by hand, on random weights in the published layouts."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.losses import lpips as lpips_module
from latentia.losses.lpips import LPIPS, unit
from latentia.losses.perceptual import FeatureDistance, LogitDistance, perceptual_loss
from latentia.losses.perceptual_weights import lpips_tensors
from latentia.losses.resnet50 import ResNet50
from latentia.metrics.photo_features import PhotoFeatures

VGG_CONVS = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
    17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
ALEX_CONVS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def trunk(net):
    """Torchvision's names and shapes, filled at random."""
    generator = torch.Generator().manual_seed(0)
    convs = ALEX_CONVS if net == "alex" else {k: (*v, 3) for k, v in VGG_CONVS.items()}
    state = {}
    for place, (after, before, side) in convs.items():
        scale = (2 / (before * side**2)) ** 0.5
        state[f"features.{place}.weight"] = scale * torch.randn(after, before, side, side, generator=generator)
        state[f"features.{place}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return {**state, "classifier.6.bias": torch.zeros(1000)}


def heads(net):
    """The names and shapes of the lpips package's files."""
    generator = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(WIDTHS[net])}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for net in WIDTHS:
        save_file(trunk(net), folder / f"{net}_trunk.safetensors")
        torch.save(heads(net), folder / f"{net}.pth")
    return folder


def weights(files, net):
    return [files / f"{net}_trunk.safetensors", files / f"{net}.pth"]


@pytest.fixture(scope="module")
def alex(files):
    return LPIPS("alex", weights(files, "alex"))


def pair(side=64, batch=2, channels=3):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, batch, channels, side, side, generator=generator).mul(2).sub(1).unbind(0)


def by_hand(net, x, y):
    """The formula, one layer after the other."""
    state, lins = trunk(net), heads(net)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((v - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for v in (x, y))
    total, taken = torch.zeros(len(x)), 0
    places = sorted(VGG_CONVS) if net == "vgg" else sorted(ALEX_CONVS)
    pools = (4, 9, 16, 23) if net == "vgg" else (2, 5)
    for i in range(30 if net == "vgg" else 12):
        if i in pools:
            a, b = (F.max_pool2d(v, *((2,) if net == "vgg" else (3, 2))) for v in (a, b))
        if i in places:
            stride, padding = ((4, 2) if i == 0 else (1, 2 if i == 3 else 1)) if net == "alex" else (1, 1)
            given = state[f"features.{i}.weight"], state[f"features.{i}.bias"], stride, padding
            a, b = (F.conv2d(v, *given).relu() for v in (a, b))
            if i + 1 in {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}[net]:
                unit_a, unit_b = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (a, b))
                head = lins[f"lin{taken}.model.1.weight"]
                total = total + F.conv2d((unit_a - unit_b).square(), head).mean((1, 2, 3))
                taken += 1
    return total


@pytest.mark.parametrize(("net", "side"), [("alex", 64), ("vgg", 32)])
def test_lpips_by_hand(files, net, side):
    x, y = pair(side)
    distance = LPIPS(net, weights(files, net))
    assert distance.name == f"lpips-{net}"
    assert torch.allclose(distance(x, y), by_hand(net, x, y), rtol=1e-4)
    assert distance(x, x).tolist() == [0, 0]


def test_whole_state_dict_of_the_package_or_of_taming(files, tmp_path, alex):
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    whole = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for key, value in trunk("alex").items():
        if key.startswith("features."):
            place, end = key.split(".")[1:]
            whole[f"net.slice{slices[int(place)]}.{place}.{end}"] = value
    whole |= heads("alex")
    x, y = pair()
    for name, prefix in (("plain", ""), ("taming", "loss.perceptual_loss."), ("lins", "")):
        state = {
            prefix + (k.replace("lin", "lins.", 1) if name == "lins" and k.startswith("lin") else k): v
            for k, v in whole.items()
        }
        torch.save({"state_dict": state}, tmp_path / f"{name}.ckpt")
        assert torch.equal(LPIPS("alex", tmp_path / f"{name}.ckpt")(x, y), alex(x, y)), name
    assert len(lpips_tensors(whole)) == 15


def test_frozen_without_dropout_and_differentiable_in_the_pictures(alex):
    x, y = pair()
    before = alex(x, y)
    parent = nn.Sequential(alex).train()
    assert torch.equal(parent[0](x, y), before)  # the published heads drop out here
    assert not any(p.requires_grad for p in alex.parameters())
    y.requires_grad_(True)
    alex(x, y).sum().backward()
    assert torch.isfinite(y.grad).all()
    assert float(y.grad.abs().max()) > 0
    assert not any(isinstance(m, nn.Dropout) for m in alex.modules())


def test_gradients_are_finite_where_maps_are_zero():
    maps = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_grey_pictures_count_as_three_equal_channels(alex):
    x, y = pair(channels=1)
    assert torch.allclose(alex(x, y), alex(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_weights_of_another_architecture(files):
    with pytest.raises(ArtifactError, match=r"not the weights of LPIPS with net='vgg'.*for the other.*net='alex'"):
        LPIPS("vgg", weights(files, "alex"))
    with pytest.raises(ArtifactError, match=r"incomplete.*lpips package's heads"):
        LPIPS("alex", files / "alex_trunk.safetensors")
    with pytest.raises(ArtifactError, match=r"incomplete.*torchvision's trunk"):
        LPIPS("alex", files / "alex.pth")


def test_weights_that_are_not_there(files, tmp_path):
    with pytest.raises(ArtifactError, match="no file"):
        LPIPS("alex", tmp_path / "none.pth")
    with pytest.raises(ArtifactError, match=r"several weight files \(alex_trunk.safetensors, vgg_trunk.safetensors\)"):
        LPIPS("alex", files)
    with pytest.raises(ArtifactError, match="no folder"):
        LPIPS("alex", tmp_path / "none")
    with pytest.raises(ArtifactError, match="holds no weight file"):
        LPIPS("alex", tmp_path)
    with pytest.raises(InputError, match="no weights given"):
        LPIPS("alex", [])
    with pytest.raises(UnknownChoiceError, match="did you mean 'vgg'"):
        LPIPS("vgg16", files)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"lin0.model.1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ArtifactError):
        LPIPS("alex", tmp_path / "evil.pth")


def test_a_hub_id_is_looked_up_in_the_cache(files, monkeypatch):
    asked = []

    def resolve(name, allow_patterns):
        asked.append((str(name), tuple(allow_patterns)))
        return files

    monkeypatch.setattr("latentia.losses.perceptual_weights.resolve_folder", resolve)
    LPIPS("alex", ["owner/lpips/alex_trunk.safetensors", "owner/lpips/alex.pth"])
    assert asked == [("owner/lpips", ("alex_trunk.safetensors",)), ("owner/lpips", ("alex.pth",))]


@pytest.fixture(scope="module")
def small_resnet():
    """ResNet-50's shape is fixed, so one set of random weights serves all tests."""
    torch.manual_seed(0)
    return ResNet50().eval()


def test_resnet_has_torchvisions_names(small_resnet):
    state = small_resnet.state_dict()
    assert sum(p.numel() for p in small_resnet.parameters()) == 25_557_032
    assert len(state) == 320
    assert state["layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert "layer2.1.downsample.0.weight" not in state
    assert small_resnet.get_submodule("layer2.0.conv2").stride == (2, 2)


def test_logit_distance_by_hand(small_resnet, tmp_path):
    state = {k: v for k, v in small_resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet50.pth")
    distance = perceptual_loss("resnet50-logits", tmp_path / "resnet50.pth")
    x, y = pair(16, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    logits = []
    for picture in (x, y):
        shown = F.interpolate(picture * 0.5 + 0.5, size=(224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            logits.append(small_resnet((shown - mean.view(3, 1, 1)) / std.view(3, 1, 1)))
    expected = (logits[0] - logits[1]).square().mean(1)
    assert torch.allclose(distance(x, y), expected, rtol=1e-4)
    assert not nn.Sequential(distance).train()[0].network.training


def test_logit_distance_of_another_network(tmp_path):
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "r18.safetensors")
    with pytest.raises(ArtifactError, match="not the weights of ResNet-50"):
        LogitDistance(tmp_path / "r18.safetensors")
    save_file({"fc.bias": torch.zeros(1000)}, tmp_path / "part.safetensors")
    with pytest.raises(ArtifactError, match="incomplete"):
        LogitDistance(tmp_path / "part.safetensors")


def test_feature_distance_by_hand_and_frozen():
    torch.manual_seed(0)
    network = PhotoFeatures(channels=(4, 6, 6), feature_dim=8)
    distance = FeatureDistance(network)
    x, y = pair(16)
    y.requires_grad_(True)
    expected = 0
    for a, b in zip(network.feature_maps(x), network.feature_maps(y)):
        expected = expected + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) / 3
    assert torch.allclose(distance(x, y), expected, rtol=1e-4)
    distance.train()
    assert not any(module.training for module in distance.modules())
    distance(x, y).sum().backward()
    assert float(y.grad.abs().max()) > 0
    assert all(p.grad is None for p in network.parameters())
    with pytest.raises(InputError, match="of one shape"):
        distance(x, y[:1])


def test_by_name(files):
    assert perceptual_loss("lpips-alex", weights(files, "alex")).name == "lpips-alex"
    network = PhotoFeatures(channels=(4, 6, 6), feature_dim=8)
    assert perceptual_loss("photo_features", network=network).name == "photo_features"
    with pytest.raises(UnknownChoiceError, match="did you mean 'lpips-vgg'"):
        perceptual_loss("lpips_vgg")
    with pytest.raises(InputError, match="needs its network"):
        perceptual_loss("photo_features")
    with pytest.raises(InputError, match="needs its weights"):
        perceptual_loss("lpips-vgg")


def test_pictures_that_do_not_fit(alex):
    x, y = pair()
    for a, b in ((x, y[:1]), (x[:, :2], y[:, :2]), (x[..., :40], y[..., :40])):
        with pytest.raises(InputError, match="a perceptual distance needs two tensors"):
            alex(a, b)
    assert lpips_module.EPS == 1e-10
