import hashlib
import json

import diffusers
import pytest
import torch

from latentia import UNet2DConditionModel
from latentia.errors import ConfigError, InputError, UnknownChoiceError

TINY = {
    "in_channels": 2,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
THREE = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}
GRID = {
    "sd 1": {},
    "sd 1, three stages": THREE,
    "sd 2": {**THREE, "use_linear_projection": True, "attention_head_dim": (1, 2, 4), "upcast_attention": True},
    "inpainting": {"in_channels": 9, "out_channels": 4},
    "head counts that do not divide": {"attention_head_dim": 3},
    "head counts that do not divide, linear": {"attention_head_dim": 3, "use_linear_projection": True},
    "all cross": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    },
    "only cross-attention": {"only_cross_attention": True},
    "only cross-attention somewhere": {**THREE, "only_cross_attention": (False, True, False)},
    "deeper": {**THREE, "transformer_layers_per_block": (1, 2, 3)},
    "deeper everywhere": {"transformer_layers_per_block": 2},
    "deeper by layer": {
        **THREE,
        "transformer_layers_per_block": ((1, 2), (2, 1), 1),
        "reverse_transformer_layers_per_block": (1, (1, 2, 1), (3, 1, 1)),
    },
    "layers by stage": {**THREE, "layers_per_block": (1, 2, 3)},
    "text widths": {"cross_attention_dim": (12, 12)},
    "classes": {"num_class_embeds": 5},
    "class as time": {"class_embed_type": "timestep"},
    "class as embedding": {"class_embed_type": "identity"},
    "class projected": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7},
    "class simply projected": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 7},
    "no middle": {"mid_block_type": None},
    "plain middle": {"mid_block_type": "UNetMidBlock2D"},
    "middle scaled": {"mid_block_scale_factor": 1.7},
    "centered": {"center_input_sample": True},
    "kernels": {"conv_in_kernel": 1, "conv_out_kernel": 5},
    "padding": {"downsample_padding": 0},
    "time": {"time_embedding_dim": 24, "flip_sin_to_cos": False, "freq_shift": 1},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "gelu": {"act_fn": "gelu", "class_embed_type": "timestep"},
    "dropout": {"dropout": 0.3},
}


def pair(config: dict, dtype: torch.dtype = torch.double):
    """Both classes with the same weights, in evaluation mode."""
    torch.manual_seed(0)
    ours = UNet2DConditionModel(**config).eval().to(dtype)
    theirs = diffusers.UNet2DConditionModel(**config).eval().to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def text_for(config: dict, batch: int, dtype: torch.dtype = torch.double) -> torch.Tensor:
    return torch.randn(batch, 5, 12, dtype=dtype)


def labels_for(config: dict, batch: int) -> dict[str, torch.Tensor]:
    kind = config.get("class_embed_type")
    if kind == "timestep":
        return {"class_labels": torch.linspace(0, 900, batch)}
    if kind is not None:
        return {"class_labels": torch.randn(batch, 32 if kind == "identity" else 7, dtype=torch.double)}
    return {"class_labels": torch.arange(batch)} if config.get("num_class_embeds") else {}


@pytest.mark.parametrize("name", GRID)
def test_equals_the_peer_on_the_same_weights(name):
    """In float64, so that only the arithmetic can differ; keys and their order are compared on the way."""
    config = {**TINY, **GRID[name]}
    ours, theirs = pair(config)
    x, text, labels = torch.randn(3, config["in_channels"], 8, 12).double(), text_for(config, 3), labels_for(config, 3)
    for t in (torch.tensor([1, 40, 999]), torch.tensor(7), torch.tensor([0.5, 1.5, 700.25])):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                a, b = ours(x, t, text, **labels).sample, theirs(x, t, text, **labels).sample
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["sd 1, three stages", "sd 2", "only cross-attention", "gelu"])
def test_equals_the_peer_in_single_precision(name):
    config = {**TINY, **GRID[name]}
    ours, theirs = pair(config, torch.float)
    x, text, labels = torch.randn(2, 2, 16, 16), text_for(config, 2, torch.float), labels_for(config, 2)
    expected = theirs(x, 999, text, **labels).sample
    torch.testing.assert_close(ours(x, 999, text, **labels).sample, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(7, 9), (5, 8), (12, 6), (1, 1)])
