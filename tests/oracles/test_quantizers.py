"""Closed forms of the quantizers: brute-force tables, hand-computed averages, enumerations, Jacobians."""

import itertools
import math

import pytest
import torch

from latentia.codecs.quantizers.fsq import FiniteScalarQuantizer
from latentia.codecs.quantizers.kmeans import kmeans
from latentia.codecs.quantizers.lfq import LookupFreeQuantizer
from latentia.codecs.quantizers.lfq_entropy import batch_entropy, mean_distribution, token_entropy
from latentia.codecs.quantizers.quantizer import spread
from latentia.codecs.quantizers.residual import ResidualVectorQuantizer
from latentia.codecs.quantizers.vq_ema import EMAVectorQuantizer


def normal(*shape: int, seed: int = 0, **options) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


# -- lookup-free ------------------------------------------------------------------------------------------------


def brute(z: torch.Tensor, tau: float) -> torch.Tensor:
    """softmax over all 2^g sign vectors e of 2⟨z, e⟩/τ, index Σ 2^k b_k."""
    g = z.shape[1]
    signs = ((torch.arange(2**g)[:, None] >> torch.arange(g)) & 1).double() * 2 - 1
    return torch.softmax(2 / tau * z @ signs.t(), dim=1)


@pytest.mark.parametrize("g", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_both_entropies_are_those_of_the_whole_table(g, tau):
    z = normal(20, g, dtype=torch.double) * 0.4
    p = brute(z, tau)
    torch.testing.assert_close(mean_distribution(z, tau), p.mean(0))
    torch.testing.assert_close(token_entropy(z, tau), torch.special.entr(p).sum(1).mean())
    torch.testing.assert_close(batch_entropy(z, tau), torch.special.entr(p.mean(0)).sum())


def test_their_gradients_are_the_tables_too():
    z = normal(6, 4, dtype=torch.double).mul_(0.3).requires_grad_()
    p = brute(z, 1.0)
    wanted = torch.autograd.grad(torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum(), z)
    found = torch.autograd.grad(token_entropy(z, 1.0) - batch_entropy(z, 1.0), z)
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda t: token_entropy(t, 0.7) - batch_entropy(t, 0.7), z)


def test_entropies_at_their_ends():
    """At 0 every bit is a coin; far out every token is sure, and two tokens of opposite sign share one nat·log 2."""
    flat, sure = torch.zeros(5, 6, dtype=torch.double), torch.full((4, 6), 1e4, dtype=torch.double)
    sure[::2] *= -1
    assert token_entropy(flat, 0.1).item() == pytest.approx(6 * math.log(2))
    assert batch_entropy(flat, 0.1).item() == pytest.approx(6 * math.log(2))
    assert token_entropy(sure, 0.1).item() == pytest.approx(0, abs=1e-30)
    assert batch_entropy(sure, 0.1).item() == pytest.approx(math.log(2))
    assert token_entropy(sure.float() * 1e30, 0.1).isfinite()


