import hashlib

import diffusers
import pytest
import torch

from latentia import UNet2DModel
from latentia.errors import ConfigError, InputError, UnknownChoiceError

TINY = {
    "in_channels": 2,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DDPM_CIFAR = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
LDM_CELEBA = {"sample_size": 64, "attention_head_dim": 32}
LDM_CHURCHES = {  # residual blocks that resample, scale and shift
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
THREE_STAGES = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 2,
}

GRID = {
    "plain": {},
    "ddpm": {**DDPM_CIFAR, "block_out_channels": (8, 8, 16, 16), "sample_size": None},
    "three stages": THREE_STAGES,
    "churches": LDM_CHURCHES,
    "churches with a middle norm": {**LDM_CHURCHES, "attn_norm_num_groups": 2},
    "head dim 1": {"attention_head_dim": 1},
    "head dim that does not divide": {"attention_head_dim": 5},
    "one head": {"attention_head_dim": None},
    "classes": {"num_class_embeds": 5},
    "class as time": {"class_embed_type": "timestep"},
    "class as embedding": {"class_embed_type": "identity"},
    "no middle attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "middle scaled": {"mid_block_scale_factor": 1.7},
    "centered": {"center_input_sample": True},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "time width": {"time_embedding_dim": 24},
    "dropout": {"dropout": 0.3},
    "mish": {"act_fn": "mish"},
    "one stage": {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    },
}


def labels_for(config: dict, batch: int) -> dict[str, torch.Tensor]:
    if config.get("class_embed_type") == "timestep":
        return {"class_labels": torch.linspace(0, 900, batch)}
    if config.get("class_embed_type") == "identity":
        return {"class_labels": torch.randn(batch, 32, dtype=torch.double)}
    if config.get("num_class_embeds"):
        return {"class_labels": torch.arange(batch) % config["num_class_embeds"]}
    return {}


@pytest.mark.parametrize("name", GRID)
def test_equals_the_peer_on_the_same_weights(name):
    """In float64, so that only the arithmetic can differ; keys and their order are compared on the way."""
    config = {**TINY, **GRID[name]}
    # The peer cannot embed class numbers in another dtype than float32.
    dtype, tolerance = (torch.float, 1e-5) if name == "class as time" else (torch.double, 1e-10)
    torch.manual_seed(0)
    ours = UNet2DModel(**config).eval().to(dtype)
    theirs = diffusers.UNet2DModel(**config).eval().to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, config["in_channels"], 8, 16, dtype=dtype)
    labels = labels_for(config, 3)
    times = [torch.tensor([1, 40, 999]), torch.tensor(7), torch.tensor([250])]
    for t in times if name == "learned" else [*times, torch.tensor([0.5, 1.5, 700.25])]:
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                a, b = ours(x, t, **labels).sample, theirs(x, t, **labels).sample
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    assert torch.equal(ours(x, 7, **labels).sample, ours(x, torch.tensor(7), **labels).sample)


@pytest.mark.parametrize("name", ["plain", "ddpm", "churches", "classes", "class as time"])
def test_equals_the_peer_in_single_precision(name):
    config = {**TINY, **GRID[name]}
    torch.manual_seed(0)
    ours, theirs = UNet2DModel(**config).eval(), diffusers.UNet2DModel(**config).eval()
    theirs.load_state_dict(ours.state_dict())
    x, labels = torch.randn(2, config["in_channels"], 16, 16), labels_for(config, 2)
    torch.testing.assert_close(ours(x, 999, **labels).sample, theirs(x, 999, **labels).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("seed", "name"), [(0, "plain"), (1, "churches"), (2, "dropout")])
def test_gradients_equal_the_peer(seed, name):
    config = {**TINY, **GRID[name]}
    if name == "dropout":  # the peer's attention draws for a dropout of 0
        config |= {
            "add_attention": False,
            "down_block_types": ("DownBlock2D",) * 2,
            "up_block_types": ("UpBlock2D",) * 2,
        }
    torch.manual_seed(seed)
    ours = UNet2DModel(**config).double()
    theirs = diffusers.UNet2DModel(**config).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, config["in_channels"], 8, 8, dtype=torch.double)
    for model in (ours, theirs):
        torch.manual_seed(3)  # dropout draws the same masks
        model(x, torch.tensor([3, 900])).sample.square().mean().backward()
    peers = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, peers[key].grad, atol=1e-12, rtol=1e-8, msg=key)


