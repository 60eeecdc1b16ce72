"""The module that made the first NaN is named, whoever else is calling."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from latentia import AutoencoderKL, UNet2DConditionModel
from latentia.core.finite import first_nonfinite, is_finite

UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval()


def call(unet):
    return unet(torch.ones(1, 4, 8, 8), 3, torch.ones(1, 5, 12))


def hooks_of(network: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


@pytest.mark.parametrize(
    "name",
    [
        "conv_in",
        "time_embedding.linear_1",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
        "mid_block.resnets.0.norm1",
        "conv_out",
    ],
)
@torch.no_grad()
def test_the_layer_with_a_bad_weight_is_named(name):
    unet = tiny_unet()
    assert first_nonfinite({"unet": unet}, lambda: call(unet)) is None
    unet.get_submodule(name).weight.view(-1)[0] = float("nan")
    assert first_nonfinite({"unet": unet}, lambda: call(unet)) == f"unet.{name}"
    assert hooks_of(unet) == 0


@torch.no_grad()
def test_what_happens_between_layers_is_blamed_on_the_module_around_them():
    """Keys and queries of 1e30 are finite, their product is not: the softmax of the attention itself fails."""
    unet = tiny_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.to_q.weight.mul_(1e30)
    attention.to_k.weight.mul_(1e30)
    name = first_nonfinite({"unet": unet}, lambda: call(unet))
    assert name == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@torch.no_grad()
def test_the_first_of_several_networks_and_methods_other_than_forward():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1).eval()
    unet = tiny_unet()
    vae.decoder.conv_out.bias.fill_(float("inf"))
    unet.conv_out.bias.fill_(float("nan"))
    run = lambda: (vae.decode(torch.zeros(1, 4, 4, 4)), call(unet))  # noqa: E731
    assert first_nonfinite({"unet": unet, "vae": vae}, run) == "vae.decoder.conv_out"


def test_nobody_is_blamed_for_what_came_from_outside():
    linear = nn.Linear(2, 2)
    assert first_nonfinite({"net": linear}, lambda: linear(torch.full((1, 2), float("nan")))) is None
    assert first_nonfinite({"net": linear}, lambda: linear(torch.ones(1, 2)) / 0) is None


class Masked(nn.Module):
    def forward(self, x, *, mask):
        return (x + mask).softmax(-1) / x


def test_keywords_are_inputs_and_a_mask_of_minus_infinity_is_finite():
    net = Masked()
    mask = torch.tensor([0.0, -torch.inf])
    assert first_nonfinite({"net": net}, lambda: net(torch.ones(2), mask=mask)) is None
    assert first_nonfinite({"net": net}, lambda: net(torch.zeros(2), mask=mask)) == "net"
    assert first_nonfinite({"net": net}, lambda: net(torch.zeros(2), mask=mask * 0 + torch.nan)) is None


def test_errors_come_through_and_hooks_go():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        first_nonfinite({"net": net}, lambda: net(torch.ones(1, 2)))
    assert hooks_of(net) == 0


class Catching(nn.Module):
    """Calls a part that fails, and goes on."""

    def __init__(self):
        super().__init__()
        self.part, self.other = nn.Linear(2, 2), nn.Identity()

    def forward(self, x):
        with pytest.raises(RuntimeError):
            self.part(torch.ones(1, 3))
        return self.other(x) / 0


def test_a_part_that_raised_does_not_hide_its_parent():
    net = Catching()
    assert first_nonfinite({"net": net}, lambda: net(torch.ones(1, 2))) == "net"


def test_calls_of_other_threads_are_neither_seen_nor_disturbed():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    stop, wrong = threading.Event(), []
    good = net(torch.ones(1, 4)).detach()

    def others():
        while not stop.is_set():
            net(torch.full((1, 4), float("nan")))
            if not torch.equal(net(torch.ones(1, 4)).detach(), good):
                wrong.append("changed")
            net[0](torch.full((1, 4), 3e38) * 0 + 3e38)

    threads = [threading.Thread(target=others) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = {first_nonfinite({"net": net}, lambda: net(torch.ones(1, 4))) for _ in range(100)}
    stop.set()
    for thread in threads:
        thread.join()
    assert found == {None}
    assert not wrong
    assert hooks_of(net) == 0


@torch.no_grad()
def test_parts_of_compiled_blocks_are_named():
    unet = tiny_unet()
    unet.compile_repeated_blocks(backend="eager")
    call(unet)
    unet.mid_block.resnets[0].conv2.weight.fill_(float("inf"))
    assert first_nonfinite({"unet": unet}, lambda: call(unet)) == "unet.mid_block.resnets.0.conv2"
    net = nn.Sequential(nn.Linear(2, 2))
    whole = torch.compile(net, backend="eager")
    whole(torch.ones(1, 2))
    net[0].weight.fill_(float("nan"))
    assert first_nonfinite({"net": whole}, lambda: whole(torch.ones(1, 2))) == "net.0"


@dataclass
class Pair:
    a: torch.Tensor
    b: object


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_are_found_in_containers(bad):
    good, broken = torch.ones(2), torch.tensor([1.0, bad])
    for wrap in (lambda t: t, lambda t: [3, (t,)], lambda t: {"a": t}, lambda t: Pair(good, [t]), lambda t: t.half()):
        assert is_finite(wrap(good))
        assert not is_finite(wrap(broken))
    assert is_finite((None, 3, "word", torch.arange(3), torch.tensor([0.0, -torch.inf]), Pair))
    assert not is_finite(torch.complex(broken, good))
