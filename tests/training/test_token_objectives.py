import math

import pytest
import torch

from latentia import AutoregressiveTransformer, MaskedScheduler, MaskedTransformer, VQModel
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError
from latentia.training.token_objectives import (
    AutoregressiveObjective,
    MaskedObjective,
    label_map_tokens,
    token_cache,
)

SMALL = {"num_codes": 4, "token_shape": (8,), "width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


def batch(n: int = 16, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(4, (n, 8), generator=torch.Generator().manual_seed(0)), **more}


def test_the_loss_is_the_cross_entropy_by_hand():
    torch.manual_seed(0)
    network, given = AutoregressiveTransformer(**SMALL), batch()
    loss = AutoregressiveObjective(network)(given)
    log_p = network(given["tokens"]).sample.log_softmax(-1)
    by_hand = -log_p.detach().gather(-1, given["tokens"][..., None]).mean()
    torch.testing.assert_close(loss.total.detach(), by_hand)
    assert float(loss.parts["bits"]) == pytest.approx(float(by_hand) / math.log(2), rel=1e-6)
    assert float(loss.parts["hits"]) == float((log_p.argmax(-1) == given["tokens"]).float().mean())
    smoothed = AutoregressiveObjective(network, label_smoothing=0.1)(given)
    reference = torch.nn.functional.cross_entropy(log_p.flatten(0, 1), given["tokens"].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(smoothed.total, reference)
    assert torch.equal(smoothed.parts["bits"], loss.parts["bits"])  # what is written down is the likelihood


def test_only_masked_tokens_count_unless_asked():
    torch.manual_seed(0)
    network, given = MaskedTransformer(**SMALL), batch()
    scheduler = MaskedScheduler(mask_token_id=4)

    def loss(**options):
        torch.manual_seed(3)
        return MaskedObjective(network, scheduler, label_smoothing=0.0, **options)(given)

    torch.manual_seed(3)
    times = (1 - torch.rand(16)) * 1000
    shown = scheduler.add_noise(given["tokens"], torch.rand(16, 8), times)
    nats = -network(shown).sample.log_softmax(-1).gather(-1, given["tokens"][..., None])[..., 0]
    masked = shown == 4
    assert 0 < masked.float().mean() < 1
    torch.testing.assert_close(loss().total, nats[masked].mean())
    torch.testing.assert_close(loss(unmasked_weight=1.0).total, nats.mean())
    weighted = (nats[masked].sum() + 0.1 * nats[~masked].sum()) / (masked.sum() + 0.1 * (~masked).sum())
    torch.testing.assert_close(loss(unmasked_weight=0.1).total, weighted)
    assert float(loss(unmasked_weight=1.0).parts["bits"]) == pytest.approx(
        float(nats[masked].detach().mean()) / math.log(2)
    )


def test_dropped_labels_are_the_last_class():
    network = AutoregressiveTransformer(**SMALL, num_class_embeds=3)
    given = batch(4000, label=torch.zeros(4000).long())
    objective = AutoregressiveObjective(network, label_dropout=0.25)
    labels = objective.labels(given)
    assert set(labels.tolist()) == {0, 2}
    assert float((labels == 2).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert (given["label"] == 0).all()
    with pytest.raises(InputError, match="network has no classes"):
        AutoregressiveObjective(AutoregressiveTransformer(**SMALL), label_dropout=0.1)
    with pytest.raises(InputError, match="label"):
        objective(batch())


def test_corruption_changes_what_is_shown_not_what_is_asked():
    seen = []
    network, given = AutoregressiveTransformer(**SMALL), batch(2000)
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    AutoregressiveObjective(network, corruption=0.2)(given)
    assert float((seen[0] != given["tokens"]).float().mean()) == pytest.approx(0.2 * 3 / 4, abs=0.02)
    AutoregressiveObjective(network)(given)
    assert torch.equal(seen[1], given["tokens"])


def test_conditions_reach_the_network():
    network = AutoregressiveTransformer(**SMALL, condition_codes=2, condition_length=3)
    objective = AutoregressiveObjective(network)
    objective(batch(condition=torch.zeros(16, 3).long()))
    with pytest.raises(InputError, match="condition"):
        objective(batch())


def test_parts_that_do_not_fit_together():
    with pytest.raises(InputError, match="masks with token 9, the network knows 4"):
        MaskedObjective(MaskedTransformer(**SMALL), MaskedScheduler(mask_token_id=9))
    for wrong in ({"label_smoothing": 1.5}, {"unmasked_weight": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            MaskedObjective(MaskedTransformer(**SMALL), MaskedScheduler(mask_token_id=4), **wrong)
    with pytest.raises(InputError, match="corruption"):
        AutoregressiveObjective(AutoregressiveTransformer(**SMALL), corruption=2.0)


def learn(objective, sample, steps: int, lr: float = 1e-2) -> None:
    """AdamW and a cosine, on fresh batches."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective({"tokens": sample()}).total.backward()
        optimizer.step()
        decay.step()


CHAIN = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.1, 0.8], [0.5, 0.0, 0.5]])


def markov(n: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Sequences of the chain, begun in state 0."""
    rows = [torch.zeros(n).long()]
    while len(rows) < length:
        rows.append(torch.multinomial(CHAIN[rows[-1]], 1, generator=generator)[:, 0])
    return torch.stack(rows, 1)


def test_a_markov_chain_is_learned():
    """Its transition matrix within 0.04, and its entropy rate."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = AutoregressiveTransformer(3, (6,), width=16, num_layers=1, num_heads=2)
    objective = AutoregressiveObjective(network)
    learn(objective, lambda: markov(128, 6, generator), 120)
    x = markov(2000, 6, generator)
    with torch.no_grad():
        p = network.eval()(x).sample.softmax(-1)
        bits = objective({"tokens": x}).parts["bits"]
    for state in range(3):
        learned = p[:, 1:][x[:, :-1] == state]
        torch.testing.assert_close(learned.mean(0), CHAIN[state], atol=0.04, rtol=0)
    step = (x[:, :-1, None] == torch.arange(3)).float().mean((0, 1)) @ -(CHAIN * CHAIN.clamp(min=1e-9).log2()).sum(1)
    assert float(bits) == pytest.approx(float(step) * 5 / 6, abs=0.05)  # the first token is certain


def test_a_masked_network_learns_who_goes_with_whom():
    """Pairs of equal tokens: one that is shown tells the other; neither shown, both are even."""
    torch.manual_seed(0)
    network = MaskedTransformer(2, (2,), width=16, num_layers=1, num_heads=2, dropout=0.0)
    objective = MaskedObjective(network, MaskedScheduler(mask_token_id=2), label_smoothing=0.0)
    learn(objective, lambda: torch.randint(2, (64, 1)).expand(-1, 2), 120)
    with torch.no_grad():
        p = network.eval()(torch.tensor([[0, 2], [2, 1], [2, 2]])).sample.softmax(-1)
    assert p[0, 1, 0] > 0.97
    assert p[1, 0, 1] > 0.97
    torch.testing.assert_close(p[2], torch.full((2, 2), 0.5), atol=0.08, rtol=0)


# -- the cache


def codec() -> VQModel:
    torch.manual_seed(0)
    sizes = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return VQModel(in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=4, **sizes)


def test_every_picture_is_encoded_once():
    x, label = torch.randn(7, 1, 8, 8), torch.arange(7)
    model = codec().train()
    cache = token_cache(model, TensorDataset({"x": x, "label": label}), batch_size=3)
    assert model.training
    assert sorted(cache.tensors) == ["label", "tokens"]
    assert cache.shapes["tokens"] == (4, 4)
    assert torch.equal(cache.tensors["label"], label)
    with torch.no_grad():
        assert torch.equal(cache.tensors["tokens"], model.eval().to_tokens(x))
    with pytest.raises(InputError, match="0 pictures"):
        token_cache(model, TensorDataset({"x": x[:0]}))


def test_label_maps_become_conditions():
    maps = torch.zeros(1, 4, 6).long()
    maps[0, :2, 2:4] = torch.tensor([[5, 5], [5, 1]])
    maps[0, 2:, 4:] = 3
    assert label_map_tokens(maps, 2, 3).tolist() == [[0, 5, 0, 0, 0, 3]]
    data = TensorDataset({"x": torch.randn(3, 1, 8, 8), "condition": torch.ones(3, 8, 8).long()})
    cache = token_cache(codec(), data, condition=lambda m: label_map_tokens(m, 2, 2))
    assert torch.equal(cache.tensors["condition"], torch.ones(3, 4).long())
    pictures = TensorDataset({"x": torch.randn(3, 1, 8, 8), "condition": torch.randn(3, 1, 8, 8)})
    assert token_cache(codec(), pictures, condition=codec().eval().to_tokens).shapes["condition"] == (16,)
    with pytest.raises(InputError, match="do not divide into 3×3"):
        label_map_tokens(maps, 3, 3)
    with pytest.raises(InputError, match="expected int64"):
        label_map_tokens(maps.float(), 2, 3)
