"""What every codec and denoiser promises, checked on a tiny one of each."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import pytest
import torch
from safetensors.torch import save_file

import latentia
from latentia.core.config import to_json
from latentia.core.model import ModelMixin
from latentia.core.protocols import Codec, Denoiser
from latentia.errors import ConfigError, InputError


@dataclass(frozen=True)
class Case:
    """A tiny config of a public class, its inputs for a batch, and one forward pass to a tensor.

    `any_size`: odd heights and widths are welcome; `legacy`: files of 2022 name its attention differently;
    `starts_silent`: what starts at zero must be drawn for the output to say anything; `known`: an argument's name.
    """

    config: dict
    inputs: Callable[[int], dict[str, torch.Tensor]]
    forward: Callable[[ModelMixin, dict[str, torch.Tensor]], torch.Tensor]
    any_size: bool = False
    legacy: bool = True
    starts_silent: bool = False
    known: str = "block_out_channels"


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


CODEC = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "latent_channels": 2,
}
UNET = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 4,
    "attention_head_dim": 8,
}
CONDITION_UNET = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": (2, 4),
    "num_class_embeds": 4,
}
CONTROLNET = {
    **{k: v for k, v in CONDITION_UNET.items() if k not in ("out_channels", "up_block_types")},
    "conditioning_embedding_out_channels": (4, 6),
}


UNET_1D = {
    "sample_size": 7,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 4,
    "learned_positions": True,
}
TOKENS = {"num_codes": 5, "token_shape": (2, 3), "num_class_embeds": 4, "width": 8, "num_layers": 2, "num_heads": 2}


def image_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {"sample": seeded(4, 3, 8, 8)[:batch]}


def unet_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "sample": seeded(4, 2, 8, 8)[:batch],
        "timestep": torch.tensor([0, 3, 500, 999])[:batch],
        "class_labels": torch.tensor([0, 1, 2, 3])[:batch],
    }


def sequence_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**unet_inputs(batch), "sample": seeded(4, 2, 7)[:batch]}


def text_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**unet_inputs(batch), "encoder_hidden_states": seeded(4, 5, 12)[:batch]}


def controlnet_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**text_inputs(batch), "controlnet_cond": seeded(4, 3, 16, 16)[:batch]}


def token_inputs(batch: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(5, (4, 2, 3), generator=torch.Generator().manual_seed(1))
    return {"sample": tokens[:batch], "class_labels": torch.tensor([0, 1, 2, 3])[:batch]}


def grouped_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Two tokens a position, some of them masked."""
    tokens = torch.randint(6, (4, 2, 4, 2), generator=torch.Generator().manual_seed(1))
    return {"sample": tokens[:batch], "class_labels": torch.tensor([0, 1, 2, 3])[:batch]}


def conditioned_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**token_inputs(batch), "condition": torch.tensor([[0, 1], [2, 2], [1, 2], [0, 0]])[:batch]}


def sample_of(model: ModelMixin, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).sample


