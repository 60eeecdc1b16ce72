"""Every model class of Latentia lives in a folder, and comes back from it."""

import copy
import importlib
import json
import pkgutil

import pytest
import torch
from torch import nn

import latentia
from latentia.core.config import register_to_config
from latentia.core.inspect_path import describe
from latentia.core.model import ModelMixin
from latentia.errors import ArtifactError, ConfigError


class Dummy(ModelMixin):
    @register_to_config
    def __init__(self, width=3, widths=(1, 2)):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)


AUTOENCODER = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TEXT_NETWORK = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
SMALL: dict[str, dict] = {
    "Autoencoder": AUTOENCODER,
    "AutoencoderKL": AUTOENCODER,
    "CLIPTextModel": {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "ControlNetModel": {**TEXT_NETWORK, "conditioning_embedding_out_channels": (4, 8)},
    "LDMBertModel": {
        "vocab_size": 20,
        "encoder_layers": 1,
        "encoder_ffn_dim": 8,
        "encoder_attention_heads": 2,
        "head_dim": 4,
        "d_model": 8,
    },
    "UNet2DConditionModel": {**TEXT_NETWORK, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    "UNet2DModel": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "VQModel": {**AUTOENCODER, "num_vq_embeddings": 5},
}
"""Arguments that make a class small; a class that is not listed is built from its defaults."""


def model_classes() -> list[type[ModelMixin]]:
    for floor in ("codecs", "conditioners", "denoisers", "metrics"):
        package = importlib.import_module(f"latentia.{floor}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    found, queue = [Dummy], [ModelMixin]
    while queue:
        for cls in queue.pop().__subclasses__():
            queue.append(cls)
            rooms = cls.__module__.startswith("latentia.methods.")  # their models have suites of their own
            if cls.__module__.startswith("latentia.") and not rooms and "config_names" in vars(cls.__init__):
                found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__name__)


@pytest.fixture(params=model_classes(), ids=lambda cls: cls.__name__)
def model(request) -> ModelMixin:
    torch.manual_seed(0)
    return request.param(**SMALL.get(request.param.__name__, {})).eval()


def assert_same(a: nn.Module, b: nn.Module):
    x, y = ({**dict(m.named_buffers()), **m.state_dict()} for m in (a, b))
    assert x.keys() == y.keys()
    for name in x:
        assert x[name].dtype == y[name].dtype, name
        assert torch.equal(x[name], y[name]), name


@pytest.mark.parametrize("layout", [{}, {"variant": "fp16"}, {"max_shard_size": "5KB"}])
def test_round_trip(model, layout, tmp_path):
    model.save_pretrained(tmp_path, **layout)
    again = type(model).from_pretrained(tmp_path, variant=layout.get("variant"))
    assert_same(again, model)
    assert again.config == model.config
    assert not again.training
    assert (tmp_path / "config.json").read_text() == json.dumps(model.config_to_save(), indent=2, sort_keys=True) + "\n"


def test_loading_equals_casting(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path, dtype=torch.bfloat16), copy.deepcopy(model).to(torch.bfloat16))


def test_construction_under_load_is_complete(model, tmp_path):
    """Nothing that the skipped start leaves undrawn stays undrawn: two loads agree in every tensor."""
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    first = type(model).from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert_same(first, type(model).from_pretrained(tmp_path))


def test_config_rebuilds_the_same_architecture(model):
    again = type(model).from_config(json.loads(json.dumps(model.config_to_save())))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match="unknown arguments 'nonsense'"):
        type(model)(nonsense=1)


def test_damage_is_an_artifact_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / f"{model.weights_stem}.safetensors"
    raw = path.read_bytes()
    for damaged in (b"", raw[:100], raw[:-4], b"PK\x03\x04" + raw):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            type(model).from_pretrained(tmp_path)
    path.write_bytes(raw)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "Foreign"}))
    with pytest.raises(ArtifactError, match="holds a Foreign"):
        type(model).from_pretrained(tmp_path)


def test_description_counts_what_the_file_holds(model, tmp_path):
    model.save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert found.class_name == type(model).__name__
    assert found.parameters == sum(t.numel() for t in model.state_dict().values())
    assert found.problems == ([] if found.class_name in latentia.__all__ else found.problems)
