import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.pdiff.normalise import FLOOR, Standardiser, Whitener

SLICES = (slice(0, 6), slice(6, 10), slice(10, 11))


def rows(count=50, size=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator) * 3
    spread = torch.linspace(0.01, 2, size)
    return base + spread * torch.randn(count, size, generator=generator)


@pytest.mark.parametrize("kind", ["none", "tensor", "coordinate", "center"])
def test_standardising_can_be_undone(kind):
    v = rows()
    fitted = Standardiser.fit(v, kind, SLICES)
    torch.testing.assert_close(fitted.inverse(fitted(v)), v, atol=1e-5, rtol=1e-5)
    again = Standardiser(11, kind)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(v), fitted(v))


def test_coordinate_gives_every_coordinate_mean_0_and_spread_1():
    x = Standardiser.fit(rows(), "coordinate")(rows())
    torch.testing.assert_close(x.mean(0), torch.zeros(11), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(11), atol=1e-5, rtol=0)


def test_center_keeps_the_ratios_and_has_mean_square_1():
    v = rows()
    fitted = Standardiser.fit(v, "center")
    x = fitted(v)
    assert x.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert len(fitted.scale.unique()) == 1
    torch.testing.assert_close(x.std(0) / x.std(0)[0], v.std(0) / v.std(0)[0])


def test_tensor_has_one_mean_and_scale_for_each_tensor():
    v = rows()
    fitted = Standardiser.fit(v, "tensor", SLICES)
    for part in SLICES[:2]:
        assert fitted.mean[part].unique().item() == pytest.approx(v[:, part].mean().item(), abs=1e-5)
        assert fitted.scale[part].unique().item() == pytest.approx(v[:, part].std(dim=1).mean().item(), abs=1e-5)
    assert torch.equal(fitted(v)[:, 10], v[:, 10])  # a tensor of one element passes unchanged
    with pytest.raises(InputError, match="cover 10 of 11"):
        Standardiser.fit(v, "tensor", SLICES[:2])


@pytest.mark.parametrize("kind", ["coordinate", "center"])
def test_what_never_varies_comes_back_as_it_was(kind):
    v = rows()
    v[:, 3] = 0.25
    v[:, 4] = 7 + 1e-7 * torch.arange(50)  # rounding
    fitted = Standardiser.fit(v, kind)
    assert fitted(v)[:, 3:5].abs().max() < 1e-4
    back = fitted.inverse(torch.randn(5, 11))
    assert torch.equal(back[:, 3], torch.full((5,), 0.25))
    assert back[:, 4].std() == 0


@pytest.mark.parametrize("kind", ["coordinate", "center"])
def test_a_single_checkpoint_is_all_that_can_come_back(kind):
    v = rows(1)
    fitted = Standardiser.fit(v, kind)
    assert not fitted(v).any()
    assert torch.equal(fitted.inverse(torch.randn(3, 11)), v.expand(3, 11))


@pytest.mark.parametrize("kind", ["none", "coordinate", "full"])
def test_whitening_can_be_undone(kind):
    mix = torch.eye(12) + 0.3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    z = (3 + torch.randn(60, 12, generator=torch.Generator().manual_seed(2)) @ mix).view(60, 3, 4)
    fitted = Whitener.fit(z, kind)
    white = fitted(z)
    torch.testing.assert_close(fitted.inverse(white), z, atol=1e-5, rtol=1e-5)
    again = Whitener((3, 4), kind)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.inverse(white), fitted.inverse(white))
    if kind != "none":
        assert white.flatten(1).std(0, correction=0).numpy() == pytest.approx(1, abs=1e-3)
    if kind == "full":
        torch.testing.assert_close(white.flatten(1).T.cov(correction=0), torch.eye(12), atol=1e-3, rtol=0)


def test_full_whitening_puts_the_widest_direction_first():
    z = torch.randn(200, 1, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 2.0])
    fitted = Whitener.fit(z, "full")
    assert fitted.axes[:, 0].abs().argmax() == 1
    assert torch.equal(fitted.scale, fitted.scale.sort(descending=True).values)


def test_directions_without_variance_stay_small():
    """Fewer checkpoints than latents: what is sampled outside of their span changes next to nothing."""
    z = rows(4, 12).view(4, 3, 4)
    fitted = Whitener.fit(z, "full")
    white = fitted(z).flatten(1)
    assert white[:, 3:].abs().max() < 0.1
    noise = torch.zeros(1, 12)
    noise[:, 3:] = 1
    moved = fitted.inverse(noise.view(1, 3, 4)).flatten() - fitted.mean
    assert moved.norm() <= 1.001 * FLOOR * fitted.scale.max() * 3
    same = Whitener.fit(z[:1], "full")
    assert not same(z[:1]).any()
    torch.testing.assert_close(same.inverse(same(z[:1])), z[:1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Standardiser(4, "tensors"), UnknownChoiceError, "did you mean 'tensor'"),
        (lambda: Whitener((1, 4), "pca"), UnknownChoiceError, "full"),
        (lambda: Standardiser(0), InputError, "size"),
        (lambda: Standardiser.fit(torch.zeros(3)), InputError, "2 axes"),
        (lambda: Standardiser.fit(torch.zeros(0, 3)), InputError, "at least one row"),
        (lambda: Standardiser.fit(torch.zeros(2, 3, dtype=torch.long)), InputError, "floats"),
        (lambda: Whitener.fit(torch.zeros(3, 4)), InputError, "3 axes"),
        (lambda: Standardiser.fit(torch.tensor([[1.0], [float("nan")]])), InputError, "1 of 2 rows: 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
