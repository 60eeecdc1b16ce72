"""CLIPTextModel: equal to transformers' through saved weights, both ways and in every layout; errors that teach."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from latentia.conditioners.clip import CLIPTextModel
from latentia.errors import ArtifactError, ConfigError, InputError, UnknownChoiceError
from tiny_sd import randomize, tiny_sd

TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "projection_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 49,
}
IDS = torch.randint(0, 49, (3, 12), generator=torch.Generator().manual_seed(3))
IDS[:, 0], IDS[0, 7:], IDS[1, 4:], IDS[2, -1] = 0, 49, 49, 49
MASK = (torch.arange(12) < torch.tensor([[8], [5], [12]])).long()


def theirs(**changed):
    return randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**TINY, **changed})), 1)


def ours(**changed):
    return randomize(CLIPTextModel(**{**TINY, **changed}), 1)


def assert_equal(model, peer, mask=None):
    with torch.no_grad():
        out = model(IDS, attention_mask=mask, output_hidden_states=True)
        expected = peer(IDS, attention_mask=mask, output_hidden_states=True)
    assert (out.last_hidden_state - expected.last_hidden_state).abs().max() <= 1e-6
    assert (out.pooler_output - expected.pooler_output).abs().max() <= 1e-6
    assert len(out.hidden_states) == len(expected.hidden_states) == 4
    for state, wanted in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert (state - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [2, 49])
def test_reads_what_transformers_writes(act, eos, tmp_path):
    peer = theirs(hidden_act=act, eos_token_id=eos)
    peer.save_pretrained(tmp_path)
    model = CLIPTextModel.from_pretrained(tmp_path)
    assert model.config.hidden_act == act
    assert not model.training
    assert_equal(model, peer)
    assert_equal(model, peer, MASK)
    assert_equal(model, peer, torch.ones_like(IDS))


@pytest.mark.parametrize("eos", [2, 49])
def test_transformers_reads_what_we_write(eos, tmp_path):
    model = ours(eos_token_id=eos)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModel"]
    assert config["model_type"] == "clip_text_model"
    assert not {"_class_name", "_diffusers_version", "use_attention_mask"} & set(config)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    peer = transformers.CLIPTextModel.from_pretrained(tmp_path).eval()
    assert_equal(model, peer, MASK)
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), transformers.CLIPTextConfig)


def test_the_classic_layout_of_keys():
    keys = list(CLIPTextModel(**TINY).state_dict())
    layer = "text_model.encoder.layers.2."
    names = [f"self_attn.{p}_proj" for p in ("k", "v", "q", "out")] + [
        "layer_norm1",
        "mlp.fc1",
        "mlp.fc2",
        "layer_norm2",
    ]
    assert keys[:2] == [f"text_model.embeddings.{n}_embedding.weight" for n in ("token", "position")]
    assert keys[-18:] == [
        *(f"{layer}{name}.{part}" for name in names for part in ("weight", "bias")),
        "text_model.final_layer_norm.weight",
        "text_model.final_layer_norm.bias",
    ]


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_key_layouts_and_old_buffers(prefix, tmp_path):
    model = ours()
    model.save_pretrained(tmp_path)
    old = {prefix + key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    old[prefix + "embeddings.position_ids"] = torch.arange(12)[None]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = CLIPTextModel.from_pretrained(tmp_path)
    assert torch.equal(again(IDS)[0], model(IDS)[0])
    assert "text_model.embeddings.position_ids" not in again.state_dict()


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_the_text_half_of_other_clips(name, tmp_path):
    text = transformers.CLIPTextConfig(**TINY)
    config = text
    if name == "CLIPModel":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CLIPConfig(text_config=TINY, vision_config={**vision, "image_size": 8, "patch_size": 4})
    peer = randomize(getattr(transformers, name)(config), 1)
    peer.save_pretrained(tmp_path)
    model = CLIPTextModel.from_pretrained(tmp_path)
    alone = transformers.CLIPTextModel.from_pretrained(tmp_path).eval()
    assert model.config.hidden_size == 32
    assert_equal(model, alone)


def test_a_folder_of_2022_loads_without_a_word(tmp_path, caplog):
    """The config of Stable Diffusion 1, every entry but the sizes; nothing is warned of (warnings are errors)."""
    model = ours(eos_token_id=2)
    model.save_pretrained(tmp_path)
    config = {
        **TINY,
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = CLIPTextModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(IDS).pooler_output, model(IDS).pooler_output)
    assert not caplog.records


def test_shards_and_variants(tmp_path):
    peer = theirs()
    peer.save_pretrained(tmp_path, max_shard_size="10KB")
    copy.deepcopy(peer).half().save_pretrained(tmp_path, variant="fp16")
    model, half = CLIPTextModel.from_pretrained(tmp_path), CLIPTextModel.from_pretrained(tmp_path, variant="fp16")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_equal(model, peer)
    assert half.dtype == torch.float32
    assert 0 < (half(IDS)[0] - model(IDS)[0]).abs().max() < 1e-2
    assert CLIPTextModel.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16).dtype == torch.float16
    model.save_pretrained(tmp_path / "ours", variant="fp16", max_shard_size=10_000)
    assert torch.equal(CLIPTextModel.from_pretrained(tmp_path / "ours", variant="fp16")(IDS)[0], model(IDS)[0])


def test_the_text_encoder_of_a_pipeline_folder():
    for kind in ("sd1", "sd2"):
        model = CLIPTextModel.from_pretrained(tiny_sd(kind), subfolder="text_encoder")
        peer = transformers.CLIPTextModel.from_pretrained(tiny_sd(kind) / "text_encoder").eval()
        ids = torch.randint(0, model.config.vocab_size, (2, 77), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert (model(ids)[0] - peer(ids)[0]).abs().max() <= 1e-6


def test_clip_l_at_its_size():
    with torch.device("meta"):
        model = CLIPTextModel(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
        out = model(torch.zeros(2, 77, dtype=torch.int64))
    assert len(model.state_dict()) == 196
    assert model.num_parameters() == 123_060_480
    assert out.last_hidden_state.shape == (2, 77, 768)


def test_starting_weights_have_the_deviations_of_transformers():
    wide = {**TINY, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 200}
    model, peer = CLIPTextModel(**wide), transformers.CLIPTextModel(transformers.CLIPTextConfig(**wide))
    wanted = peer.state_dict()
    for key, value in model.state_dict().items():
        other = wanted[key.removeprefix("text_model.")]
        assert value.std().item() == pytest.approx(other.std().item(), rel=0.1, abs=1e-8), key
        assert value.mean().item() == pytest.approx(other.mean().item(), abs=0.01), key


def test_causal_and_masked_tokens_are_not_seen():
    model = ours()
    changed = IDS.clone()
    changed[:, 6:] = 5
    with torch.no_grad():
        assert torch.equal(model(changed)[0][:, :6], model(IDS)[0][:, :6])
        hidden = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]]).expand(3, -1)
        other = IDS.clone()
        other[:, 2] = 17
        keep = hidden[0].bool()
        a, b = (model(ids, attention_mask=hidden)[0] for ids in (IDS, other))
        assert torch.equal(a[:, keep], b[:, keep])
        assert not torch.equal(model(IDS)[0][:, keep], model(other)[0][:, keep])


def test_outputs_and_tuples():
    model = ours()
    out = model(IDS)
    assert out.hidden_states is None
    assert [t.shape for t in model(IDS, return_dict=False)] == [(3, 12, 32), (3, 32)]
    assert torch.equal(out.pooler_output, out.last_hidden_state[torch.arange(3), torch.tensor([7, 4, 11])])
    assert model.get_input_embeddings().weight.shape == (50, 32)
    assert torch.equal(model(IDS.int())[0], out[0])
    assert model(IDS[:, :1])[0].shape == (3, 1, 32)
    assert model(IDS[:0])[0].shape == (0, 12, 32)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = ours().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing is checkpointing
        model(IDS, attention_mask=MASK)[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-6)
        assert plain is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    with torch.no_grad():
        full, cast = ours()(IDS)[0], ours().to(dtype)(IDS)[0]
    assert cast.dtype == dtype
    assert (cast.float() - full).abs().max() < 0.1


def test_config_round_trip(tmp_path):
    model = ours(use_attention_mask=True)
    model.save_pretrained(tmp_path)
    again = CLIPTextModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.config.use_attention_mask is True
    assert CLIPTextModel.from_pretrained(tmp_path, hidden_act="gelu").config.hidden_act == "gelu"
    text = CLIPTextModel.__doc__
    assert all(name in text for name in CLIPTextModel.config_arguments())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 13, dtype=torch.int64), "13 tokens are more than the 12 positions"),
        (torch.full((1, 4), 50), "from 50 to 50 do not fit the 50 entries"),
        (torch.full((1, 4), -1), "from -1 to -1"),
        (torch.zeros(4, dtype=torch.int64), r"\(batch, length\), got \(4,\)"),
        (torch.zeros(1, 4), "float32"),
        ([[1, 2]], "got list"),
    ],
)
def test_wrong_ids_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        CLIPTextModel(**TINY)(ids)


def test_wrong_masks_and_configs_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"expected attention_mask of the shape of input_ids, \(3, 12\), got \(3, 11\)"
    ):
        ours()(IDS, attention_mask=MASK[:, 1:])
    with pytest.raises(UnknownChoiceError, match="did you mean 'quick_gelu'"):
        ours(hidden_act="quickgelu")
    with pytest.raises(ConfigError, match="hidden_size 32 is not a multiple of num_attention_heads 5"):
        ours(num_attention_heads=5)
    with pytest.raises(ConfigError, match="eos_token_id"):
        ours(eos_token_id=None)
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        ours(num_hidden_layers=0)
    with pytest.raises(ConfigError, match="did you mean 'hidden_size'"):
        ours(hiden_size=8)
    ours().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    with pytest.raises(ArtifactError, match="holds a model of type 'bert', not a CLIPTextModel"):
        CLIPTextModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ArtifactError, match="holds a UNet2DModel"):
        CLIPTextModel.from_pretrained(tmp_path)


def test_no_transformers_is_imported():
    code = "import sys, latentia.conditioners.clip, latentia.conditioners.prompts, latentia.conditioners.tokenizers;"
    code += "print(sorted(m for m in sys.modules if m.split('.')[0] in ('transformers', 'tokenizers', 'diffusers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
