import copy
import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latentia import UNet2DConditionModel
from latentia.errors import ArtifactError, InputError, NonFiniteError, UnknownChoiceError
from latentia.nn import lora
from latentia.nn.adapted import AdaptedConv2d, AdaptedLinear, LowRank, adaptable

TINY = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
EVERYTHING = r".*\.(to_[qkv]|to_out\.0|proj_in|proj_out|proj|net\.2|conv\d?|conv_shortcut|time_emb_proj)"


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval()


def call(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    text = torch.randn(2, 3, 12, generator=generator)
    return unet(x.to(unet.dtype), 7, text.to(unet.dtype)).sample


def fill(tree: nn.Module, std: float = 0.1, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return tree


class Net(nn.Module):
    """One of each kind of layer, and what cannot be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(6, 5)
        self.to_out = nn.Sequential(nn.Linear(5, 6, bias=False))
        self.conv = nn.Conv2d(6, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x + self.to_out(self.keys(x)))  # (B, N, 6)
        return self.grouped(self.conv(h.transpose(1, 2).reshape(len(x), 6, 5, -1)))


def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


X = torch.linspace(-2, 2, 2 * 25 * 6).view(2, 25, 6)


# The function -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_two_adapters_on_a_matrix_are_the_closed_form():
    layer = nn.ModuleDict({"a": nn.Linear(7, 5)})
    fill(lora.add_adapter(layer, "one", 3, alpha=6.0, targets=["a"]), 1.0, 1)
    fill(lora.add_adapter(layer, "two", 2, targets=["a"]), 1.0, 2)
    lora.set_adapters(layer, {"one": 0.5, "two": -2})
    (a1, b1, alpha1), (a2, b2, alpha2) = (lora.adapter_state(layer, name)["a"] for name in ("one", "two"))
    assert (a1.shape, b1.shape, alpha1, alpha2) == ((3, 7), (5, 3), 6.0, 2.0)
    weight = layer["a"].weight + 0.5 * (6 / 3) * b1 @ a1 - 2 * (2 / 2) * b2 @ a2
    inputs = [torch.randn(shape) for shape in ((7,), (4, 7), (2, 3, 7), (0, 7))]
    inputs += [
        torch.randn(2, 7, 3).transpose(1, 2),
        torch.randn(7, 3, 2).permute(2, 1, 0),
        torch.randn(7).expand(2, 3, 7),
    ]
    for x in inputs:
        torch.testing.assert_close(layer["a"](x), F.linear(x, weight, layer["a"].bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@torch.no_grad()
def test_an_adapter_on_a_convolution_is_the_convolution_with_the_composed_kernel(mode: str):
    root = nn.ModuleDict({"c": nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, padding_mode=mode)})
    fill(lora.add_adapter(root, "one", 2, alpha=3.0, targets=["c"]), 1.0)
    down, up, _ = lora.adapter_state(root, "one")["c"]
    x = torch.randn(2, 3, 9, 9)
    plain = copy.deepcopy(root["c"])
    lora.unload(plain)
    plain.weight += (3 / 2) * torch.einsum("orxy,rikl->oikl", up, down)
    torch.testing.assert_close(root["c"](x), plain(x), rtol=1e-5, atol=1e-5)


def test_the_gradients_are_those_of_the_sum_and_reach_only_the_adapter():
    root = nn.ModuleDict({"a": nn.Linear(7, 5)})
    tree = fill(lora.add_adapter(root, "one", 3, alpha=6.0, targets=["a"]))
    low = tree["a"]
    x = torch.randn(4, 7, requires_grad=True)
    root["a"](x).square().sum().backward()
    got = [low.lora_A.weight.grad, low.lora_B.weight.grad, x.grad]
    a, b = (p.detach().clone().requires_grad_() for p in (low.lora_A.weight, low.lora_B.weight))
    y = x.detach().clone().requires_grad_()
    F.linear(y, root["a"].weight + 2 * b @ a, root["a"].bias).square().sum().backward()
    for ours, exact in zip(got, (a.grad, b.grad, y.grad)):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    assert root["a"].weight.grad is None


def test_a_result_is_nobody_elses():
    root = net()
    tree = fill(lora.add_adapter(root, "one", 2, targets=["keys", "conv"]))
    x = torch.randn(2, 6, requires_grad=True)
    root.keys(x).add_(1).square().sum().backward()  # what the transformer does to the results of its layers
    assert x.grad is not None
    assert tree["keys"].lora_B.weight.grad is not None


def test_training_works_with_checkpointing_and_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        unet = tiny_unet()
        tree = fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING))
        if checkpointing:
            unet.enable_gradient_checkpointing()
        call(unet).square().mean().backward()
        assert all(p.grad is None for p in unet.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in tree.parameters()]))
    assert grads[0].abs().max() > 0
    assert torch.equal(*grads)


def test_every_layer_of_a_unet_runs_through_its_forward():
    unet = tiny_unet()
    tree = lora.add_adapter(unet, "one", 2, targets=".*")
    call(unet).square().mean().backward()
    ups = {path: p.grad for path, p in tree.named_parameters() if "lora_B" in path}
    assert len(ups) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in tiny_unet().modules()) > 60
    assert [path for path, grad in ups.items() if not grad.any()] == []


def test_an_adapter_learns_what_the_frozen_network_cannot():
    torch.manual_seed(0)
    root = nn.ModuleDict({"a": nn.Linear(6, 6)})
    x = torch.randn(64, 6)
    wanted = F.linear(x, root["a"].weight + torch.outer(torch.arange(6.0), torch.ones(6)), root["a"].bias).detach()
    tree = lora.add_adapter(root, "one", 1, targets=["a"], generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(tree.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (root["a"](x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-4  # the missing part has rank one


# At rest ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_effect_every_bit_is_the_networks_own():
    unet = tiny_unet()
    alone = call(unet)
    tree = lora.add_adapter(unet, "one", 4, targets=EVERYTHING)
    assert torch.equal(call(unet), alone)  # B starts at zero
    fill(tree)
    assert not torch.equal(call(unet), alone)
    for change, back in (
        (lambda: lora.set_adapters(unet, {"one": 0}), lambda: lora.set_adapters(unet, {"one": 1})),
        (lambda: lora.set_adapters(unet, {}), lambda: lora.set_adapters(unet, {"one": 1})),
        (lambda: lora.enable_adapters(unet, False), lambda: lora.enable_adapters(unet)),
        (lambda: lora.remove_adapter(unet, "one"), lambda: None),
    ):
        change()
        assert torch.equal(call(unet), alone)
        back()
    assert not any(isinstance(module, AdaptedLinear | AdaptedConv2d) for module in unet.modules())
    assert not any({"guests", "active"} & set(vars(module)) for module in unet.modules())


def test_the_network_shows_nothing_of_its_adapters(tmp_path):
    unet, twin = tiny_unet(), tiny_unet()
    parameters = list(unet.parameters())
    fill(lora.add_adapter(unet, "one", 4, targets=EVERYTHING))
    before = twin.state_dict()
    assert list(unet.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    assert all(a is b for a, b in zip(unet.parameters(), parameters, strict=True))
    assert unet.num_parameters() == twin.num_parameters()
    unet.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(call(UNet2DConditionModel.from_pretrained(tmp_path)), call(twin))
        adapted = call(unet)
        unet.load_state_dict(before, strict=True)
        assert torch.equal(call(unet), adapted)
    unet.requires_grad_(False)  # as the loop does with frozen networks
    assert call(unet).requires_grad


def test_the_returned_tree_is_an_ordinary_module():
    unet = tiny_unet()
    tree = lora.add_adapter(unet, "one", 4)
    paths = [path for path in adaptable(unet) if path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    assert len(paths) == 32
    assert sorted(tree.state_dict()) == sorted(f"{p}.lora_{half}.weight" for p in paths for half in "AB")
    fill(tree)
    adapted = call(unet)
    saved = copy.deepcopy(tree.state_dict())
    fill(tree, seed=2)
    tree.load_state_dict(saved)
    assert torch.equal(call(unet), adapted)
    assert lora.tree_state(tree).keys() == lora.adapter_state(unet, "one").keys() == set(paths)
    assert tree["down_blocks"]["0"]["attentions"]["0"]["transformer_blocks"]["0"]["attn1"]["to_q"].rank == 4


def test_a_layer_may_be_called_like_a_method_of_a_dict():
    root = net()
    tree = fill(lora.add_adapter(root, "one", 2, targets=["keys"]))
    assert list(tree.state_dict()) == ["keys.lora_A.weight", "keys.lora_B.weight"]
    assert [path for path, module in tree.named_modules() if isinstance(module, LowRank)] == ["keys"]


def test_starting_values():
    unet = tiny_unet()
    generator = torch.Generator().manual_seed(0)
    options = {"targets": r".*ff\.net\.2", "generator": generator}
    lora.add_adapter(unet, "gaussian", 8, **options)
    lora.add_adapter(unet, "kaiming", 8, init="kaiming", **options)
    for name, std, bound in (("gaussian", 1 / 8, math.inf), ("kaiming", 1 / math.sqrt(3 * 32), 1 / math.sqrt(32))):
        state = lora.adapter_state(unet, name)
        assert all(not up.any() for _, up, _ in state.values())
        narrow = torch.cat([down.flatten() for down, _, _ in state.values() if down.shape[1] == 32])
        assert narrow.std() == pytest.approx(std, rel=0.1)
        assert narrow.abs().max() < bound
    again = tiny_unet()
    lora.add_adapter(again, "gaussian", 8, targets=r".*ff\.net\.2", generator=torch.Generator().manual_seed(0))
    first, second = (lora.adapter_state(u, "gaussian") for u in (unet, again))
    assert all(torch.equal(first[path][0], second[path][0]) for path in first)


def test_dropout_acts_in_training_mode_of_the_adapter_only():
    root = nn.ModuleDict({"a": nn.Linear(50, 1, bias=False)})
    tree = lora.add_adapter(root, "one", 1, targets=["a"], dropout=0.5)
    with torch.no_grad():
        root["a"].weight.zero_()
        for parameter in tree.parameters():
            parameter.fill_(1)
        torch.manual_seed(0)
        x = torch.ones(400, 50)
        dropped = root.eval()["a"](x)  # the network's mode does not matter
        assert dropped.mean() == pytest.approx(50, rel=0.02)
        assert dropped.std() == pytest.approx(math.sqrt(50), rel=0.15)  # each of 50 is 0 or 2
        tree.eval()
        assert torch.equal(root["a"](x), torch.full((400, 1), 50.0))


# Moving -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_adapters_follow_the_network():
    unet = tiny_unet()
    tree = fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING))
    single = call(unet)
    unet.double()
    assert {p.dtype for p in tree.parameters()} == {torch.float64}
    torch.testing.assert_close(call(unet).float(), single, rtol=1e-4, atol=1e-5)
    unet.to("meta")
    assert {p.device.type for p in tree.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_adapter_trains_under_a_half_precision_network(dtype: torch.dtype):
    unet = tiny_unet()
    alone = call(unet).detach()
    unet.to(dtype)
    tree = fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING), 0.05)
    assert {p.dtype for p in tree.parameters()} == {torch.float32}
    out = call(unet)
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in tree.parameters())
    with torch.no_grad():
        without_gradients = call(unet)
    assert torch.equal(out, without_gradients)
    assert (out.float() - alone).abs().max() > 0.01


def test_autocast():
    unet = tiny_unet()
    tree = fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING), 0.05)
    exact = call(unet).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(unet)
        with torch.no_grad():
            assert torch.equal(call(unet), out)
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in tree.parameters())
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.05)


def test_loading_casts_to_each_layer_and_copies():
    root = net().to(torch.bfloat16)
    state = {"keys": (torch.ones(2, 6), torch.ones(5, 2), 2.0)}
    lora.load_adapter(root, "half", state)
    lora.load_adapter(root, "single", state, dtype=torch.float32)
    state["keys"][0].zero_()
    for name, dtype in (("half", torch.bfloat16), ("single", torch.float32)):
        down, up, _ = lora.adapter_state(root, name)["keys"]
        assert (down.dtype, up.dtype) == (dtype, dtype)
        assert down.float().sum() == 12
        assert not lora.load_adapter(net(), name, state)["keys"].lora_A.weight.requires_grad


def test_a_deep_copy_has_its_own_adapters():
    unet = tiny_unet()
    fill(lora.add_adapter(unet, "one", 2))
    adapted = call(unet)
    twin = copy.deepcopy(unet)
    lora.set_adapters(twin, {"one": 0})
    with torch.no_grad():
        assert torch.equal(call(unet), adapted)
        lora.set_adapters(twin, {"one": 1})
        assert torch.equal(call(twin), adapted)
        next(iter(lora.adapter_state(twin, "one").values()))[1].fill_(9)
        assert torch.equal(call(unet), adapted)


def test_one_copy_of_a_network_and_its_adapter_keeps_them_together():
    unet = tiny_unet()
    pair = nn.ModuleDict({"unet": unet, "lora": lora.add_adapter(unet, "one", 2)})
    twin = copy.deepcopy(pair)
    fill(twin["lora"])
    assert not torch.equal(call(twin["unet"]), call(unet))


@pytest.mark.parametrize("grad", [True, False])
def test_a_compiled_network_is_one_graph_and_sees_changes(grad: bool):
    root = net()
    fill(lora.add_adapter(root, "one", 2, targets=["keys", "to_out.0", "conv"]))
    compiled = torch.compile(root, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(X), root(X))
        lora.set_adapters(root, {"one": 0.25})
        torch.testing.assert_close(compiled(X), root(X))
        lora.unload(root)
        torch.testing.assert_close(compiled(X), net()(X))
    assert list(adaptable(compiled)) == list(adaptable(root))
    torch.compiler.reset()


@torch.no_grad()
def test_threads_share_a_network():
    unet = tiny_unet()
    fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING))
    wanted = call(unet)
    results: list[bool] = []

    def work() -> None:
        with torch.no_grad():
            results.extend(torch.equal(call(unet), wanted) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


# Fusing -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fused_is_unfused_and_goes_back_bit_for_bit():
    unet = tiny_unet()
    alone = call(unet)
    weights = copy.deepcopy(unet.state_dict())
    places = [p.data_ptr() for p in unet.parameters()]
    fill(lora.add_adapter(unet, "one", 2, alpha=3.0, targets=EVERYTHING))
    fill(lora.add_adapter(unet, "two", 3, targets=["to_v", "conv1"]), seed=2)
    lora.set_adapters(unet, {"one": 0.5, "two": 1.5})
    beside = call(unet)
    lora.fuse(unet)
    assert lora.fused_adapters(unet) == ["one", "two"]
    assert (beside - alone).abs().max() > 0.05
    torch.testing.assert_close(call(unet), beside, rtol=1e-5, atol=1e-5)
    lora.unfuse(unet)
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    assert [p.data_ptr() for p in unet.parameters()] == places
    assert torch.equal(call(unet), beside)
    lora.set_adapters(unet, {})
    assert torch.equal(call(unet), alone)


@torch.no_grad()
def test_fusing_by_name_scale_and_one_after_the_other():
    root = net()
    weight = root.keys.weight.clone()
    for seed, name in enumerate(("one", "two")):
        fill(lora.add_adapter(root, name, 2, targets=["keys"]), 0.5, seed)
    deltas = [b @ a for a, b, _ in (lora.adapter_state(root, name)["keys"] for name in ("one", "two"))]
    lora.set_adapters(root, {"two": 3.0})  # "one" is not active: fused with weight 1
    lora.fuse(root, ["one"], scale=0.5)
    torch.testing.assert_close(root.keys.weight, weight + 0.5 * deltas[0])
    assert [name for name, _ in lora.active_adapters(root).items()] == ["two"]
    lora.fuse(root, ["two"], scale=2)
    torch.testing.assert_close(root.keys.weight, weight + 0.5 * deltas[0] + 6 * deltas[1])
    lora.unfuse(root)
    assert torch.equal(root.keys.weight, weight)


@torch.no_grad()
def test_a_network_cast_while_fused_comes_back_as_if_cast_alone():
    unet = tiny_unet()
    fill(lora.add_adapter(unet, "one", 2))
    lora.fuse(unet)
    unet.half()
    lora.unfuse(unet)
    alone = tiny_unet().half().state_dict()
    assert all(torch.equal(value, alone[key]) for key, value in unet.state_dict().items())


@torch.no_grad()
def test_what_is_fused_at_unloading_stays():
    unet = tiny_unet()
    fill(lora.add_adapter(unet, "one", 2, targets=EVERYTHING))
    beside = call(unet)
    lora.fuse(unet)
    lora.unload(unet)
    assert lora.adapter_names(unet) == []
    torch.testing.assert_close(call(unet), beside, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_overflow_names_the_layer_and_changes_nothing():
    root = net().half()
    before = copy.deepcopy(root.state_dict())
    tree = lora.add_adapter(root, "one", 1, targets=["keys", "to_out.0"])
    tree["to_out"]["0"].lora_A.weight.fill_(300)
    tree["to_out"]["0"].lora_B.weight.fill_(300)
    with pytest.raises(NonFiniteError, match=r"fusing one overflows torch\.float16 in to_out\.0\.weight"):
        lora.fuse(root)
    assert all(torch.equal(value, before[key]) for key, value in root.state_dict().items())
    assert lora.fused_adapters(root) == []


# Bad input ----------------------------------------------------------------------------------------------------


def _fused(root: nn.Module) -> None:
    lora.add_adapter(root, "one", 2, targets=["keys"])
    lora.fuse(root)


def _twice(root: nn.Module) -> None:
    lora.add_adapter(root, "one", 2, targets=["keys"])
    lora.add_adapter(root, "one", 2, targets=["conv"])


def _replaced(root: Net) -> None:
    root.keys.forward = root.keys.forward
    lora.add_adapter(root, "one", 2, targets=["keys"])


BAD: dict[str, tuple[Callable[[Net], object], type[Exception], str]] = {
    "target": (
        lambda r: lora.add_adapter(r, "one", 2),
        InputError,
        r"no layer of Net matches 'to_q', 'to_k', 'to_v': .* end in: conv, keys, to_out\.0$",
    ),
    "no target": (lambda r: lora.add_adapter(r, "one", 2, targets=[]), InputError, "matches an empty list"),
    "regex": (lambda r: lora.add_adapter(r, "one", 2, targets="key"), InputError, "matches 'key'"),
    "grouped": (lambda r: lora.add_adapter(r, "one", 2, targets=["grouped"]), InputError, "matches 'grouped'"),
    "norm": (lambda r: lora.add_adapter(r, "one", 2, targets=["keys", "norm"]), InputError, "matches 'norm'"),
    "rank": (lambda r: lora.add_adapter(r, "one", 0, targets=["keys"]), InputError, "rank must be an integer"),
    "dropout": (lambda r: lora.add_adapter(r, "o", 2, targets=["keys"], dropout=1.0), InputError, r"in \[0, 1\)"),
    "init": (lambda r: lora.add_adapter(r, "o", 2, init="zero"), UnknownChoiceError, "known: gaussian, kaiming"),
    "name": (lambda r: lora.add_adapter(r, "a.b", 2, targets=["keys"]), InputError, "a text without '.'"),
    "twice": (_twice, InputError, "there is an adapter 'one' already"),
    "replaced": (_replaced, InputError, "replaced the forward pass of keys"),
    "unknown": (lambda r: lora.set_adapters(r, {"one": 1.0}), UnknownChoiceError, "add or load one first"),
    "remove": (lambda r: lora.remove_adapter(r, "one"), UnknownChoiceError, "unknown adapter 'one'"),
    "state": (lambda r: lora.adapter_state(r, "one"), UnknownChoiceError, "unknown adapter 'one'"),
    "nothing to fuse": (lora.fuse, InputError, "no adapter to fuse"),
    "empty": (lambda r: lora.load_adapter(r, "one", {}), ArtifactError, "names no layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        change(net())


def test_bad_weights_and_fused_adapters():
    root = net()
    _fused(root)
    for weight in (True, "1", float("nan")):
        with pytest.raises(InputError, match="must be a finite number"):
            lora.set_adapters(root, {"one": weight})
    with pytest.raises(InputError, match="unfuse before changing"):
        lora.set_adapters(root, {"one": 0.5})
    with pytest.raises(InputError, match="fused already: unfuse first"):
        lora.fuse(root, ["one"])
    with pytest.raises(InputError, match="unfuse first, or unload"):
        lora.remove_adapter(root, "one")
    with pytest.raises(InputError, match=r"keys\.weight holds fused adapters \(one\)"):
        root.load_state_dict(net().state_dict())


def test_everything_that_does_not_fit_is_said_at_once_and_nothing_changes():
    root = net()
    one = torch.ones(1)
    state = {
        "keys": (torch.ones(2, 6), torch.ones(5, 2), 2.0),
        "values": (one, one, 1.0),
        "norm": (one, one, 1.0),
        "conv": (torch.ones(2, 6, 1, 1), torch.ones(4, 2, 1, 1), 2.0),
        "to_out.0": (torch.ones(2, 5), torch.ones(6, 3), 2.0),
    }
    with pytest.raises(ArtifactError) as caught:
        lora.load_adapter(root, "one", state)
    said = str(caught.value)
    assert "2 not a linear layer or convolution there: values, norm" in said
    assert "2 of the wrong shape: conv (A (2, 6, 1, 1), B (4, 2, 1, 1), layer (4, 6, 3, 3)), to_out.0 (A" in said
    assert lora.adapter_names(root) == []
    assert type(root.keys) is nn.Linear


@torch.no_grad()
def test_matrices_and_one_by_one_kernels_pass_for_each_other():
    root = nn.ModuleDict({"linear": nn.Linear(3, 4), "conv": nn.Conv2d(3, 4, 1)})
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    kernels = (down[:, :, None, None], up[:, :, None, None], 1.0)
    lora.load_adapter(root, "one", {"linear": kernels, "conv": (down, up, 1.0)})
    x = torch.randn(5, 3)
    root["conv"].weight.copy_(root["linear"].weight[:, :, None, None])
    root["conv"].bias.copy_(root["linear"].bias)
    torch.testing.assert_close(root["conv"](x[:, :, None, None])[:, :, 0, 0], root["linear"](x))
    torch.testing.assert_close(
        root["linear"](x), F.linear(x, root["linear"].weight + up @ down / 2, root["linear"].bias)
    )


def test_repr_names_the_adapters():
    root = net()
    lora.add_adapter(root, "one", 2, targets=["keys"])
    assert "AdaptedLinear(in_features=6, out_features=5, bias=True, adapters: one (rank 2))" in repr(root)


@pytest.mark.parametrize(
    ("dtype", "alpha"), [(torch.float32, math.nan), (torch.float32, math.inf), (torch.int8, 4.0)], ids=str
)
def test_a_scale_that_is_no_number_and_whole_numbers_are_refused(dtype: torch.dtype, alpha: float):
    net = nn.Sequential(nn.Linear(3, 5))
    weights = {"0": (torch.ones(2, 3).to(dtype), torch.ones(5, 2).to(dtype), alpha)}
    with pytest.raises(ArtifactError, match=r"1 not made of floating numbers and a finite alpha: 0 \("):
        lora.load_adapter(net, "a", weights)
    assert not lora.adapter_names(net)
