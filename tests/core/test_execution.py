"""Ways of running a network that do not change what it computes."""

import copy
import logging

import pytest
import torch
from torch import nn

from latentia import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet2DModel
from latentia.core.execution import SliceableAttention
from latentia.errors import InputError, UnknownChoiceError

TEXT = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": (2, 4),
}


def text_unet(**arguments) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TEXT, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **arguments).eval()


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()


def controlnet() -> ControlNetModel:
    torch.manual_seed(0)
    return ControlNetModel(**TEXT, conditioning_embedding_out_channels=(4, 8)).eval()


def image(batch, channels, size=8):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def text(batch):
    return torch.randn(batch, 5, 12, generator=torch.Generator().manual_seed(2))


CASES = {
    "text unet": (text_unet, lambda net, b: net(image(b, 4), 7, text(b)).sample),
    "unet": (unet, lambda net, b: net(image(b, 3), 7).sample),
    "vae": (vae, lambda net, b: net(image(b, 3, 16)).sample),
    "controlnet": (
        controlnet,
        lambda net, b: net(image(b, 4), 7, text(b), image(b, 3, 16).sigmoid()).mid_block_res_sample,
    ),
}
cases = pytest.mark.parametrize(("build", "run"), CASES.values(), ids=CASES)


def sizes_of(net):
    return {layer.slice_size for layer in net.modules() if isinstance(layer, SliceableAttention)}


@cases
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_attention_in_slices_gives_the_same(build, run, batch):
    net = build()
    whole = run(net, batch)
    for size in ("auto", "max", 1, 3, 100):
        net.enable_attention_slicing(size)
        torch.testing.assert_close(run(net, batch), whole, atol=1e-6, rtol=1e-6)
    net.disable_attention_slicing()
    assert sizes_of(net) == {None}
    assert torch.equal(run(net, batch), whole)


def test_slice_sizes_follow_each_layers_heads():
    net = text_unet()
    net.enable_attention_slicing()
    assert sizes_of(net) == {1, 2}
    net.enable_attention_slicing("max")
    assert sizes_of(net) == {1}
    net.enable_attention_slicing(3)
    assert sizes_of(net) == {3}
    net.enable_attention_slicing(None)
    assert sizes_of(net) == {None}


@torch.no_grad()
def test_slices_hold_fewer_scores(monkeypatch):
    held = []
    real = nn.functional.scaled_dot_product_attention

    def spy(q, k, v, *rest, **named):
        held.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return real(q, k, v, *rest, **named)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    net, run = text_unet(), CASES["text unet"][1]
    peaks = []
    for size in (None, "auto", "max"):
        net.enable_attention_slicing(size)
        held.clear()
        run(net, 2)
        peaks.append(max(held))
    assert peaks == [2 * 2 * 64 * 64, 64 * 64, 64 * 64]  # batch · heads · N · N of the first stage


def test_masks_and_gradients_go_through_slices():
    net = text_unet()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def gradients():
        net.zero_grad()
        net(image(2, 4), 7, text(2), encoder_attention_mask=mask).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    whole = gradients()
    net.enable_attention_slicing(1)
    torch.testing.assert_close(gradients(), whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_upcast_attention_is_sliced_too(monkeypatch):
    from latentia.nn import cross_attention

    monkeypatch.setattr(cross_attention, "FLOAT32_SCORES", frozenset())
    net = text_unet(upcast_attention=True).half()
    run = lambda: net(image(2, 4).half(), 7, text(2).half()).sample  # noqa: E731
    whole = run()
    net.enable_attention_slicing("max")
    torch.testing.assert_close(run(), whole, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_bad_slice_sizes(size):
    with pytest.raises(InputError, match="slice_size"):
        text_unet().enable_attention_slicing(size)


def test_unknown_word_for_a_slice_size():
    with pytest.raises(UnknownChoiceError, match="unknown slice_size 'maxi': did you mean 'max'"):
        text_unet().enable_attention_slicing("maxi")


@cases
@torch.no_grad()
def test_compiled_blocks_give_the_same_and_leave_the_weights_alone(build, run, tmp_path):
    net = build()
    whole, keys = run(net, 2), list(net.state_dict())
    net.compile_repeated_blocks(backend="eager", fullgraph=True)
    compiled = [module for module in net.modules() if module._compiled_call_impl is not None]
    assert {type(module).__name__ for module in compiled} <= set(net._repeated_blocks)
    assert len(compiled) >= 4
    torch.testing.assert_close(run(net, 2), whole)
    assert list(net.state_dict()) == keys
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert torch.equal(run(again, 2), whole)
    assert not any(module._compiled_call_impl for module in (*again.modules(), *copy.deepcopy(net).modules()))


@torch.no_grad()
def test_more_shapes_of_block_than_torch_compiles_by_default(caplog):
    """Torch gives up after 8 unless told otherwise; Stable Diffusion's network has twice as many."""
    net = UNet2DModel(
        block_out_channels=(4, 8, 12, 16),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    ).eval()
    sample = image(1, 3)
    whole = net(sample, 7).sample
    net.compile_repeated_blocks(backend="eager", fullgraph=True)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(net(sample, 7).sample, whole)
    assert not caplog.messages


@cases
@torch.no_grad()
def test_channels_last_gives_the_same(build, run):
    net = build()
    whole = run(net, 2)
    net.to(memory_format=torch.channels_last)
    kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    torch.testing.assert_close(run(net, 2), whole, atol=1e-5, rtol=1e-5)


def test_a_network_without_repeated_blocks_says_so():
    net = text_unet()
    net._repeated_blocks = ("NotThere",)
    with pytest.raises(InputError, match="UNet2DConditionModel has no repeated blocks: compile it whole"):
        net.compile_repeated_blocks(backend="eager")
