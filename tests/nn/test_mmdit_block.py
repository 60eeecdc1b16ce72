import torch
from torch.nn import functional as F

from latentia.nn.mmdit_block import HeadNorm, MMDiTBlock, Modulation
from latentia.nn.rope import rope_axes, rope_table, rotate


def table(n, s, head):
    """Of s code tokens, then n patches."""
    return rope_table(torch.rand(s + n, 3) * 5, rope_axes(head))


def test_only_what_makes_the_gates_starts_at_zero():
    torch.manual_seed(0)
    mod = Modulation(8)
    parts = mod(torch.randn(3, 8))
    assert len(parts) == 6
    assert all(part.shape == (3, 1, 8) for part in parts)
    assert all(bool((parts[i] == 0).all()) for i in (2, 5))
    assert all(float(parts[i].detach().abs().max()) > 0.01 for i in (0, 1, 3, 4))


def test_a_new_timed_block_is_the_identity():
    block = MMDiTBlock(16, 2)
    image, code = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    out = block(image, code, table(5, 3, 8), torch.randn(2, 16))
    torch.testing.assert_close(out, (image, code))


def test_head_norm():
    norm = HeadNorm(6)
    x = torch.randn(2, 6) * 9
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2), atol=1e-4, rtol=0)


def test_the_block_is_its_formula():
    """One head by head, softmax written out, scale 8/d, code before image."""
    torch.manual_seed(1)
    width, heads, head = 24, 2, 12
    block = MMDiTBlock(width, heads, mlp_ratio=2.0)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    image, code, vector = torch.randn(2, 5, width), torch.randn(2, 3, width), torch.randn(2, width)
    turns = table(5, 3, head)

    mods, qs, ks, vs = {}, [], [], []
    for name, x, own in (("code", code, turns[:, :3]), ("image", image, turns[:, 3:])):
        stream = getattr(block, name)
        mods[name] = stream.mod.lin(F.silu(vector))[:, None].split(width, -1)
        shift, scale = mods[name][:2]
        h = (1 + scale) * F.layer_norm(x, (width,), eps=1e-6) + shift
        q, k, v = stream.qkv(h).split(width, -1)
        q, k, v = (y.view(2, -1, heads, head).transpose(1, 2) for y in (q, k, v))
        for list_, y, norm in ((qs, q, stream.query_norm), (ks, k, stream.key_norm)):
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.scale
            list_.append(rotate(y, own))
        vs.append(v)
    q, k, v = (torch.cat(y, 2) for y in (qs, ks, vs))
    found = ((q @ k.transpose(-1, -2) * 8 / head).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = []
    for name, x, a in (("image", image, found[:, 3:]), ("code", code, found[:, :3])):
        stream, (_, _, gate, shift, scale, gate2) = getattr(block, name), mods[name]
        x = x + gate * stream.proj(a)
        h = (1 + scale) * F.layer_norm(x, (width,), eps=1e-6) + shift
        expected.append(x + gate2 * stream.mlp[2](F.gelu(stream.mlp[0](h), approximate="tanh")))
    out = block(image, code, turns, vector)
    torch.testing.assert_close(out, tuple(expected), atol=1e-4, rtol=1e-4)


def test_a_stream_that_ends_changes_nothing_of_the_other():
    torch.manual_seed(2)
    whole, ended = MMDiTBlock(16, 2, modulated=False), MMDiTBlock(16, 2, modulated=False, ends="image")
    ended.load_state_dict({k: v for k, v in whole.state_dict().items() if k in ended.state_dict()})
    assert not any(k.startswith(("image.proj", "image.mlp")) for k in ended.state_dict())
    image, code = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    both = table(5, 3, 8)
    torch.testing.assert_close(ended(image, code, both)[1], whole(image, code, both)[1])
    assert ended(image, code, both)[0] is image


def test_autocast_gives_nearly_the_same():
    torch.manual_seed(3)
    block = MMDiTBlock(32, 2)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.1)
    args = torch.randn(2, 5, 32), torch.randn(2, 3, 32), table(5, 3, 16), torch.randn(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = block(*args)
    for a, b in zip(half, block(*args)):
        assert a.dtype == torch.float32  # the residual stream
        assert float((a - b).detach().abs().max()) < 0.1