@pytest.mark.parametrize(
    ("config", "fingerprint", "parameters", "tensors"),
    [(DDPM_CIFAR, "e5d8ca4c62fc7f51", 35_746_307, 328), (LDM_CELEBA, "87ecbd8b18ba5340", 274_056_163, 432)],
)
def test_keys_and_shapes_of_published_checkpoints(config, fingerprint, parameters, tensors):
    with torch.device("meta"):
        model = UNet2DModel(**config)
    state = model.state_dict()
    lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == fingerprint
    assert model.num_parameters() == parameters
    assert len(state) == tensors


def test_default_arguments_are_the_peers():
    with torch.device("meta"):
        ours, theirs = UNet2DModel(), diffusers.UNet2DModel()
    saved = ours.config_to_save()
    assert {k: v for k, v in saved.items() if not k.startswith("_")} == {
        k: tuple(v) if isinstance(v, list) else v for k, v in theirs.config.items() if not k.startswith("_")
    }


def test_fractions_of_a_timestep_are_kept():
    """Diffusers truncates a Python float to an integer; a tensor it keeps."""
    torch.manual_seed(0)
    model = UNet2DModel(**TINY)
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(model(x, 3.75).sample, model(x, torch.tensor([3.75])).sample)
    assert not torch.equal(model(x, 3.75).sample, model(x, 3).sample)
    assert torch.equal(model(x, [3.75]).sample, model(x, 3.75).sample)


def test_the_last_class_is_free_for_the_null_class():
    torch.manual_seed(0)
    model = UNet2DModel(**TINY, num_class_embeds=11)
    x = torch.randn(2, 2, 8, 8)
    out = model(x, 5, torch.tensor([10, 3])).sample
    assert not torch.equal(out, model(x, 5, torch.tensor([3, 3])).sample)
    assert model.class_embedding.weight.shape == (11, 32)


def test_outputs_by_name_and_as_a_tuple():
    model = UNet2DModel(**TINY)
    x = torch.randn(1, 2, 8, 8)
    (sample,) = model(x, 0, return_dict=False)
    assert sample.shape == (1, 3, 8, 8)
    assert torch.equal(model(x, 0)["sample"], sample)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8), (1, 2, 7, 8), (1, 2, 8, 9)])
def test_wrong_shapes(shape):
    with pytest.raises(InputError, match=r"expected \(batch, 2, height, width\).*divisible by 2"):
        UNet2DModel(**TINY)(torch.zeros(shape), 0)


@pytest.mark.parametrize(
    "config", [{"dropout": 2}, {"dropout": "0"}, {"norm_eps": -1e-5}, {"mid_block_scale_factor": 0}], ids=str
)
def test_numbers_out_of_range(config):
    with pytest.raises(InputError, match=f"{next(iter(config))} must be a number"):
        UNet2DModel(**{**TINY, **config})


def test_an_empty_batch_gives_an_empty_prediction():
    model = UNet2DModel(**TINY)
    assert model(torch.zeros(0, 2, 8, 8), 1).sample.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("t", [torch.zeros(3), torch.zeros(2, 1), [1, 2, 3], None, "noon"])
def test_wrong_timesteps(t):
    with pytest.raises(InputError, match=r"one for each of 2 samples|timestep must be a number"):
        UNet2DModel(**TINY)(torch.zeros(2, 2, 8, 8), t)


def test_timestep_beyond_the_learned_table():
    model = UNet2DModel(**TINY, time_embedding_type="learned", num_train_timesteps=10)
    with pytest.raises(InputError, match=r"timestep \[10\] out of range: give 0 to 9"):
        model(torch.zeros(1, 2, 8, 8), 10)


