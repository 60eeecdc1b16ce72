"""LDMBertModel: equal to Diffusers' through saved weights; learns from scratch."""

import json

import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel as Peer
from torch.nn import functional as F

from latentia.conditioners.ldm_bert import LDMBertModel
from latentia.errors import ArtifactError, ConfigError, InputError, UnknownChoiceError
from tiny_sd import randomize, tiny_sd

TINY = {
    "vocab_size": 50,
    "max_position_embeddings": 12,
    "encoder_layers": 2,
    "encoder_ffn_dim": 40,
    "encoder_attention_heads": 2,
    "head_dim": 8,
    "d_model": 24,
}
ROUNDING = 5e-6
"""Of values up to about 4: the peer scales queries by 1/√d before it multiplies, a fused kernel does after."""

IDS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(3))
MASK = (torch.arange(12) < torch.tensor([[5], [12], [9]])).long()


def ours(**changed):
    return randomize(LDMBertModel(**{**TINY, **changed}), 1)


@torch.no_grad()
def assert_equal(model, peer, mask):
    out = model(IDS, attention_mask=mask, output_hidden_states=True)
    expected = peer(IDS, attention_mask=mask, output_hidden_states=True, output_attentions=False, return_dict=True)
    assert (out[0] - expected[0]).abs().max() <= ROUNDING
    assert out[0].abs().max() > 1
    assert len(out.hidden_states) == 3
    for state, wanted in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert (state - wanted).abs().max() <= ROUNDING


@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_travels_to_the_peer_and_back(act, tmp_path):
    peer = randomize(Peer(LDMBertConfig(**TINY, activation_function=act)), 1)
    peer.save_pretrained(tmp_path / "theirs")
    model = LDMBertModel.from_pretrained(tmp_path / "theirs")
    assert list(model.state_dict()) == list(peer.state_dict())
    assert model.config.activation_function == act
    assert_equal(model, peer, None)
    assert_equal(model, peer, MASK)
    model.save_pretrained(tmp_path / "ours")
    assert_equal(model, Peer.from_pretrained(tmp_path / "ours").eval(), MASK)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("ldmbert", ["LDMBertModel"])
    assert LDMBertModel.from_pretrained(tmp_path / "ours").config == model.config


def test_the_bert_of_a_pipeline_folder():
    model = LDMBertModel.from_pretrained(tiny_sd("ldm"), subfolder="bert")
    peer = Peer.from_pretrained(tiny_sd("ldm") / "bert").eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(ids, output_attentions=False, output_hidden_states=False, return_dict=True)[0]
        assert (model(ids)[0] - expected).abs().max() <= ROUNDING


def test_its_published_size():
    with torch.device("meta"):
        model = LDMBertModel()
        out = model(torch.zeros(1, 77, dtype=torch.int64))
    assert out.last_hidden_state.shape == (1, 77, 1280)
    attention, mlp, norms = 4 * 1280 * 512 + 1280, 2 * 1280 * 5120 + 5120 + 1280, 4 * 1280
    layers = 32 * (attention + mlp + norms)
    assert sum(p.numel() for p in model.model.parameters()) == layers + 30522 * 1280 + 77 * 1280 + 2 * 1280


def test_all_tokens_see_each_other_but_not_masked_ones():
    model = ours()
    last = IDS.clone()
    last[:, -1] = (IDS[:, -1] + 1) % 50
    mask = torch.ones_like(IDS)
    mask[:, -1] = 0
    with torch.no_grad():
        assert (model(IDS)[0][:, 0] - model(last)[0][:, 0]).abs().max() > 1e-4
        assert torch.equal(model(IDS, attention_mask=mask)[0][:, :-1], model(last, attention_mask=mask)[0][:, :-1])


def test_starting_weights_and_what_is_trained():
    model = LDMBertModel(**{**TINY, "d_model": 128, "encoder_ffn_dim": 128})
    for key, value in model.state_dict().items():
        if key.endswith("norm.weight"):
            assert torch.equal(value, torch.ones_like(value)), key
        elif key.endswith("bias"):
            assert not value.any(), key
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), key
    model.train()(IDS)[0].square().mean().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) is not key.startswith("to_logits"), key
    assert model.get_input_embeddings().weight.shape == (50, 128)


def test_dropout_only_while_training_and_none_when_asked_for_none():
    model = ours()
    assert torch.equal(model(IDS)[0], model(IDS)[0])
    model.train()
    assert not torch.equal(model(IDS)[0], model(IDS)[0])
    still = ours(dropout=0.0).train()
    assert torch.equal(still(IDS)[0], still.eval()(IDS)[0])


def test_learns_from_scratch():
    """Which of 6 words stands somewhere in the text, read off the first token: a chance of 1 in 6 becomes certainty."""
    model = LDMBertModel(**{**TINY, "dropout": 0.0, "d_model": 32, "encoder_ffn_dim": 64})
    head = torch.nn.Linear(32, 6)
    optimizer = torch.optim.AdamW([*(p for p in model.parameters() if p.requires_grad), *head.parameters()], lr=3e-3)
    draw = torch.Generator().manual_seed(1)

    def batch(size):
        word = torch.randint(0, 6, (size,), generator=draw)
        ids = torch.randint(10, 50, (size, 12), generator=draw)
        ids[torch.arange(size), torch.randint(1, 12, (size,), generator=draw)] = word
        return ids, word

    for _ in range(120):
        ids, word = batch(64)
        F.cross_entropy(head(model(ids)[0][:, 0]), word).backward()
        optimizer.step()
        optimizer.zero_grad()
    ids, word = batch(256)
    with torch.no_grad():
        right = (head(model.eval()(ids)[0][:, 0]).argmax(1) == word).float().mean()
    assert right > 0.95


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = ours(dropout=0.0).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(IDS, attention_mask=MASK)[0].square().mean().backward()
        gradients.append([p.grad for p in model.model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-6)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="13 tokens are more than the 12 positions"):
        ours()(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(InputError, match="vocabulary"):
        ours()(torch.full((1, 3), 50))
    with pytest.raises(UnknownChoiceError, match="did you mean 'gelu'"):
        ours(activation_function="gelux")
    with pytest.raises(ConfigError, match="head_dim"):
        ours(head_dim=0)
    with pytest.raises(InputError, match="dropout must be a number between 0 and 1"):
        ours(dropout=2)
    ours().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ArtifactError, match="which reads the types: ldmbert"):
        LDMBertModel.from_pretrained(tmp_path)
    assert all(name in LDMBertModel.__doc__ for name in LDMBertModel.config_arguments())
