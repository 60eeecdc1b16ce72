import pytest
import torch

from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import NETWORKS, build, norm_layers


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [
        ("mlp3", {}, 4_785),
        ("mlp3", {"size": 32, "channels": 3}, 155_185),
        ("convnet3", {}, 1_578),
        ("convnet3", {"size": 32, "channels": 3, "width": 32}, 39_882),
        ("resnet", {}, 174_970),
        ("resnet", {"width": 4, "blocks": (1, 1)}, 1_382),
    ],
)
def test_sizes_of_the_article(name, sizes, count):
    network = build(name, **sizes)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_images_to_logits(name, size):
    network = build(name, **({} if name == "resnet" else {"size": size})).eval()
    assert network(torch.randn(3, 1, size, size)).shape == (3, 10)


def test_last_two_norms_of_resnet_18_hold_2048():
    network = build("resnet", width=64, blocks=(2, 2, 2, 2), channels=3, classes=100)
    layout = ParameterLayout.select(network, norm_layers(network)[-2:])
    assert layout.size == 2048
    assert layout.names[0] == "layer4.1.bn1.weight"
    assert len(norm_layers(network)) == 17  # the stem and two for each of 8 blocks; none of the downsample paths


def test_resnet_reads_and_halves_as_written():
    network = build("resnet", width=4, blocks=(1, 1)).eval()
    seen = []
    network.layer2.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))
    network(torch.randn(2, 1, 8, 8))
    assert seen == [(2, 8, 4, 4)]


def test_bad_sizes():
    with pytest.raises(UnknownChoiceError, match="did you mean 'convnet3'"):
        build("convnet")
    with pytest.raises(InputError, match="multiple of 4"):
        build("convnet3", size=10)
    for sizes in ({"width": 0}, {"blocks": (2, 0)}, {"blocks": ()}, {"width": 2.5}):
        with pytest.raises((InputError, ConfigError)):
            build("resnet", **sizes)