def test_memory_of_a_large_group_is_not_tokens_times_codes():
    """2^14 codes for 2048 tokens: a table of 33 M numbers; the largest tensor here holds 2^18."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Watch():
        batch_entropy(normal(2048, 14), 0.1)
    assert max(sizes) == 2048 * 2**7


def test_bits_are_strided_over_the_tokens():
    """FlowMo: of d = 6 bits in h = 2 tokens, token j holds channels j, 2 + j, 4 + j, worth 1, 2, 4."""
    lfq = LookupFreeQuantizer(6, group_bits=3)
    z = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0, 1.0]])
    assert lfq.assign(z).tolist() == [[0b101, 0b110]]
    assert lfq.assign(torch.zeros(1, 6)).tolist() == [[0, 0]]  # 0 counts as −1
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    tokens = lfq.assign(every)
    assert len(tokens.unique(dim=0)) == 64
    assert torch.equal(lfq.embed(tokens), every)


def test_loss_is_the_weighted_sum_over_both_groups():
    lfq = LookupFreeQuantizer(4, group_bits=2, tau=0.5, entropy_weight=2.0, commitment_weight=3.0, diversity=0.7)
    z = normal(3, 4, 5, dtype=torch.double).requires_grad_()
    out = lfq(z)
    rows = z.movedim(1, -1).reshape(-1, 4)
    p = torch.cat([brute(rows[:, j::2], 0.5) for j in range(2)])
    entropy, batch = torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()
    commitment = (z - z.sign()).square().mean()
    torch.testing.assert_close(out.loss, 2 * (entropy - 0.7 * batch) + 3 * commitment)
    (gradient,) = torch.autograd.grad(out.values.sum(), z, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(z))


# -- finite scalars ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(2,), (3, 5), (8, 5, 5, 5), (2, 4, 3)])
def test_fsq_enumerates_its_codebook(levels):
    fsq = FiniteScalarQuantizer(len(levels), levels)
    k = math.prod(levels)
    tokens = torch.arange(k)
    values = fsq.embed(tokens)
    assert len(values.unique(dim=0)) == k == fsq.num_codes
    assert torch.equal(fsq.assign(torch.atanh(values * (1 - 1e-6))), tokens)
    for channel, count in enumerate(levels):
        assert values[:, channel].unique().tolist() == pytest.approx(torch.linspace(-1, 1, count).tolist(), abs=1e-6)
    by_hand = [
        sum(level * math.prod(levels[:i]) for i, level in enumerate(c)) for c in itertools.product(*map(range, levels))
    ]
    assert sorted(by_hand) == tokens.tolist()


def test_fsq_of_two_levels_is_the_sign():
    z = normal(50, 3)
    fsq = FiniteScalarQuantizer(3, (2, 2, 2))
    assert torch.equal(fsq(z).values, torch.where(z > 0, 1.0, -1.0))
    assert torch.equal(fsq.assign(z), LookupFreeQuantizer(3).assign(z))


def test_fsq_rounds_straight_through_the_tanh():
    z = normal(4, 3, 5, dtype=torch.double).requires_grad_()
    out = FiniteScalarQuantizer(3, (8, 5, 2))(z)
    (gradient,) = torch.autograd.grad(out.values.sum(), z)
    torch.testing.assert_close(gradient, 1 - torch.tanh(z.detach()).square())


# -- averaged codebooks -----------------------------------------------------------------------------------------


def by_hand(codes: torch.Tensor, **options) -> EMAVectorQuantizer:
    """In training, with these codes and one vector's worth of statistics each."""
    vq = EMAVectorQuantizer(*codes.shape, kmeans=0, revive=0.0, **options).double()
    vq.codes.copy_(codes)
    vq.cluster_size.fill_(1.0)
    vq.sums.copy_(codes)
    vq.started.fill_(True)
    return vq


def test_one_step_of_the_average():
    codes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.double)
    vq = by_hand(codes, decay=0.9, eps=0.01)
    z = torch.tensor([[1.0, 1.0], [2.0, 0.0], [9.0, 1.0]], dtype=torch.double)
    out = vq(z)
    assert out.indices.tolist() == [0, 0, 1]
    assert torch.equal(out.values, codes[[0, 0, 1]])  # values are those before the update
    size = torch.tensor([0.9 + 0.2, 0.9 + 0.1, 0.9], dtype=torch.double)
    sums = torch.tensor([[0.3, 0.1], [9.0 + 0.9, 0.1], [0.0, 9.0]], dtype=torch.double)
    total = size.sum()
    smoothed = (size + 0.01) / (total + 0.03) * total
    torch.testing.assert_close(vq.cluster_size, size)
    torch.testing.assert_close(vq.sums, sums)
    torch.testing.assert_close(vq.codes, sums / smoothed[:, None])
    assert smoothed.sum().item() == pytest.approx(total.item())


def test_only_the_commitment_is_a_loss():
    vq = by_hand(normal(5, 3, dtype=torch.double), beta=0.7)
    z = normal(4, 3, dtype=torch.double, seed=1).requires_grad_()
    out = vq(z)
    torch.testing.assert_close(out.loss, 0.7 * (z - out.values.detach()).square().mean())
    out.loss.backward()
    torch.testing.assert_close(z.grad, 0.7 * 2 / z.numel() * (z.detach() - out.values.detach()))
    assert list(vq.parameters()) == []


def test_codes_go_to_the_means_of_their_cells():
    """Three clusters, three codes: the average converges to the clusters' means."""
    centres = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]])
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(3, 2, decay=0.5, kmeans=5)
    for step in range(30):
        vq(centres.repeat_interleave(20, 0) + 0.1 * normal(60, 2, seed=step))
    order = vq.codes.round().tolist()
    assert sorted(order) == sorted(centres.tolist())


