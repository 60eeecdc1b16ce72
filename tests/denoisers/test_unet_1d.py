import pytest
import torch

from latentia.core.rng import randn
from latentia.denoisers.unet_1d import ResnetBlock1D, UNet1D
from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.nn.resnet import ResnetBlock, ResnetStyle
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.objectives import DiffusionObjective

TINY = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def build(**changes):
    torch.manual_seed(0)
    return UNet1D(**{**TINY, **changes})


def opened(**changes):
    """Nothing at zero, so that every part has a say."""
    model = build(zero_init=False, **changes).eval()
    if model.positions is not None:
        torch.nn.init.normal_(model.positions)
    return model


@pytest.mark.parametrize(("before", "after", "act"), [(8, 8, "silu"), (8, 16, "gelu")])
def test_the_block_is_the_planar_one_on_a_single_row(before, after, act):
    """On H = 1 the outer rows of a padded 3×3 kernel see zeros alone."""
    torch.manual_seed(0)
    style = ResnetStyle(emb_channels=12, groups=4, act=act)
    line, plane = ResnetBlock1D(before, after, 3, style).double(), ResnetBlock(before, after, style).double()
    weights = {k: v.unsqueeze(2) if v.ndim == 3 else v for k, v in line.state_dict().items()}
    for key in ("conv1.weight", "conv2.weight"):
        weights[key] = torch.nn.functional.pad(weights[key], (0, 0, 1, 1))
    plane.load_state_dict(weights)
    x, emb = torch.randn(3, before, 9, dtype=torch.double), torch.randn(3, 12, dtype=torch.double)
    torch.testing.assert_close(line(x, emb), plane(x.unsqueeze(2), emb).squeeze(2))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 8, 13])
@pytest.mark.parametrize("downsample", [True, False])
def test_any_length_and_every_position_is_seen(length, downsample):
    model = opened(downsample=downsample)
    x = randn((2, 2, length), torch.Generator().manual_seed(1)).requires_grad_()
    out = model(x, torch.tensor([3, 900])).sample
    assert out.shape == x.shape
    out.square().sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1)) > 1e-6).all()


def test_the_way_down_halves_and_rounds_up():
    model, lengths = opened(), []
    for block in [*model.down_blocks, model.mid_block]:
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[-1]))
    model(torch.randn(1, 2, 13), 5)
    assert lengths == [13, 7, 4, 4]
    lengths.clear()
    opened_flat = opened(downsample=False)
    for block in opened_flat.down_blocks:
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[-1]))
    opened_flat(torch.randn(1, 2, 13), 5)
    assert lengths == [13, 13, 13]


def test_the_first_loss_is_the_variance_of_the_noise():
    torch.manual_seed(0)
    objective = DiffusionObjective(build(), DDPMScheduler())
    loss = objective({"x": torch.randn(512, 2, 16)}).total
    assert loss.item() == pytest.approx(1.0, abs=0.02)


def test_every_residual_branch_starts_closed():
    model, x = build(), torch.randn(2, 24, 5)
    assert torch.equal(model.mid_block(x, torch.randn(2, 32)), x)


def test_learns_the_noise_of_a_single_point():
    """All data at one point c: ε = (x_t − αc)/σ is known exactly, so the loss can go to 0."""
    torch.manual_seed(0)
    model = UNet1D(8, 2, 2, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, learned_positions=True)
    objective = DiffusionObjective(model, DDPMScheduler())
    batch = {"x": torch.randn(1, 2, 8).expand(32, 2, 8)}
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(70):
        loss = objective(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert sum(losses[-10:]) / 10 < 0.35


def test_time_is_told_once_or_for_each_sample():
    model, x = opened(), torch.randn(3, 2, 8)
    each = model(x, torch.tensor([1, 500, 999])).sample
    for i, t in enumerate((1, 500, 999)):
        torch.testing.assert_close(model(x[i : i + 1], t).sample, each[i : i + 1], atol=1e-5, rtol=0)
    assert (model(x, 1).sample - model(x, 999).sample).abs().max() > 1e-3
    assert torch.equal(model(x, 7, return_dict=False)[0], model(x, torch.tensor(7)).sample)


def test_positions_tell_equal_elements_apart():
    flat = torch.ones(1, 2, 32)
    inner = slice(12, 20)  # away from the padding
    plain = opened(downsample=False, block_out_channels=(8,))(flat, 5).sample[..., inner]
    assert (plain - plain[..., :1]).abs().max() < 1e-5
    told = opened(downsample=False, block_out_channels=(8,), learned_positions=True, sample_size=32)
    assert told(flat, 5).sample[..., inner].std() > 1e-3
    with pytest.raises(InputError, match=r"expected \(batch, 2, 32\)"):
        told(torch.ones(1, 2, 31), 5)


@pytest.mark.parametrize("kind", ["projection", "simple_projection"])
def test_task_codes(kind):
    model = opened(class_embed_type=kind, projection_class_embeddings_input_dim=10)
    x, codes = torch.randn(2, 2, 8), torch.eye(10)[:2]
    a, b = model(x, 5, codes).sample, model(x, 5, codes.flip(0)).sample
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(model(x[:1], 5, codes[:1]).sample, a[:1], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="width 9: expected 10"):
        model(x, 5, codes[:, :9])
    with pytest.raises(InputError, match="give class_labels"):
        model(x, 5)


def test_classes():
    model, x = opened(num_class_embeds=3), torch.randn(2, 2, 8)
    assert (model(x, 5, torch.tensor([0, 1])).sample - model(x, 5, torch.tensor([2, 2])).sample).abs().max() > 1e-3
    with pytest.raises(InputError, match="out of range"):
        model(x, 5, torch.tensor([0, 3]))
    with pytest.raises(InputError, match="without classes"):
        opened()(x, 5, torch.tensor([0, 1]))


def test_dropout_only_in_training():
    model, x = opened(dropout=0.5), torch.randn(2, 2, 8)
    assert torch.equal(model(x, 5).sample, model(x, 5).sample)
    model.train()
    assert not torch.equal(model(x, 5).sample, model(x, 5).sample)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"block_out_channels": ()}, ConfigError, "empty"),
        ({"block_out_channels": (8, 10)}, ConfigError, "norm_num_groups=4"),
        ({"kernel_size": 4}, ConfigError, "odd"),
        ({"layers_per_block": 0}, ConfigError, "layers_per_block"),
        ({"learned_positions": True}, ConfigError, "sample_size"),
        ({"class_embed_type": "projection"}, ConfigError, "projection_class_embeddings_input_dim"),
        ({"class_embed_type": "projektion"}, UnknownChoiceError, "did you mean 'projection'"),
        ({"act_fn": "silo"}, UnknownChoiceError, "did you mean 'silu'"),
        ({"dropout": 1.5}, InputError, "dropout"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


@pytest.mark.parametrize("shape", [(2, 8), (1, 3, 8), (1, 2, 0), (1, 2, 8, 8)])
def test_bad_samples(shape):
    with pytest.raises(InputError, match="expected"):
        opened()(torch.zeros(shape), 5)
