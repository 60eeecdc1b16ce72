import math

import pytest
import torch

from latentia import AutoregressiveTransformer, MaskedTransformer
from latentia.errors import ConfigError, InputError
from latentia.nn.token_block import KeyValueMemory, TokenBlock, TokenStack

SMALL = {"num_codes": 7, "token_shape": (2, 3), "width": 16, "num_layers": 2, "num_heads": 2}


def lively(network):
    """Large weights, so that every input shows in every output."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.eval()


def tokens(*shape: int, codes: int = 7) -> torch.Tensor:
    return torch.randint(codes, shape, generator=torch.Generator().manual_seed(1))


# -- the blocks


@torch.no_grad()
def test_a_causal_block_sees_nothing_that_follows():
    block = lively(TokenBlock(8, 2, causal=True))
    x = torch.randn(2, 5, 8)
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 2, 8)
    before, after = block(x), block(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().min(-1).values.max() > 0
    both = lively(TokenBlock(8, 2))
    assert not torch.allclose(both(x)[:, :3], both(changed)[:, :3])


@pytest.mark.parametrize("pieces", [(5,), (1, 1, 1, 1, 1), (3, 2), (2, 1, 2)])
@torch.no_grad()
def test_pieces_through_a_memory_are_the_whole(pieces):
    stack = lively(TokenStack(3, 8, 2, 4.0, 0.0, causal=True))
    x = torch.randn(2, 5, 8)
    memory = KeyValueMemory(3, 5)
    made = torch.cat([stack(piece, memory) for piece in x.split(pieces, 1)], 1)
    torch.testing.assert_close(made, stack(x), atol=2e-5, rtol=1e-4)
    assert memory.length == 5


@torch.no_grad()
def test_a_memory_under_autocast():
    stack, memory = lively(TokenStack(2, 8, 2, 4.0, 0.0, causal=True)), KeyValueMemory(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for piece in torch.randn(1, 4, 8).split(1, 1):
            stack(piece, memory)
    assert memory.buffers[0].dtype == torch.bfloat16


def test_dropout_only_in_training():
    block, x = TokenBlock(8, 2, dropout=0.5), torch.randn(1, 4, 8)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 8"):
        TokenBlock(8, 3)


# -- the transformers


@torch.no_grad()
def test_logits_depend_on_what_came_before_only():
    network = lively(AutoregressiveTransformer(**SMALL, num_class_embeds=3))
    x, labels = tokens(1, 2, 3), torch.tensor([1])
    logits = network(x, labels).sample.flatten(1, 2)
    for i in range(6):
        changed = x.clone().flatten()
        changed[i] = (changed[i] + 1) % 7
        other = network(changed.view(1, 2, 3), labels).sample.flatten(1, 2)
        torch.testing.assert_close(other[:, : i + 1], logits[:, : i + 1])
        assert i == 5 or not torch.allclose(other[:, i + 1], logits[:, i + 1])
    assert not torch.allclose(network(x, torch.tensor([2])).sample[:, 0, 0], logits[:, 0])


@pytest.mark.parametrize("condition", [False, True])
@torch.no_grad()
def test_one_by_one_is_teacher_forcing(condition):
    more = {"condition_codes": 4, "condition_length": 3} if condition else {}
    network = lively(AutoregressiveTransformer(**SMALL, num_class_embeds=3, **more))
    x, told = tokens(2, 2, 3), {"condition": tokens(2, 3, codes=4)} if condition else {}
    labels = torch.tensor([0, 2])
    expected = network(x, labels, **told).sample.flatten(1, 2)
    memory, embedded = network.memory(), network.prefix(2, labels, **told)
    for i in range(6):
        torch.testing.assert_close(network.next_logits(embedded, memory), expected[:, i], atol=1e-4, rtol=1e-4)
        embedded = network.embed(x.flatten(1)[:, i])


@torch.no_grad()
def test_without_classes_there_is_a_start_token():
    network = lively(AutoregressiveTransformer(**SMALL))
    a, b = network(tokens(2, 2, 3)).sample, network(tokens(2, 2, 3, codes=3)).sample
    torch.testing.assert_close(a[:, 0, 0], b[:, 0, 0])
    with pytest.raises(InputError, match="no classes"):
        network(tokens(2, 2, 3), torch.tensor([0, 1]))


@torch.no_grad()
def test_a_masked_transformer_sees_everything():
    network = lively(MaskedTransformer(**SMALL, dropout=0.0))
    x = tokens(1, 2, 3)
    logits = network(x).sample
    for i in range(6):
        changed = x.clone().flatten()
        changed[i] = network.mask_token
        difference = (network(changed.view(1, 2, 3)).sample - logits).abs().amax(-1)
        assert difference.min() > 1e-4


@torch.no_grad()
def test_groups_are_positions_of_several_tokens():
    """The sequence stays short; groups are masked one by one, have tables of their own, and see one another."""
    network = lively(MaskedTransformer(7, (2, 3, 2), groups=2, width=16, num_layers=1, num_heads=2, dropout=0.0))
    assert network.places.shape[0] == 6
    assert network.tokens.num_embeddings == 2 * 8
    x = tokens(1, 2, 3, 2)
    logits = network(x).sample
    assert logits.shape == (1, 2, 3, 2, 7)
    swapped = network(x.flip(-1)).sample
    assert not torch.allclose(swapped, logits)
    half = x.clone()
    half[..., 1] = 7
    assert not torch.allclose(network(half).sample[..., 0, :], logits[..., 0, :])
    flat = MaskedTransformer(7, (2, 3, 2), width=16, num_layers=1, num_heads=2)
    assert flat.places.shape[0] == 12  # without groups every token is a position
    with pytest.raises(ConfigError, match="groups=3"):
        MaskedTransformer(7, (2, 3, 2), groups=3, width=16, num_heads=2)


@torch.no_grad()
def test_patches_are_groups_of_neighbours():
    """A map in patches of 2×2 is the map of groups that one gets by folding it, with the same weights."""
    sizes = {"num_codes": 7, "width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    patched = lively(MaskedTransformer(token_shape=(4, 6), patch_size=2, **sizes))
    grouped = lively(MaskedTransformer(token_shape=(2, 3, 4), groups=4, **sizes))
    assert patched.places.shape[0] == 6
    grouped.load_state_dict(patched.state_dict())
    x = tokens(2, 4, 6, codes=8)
    folded = x.view(2, 2, 2, 3, 2).transpose(2, 3).reshape(2, 2, 3, 4)
    expected = grouped(folded).sample.view(2, 2, 3, 2, 2, 7).transpose(2, 3).reshape(2, 4, 6, 7)
    torch.testing.assert_close(patched(x).sample, expected)
    assert expected[0, 1, 2, 3] == grouped(folded).sample[0, 0, 1, 2, 3]  # row 1, column 2: patch (0, 1), place 2
    for wrong in ({"token_shape": (4, 5)}, {"token_shape": (4,)}, {"token_shape": (2, 4, 4)}):
        with pytest.raises(ConfigError, match="patch_size=2 does not divide a map"):
            MaskedTransformer(patch_size=2, **sizes, **wrong)


def test_a_new_network_knows_nothing():
    """−log p of a fresh network is that of the uniform distribution, within a tenth of a bit."""
    for kind in (MaskedTransformer, AutoregressiveTransformer):
        torch.manual_seed(0)
        network = kind(num_codes=64, token_shape=(4, 4), width=32, num_layers=2, num_heads=2).eval()
        x = tokens(8, 4, 4, codes=64)
        p = network(x).sample.log_softmax(-1).gather(-1, x[..., None])
        assert float(-p.detach().mean() / math.log(2)) == pytest.approx(6, abs=0.1)


def test_paper_sizes():
    """Taming's GPT on ImageNet, 24 layers of 1024 with 16 heads, and MaskGIT's: within the papers' roundings."""
    with torch.device("meta"):
        gpt = AutoregressiveTransformer(1024, (16, 16), 1000, width=1024, num_layers=24, num_heads=16)
        maskgit = MaskedTransformer(1024, (16, 16), num_class_embeds=1001)
    assert sum(p.numel() for p in gpt.parameters()) == pytest.approx(305e6, rel=0.02)
    assert sum(p.numel() for p in maskgit.parameters()) == pytest.approx(172e6, rel=0.02)


