"""The paper's classifiers: published sizes, the layers it names, and pretrained weights."""

import json

import pytest
import torch
from torch import nn

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.methods.pdiff.architectures import ARCHITECTURES, build, paper_layers
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.recipes.pdiff_tables import HUB

PUBLISHED = {
    "resnet18": (11_689_512, 2048),
    "resnet50": (25_557_032, 5120),
    "vit-tiny": (5_717_416, 768),
    "vit-base": (86_567_656, 3072),
    "convnext-tiny": (28_589_128, 3072),
    "convnext-base": (88_591_464, 4096),
}


def small(name: str, **changes) -> nn.Module:
    return build(name, 10, **{"image_size": 8, "channels": 1, "width": 0.06, **changes})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    with torch.device("meta"):
        network = build(name)
    parameters, size = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) == parameters == ARCHITECTURES[name].parameters
    layout = ParameterLayout.select(network, paper_layers(name))
    assert layout.size == size == ARCHITECTURES[name].size
    assert len(layout.names) == 4
    assert ARCHITECTURES[name].pretrained == HUB[name]


def test_the_layers_are_those_of_the_paper():
    with torch.device("meta"):
        found = {name: ParameterLayout.select(build(name), paper_layers(name)).names[::2] for name in ARCHITECTURES}
    assert found["resnet18"] == tuple(
        f"resnet.encoder.stages.3.layers.1.layer.{i}.normalization.weight" for i in (0, 1)
    )
    assert found["resnet50"] == tuple(
        f"resnet.encoder.stages.3.layers.2.layer.{i}.normalization.weight" for i in (1, 2)
    )
    assert all(name.endswith(("11.layernorm_after.weight", "vit.layernorm.weight")) for name in found["vit-base"])
    assert found["convnext-base"] == (
        "convnext.encoder.stages.3.layers.2.layernorm.weight",
        "convnext.layernorm.weight",
    )


@pytest.mark.parametrize("name", ["resnet18", "vit-tiny", "convnext-tiny"])
def test_reduced_networks_give_logits_and_have_transformers_names(name):
    network = small(name).eval()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    plain = type(network).__mro__[1](network.config)
    if name != "resnet18":  # whose stem is CIFAR's
        plain.load_state_dict(network.state_dict())
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(plain.eval()(pixel_values=x).logits, network(x), rtol=1e-4, atol=1e-5)
    assert set(plain.state_dict()) == set(network.state_dict())


def test_pixels_are_normalised_as_the_published_weights_expect():
    network = small("resnet18", channels=3)
    seen = []
    network.resnet.register_forward_pre_hook(lambda m, args, kw: seen.append(kw or args), with_kwargs=True)
    hook = network.resnet.embedder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    network.eval()(torch.ones(1, 3, 8, 8))
    hook.remove()
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[-1][0, :, 0, 0], expected)


@pytest.mark.parametrize("name", ["resnet18", "vit-tiny"])
def test_pretrained_weights_from_a_folder(tmp_path, name):
    sizes = {"patch_size": 4 if name == "resnet18" else 2, "image_size": 32 if name == "resnet18" else 8}
    saved = build(name, 10, channels=1, width=0.06, **sizes)
    saved.save_pretrained(tmp_path)
    again = build(name, 10, channels=1, width=0.06, pretrained=tmp_path, **sizes)
    assert again.training
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), again.state_dict().values()))
    other = build(name, 7, channels=1, width=0.06, pretrained=tmp_path, **sizes)
    different = [k for k, v in other.state_dict().items() if v.shape != saved.state_dict()[k].shape]
    assert different
    assert all(key.startswith("classifier.") for key in different)
    with pytest.raises(InputError, match=r"hidden_size.* is .*, not"):
        build(name, 10, channels=1, width=0.25, pretrained=tmp_path, **sizes)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="cannot load vit-tiny"):
        small("vit-tiny", pretrained=tmp_path)
    network = small("vit-tiny")
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a vit, not a convnext"):
        small("convnext-tiny", pretrained=tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ArtifactError, match="as safetensors"):
        small("vit-tiny", pretrained=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"


def test_bad_sizes():
    with pytest.raises(UnknownChoiceError, match="did you mean 'resnet18'"):
        build("resnet-18")
    with pytest.raises(InputError, match="does not divide"):
        small("vit-tiny", patch_size=3)
    with pytest.raises(InputError, match=r"4 \(ImageNet's\) or 1"):
        small("resnet18", patch_size=2)
    with pytest.raises(InputError, match="too few"):
        small("convnext-tiny", patch_size=4)
    with pytest.raises(InputError, match="ImageNet's stem"):
        small("resnet18", pretrained="nowhere")
    with pytest.raises(InputError, match="width"):
        small("resnet18", width=0)