def test_any_size_as_the_peer(size):
    """A picture of 520 pixels has 65 latents: the way up returns to the odd sizes that the way down met."""
    ours, theirs = pair({**TINY, **THREE})
    x, text = torch.randn(2, 2, *size, dtype=torch.double), text_for(TINY, 2)
    out = ours(x, 3, text).sample
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, theirs(x, 3, text).sample, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["sd 1, three stages", "sd 2", "only cross-attention"])
def test_masks_as_the_peer(name):
    config = {**TINY, **GRID[name]}
    ours, theirs = pair(config)
    x, text = torch.randn(2, 2, 8, 8, dtype=torch.double), text_for(config, 2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for given in (mask, mask.bool()):
        out = ours(x, 3, text, encoder_attention_mask=given).sample
        expected = theirs(x, 3, text, encoder_attention_mask=given).sample
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    if name != "only cross-attention":  # whose first attentions look at the text through attention_mask
        cut = ours(x[:1], 3, text[:1, :3]).sample
        torch.testing.assert_close(out[:1], cut, atol=1e-10, rtol=1e-10)  # a masked token is no token
    full = ours(x, 3, text, encoder_attention_mask=torch.ones(2, 5)).sample
    torch.testing.assert_close(full, ours(x, 3, text).sample, atol=1e-12, rtol=1e-12)


def test_mask_of_the_first_attention():
    config = {**TINY, "mid_block_type": "UNetMidBlock2D"}
    mask = torch.ones(2, 64)
    mask[:, 40:] = 0
    ours, theirs = pair(config)  # one resolution of attention: 64 positions
    x, text = torch.randn(2, 2, 8, 8, dtype=torch.double), text_for(config, 2)
    out = ours(x, 3, text, attention_mask=mask).sample
    torch.testing.assert_close(out, theirs(x, 3, text, attention_mask=mask).sample, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(out, ours(x, 3, text).sample)
    with pytest.raises(InputError, match="mask over 5 keys meets attention over 64"):
        ours(x, 3, text, attention_mask=torch.ones(2, 5))
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 64\): expected \(2, keys\)"):
        ours(x, 3, text, attention_mask=torch.ones(1, 64))


def test_what_a_controlnet_adds():
    ours, theirs = pair({**TINY, **THREE})
    x, text = torch.randn(2, 2, 8, 8, dtype=torch.double), text_for(TINY, 2)
    widths = [(8, 8)] * 3 + [(8, 4), (16, 4), (16, 4), (16, 2), (24, 2), (24, 2)]
    down = tuple(torch.randn(2, c, s, s, dtype=torch.double) for c, s in widths)
    mid = torch.randn(2, 24, 2, 2, dtype=torch.double)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    before = [d.clone() for d in down]
    out = ours(x, 3, text, **added).sample
    torch.testing.assert_close(out, theirs(x, 3, text, **added).sample, atol=1e-10, rtol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(before, down))
    pooled = [d.mean((2, 3), keepdim=True) for d in down]
    assert ours(x, 3, text, down_block_additional_residuals=pooled, mid_block_additional_residual=mid).sample.shape
    with pytest.raises(InputError, match="has 8 tensors: expected 9"):
        ours(x, 3, text, **{**added, "down_block_additional_residuals": down[:-1]})
    with pytest.raises(InputError, match=r"residuals\[0\] has shape \(2, 24, 2, 2\): expected \(2, 8, 8, 8\)"):
        ours(x, 3, text, **{**added, "down_block_additional_residuals": down[::-1]})
    with pytest.raises(InputError, match="mid_block_additional_residual, or neither"):
        ours(x, 3, text, down_block_additional_residuals=down)
    with pytest.raises(InputError, match=r"mid_block_additional_residual has shape \(2, 8, 2, 2\)"):
        ours(x, 3, text, **{**added, "mid_block_additional_residual": mid[:, :8]})


@pytest.mark.parametrize("name", ["sd 1, three stages", "sd 2", "dropout"])
def test_gradients_equal_the_peer(name):
    config = {**TINY, **GRID[name]}
    ours, theirs = pair(config)
    if name == "dropout":
        ours.train()
        theirs.train()
        for module in theirs.modules():  # the peer's attention draws for a dropout of 0
            if isinstance(module, torch.nn.Dropout) and module.p == 0:
                module.eval()
    x, text = torch.randn(2, 2, 8, 8, dtype=torch.double), text_for(config, 2)
    texts = [text.clone().requires_grad_(), text.clone().requires_grad_()]
    for model, states in zip((ours, theirs), texts):
        torch.manual_seed(3)  # dropout draws the same masks
        model(x, torch.tensor([3, 900]), states).sample.square().mean().backward()
    torch.testing.assert_close(texts[0].grad, texts[1].grad, atol=1e-12, rtol=1e-8)
    peers = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, peers[key].grad, atol=1e-12, rtol=1e-8, msg=key)


