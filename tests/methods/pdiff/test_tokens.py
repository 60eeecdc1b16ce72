"""Parameters as tokens: nothing is lost in cutting, the cost is linear, the model trains, saves and loads."""

import math

import pytest
import torch

from latentia.errors import ConfigError, InputError
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import ResNetDigits
from latentia.methods.pdiff.tokens import ParameterTokenTransformer, TokenGrid, token_size_for
from latentia.schedulers.ddim import DDIMScheduler
from latentia.training.objectives import DiffusionObjective

SHAPES = ((5, 1, 3, 3), (5,), (3, 20), (1,))
SIZE = 45 + 5 + 60 + 1


def model(**options):
    torch.manual_seed(0)
    return ParameterTokenTransformer(SHAPES, **{"token_size": 16, "width": 16, "num_layers": 2, **options})


def awake(network):
    """With every zero initialisation replaced, so that all of it takes part."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("size", [1, 7, 16, 200])
def test_cutting_and_joining_is_exact(size):
    grid = TokenGrid(SHAPES, size)
    x = torch.randn(3, SIZE)
    assert torch.equal(grid.join(grid.split(x)), x)
    real = grid.index[grid.index < SIZE]
    assert torch.equal(real.sort().values, torch.arange(SIZE))


def test_tokens_keep_to_rows_and_tensors():
    grid = TokenGrid(SHAPES, 16)
    # rows of 9: one a token; a vector of 5; rows of 20: 16 and 4; a single number
    assert grid.codes.tolist() == [
        *[[0, row, 0] for row in range(5)],
        [1, 0, 0],
        *[[2, row, column] for row in range(3) for column in (0, 16)],
        [3, 0, 0],
    ]
    assert (grid.index < SIZE).sum(1).tolist() == [9] * 5 + [5] + [16, 4] * 3 + [1]
    assert TokenGrid(SHAPES, 18).codes[:3].tolist() == [[0, 0, 0], [0, 2, 0], [0, 4, 0]]  # two rows of 9 a token


def test_padding_is_zero_and_is_dropped():
    grid = TokenGrid(SHAPES, 16)
    tokens = grid.split(torch.ones(1, SIZE))
    assert tokens.sum() == SIZE
    assert torch.equal(grid.join(torch.where(tokens == 0, math.nan, tokens)), torch.ones(1, SIZE))


def test_it_starts_at_zero_and_sees_time_position_and_every_parameter():
    x, t = torch.randn(2, SIZE), torch.tensor([10.0, 700.0])
    assert not model()(x, t).sample.any()
    network = awake(model())
    base = network(x, t).sample
    assert not torch.allclose(network(x, t + 100).sample, base, atol=1e-3)
    same = network(torch.zeros(1, SIZE), 5).sample[0]
    assert (same[:9] - same[9:18]).abs().max() > 1e-3  # equal tokens at other rows
    moved = x.clone()
    moved[:, -1] += 5.0
    assert ((network(moved, t).sample - base).abs() > 1e-5).float().mean() > 0.9
    assert torch.allclose(network(x[1:], t[1:]).sample, base[1:], atol=1e-5)


def test_codes_are_told():
    network = awake(model(num_codes=3))
    x = torch.randn(2, SIZE)
    one, other = (network(x, codes=torch.randn(2, 3)).sample for _ in range(2))
    assert (one - other).abs().max() > 1e-3
    with pytest.raises(InputError, match="num_codes"):
        network(x)
    with pytest.raises(InputError, match="num_codes"):
        model()(x, codes=torch.zeros(2, 3))


def test_weights_do_not_grow_with_the_network():
    small, large = (
        ParameterLayout.select(ResNetDigits(width=width), "*").shapes for width in (4, 16)
    )  # 11 K and 175 K parameters
    count = [ParameterTokenTransformer(shapes, 64, 32, 2).num_parameters() for shapes in (small, large)]
    assert count[0] == count[1]
    tokens = [len(TokenGrid(shapes, 64).index) for shapes in (small, large)]
    sizes = [sum(map(math.prod, shapes)) for shapes in (small, large)]
    assert tokens[1] / tokens[0] <= 1.5 * sizes[1] / sizes[0]


@pytest.mark.parametrize("size", [2_048, 20_106, 174_970, 1_000_000])
def test_token_sizes(size):
    chosen = token_size_for([(size // 10, 10)])
    assert 16 <= chosen <= 1024
    assert chosen & (chosen - 1) == 0
    assert size / chosen <= 1024


def test_it_learns_behind_the_objective_of_all_denoisers():
    torch.manual_seed(0)
    network = model(width=32, num_layers=1)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    objective = DiffusionObjective(network, scheduler).train()
    data = torch.zeros(64, SIZE)  # far narrower than the Gaussian it starts from: v = (α/σ)·x_t
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = objective({"x": data}).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_gradient_checkpointing_changes_no_gradient():
    x = torch.randn(2, SIZE)
    gradients = []
    for checkpointing in (False, True):
        network = awake(model()).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(x, 3).sample.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tmp_path):
    network = awake(model(num_codes=2, learned_positions=True)).eval()
    network.save_pretrained(tmp_path)
    loaded = ParameterTokenTransformer.from_pretrained(tmp_path)
    x, codes = torch.randn(2, SIZE), torch.randn(2, 2)
    assert torch.equal(loaded(x, codes=codes).sample, network(x, codes=codes).sample)


def test_bad_sizes():
    with pytest.raises(ConfigError, match="width 10"):
        model(width=10)
    with pytest.raises(ConfigError, match="not empty"):
        TokenGrid(((3, 0),), 4)
    with pytest.raises(InputError, match="token size"):
        TokenGrid(SHAPES, 0)
    with pytest.raises(InputError, match=r"expected networks \(B, 111\)"):
        model()(torch.randn(2, 110))
