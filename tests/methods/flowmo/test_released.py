import pickle

import pytest
import torch

from latentia.errors import ArtifactError, UnknownChoiceError
from latentia.methods.flowmo.codecs import FlowMo
from latentia.methods.flowmo.released import (
    dead_weights,
    from_released,
    our_name,
    released_names,
    released_parameters,
    to_released,
)

RELEASED = {  # by hand, from the release's module tree
    "encoder.img_in.weight": "encoder.image_in.weight",
    "encoder.txt_in.bias": "encoder.code_start",
    "decoder.txt_in.weight": "decoder.code_in.weight",
    "decoder.time_in.in_layer.bias": "decoder.time_in.linear_1.bias",
    "decoder.time_in.out_layer.weight": "decoder.time_in.linear_2.weight",
    "encoder.double_blocks.0.img_attn.qkv.weight": "encoder.blocks.0.image.qkv.weight",
    "encoder.double_blocks.1.txt_attn.proj.bias": "encoder.blocks.1.code.proj.bias",
    "decoder.double_blocks.0.txt_attn.norm.query_norm.scale": "decoder.blocks.0.code.query_norm.scale",
    "decoder.double_blocks.1.img_attn.norm.key_norm.scale": "decoder.blocks.1.image.key_norm.scale",
    "decoder.double_blocks.1.img_mod.lin.weight": "decoder.blocks.1.image.mod.lin.weight",
    "decoder.double_blocks.0.txt_mlp.2.bias": "decoder.blocks.0.code.mlp.2.bias",
    "encoder.final_layer_txt.linear.weight": "encoder.out.weight",
    "decoder.final_layer_img.linear.bias": "decoder.out.bias",
    "decoder.final_layer_img.adaLN_modulation.1.weight": "decoder.out_mod.weight",
}


@pytest.fixture
def rgb(tiny):
    """3 channels, a width for heads of 8 and 16 channels, as `from_released` finds them in shapes."""
    return lambda seed=0: tiny(seed=seed, in_channels=3)


def checkpoint(model, averaged, path):
    """A file as the release writes it: both sets of weights, dead ones included (and not zero), and a step count."""
    torch.manual_seed(9)
    states = []
    for each in (model, averaged):
        dead = {name: torch.randn(shape) for name, shape in dead_weights(each).items()}
        states.append(to_released(each) | dead)
    raw, ema = states
    torch.save({"model_state_dict": raw, "model_ema_state_dict": ema, "total_steps": 1_325_000}, path)


def load(path, **given):
    return from_released(path, image_size=8, code_length=4, group_bits=3, **given)


@pytest.mark.parametrize(("released", "ours"), RELEASED.items())
def test_names(rgb, released, ours):
    assert our_name(released) == ours
    assert released_names(rgb())[ours] == released


def test_names_are_a_bijection(rgb):
    names = released_names(rgb())
    assert {our_name(released): ours for ours, released in names.items()} == {ours: ours for ours in names}
    assert len(set(names.values())) == len(names)
    assert not set(names.values()) & set(dead_weights(rgb()))


@torch.no_grad()
def test_a_checkpoint_loads_and_computes_the_same(rgb, tmp_path):
    raw, averaged = rgb(1), rgb(2)
    checkpoint(raw, averaged, tmp_path / "flowmo.pth")
    x, noise = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for model, weights in ((averaged, "averaged"), (raw, "raw")):
        loaded = load(tmp_path / "flowmo.pth", weights=weights)
        assert loaded.config.decoder_heads == 2
        assert not loaded.training
        assert torch.equal(loaded.to_tokens(x), model.to_tokens(x))
        latents = model.to_latents(x)
        assert torch.equal(loaded.decode(latents, noise=noise).sample, model.decode(latents, noise=noise).sample)


@torch.no_grad()
def test_v_is_noise_less_data_in_the_release(rgb, tmp_path):
    """A released read-out that says b says v = b: x̂ = z − b after one step."""
    model = rgb()
    model.decoder.out.weight.zero_()
    model.decoder.out.bias.fill_(0.25)
    checkpoint(model, model, tmp_path / "flowmo.pth")
    noise = torch.rand(1, 3, 8, 8) / 2
    loaded = load(tmp_path / "flowmo.pth", num_inference_steps=1)
    torch.testing.assert_close(loaded.decode(torch.zeros(1, 6, 4), noise=noise).sample, noise - 0.25)


def test_safetensors_and_plain_state_dicts_load_too(rgb, tmp_path):
    from safetensors.torch import save_file

    state = to_released(rgb())
    save_file(state, tmp_path / "flowmo.safetensors")
    torch.save(state, tmp_path / "flowmo.pt")
    for name in ("flowmo.safetensors", "flowmo.pt"):
        loaded = load(tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), rgb().state_dict().values()))


@pytest.mark.parametrize(
    ("changes", "with_dead"),
    [
        ({"quantizer_options": {"group_bits": 9}}, 945_374_085),
        ({"code_dim": 56, "quantizer_options": {"group_bits": 14}}, 945_520_081),
        ({"patch_size": 8, "decoder_width": 768, "quantizer_options": {"group_bits": 9}}, 517_117_861),
    ],
    ids=["lo", "hi", "small"],
)
def test_parameters_of_the_paper(changes, with_dead):
    """945.4 M, 945.5 M and 517.1 M as released; 79.8 M (71.8 M) of them are dead and not built."""
    with torch.device("meta"):
        model = FlowMo(**changes)
    assert released_parameters(model) == with_dead
    dead = with_dead - model.num_parameters()
    assert dead == pytest.approx(79.9e6 if with_dead > 9e8 else 71.8e6, rel=2e-3)


def test_bad_files(rgb, tmp_path):
    with pytest.raises(ArtifactError, match="no file"):
        load(tmp_path / "nothing.pth")
    with pytest.raises(UnknownChoiceError, match="did you mean 'averaged'"):
        load(tmp_path / "nothing.pth", weights="average")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": pytest.raises}))
    with pytest.raises(ArtifactError, match="asks for more than tensors"):
        load(tmp_path / "code.pth")
    torch.save({"model_state_dict": to_released(rgb())}, tmp_path / "raw.pth")
    with pytest.raises(ArtifactError, match="model_ema_state_dict"):
        load(tmp_path / "raw.pth")
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match=r"it lacks encoder.final_layer_txt.linear.bias"):
        load(tmp_path / "other.pth")
    state = to_released(rgb())
    del state["decoder.double_blocks.0.img_mlp.0.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ArtifactError, match=r"1 missing: decoder.blocks.0.image.mlp.0.weight"):
        load(tmp_path / "cut.pth")
