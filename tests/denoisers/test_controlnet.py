import json

import diffusers
import pytest
import torch

from latentia import ControlNetModel, UNet2DConditionModel
from latentia.errors import ConfigError, InputError, UnknownChoiceError

TINY = {
    "in_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "conditioning_embedding_out_channels": (4, 6),
}
UNET = {
    **{k: v for k, v in TINY.items() if k != "conditioning_embedding_out_channels"},
    "out_channels": 2,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
GRID = {
    "sd 1": {},
    "sd 2": {"use_linear_projection": True, "attention_head_dim": (1, 4), "upcast_attention": True},
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "four channels, four widths": {"conditioning_channels": 4, "conditioning_embedding_out_channels": (4, 5, 6, 7)},
    "pooled": {"global_pool_conditions": True},
    "plain middle": {"mid_block_type": "UNetMidBlock2D"},
    "deeper": {"transformer_layers_per_block": (2, 1)},
    "only cross-attention": {"only_cross_attention": True},
    "classes": {"num_class_embeds": 5},
    "class as time": {"class_embed_type": "timestep", "act_fn": "gelu"},
    "class projected": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7},
}


def woken(model: torch.nn.Module) -> torch.nn.Module:
    """With what starts at zero drawn, so that it has a say."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)
    return model


def pair(config: dict, dtype: torch.dtype = torch.double):
    torch.manual_seed(0)
    ours = woken(ControlNetModel(**config)).eval().to(dtype)
    theirs = diffusers.ControlNetModel(**config).eval().to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs_for(config: dict, dtype: torch.dtype = torch.double) -> dict:
    factor = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    image = torch.rand(2, config.get("conditioning_channels", 3), 8 * factor, 12 * factor, dtype=dtype)
    given = {
        "sample": torch.randn(2, config["in_channels"], 8, 12, dtype=dtype),
        "timestep": torch.tensor([3, 999]),
        "encoder_hidden_states": torch.randn(2, 5, 12, dtype=dtype),
        "controlnet_cond": image,
    }
    if config.get("num_class_embeds"):
        given["class_labels"] = torch.tensor([0, 4])
    elif config.get("class_embed_type") == "timestep":
        given["class_labels"] = torch.tensor([1.0, 800.0])
    elif config.get("class_embed_type"):
        given["class_labels"] = torch.randn(2, 7, dtype=dtype)
    return given


def assert_same_maps(ours, theirs, tolerance: float) -> None:
    assert len(ours.down_block_res_samples) == len(theirs.down_block_res_samples)
    for a, b in zip(ours.down_block_res_samples, theirs.down_block_res_samples):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        assert b.any()
    torch.testing.assert_close(ours.mid_block_res_sample, theirs.mid_block_res_sample, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", GRID)
def test_equals_the_peer_on_the_same_weights(name):
    config = {**TINY, **GRID[name]}
    # The peer cannot embed class numbers in another dtype than float32.
    dtype, tolerance = (torch.float, 1e-5) if name == "class as time" else (torch.double, 1e-10)
    ours, theirs = pair(config, dtype)
    given = inputs_for(config, dtype)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_same_maps(ours(**given), theirs(**given), tolerance)
            scaled = {**given, "conditioning_scale": 0.7}
            assert_same_maps(ours(**scaled), theirs(**scaled), tolerance)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", ["sd 1", "pooled"])
def test_guess_mode_as_the_peer(name, scale):
    config = {**TINY, **GRID[name]}
    ours, theirs = pair(config)
    given = {**inputs_for(config), "guess_mode": True, "conditioning_scale": scale}
    assert_same_maps(ours(**given), theirs(**given), 1e-6)  # the peer's weights are float32


def test_guess_mode_weighs_from_a_tenth_to_one():
    model, _ = pair(TINY)
    given = inputs_for(TINY)
    plain, guess = model(**given), model(**given, guess_mode=True)
    ratios = [(b / a).median().item() for a, b in zip(plain.down_block_res_samples, guess.down_block_res_samples)]
    assert ratios == pytest.approx([10 ** (i / 4 - 1) for i in range(4)], rel=1e-12)
    torch.testing.assert_close(guess.mid_block_res_sample, plain.mid_block_res_sample)


def test_masked_first_attention_as_the_peer():
    config = {**TINY, "mid_block_type": "UNetMidBlock2D"}
    ours, theirs = pair(config)
    mask = (torch.arange(96) < 50).expand(2, 96)
    given = {**inputs_for(config), "attention_mask": mask}
    assert_same_maps(ours(**given), theirs(**given), 1e-10)


def test_keys_shapes_and_defaults_are_the_peers():
    with torch.device("meta"):
        ours, theirs = ControlNetModel(cross_attention_dim=768), diffusers.ControlNetModel(cross_attention_dim=768)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert ours.num_parameters() == 361_279_120
    saved = json.loads(json.dumps(ours.config_to_save()))
    assert {k: v for k, v in saved.items() if not k.startswith("_")} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if not k.startswith("_")
    }


def test_a_new_controlnet_is_silent():
    """Zero convolutions: before training the UNet predicts as it did without."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET).eval()
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6)).eval()
    given = inputs_for(TINY, torch.float)
    down, mid = control(**given, return_dict=False)
    image = given.pop("controlnet_cond")
    assert image.any()
    assert not any(d.any() for d in down)
    out = unet(**given, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert torch.equal(out, unet(**given).sample)


def test_from_unet_copies_the_way_down():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET, num_class_embeds=3, use_linear_projection=True).eval()
    control = ControlNetModel.from_unet(unet, "bgr", (4, 6), conditioning_channels=1)
    assert control.config.controlnet_conditioning_channel_order == "bgr"
    assert control.config.conditioning_channels == 1
    assert control.config.num_class_embeds == 3
    state = control.state_dict()
    for key, value in unet.state_dict().items():
        if key.startswith(("conv_in", "time_embedding", "class_embedding", "down_blocks", "mid_block")):
            assert torch.equal(state[key], value), key
            assert state[key].data_ptr() != value.data_ptr()
    fresh = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6), load_weights_from_unet=False)
    assert not torch.equal(fresh.conv_in.weight, unet.conv_in.weight)


