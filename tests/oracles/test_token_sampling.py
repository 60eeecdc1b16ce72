"""Sampling of tokens against what can be worked out by hand: frequencies, top-k, top-p, MaskGIT's counts."""

import math

import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.schedulers.autoregressive import AutoregressiveScheduler
from latentia.schedulers.masked import MaskedScheduler
from latentia.schedulers.tokens import check_sampling, draw

P = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])


def frequencies(p: torch.Tensor = P, n: int = 20_000, **options) -> torch.Tensor:
    """Of the codes drawn at n evenly spread u: exact but for 1/n."""
    u = (torch.arange(n) + 0.5) / n
    return torch.bincount(draw(p.log().expand(n, -1), u, **options), minlength=len(p)) / n


def test_frequencies_are_the_softmax():
    torch.testing.assert_close(frequencies(), P, atol=1e-4, rtol=0)
    torch.testing.assert_close(frequencies(temperature=0.5), P**2 / (P**2).sum(), atol=1e-4, rtol=0)
    torch.testing.assert_close(frequencies(temperature=2.0), P.sqrt() / P.sqrt().sum(), atol=1e-4, rtol=0)


def test_random_draws_follow_the_softmax_too():
    n = 40_000
    drawn = draw(P.log().expand(n, -1), torch.rand(n, generator=torch.Generator().manual_seed(0)))
    error = torch.bincount(drawn, minlength=5) / n - P
    assert (error.abs() < 4 * (P * (1 - P) / n).sqrt()).all()


def test_top_k_by_hand():
    torch.testing.assert_close(frequencies(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0, 0]), atol=1e-4, rtol=0)
    assert frequencies(top_k=1)[0] == 1
    torch.testing.assert_close(frequencies(top_k=4), P, atol=1e-4, rtol=0)  # the last two are as likely
    torch.testing.assert_close(frequencies(top_k=9), P, atol=1e-4, rtol=0)