def test_wrong_labels():
    x = torch.zeros(2, 2, 8, 8)
    model = UNet2DModel(**TINY, num_class_embeds=4)
    with pytest.raises(InputError, match=r"class-conditional.*\[0, 4\), 3 for the null class"):
        model(x, 0)
    with pytest.raises(InputError, match=r"\[0, 4\] out of range: give 0 to 3"):
        model(x, 0, torch.tensor([0, 4]))
    with pytest.raises(InputError, match=r"\[-1, 0\] out of range"):
        model(x, 0, torch.tensor([-1, 0]))
    with pytest.raises(InputError, match="expected one for each of 2 samples"):
        model(x, 0, torch.tensor([0]))
    with pytest.raises(InputError, match="expected one for each of 2 samples"):
        model(x, 0, torch.tensor(0))
    with pytest.raises(InputError, match=r"torch.float32: expected int64"):
        model(x, 0, torch.zeros(2))
    with pytest.raises(InputError, match="must be a tensor, got"):
        model(x, 0, [0, 1])
    with pytest.raises(InputError, match="without classes"):
        UNet2DModel(**TINY)(x, 0, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "AtnDownBlock2D")}, "did you mean 'AttnDownBlock2D'"),
        ({"up_block_types": ("AttnUpBlock", "UpBlock2D")}, "did you mean 'AttnUpBlock2D'"),
        ({"mid_block_type": "UNetMidBlock"}, "did you mean 'UNetMidBlock2D'"),
        ({"time_embedding_type": "position"}, "did you mean 'positional'"),
        ({"class_embed_type": "time"}, "did you mean 'timestep'"),
        ({"downsample_type": "convolution"}, "did you mean 'conv'"),
        ({"upsample_type": "nearest"}, "known: conv, resnet"),
        ({"resnet_time_scale_shift": "spatial"}, "known: default, scale_shift"),
        ({"act_fn": "sily"}, "did you mean 'silu'"),
    ],
)
def test_unknown_names(config, message):
    with pytest.raises(UnknownChoiceError, match=message):
        UNet2DModel(**{**TINY, **config})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block_out_channels": (8, 16, 16)}, "equally long, got 3, 2 and 2"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "equally long, got 0"),
        ({"block_out_channels": (8, 18)}, "18 channels do not divide"),
        ({"layers_per_block": 0}, "at least 1, got 0"),
        ({"layers_per_block": 1.5}, "layers_per_block must be an integer of at least 1, got 1.5"),
        ({"in_channels": "3"}, "in_channels must be an integer of at least 1, got '3'"),
        ({"out_channels": -1}, "out_channels .* got -1"),
        ({"block_out_channels": (8.0, 16.0)}, "block_out_channels .* got 8.0"),
        ({"num_class_embeds": 0}, "num_class_embeds .* got 0"),
        ({"sample_size": (32, 0)}, "sample_size .* got 0"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
        ({"attention_head_dim": 32}, "attention_head_dim 32 does not fit 16 channels"),
        ({"atention_head_dim": 8}, "did you mean 'attention_head_dim'"),
    ],
)
def test_arguments_that_do_not_fit(config, message):
    with pytest.raises(ConfigError, match=message):
        UNet2DModel(**{**TINY, **config})


def test_block_names_of_2022():
    old = {**TINY, "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D")}
    assert list(UNet2DModel(**old).state_dict()) == list(UNet2DModel(**TINY).state_dict())


def test_legacy_attention_names():
    torch.manual_seed(0)
    model = UNet2DModel(**TINY)
    state = model.state_dict()
    old = {k.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    assert UNet2DModel.convert_legacy_keys(old).keys() == state.keys()


def test_compiles_without_a_graph_break():
    torch.manual_seed(0)
    model = UNet2DModel(**TINY, num_class_embeds=4).eval()
    x, t, y = torch.randn(2, 2, 8, 8), torch.tensor([3, 999]), torch.tensor([0, 3])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t, y).sample, model(x, t, y).sample, atol=1e-6, rtol=1e-5)