def test_from_unet_as_the_peer():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET).eval()
    peer = diffusers.UNet2DConditionModel(**UNET)
    peer.load_state_dict(unet.state_dict())
    ours = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6)).config_to_save()
    theirs = diffusers.ControlNetModel.from_unet(peer, conditioning_embedding_out_channels=(4, 6)).config
    for name, value in ours.items():
        if not name.startswith("_"):
            assert theirs[name] == (list(value) if isinstance(theirs[name], list) else value), name


@pytest.mark.parametrize("change", [{"center_input_sample": True}, {"conv_in_kernel": 1}, {"time_embedding_dim": 24}])
def test_unets_that_no_controlnet_fits(change):
    (name,) = change
    with pytest.raises(InputError, match=f"no ControlNet fits this UNet: {name}="):
        ControlNetModel.from_unet(UNet2DConditionModel(**UNET, **change))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 2),
        ("encoder_hid_dim", 8),
        ("encoder_hid_dim_type", "text_proj"),
        ("addition_embed_type", "text_time"),
        ("addition_time_embed_dim", 256),
        ("addition_embed_type_num_heads", 8),
    ],
)
def test_arguments_of_other_families_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}=.*belongs to .*leave it at"):
        ControlNetModel(**TINY, **{name: value})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"controlnet_conditioning_channel_order": "grb"}, UnknownChoiceError, "known: bgr, rgb"),
        ({"conditioning_embedding_out_channels": ()}, ConfigError, "give at least one width"),
        ({"conditioning_channels": 0}, ConfigError, "conditioning_channels must be an integer"),
        ({"mid_block_type": None}, UnknownChoiceError, "known: UNetMidBlock2D, UNetMidBlock2DCrossAttn"),
        ({"block_out_channels": (8,)}, ConfigError, "equally long, got 1 and 2"),
    ],
)
def test_arguments_that_do_not_fit(config, error, message):
    with pytest.raises(error, match=message):
        ControlNetModel(**{**TINY, **config})


def test_wrong_inputs():
    model, given = ControlNetModel(**TINY), inputs_for(TINY, torch.float)
    expected = r"expected \(2, 3, 16, 24\), 2 times the size of the sample"
    for shape in ((2, 3, 8, 12), (2, 1, 16, 24), (3, 16, 24), (3, 3, 16, 24)):
        with pytest.raises(InputError, match=expected):
            model(**{**given, "controlnet_cond": torch.zeros(shape)})
    with pytest.raises(InputError, match="controlnet_cond must be a tensor"):
        model(**{**given, "controlnet_cond": None})
    with pytest.raises(InputError, match="conditioning_scale must be a number"):
        model(**given, conditioning_scale=[1.0])
    with pytest.raises(InputError, match="encoder_hidden_states has shape"):
        model(**{**given, "encoder_hidden_states": torch.zeros(2, 5, 13)})
    for name in ("timestep_cond", "cross_attention_kwargs", "added_cond_kwargs"):
        with pytest.raises(InputError, match=f"{name} is not supported"):
            model(**given, **{name: {"scale": 1.0}})


def test_one_image_serves_the_batch():
    model, _ = pair(TINY)
    given = inputs_for(TINY)
    one = {**given, "controlnet_cond": given["controlnet_cond"][:1]}
    both = {**given, "controlnet_cond": given["controlnet_cond"][:1].expand(2, -1, -1, -1)}
    assert_same_maps(model(**one), model(**both), 1e-12)


def test_compiles_without_a_graph_break():
    model, _ = pair(TINY, torch.float)
    given = inputs_for(TINY, torch.float)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_same_maps(compiled(**given, conditioning_scale=0.5), model(**given, conditioning_scale=0.5), 1e-5)