@pytest.mark.parametrize(
    ("config", "fingerprint", "parameters"),
    [({}, "a86ffab7c6f1ad19", 859_520_964), ({"in_channels": 9}, "28e8258d8d458ad6", 859_535_364)],
)
def test_keys_and_shapes_of_stable_diffusion(config, fingerprint, parameters):
    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, **config)
    state = model.state_dict()
    lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == fingerprint
    assert model.num_parameters() == parameters
    assert len(state) == 686


def test_keys_and_shapes_of_stable_diffusion_2():
    config = {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
        "only_cross_attention": False,
        "num_class_embeds": None,
        "dual_cross_attention": False,
    }
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(**config), diffusers.UNet2DConditionModel(**config)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert ours.num_parameters() == 865_910_724


def test_default_arguments_are_the_peers():
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(), diffusers.UNet2DConditionModel()
    saved = json.loads(json.dumps(ours.config_to_save()))
    assert {k: v for k, v in saved.items() if not k.startswith("_")} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if not k.startswith("_")
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 2),
        ("encoder_hid_dim", 8),
        ("encoder_hid_dim_type", "text_proj"),
        ("addition_embed_type", "text_time"),
        ("addition_time_embed_dim", 256),
        ("addition_embed_type_num_heads", 8),
        ("dual_cross_attention", True),
        ("resnet_skip_time_act", True),
        ("resnet_out_scale_factor", 2.0),
        ("time_embedding_type", "fourier"),
        ("time_embedding_act_fn", "silu"),
        ("timestep_post_act", "silu"),
        ("time_cond_proj_dim", 256),
        ("attention_type", "gated"),
        ("class_embeddings_concat", True),
        ("mid_block_only_cross_attention", True),
        ("cross_attention_norm", "layer_norm"),
    ],
)
def test_arguments_of_other_families_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}=.*belongs to .*leave it at"):
        UNet2DConditionModel(**TINY, **{name: value})


@pytest.mark.parametrize(
    "given",
    [
        {"timestep_cond": torch.zeros(1, 4)},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 4)}},
        {"down_intrablock_additional_residuals": (torch.zeros(1),)},
    ],
)
def test_conditions_of_other_families_are_refused(given):
    model, x, text = UNet2DConditionModel(**TINY), torch.zeros(1, 2, 8, 8), torch.zeros(1, 5, 12)
    (name,) = given
    with pytest.raises(InputError, match=f"{name} is not supported"):
        model(x, 0, text, **given)
    assert model(x, 0, text, **{name: {}}).sample.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"down_block_types": ("CrosAttnDownBlock2D",) * 2}, UnknownChoiceError, "mean 'CrossAttnDownBlock2D'"),
        ({"up_block_types": ("CrossAttnUpBlock", "UpBlock2D")}, UnknownChoiceError, "mean 'CrossAttnUpBlock2D'"),
        ({"mid_block_type": "UNetMidBlock2DCross"}, UnknownChoiceError, "did you mean 'UNetMidBlock2DCrossAttn'"),
        ({"class_embed_type": "time"}, UnknownChoiceError, "did you mean 'timestep'"),
        ({"resnet_time_scale_shift": "spatial"}, UnknownChoiceError, "known: default, scale_shift"),
        ({"act_fn": "sily"}, UnknownChoiceError, "did you mean 'silu'"),
        ({"block_out_channels": (8, 16, 16)}, ConfigError, "equally long, got 3 and 2"),
        ({"up_block_types": ("UpBlock2D",)}, ConfigError, "equally long, got 2 and 1"),
        ({"attention_head_dim": (1, 2, 3)}, ConfigError, "attention_head_dim has 3 entries for 2 stages"),
        ({"attention_head_dim": 9}, ConfigError, "is the number of heads"),
        ({"attention_head_dim": None}, ConfigError, "attention_head_dim must be an integer"),
        ({"layers_per_block": (1, 0)}, ConfigError, "layers_per_block must be an integer of at least 1"),
        ({"cross_attention_dim": (12, 13)}, ConfigError, "all stages read the same text"),
        ({"norm_num_groups": None}, ConfigError, "norm_num_groups must be an integer"),
        ({"block_out_channels": (8, 18)}, ConfigError, "18 channels do not divide"),
        ({"transformer_layers_per_block": ((1,), (1,))}, ConfigError, "gives 1 numbers for 2 layers"),
        ({"transformer_layers_per_block": (1, -1)}, ConfigError, "at least 0, got -1"),
        ({"downsample_padding": 2}, ConfigError, "downsample_padding must be 0"),
        ({"class_embed_type": "projection"}, ConfigError, "needs projection_class_embeddings_input_dim"),
        ({"cross_atention_dim": 8}, ConfigError, "did you mean 'cross_attention_dim'"),
    ],
)
def test_arguments_that_do_not_fit(config, error, message):
    with pytest.raises(error, match=message):
        UNet2DConditionModel(**{**TINY, **config})