def test_kmeans_finds_the_clusters_and_counts_them():
    torch.manual_seed(1)
    centres = 10 * normal(6, 4)
    vectors = (centres.repeat_interleave(30, 0) + 0.01 * normal(180, 4, seed=2))[torch.randperm(180)]
    means, counts = kmeans(vectors, 40, 10)
    assert counts.sum() == 180
    distance = (vectors[:, None] - means).square().sum(-1).min(1).values
    assert distance.max() < 0.01


def test_revival_resets_both_statistics():
    """A code far from all data comes back as a vector of the batch and stays there when the next mean is taken."""
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(4, 2, decay=0.9, kmeans=0, revive=0.5)
    vq.codes.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [50.0, 50.0]]))
    z = normal(64, 2)
    steps = 0
    while (vq.codes[3] > 20).any():
        vq(z)
        steps += 1
        assert steps < 10
    assert (vq.codes[3] - z).square().sum(1).min() < 1e-6
    fair = vq.cluster_size.sum() / 4
    torch.testing.assert_close(vq.sums[3], vq.codes[3] * vq.cluster_size[3], rtol=1e-3, atol=1e-3)
    assert vq.cluster_size[3] >= 0.5 * fair
    for _ in range(5):
        vq(z)
    assert vq.codes.abs().max() < 5
    assert vq.usage(vq.eval().assign(z)).used == 4


def test_the_first_batch_starts_the_codes():
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(8, 3)
    z = 3 + normal(200, 3)
    vq(z)
    assert bool(vq.started)
    assert vq.usage(vq.assign(z)).used == 8
    torch.testing.assert_close((vq.codes * vq.cluster_size[:, None]).sum(0) / 200, z.mean(0), rtol=0.01, atol=0.01)


def test_fewer_vectors_than_codes_start_too():
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(50, 2)
    z = normal(7, 2)
    vq(z)
    assert vq.codes.isfinite().all()
    torch.testing.assert_close(vq.eval()(z).values, z, rtol=0.05, atol=0.05)


def test_cosine_sees_directions_alone():
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(16, 4, cosine=True)
    z = normal(100, 4)
    vq(z)
    torch.testing.assert_close(vq.codes.norm(dim=1), torch.full((16,), 2.0))
    assert torch.equal(vq.eval().assign(z), vq.assign(7 * z))
    scores = torch.nn.functional.normalize(z) @ vq.codes.t()
    assert torch.equal(vq.assign(z), scores.argmax(1))
    z = z[:3].double().requires_grad_()
    vq.double()
    jacobian = torch.autograd.functional.jacobian(lambda t: vq(t).values, z[:1])[0, :, 0]
    unit = (z[0] / z[0].norm()).detach()
    torch.testing.assert_close(jacobian, 2 / z[0].norm().detach() * (torch.eye(4).double() - torch.outer(unit, unit)))


def test_trained_in_half_precision_statistics_are_float32():
    vq = EMAVectorQuantizer(4, 3).to(torch.bfloat16)
    vq(normal(50, 3).to(torch.bfloat16))
    assert {b.dtype for b in (vq.codes, vq.sums, vq.cluster_size)} == {torch.float32}


# -- residuals, usage -------------------------------------------------------------------------------------------


def test_each_level_quantises_what_is_left():
    torch.manual_seed(0)
    rvq = ResidualVectorQuantizer(16, 3, levels=3)
    z = normal(400, 3)
    for _ in range(5):
        rvq(z)
    rvq.eval()
    tokens = rvq.assign(z)
    rest, errors = z, []
    for i, level in enumerate(rvq.levels):
        assert torch.equal(level.assign(rest), tokens[:, i])
        rest = rest - level.embed(tokens[:, i])
        errors.append(rest.square().mean().item())
        torch.testing.assert_close(rvq.embed(tokens[:, : i + 1]), z - rest, rtol=0, atol=1e-5)
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    x = z[:4].double().requires_grad_()
    rvq.double()
    jacobian = torch.autograd.functional.jacobian(lambda t: rvq(t).values.flatten(), x).flatten(1)
    assert torch.equal(jacobian, torch.eye(12, dtype=torch.double))


def test_spread_equals_usage():
    indices = torch.randint(0, 30, (500,), generator=torch.Generator().manual_seed(0))
    for codes in (100, 2**40):
        perplexity, used = spread(indices, codes)
        usage = EMAVectorQuantizer(100, 2).usage(indices)
        assert perplexity.item() == pytest.approx(usage.perplexity, rel=1e-6)
        assert used.item() == usage.used
