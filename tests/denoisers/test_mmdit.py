import pytest
import torch

from latentia.denoisers.mmdit import MMDiT, code_positions, grid_positions, mean_of_own, nearest_code
from latentia.errors import ConfigError, UnknownChoiceError

SMALL = {"width": 16, "depth": 2, "heads": 2}


def encoder(**changes):
    return MMDiT(12, None, "code", 3, timed=False, **SMALL | changes)


def decoder(**changes):
    return MMDiT(12, 4, "image", **SMALL | changes)


def test_shapes():
    image, code = grid_positions(2, 3), code_positions(5, "diagonal", 2, 3)
    patches = torch.randn(2, 6, 12)
    assert encoder()(patches, None, image, code).shape == (2, 5, 3)
    assert decoder()(patches, torch.randn(2, 5, 4), image, code, torch.rand(2)).shape == (2, 6, 12)


@pytest.mark.parametrize("make", [encoder, decoder])
def test_every_weight_gets_a_gradient(make):
    """What no gradient can reach is not built."""
    torch.manual_seed(0)
    net = make()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    code = torch.randn(2, 5, 4) if make is decoder else None
    t = torch.rand(2) if make is decoder else None
    net(torch.randn(2, 6, 12), code, grid_positions(2, 3), code_positions(5, "grid", 2, 3), t).square().sum().backward()
    lost = [name for name, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert lost == []


def test_at_the_start_the_decoder_ignores_the_code_and_then_learns_of_it():
    """Gates start at zero, so the code reaches nothing, and no gradient reaches the code (the article's start)."""
    torch.manual_seed(0)
    net = decoder()
    code = torch.randn(2, 5, 4, requires_grad=True)
    out = net(torch.randn(2, 6, 12), code, grid_positions(2, 3), code_positions(5, "diagonal", 2, 3), torch.rand(2))
    (gradient,) = torch.autograd.grad(out.square().sum(), code)
    assert float(gradient.abs().max()) == 0


def test_code_tokens_differ_by_position_alone():
    net = encoder()
    patches, image = torch.randn(1, 6, 12), grid_positions(2, 3)
    out = net(patches, None, image, code_positions(5, "diagonal", 2, 3))
    assert float((out[0, 0] - out[0, 1]).detach().abs().max()) > 1e-6
    same = net(patches, None, image, torch.zeros(5, 3))
    torch.testing.assert_close(same[0, 0], same[0, 4])


def test_positions():
    assert grid_positions(2, 2).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert code_positions(3, "diagonal", 4, 4).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert code_positions(4, "grid", 2, 2).tolist() == grid_positions(2, 2).tolist()
    assert code_positions(4, "grid", 4, 4)[:, 1:].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    assert len(code_positions(7, "grid", 4, 4)) == 7


def test_time_changes_a_trained_decoder():
    torch.manual_seed(0)
    net = decoder()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    args = torch.randn(1, 6, 12), torch.randn(1, 5, 4), grid_positions(2, 3), code_positions(5, "grid", 2, 3)
    early, late = (net(*args, torch.tensor([t])) for t in (0.1, 0.9))
    assert float((early - late).detach().abs().max()) > 0.01


def test_bad_input():
    with pytest.raises(UnknownChoiceError, match="'text'"):
        MMDiT(12, 4, "text")
    with pytest.raises(ConfigError, match="does not divide into 3 heads"):
        decoder(heads=3)
    with pytest.raises(ConfigError, match="add up to 8"):
        decoder(axes=(4, 4, 4))
    with pytest.raises(UnknownChoiceError, match="code_positions"):
        code_positions(4, "spiral", 2, 2)


def test_anchored_tokens_start_from_the_mean_of_their_patches():
    image, code = grid_positions(4, 4), code_positions(4, "grid", 4, 4)
    owner = nearest_code(image, code)
    assert owner.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    x = torch.arange(16.0).view(1, 16, 1)
    assert mean_of_own(x, owner, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert mean_of_own(x, owner, 5)[0, 4].item() == 0  # a token without patches


def test_an_anchored_decoder_hears_its_codes_before_any_attention():
    torch.manual_seed(0)
    model = MMDiT(8, 3, "image", width=24, depth=1, heads=2, anchored=True)  # a new timed block is the identity
    image, code = grid_positions(4, 4), code_positions(4, "grid", 4, 4)
    patches, told = torch.randn(2, 16, 8), torch.randn(2, 4, 3)
    t = torch.full((2,), 0.5)
    changed = told.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        before, after = model(patches, told, image, code, t), model(patches, changed, image, code, t)
    moved = (before - after).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [10, 11, 14, 15]