@pytest.mark.parametrize("kind", [MaskedTransformer, AutoregressiveTransformer])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_codes": 0}, "num_codes"),
        ({"token_shape": ()}, "token_shape is empty"),
        ({"token_shape": (0, 3)}, "token_shape"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
        ({"num_heads": 3}, "3 heads do not divide"),
        ({"dropout": 1.5}, "dropout"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
    ],
)
def test_sizes_are_checked(kind, wrong, said):
    with pytest.raises((ConfigError, InputError), match=said):
        kind(**{**SMALL, **wrong})


@pytest.mark.parametrize(
    "wrong", [{"condition_codes": 3}, {"condition_length": 3}, {"condition_codes": 0, "condition_length": 3}]
)
def test_conditions_have_an_alphabet_and_a_length(wrong):
    with pytest.raises(ConfigError, match="condition_"):
        AutoregressiveTransformer(**SMALL, **wrong)


def test_wrong_tokens_and_labels():
    network = lively(AutoregressiveTransformer(**SMALL, num_class_embeds=3, condition_codes=2, condition_length=2))
    x, labels, condition = tokens(2, 2, 3), torch.tensor([0, 1]), torch.zeros(2, 2).long()
    for given, said in (
        ((x + 7, labels, condition), "tokens run from 7"),
        ((x - 8, labels, condition), "expected 0 to 6"),
        ((x.float(), labels, condition), "tokens are torch.float32"),
        ((x, labels + 2, condition), "class_labels run from 2 to 3: expected 0 to 2"),
        ((x, labels[:1], condition), r"class_labels have shape \(1,\)"),
        ((x, None, condition), "needs class_labels"),
        ((x, labels, None), "conditions: give condition"),
        ((x, labels, condition[:, :1]), r"expected \(2, 2\)"),
        ((x, labels, condition + 2), "condition run from 2"),
    ):
        with pytest.raises(InputError, match=said):
            network(*given)
    masked = lively(MaskedTransformer(**SMALL))
    masked(torch.full((1, 2, 3), 7))  # the mask token is one
    with pytest.raises(InputError, match="expected 0 to 7"):
        masked(torch.full((1, 2, 3), 8))