@pytest.mark.parametrize("shape", [(2, 5, 13), (2, 12), (1, 5, 12), (3, 5, 12)])
def test_wrong_texts(shape):
    with pytest.raises(InputError, match=r"encoder_hidden_states has shape .*expected \(2, length, 12\)"):
        UNet2DConditionModel(**TINY)(torch.zeros(2, 2, 8, 8), 0, torch.zeros(shape))


def test_wrong_inputs():
    model, x, text = UNet2DConditionModel(**TINY), torch.zeros(2, 2, 8, 8), torch.zeros(2, 5, 12)
    with pytest.raises(InputError, match="NoneType: expected the encoded text"):
        model(x, 0, None)
    with pytest.raises(InputError, match=r"expected \(batch, 2, height, width\)"):
        model(x[:, :1], 0, text)
    with pytest.raises(InputError, match="one for each of 2 samples"):
        model(x, torch.zeros(3), text)
    with pytest.raises(InputError, match="timestep must be a number"):
        model(x, "now", text)
    with pytest.raises(InputError, match=r"encoder_attention_mask has shape \(2, 4\): expected \(2, 5\)"):
        model(x, 0, text, encoder_attention_mask=torch.ones(2, 4))
    with pytest.raises(InputError, match="without classes"):
        model(x, 0, text, torch.tensor([0, 1]))


def test_wrong_labels():
    x, text = torch.zeros(2, 2, 8, 8), torch.zeros(2, 5, 12)
    model = UNet2DConditionModel(**TINY, num_class_embeds=4)
    with pytest.raises(InputError, match=r"class-conditional.*\[0, 4\), 3 for the null class"):
        model(x, 0, text)
    with pytest.raises(InputError, match=r"\[0, 4\] out of range: give 0 to 3"):
        model(x, 0, text, torch.tensor([0, 4]))
    with pytest.raises(InputError, match="one for each of 2 samples"):
        model(x, 0, text, torch.tensor([0]))
    with pytest.raises(InputError, match=r"torch.float32: expected int64"):
        model(x, 0, text, torch.zeros(2))
    with pytest.raises(InputError, match="must be a tensor"):
        model(x, 0, text, 3)
    model = UNet2DConditionModel(**TINY, **GRID["class projected"])
    with pytest.raises(InputError, match="have width 8: expected 7"):
        model(x, 0, text, torch.zeros(2, 8))


def test_text_is_cast_to_the_samples_dtype():
    torch.manual_seed(0)
    model = UNet2DConditionModel(**TINY).bfloat16()
    x, text = torch.randn(1, 2, 8, 8).bfloat16(), torch.randn(1, 5, 12)
    assert torch.equal(model(x, 3, text).sample, model(x, 3, text.bfloat16()).sample)


def test_an_empty_batch():
    out = UNet2DConditionModel(**TINY)(torch.zeros(0, 2, 8, 8), 0, torch.zeros(0, 5, 12)).sample
    assert out.shape == (0, 3, 8, 8)


def test_outputs_by_name_and_as_a_tuple():
    torch.manual_seed(0)
    model, x, text = UNet2DConditionModel(**TINY), torch.randn(1, 2, 8, 8), torch.randn(1, 5, 12)
    (sample,) = model(x, 0, text, return_dict=False)
    assert torch.equal(model(x, 0, text)["sample"], sample)


@pytest.mark.parametrize("linear", [False, True])
def test_compiles_without_a_graph_break(linear):
    torch.manual_seed(0)
    model = UNet2DConditionModel(**TINY, use_linear_projection=linear).eval()
    x, t, text = torch.randn(2, 2, 8, 8), torch.tensor([3, 999]), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        out = compiled(x, t, text, encoder_attention_mask=mask).sample
        expected = model(x, t, text, encoder_attention_mask=mask).sample
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
