"""ParameterTemplate: statistics that are measured for every generated network travel with it."""

import pytest
import torch

from latentia.errors import ConfigError, UnknownChoiceError
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import ResNetDigits
from latentia.methods.pdiff.normalise import Standardiser, Whitener
from latentia.methods.pdiff.template import ParameterTemplate

SIZES = {"width": 4, "blocks": (1,)}


def parts(**sizes):
    network = ResNetDigits(**{**SIZES, **sizes})
    layout = ParameterLayout.select(network, "*")
    return network, layout, Standardiser(layout.size, "none"), Whitener((2, 1), "coordinate")


def test_every_network_gets_its_own_statistics_after_a_round_trip(tmp_path):
    torch.manual_seed(0)
    network, layout, standardiser, whitener = parts()
    images = torch.randn(16, 1, 8, 8)
    made = ParameterTemplate.of(
        layout, network.state_dict(), standardiser, whitener, measuring=("resnet", SIZES, images)
    )
    made.save_pretrained(tmp_path)
    template = ParameterTemplate.from_pretrained(tmp_path)
    vectors = layout.flatten(network) + 0.1 * torch.randn(2, layout.size)
    checkpoints = template.checkpoints(vectors)
    for i in range(2):
        network.load_state_dict(checkpoints.state_dict(i))
        expected = network.eval()(images)
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None
        with torch.no_grad():
            network.train()(images)
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_without_images_the_base_network_s_statistics_stay():
    network, layout, standardiser, whitener = parts()
    template = ParameterTemplate.of(layout, network.state_dict(), standardiser, whitener)
    assert template.images is None
    assert not template.checkpoints(layout.flatten(network)[None]).own


def test_half_of_it_is_refused():
    network, layout, *_ = parts()
    base = [(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in network.state_dict().items()]
    with pytest.raises(ConfigError, match="give both, or neither"):
        ParameterTemplate(layout.to_json(), base, (2, 1), network="resnet")
    with pytest.raises(UnknownChoiceError, match="did you mean 'resnet'"):
        ParameterTemplate(layout.to_json(), base, (2, 1), network="resnets", images=(2, 1, 8, 8))