def quantised_sample_of(model: ModelMixin, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """In training with the quantizer's loss, the only way by which gradients reach the codebook."""
    out = model(**inputs)
    return out.sample + out.commit_loss if model.training else out.sample


def controls_of(model: ModelMixin, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Everything that a ControlNet adds, a row a sample."""
    out = model(**inputs)
    return torch.cat([h.flatten(1) for h in (*out.down_block_res_samples, out.mid_block_res_sample)], dim=1)


CASES = {
    "Autoencoder": Case(CODEC, image_inputs, sample_of),
    "AutoencoderKL": Case(CODEC, image_inputs, sample_of),
    "AutoregressiveTransformer": Case(
        {**TOKENS, "condition_codes": 3, "condition_length": 2},
        conditioned_inputs,
        sample_of,
        any_size=True,
        legacy=False,
        starts_silent=True,
        known="condition_length",
    ),
    "ControlNetModel": Case(CONTROLNET, controlnet_inputs, controls_of, legacy=False, starts_silent=True),
    "MaskedTransformer": Case(
        {**TOKENS, "token_shape": (2, 4, 2), "groups": 2, "patch_size": 2, "dropout": 0.0},
        grouped_inputs,
        sample_of,
        any_size=True,
        legacy=False,
        starts_silent=True,
        known="num_class_embeds",
    ),
    "UNet1D": Case(UNET_1D, sequence_inputs, sample_of, any_size=True, legacy=False, starts_silent=True),
    "UNet2DConditionModel": Case(CONDITION_UNET, text_inputs, sample_of, any_size=True, legacy=False),
    "UNet2DModel": Case(UNET, unet_inputs, sample_of),
    "VQModel": Case({**CODEC, "num_vq_embeddings": 5}, image_inputs, quantised_sample_of),
}
MODEL_FLOORS = ("codecs.", "denoisers.")


def build(name: str, **overrides: object) -> ModelMixin:
    torch.manual_seed(0)
    model = getattr(latentia, name)(**{**CASES[name].config, **overrides}).eval()
    if CASES[name].starts_silent:
        for parameter in model.parameters():
            parameter.data = parameter.data if parameter.any() else torch.randn_like(parameter) * 0.3
    return model


def run(name: str, model: ModelMixin, batch: int = 2, **changed: torch.Tensor) -> torch.Tensor:
    case = CASES[name]
    return case.forward(model, {**case.inputs(batch), **changed})


def test_every_public_model_has_a_case():
    public = {name for name, home in latentia._HOME.items() if home.startswith(MODEL_FLOORS)}
    assert public == set(CASES)


every_model = pytest.mark.parametrize("name", CASES)


@every_model
def test_fulfils_its_protocol_and_is_documented(name):
    model = build(name)
    floor = latentia._HOME[name].split(".")[0]
    assert isinstance(model, Codec if floor == "codecs" else Denoiser)
    assert isinstance(model, ModelMixin)
    text = type(model).__doc__ or ""
    for argument in type(model).config_arguments():
        assert argument in text or "same arguments" in text, argument


@every_model
def test_config_round_trip(name, tmp_path):
    model = build(name)
    again = type(model).from_config(model.config)
    assert again.config == model.config
    model.save_config(tmp_path)
    loaded = type(model).from_config(type(model).load_config(tmp_path))
    assert dict(loaded.config) == dict(model.config)
    assert to_json(loaded.config_to_save()) == to_json(model.config_to_save())
    assert again.state_dict().keys() == loaded.state_dict().keys() == model.state_dict().keys()


@every_model
def test_state_dict_round_trip(name):
    model, other = build(name), type(build(name))(**CASES[name].config).eval()
    assert not torch.equal(run(name, other), run(name, model))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(name, other), run(name, model))


@every_model
def test_folder_round_trip(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(run(name, again), run(name, model))
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["AutoencoderKL", "ControlNetModel", "UNet2DConditionModel", "UNet2DModel", "VQModel"])
def test_folders_travel_to_the_peer_and_back(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "ours")
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / "ours").eval()
    expected = run(name, model)
    torch.testing.assert_close(run(name, theirs), expected, atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs")
    again = type(model).from_pretrained(tmp_path / "theirs")
    assert torch.equal(run(name, again), expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.legacy])
def test_weights_of_2022_load(name, tmp_path):
    """Old names of the attention projections, stored as 1×1 convolutions."""
    model = build(name)
    model.save_pretrained(tmp_path)
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, value in model.state_dict().items():
        for new, was in old_names.items():
            if new in key:
                key, value = key.replace(new, was), value[:, :, None, None] if value.ndim == 2 else value
        old[key] = value.contiguous()
    assert old.keys() != model.state_dict().keys()
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert torch.equal(run(name, type(model).from_pretrained(tmp_path)), run(name, model))


@every_model
def test_meta_construction_then_loading(name):
    model = build(name)
    with torch.device("meta"):
        empty = type(model)(**CASES[name].config).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(run(name, empty), run(name, model))


@every_model
def test_same_input_same_output_and_inputs_untouched(name):
    model, inputs = build(name), CASES[name].inputs(2)
    before = {k: v.clone() for k, v in inputs.items()}
    first = CASES[name].forward(model, inputs)
    with torch.no_grad():
        second = CASES[name].forward(model, inputs)
        third = CASES[name].forward(model, inputs)
    assert torch.equal(second, third)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(inputs[k], before[k]) for k in inputs)


@every_model
@torch.no_grad()
def test_a_batch_is_its_samples(name):
    model, inputs = build(name), CASES[name].inputs(4)
    together = CASES[name].forward(model, inputs)
    alone = [CASES[name].forward(model, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_dtypes(name, dtype):
    model = build(name)
    full = run(name, model)
    cast = build(name).to(dtype)
    sample = CASES[name].inputs(2)["sample"]
    out = run(name, cast, sample=sample.to(dtype) if sample.is_floating_point() else sample)
    assert cast.dtype == out.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    assert (out.to(full.dtype) - full).abs().max() < tolerance * full.abs().max()


@every_model
def test_autocast(name):
    model = build(name)
    full = run(name, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(name, model)
        out.float().square().mean().backward()
    assert (out.float() - full).abs().max() < 0.1 * full.abs().max()


@every_model
def test_gradient_reaches_every_parameter(name):
    model = build(name).train()
    out = run(name, model, batch=4)
    (out * seeded(*out.shape)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        if not key.endswith("to_k.bias"):  # the softmax does not see a constant added to every key
            assert parameter.grad.abs().max() > 0, key


@every_model
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing is checkpointing
        run(name, model).square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
        model.disable_gradient_checkpointing()
        assert not model.is_gradient_checkpointing
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-7, rtol=1e-6, msg=key)


@every_model
@pytest.mark.parametrize("grad", [True, False])
def test_channels_last(name, grad):
    model, other = build(name), build(name).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        expected = run(name, model)
        x = CASES[name].inputs(2)["sample"]
        x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
        torch.testing.assert_close(run(name, other, sample=x), expected, atol=1e-5, rtol=1e-4)


@every_model
def test_wrong_inputs_are_named(name):
    model, x = build(name), CASES[name].inputs(2)["sample"]
    odd = () if CASES[name].any_size else (x[..., :7], x[..., :7, :])
    for bad in (x[:, :1], x[0], *odd):
        with pytest.raises(InputError, match="expected"):
            run(name, model, sample=bad)


@every_model
def test_unknown_arguments_are_named(name):
    known = CASES[name].known
    with pytest.raises(ConfigError, match=f"did you mean '{known}'"):
        build(name, **{known[:-2] + known[-1]: (8, 16)})


@every_model
def test_pickles_and_copies(name):
    model = build(name)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(name, clone), run(name, model))
        assert clone.config == model.config