def test_top_p_by_hand():
    """The code that crosses p is kept: 0.5 reaches 0.5; 0.5 + 0.25 is needed for 0.6."""
    assert frequencies(top_p=0.49)[0] == 1
    assert frequencies(top_p=0.5)[0] == 1
    torch.testing.assert_close(frequencies(top_p=0.6), torch.tensor([2 / 3, 1 / 3, 0, 0, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(frequencies(top_p=0.76), torch.tensor([4, 2, 1, 0, 0]) / 7, atol=1e-4, rtol=0)
    torch.testing.assert_close(frequencies(top_p=1.0), P, atol=1e-4, rtol=0)


def test_top_p_counts_within_top_k():
    """Of {2/3, 1/3} the first alone reaches 0.6."""
    assert frequencies(top_k=2, top_p=0.6)[0] == 1


def test_codes_without_a_share_are_never_drawn():
    logits = torch.full((3, 100), -torch.inf)
    logits[:, 7] = 0
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(logits, u).tolist() == [7, 7, 7]
    even = torch.zeros(4, 4096, dtype=torch.bfloat16)
    assert draw(even, torch.tensor([0.0, 0.5, 0.75, 1 - 2**-24])).tolist() == [0, 2048, 3072, 4095]


def test_sums_that_round_to_more_or_less_than_one_end_at_the_last_code_with_a_share():
    logits = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 40:] = -torch.inf
    for u in (torch.full((2000,), 1 - 2**-24), torch.full((2000,), 1 - 2**-53, dtype=torch.float64)):
        assert draw(logits, u).unique().tolist() == [39]


def test_what_is_not_finite_still_draws_a_code():
    """The pipelines' loop says so afterwards; until then nothing reads beyond a table."""
    assert draw(torch.full((2, 5), torch.nan), torch.tensor([0.0, 0.9])).max() < 5


@pytest.mark.parametrize(
    ("given", "said"),
    [((-1, 0, 1), "temperature"), ((1, -1, 1), "top_k"), ((1, 2.5, 1), "top_k"), ((1, True, 1), "top_k")]
    + [((1, 0, 0), "top_p"), ((1, 0, 1.5), "top_p"), ((math.inf, 0, 1), "temperature")],
)
def test_sampling_options_are_checked(given, said):
    with pytest.raises(InputError, match=said):
        check_sampling(*given)


def counts(schedule: str, tokens: int, steps: int, batch: int = 2, mask: int = 9, **config) -> list[list[int]]:
    """Tokens still masked after each step."""
    scheduler = MaskedScheduler(mask_token_id=mask, masking_schedule=schedule, **config)
    scheduler.set_timesteps(steps)
    x = torch.full((batch, tokens), mask)
    logits = torch.randn(batch, tokens, mask, generator=torch.Generator().manual_seed(0))
    left = []
    for t in scheduler.timesteps:
        x = scheduler.step(logits, t, x).prev_sample
        left.append((x == mask).sum(1).tolist())
    return left


@pytest.mark.parametrize(
    ("schedule", "tokens", "steps", "by_hand"),
    [
        # ⌊64·cos(πk/16)⌋: cos = .98079 .92388 .83147 .70711 .55557 .38268 .19509 0
        ("cosine", 64, 8, [62, 59, 53, 45, 35, 24, 12, 0]),
        ("linear", 10, 5, [8, 6, 4, 2, 0]),
        ("cosine", 3, 3, [2, 1, 0]),  # ⌊3·.866⌋ = 2, ⌊3·.5⌋ = 1
        ("cosine", 4, 8, [3, 2, 1, 1, 1, 1, 1, 0]),  # never none before the last, and fewer each time while it can be
        ("cosine", 1, 3, [1, 1, 0]),
        ("arccos", 6, 2, [4, 0]),  # arccos ½ · 2/π = 2/3
        ("cosine", 6, 3, [5, 3, 0]),  # cos(π/3) = ½ exactly
    ],
)
def test_how_many_stay_masked(schedule, tokens, steps, by_hand):
    assert counts(schedule, tokens, steps) == [[each, each] for each in by_hand]


def test_equally_confident_guesses_are_counted_one_by_one():
    scheduler = MaskedScheduler(mask_token_id=3, choice_temperature=0.0)
    scheduler.set_timesteps(3)
    x = scheduler.step(torch.zeros(2, 6, 3), scheduler.timesteps[0], torch.full((2, 6), 3)).prev_sample
    assert (x == 3).sum(1).tolist() == [5, 5]  # ⌊6·.866⌋


def test_arccos_masks_fewer_in_the_middle():
    """At r = ½ two thirds instead of 0.707 (TiTok)."""
    scheduler = MaskedScheduler(masking_schedule="arccos")
    assert float(scheduler.masked_share(0.5)) == pytest.approx(2 / 3, abs=1e-15)
    assert [row[0] for row in counts("arccos", 64, 8)] == [
        math.floor(64 * math.acos(k / 8) * 2 / math.pi) for k in range(1, 9)
    ]


def test_confident_guesses_are_kept_and_known_tokens_never_change():
    """Without noise and temperature: log p decides, exactly."""
    scheduler = MaskedScheduler(mask_token_id=2, choice_temperature=0.0, temperature=0.0)
    scheduler.set_timesteps(4)
    margins = torch.tensor([0.1, 3.0, 0.5, 2.0, 1.0, 0.2])  # of code 1 over code 0
    logits = torch.stack([torch.zeros(6), margins], -1)[None]
    x, order = torch.full((1, 6), 2), []
    for t in scheduler.timesteps:
        before, x = x, scheduler.step(logits, t, x).prev_sample
        order.append(((before == 2) & (x != 2))[0].nonzero().flatten().tolist())
        assert torch.equal(x[before != 2], before[before != 2])
    # ⌊6·cos(π/8)⌋ = 5, ⌊6·cos(π/4)⌋ = 4, ⌊6·cos(3π/8)⌋ = 2
    assert order == [[1], [3], [2, 4], [0, 5]]
    assert x.tolist() == [[1] * 6]


def test_tokens_given_at_the_start_are_kept_and_counts_are_per_picture():
    scheduler = MaskedScheduler(mask_token_id=4)
    scheduler.set_timesteps(2)
    x = torch.full((2, 8), 4)
    x[1, :7] = 3
    logits = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    first = scheduler.step(logits, scheduler.timesteps[0], x).prev_sample
    assert (first == 4).sum(1).tolist() == [5, 1]  # ⌊8·.7071⌋; the single one waits for the last round
    last = scheduler.step(logits, scheduler.timesteps[1], first).prev_sample
    assert (last[1, :7] == 3).all()
    assert (last < 4).all()


def test_choice_noise_is_gumbel():
    """With τ(1 − r) = 1 the kept token of several is drawn by p: Gumbel's trick."""
    n, p = 4000, torch.tensor([0.6, 0.3, 0.1])
    scheduler = MaskedScheduler(mask_token_id=2, temperature=0.0, choice_temperature=1.5)
    scheduler.set_timesteps(3)  # 1 − r = 2/3 in the first step; ⌊3·.866⌋ = 2 stay masked, one is kept
    logits = torch.stack([p.log(), (1 - p).log()], -1)
    guess = torch.maximum(p, 1 - p)  # what the likeliest code of each place has
    x = torch.full((n, 3), 2)
    generator = torch.Generator().manual_seed(0)
    out = scheduler.step(logits.expand(n, -1, -1), scheduler.timesteps[0], x, generator=generator).prev_sample
    kept = (out != 2).float().mean(0)
    torch.testing.assert_close(kept, guess / guess.sum(), atol=0.03, rtol=0)
    assert float(kept.sum()) == pytest.approx(1)


@pytest.mark.parametrize("schedule", ["cosine", "arccos", "linear"])
def test_masking_for_training_counts(schedule):
    scheduler = MaskedScheduler(mask_token_id=9, masking_schedule=schedule, num_train_timesteps=1000)
    x = torch.randint(9, (5, 4, 16))
    r = torch.tensor([0.0, 0.25, 0.5, 2 / 3, 1.0], dtype=torch.float64)
    share = {"cosine": (r * math.pi / 2).cos(), "arccos": r.acos() * 2 / math.pi, "linear": 1 - r}[schedule]
    noised = scheduler.add_noise(x, torch.rand(x.shape), 1000 * (1 - r))
    expected = (64 * share - 1e-9).ceil().clamp(min=1)
    assert (noised == 9).flatten(1).sum(1).tolist() == expected.tolist()
    assert torch.equal(noised[noised != 9], x[noised != 9])
    if schedule == "cosine":
        assert expected.tolist() == [64, 60, 46, 32, 1]  # 64·(1, .9239, .7071, ½, 0)


def test_masking_takes_the_smallest_noise():
    scheduler = MaskedScheduler(mask_token_id=9, masking_schedule="linear")
    noise = torch.tensor([[0.4, -1.0, 0.2, 0.9]])
    assert scheduler.add_noise(torch.zeros(1, 4).long(), noise, torch.tensor([500])).tolist() == [[0, 9, 9, 0]]


def test_autoregressive_forgetting_is_a_step_of_the_run():
    """Noise of timestep i leaves exactly the first i tokens, for every number of them."""
    for n in (3, 7, 64, 257):
        scheduler = AutoregressiveScheduler(mask_token_id=9)
        scheduler.set_timesteps(n)
        x = torch.zeros(n, n).long()
        left = (scheduler.add_noise(x, x, scheduler.timesteps) == 0).sum(1)
        assert left.tolist() == list(range(n))


def test_unknown_schedule():
    with pytest.raises(UnknownChoiceError, match="did you mean 'cosine'"):
        MaskedScheduler(masking_schedule="cosin")
    with pytest.raises(InputError, match="choice_temperature"):
        MaskedScheduler(choice_temperature=-1)
