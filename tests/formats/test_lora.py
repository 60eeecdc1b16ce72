import json
import re
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as peer_kohya
from diffusers.utils import state_dict_utils as peer
from diffusers.utils.peft_utils import get_peft_kwargs
from torch import nn

from latentia import UNet2DConditionModel
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.formats.lora import METADATA, Lora, read_layers, read_lora, write_lora
from latentia.formats.lora_config import AdapterConfig, read_configs

UNET = UNet2DConditionModel(
    block_out_channels=(8, 8, 8),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=2,
    norm_num_groups=4,
    cross_attention_dim=6,
    attention_head_dim=2,
)
UNET_LAYERS = [path for path, module in UNET.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
ATTENTION = [path for path in UNET_LAYERS if re.search(r"attn\d\.to_", path)]
SELF = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
TEXT_LAYERS = [f"encoder.layers.{i}.{end}" for i in range(2) for end in (*SELF, "mlp.fc1", "mlp.fc2")]
PREFIXED = [f"text_model.{path}" for path in TEXT_LAYERS]
LAYERS = {"unet": UNET_LAYERS, "text_encoder": TEXT_LAYERS}


def lora(paths: Mapping[str, list[str]], alphas: bool = True) -> Lora:
    """Every layer with tensors, a rank and an α of its own."""
    generator = torch.Generator().manual_seed(0)
    made: Lora = {}
    for component, names in paths.items():
        for i, path in enumerate(names):
            rank = 2 + i % 3
            down = torch.randn(rank, 4, generator=generator)
            up = torch.randn(5, rank, generator=generator)
            made.setdefault(component, {})[path] = (down, up, 0.1 + i % 4 if alphas else float(rank))
    return made


def same(first: Lora, second: Lora) -> None:
    assert {c: set(part) for c, part in first.items()} == {c: set(part) for c, part in second.items()}
    for component, part in first.items():
        for path, (down, up, alpha) in part.items():
            a, b, other = second[component][path]
            assert torch.equal(a, down), path
            assert torch.equal(b, up), path
            assert alpha == other, path


BOTH = lora({"unet": UNET_LAYERS, "text_encoder": TEXT_LAYERS})


# Round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("text", [TEXT_LAYERS, PREFIXED])
def test_what_is_written_reads_back_exactly(layout: str, text: list[str]):
    state, metadata = write_lora(BOTH, layout)
    read = read_lora(state, {"unet": UNET_LAYERS, "text_encoder": text}, metadata)
    part = {path: BOTH["text_encoder"][bare] for path, bare in zip(text, TEXT_LAYERS)}
    same(read, {"unet": BOTH["unet"], "text_encoder": part})
    same(read_lora(*_swap(write_lora({"text_encoder": part}, layout), {"text_encoder": text})), {"text_encoder": part})


def _swap(written: tuple, layers: Mapping[str, list[str]]) -> tuple:
    return written[0], layers, written[1]


def test_the_keys_of_both_layouts():
    path = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
    part = lora({"unet": [path], "text_encoder": TEXT_LAYERS[:1]})
    state, metadata = write_lora(part)
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert list(state) == [f"{p}.lora_{half}.weight" for p in (f"unet.{path}", text) for half in "AB"]
    config = json.loads(metadata[METADATA])
    assert config["unet.r"] == 2
    assert config["unet.lora_alpha"] == 0.1
    assert config["unet.target_modules"] == [path]
    assert config["text_encoder.target_modules"] == TEXT_LAYERS[:1]
    state, metadata = write_lora(part, "kohya")
    assert metadata == {}
    names = (
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    )
    assert list(state) == [f"{n}.{end}" for n in names for end in ("lora_down.weight", "lora_up.weight", "alpha")]
    assert float(state[f"{names[0]}.alpha"]) == 0.1


# The peer as oracle -------------------------------------------------------------------------------------------


def peft_names(part: Mapping[str, tuple], prefix: str = "") -> dict[str, torch.Tensor]:
    state = {}
    for path, (down, up, _) in part.items():
        state[f"{prefix}{path}.lora_A.weight"], state[f"{prefix}{path}.lora_B.weight"] = down, up
    return state


def test_the_peer_reads_our_kohya_file_as_we_do():
    state, _ = write_lora(BOTH, "kohya")
    theirs, alphas = peer_kohya._convert_non_diffusers_lora_to_diffusers(dict(state))
    unet = peer.convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in theirs.items() if "unet." in k})
    text = {k.removeprefix("text_encoder."): v for k, v in theirs.items() if k.startswith("text_encoder.")}
    text = peer.convert_state_dict_to_peft(peer.convert_state_dict_to_diffusers(text))
    # What their conversion mangles in layers that it does not know (`conv_shortcut`, `time_emb_proj`, …) is left out.
    known = {path: BOTH["unet"][path] for path in (*ATTENTION, *(p for p in UNET_LAYERS if "proj_" in p))}
    assert len(known) > 100
    for key, tensor in peft_names(known).items():
        assert torch.equal(unet[key], tensor)
    wanted = peft_names(BOTH["text_encoder"], "text_model.")
    assert text.keys() == wanted.keys()
    assert all(torch.equal(text[key], tensor) for key, tensor in wanted.items())
    assert len(alphas) == len(UNET_LAYERS) + len(TEXT_LAYERS)
    assert sorted({round(alpha, 5) for alpha in alphas.values()}) == [0.1, 1.1, 2.1, 3.1]


def test_we_read_what_the_peer_makes_of_kohyas_names():
    part = {path: BOTH["unet"][path] for path in ATTENTION}
    state, _ = write_lora({"unet": part, "text_encoder": BOTH["text_encoder"]}, "kohya")
    theirs, _ = peer_kohya._convert_non_diffusers_lora_to_diffusers(dict(state))
    assert any(".processor.to_out_lora.down.weight" in key for key in theirs)
    assert any("self_attn.to_q_lora.up.weight" in key for key in theirs)
    assert any("mlp.fc1.lora_linear_layer.down.weight" in key for key in theirs)
    no_alpha = {
        component: {path: (a, b, float(len(a))) for path, (a, b, _) in weights.items()}
        for component, weights in (("unet", part), ("text_encoder", BOTH["text_encoder"]))
    }
    same(read_lora(theirs, LAYERS), no_alpha)
    unet_only = {k.removeprefix("unet."): v for k, v in theirs.items() if k.startswith("unet.")}
    same(read_lora(unet_only, LAYERS), {"unet": no_alpha["unet"]})


def test_we_read_every_older_layout_of_the_peer():
    part = lora({"unet": ATTENTION, "text_encoder": PREFIXED}, alphas=False)
    new = peft_names(part["unet"])
    unet = peer.convert_state_dict_to_diffusers(new)  # PATH.lora.down.weight
    assert any(key.endswith("attn1.to_q.lora.down.weight") for key in unet)
    text = {k: v for k, v in peft_names(part["text_encoder"]).items() if "self_attn" in k}
    part["text_encoder"] = {p: v for p, v in part["text_encoder"].items() if "self_attn" in p}
    text = peer.convert_state_dict_to_diffusers(text)  # PATH.q_proj.lora_linear_layer.down.weight
    assert any(key.endswith("q_proj.lora_linear_layer.down.weight") for key in text)
    state = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text.items()}
    same(read_lora(state, {"unet": UNET_LAYERS, "text_encoder": PREFIXED}), part)
    same(read_lora(unet, LAYERS), {"unet": part["unet"]})
    same(read_lora(text, {"text_encoder": PREFIXED}), {"text_encoder": part["text_encoder"]})


def test_the_peer_reads_our_own_layout_with_our_settings():
    state, metadata = write_lora(BOTH)
    unet = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
    entries = {k.removeprefix("unet."): v for k, v in json.loads(metadata[METADATA]).items() if k.startswith("unet.")}
    ranks = {f"^{key}": v.shape[1] for key, v in unet.items() if "lora_B" in key}
    alphas = {f"{path}.alpha": alpha for path, (_, _, alpha) in BOTH["unet"].items()}
    theirs = get_peft_kwargs(ranks, alphas, unet)  # what they derive when a file tells α by tensors
    assert set(entries) == set(theirs)
    for name in ("use_dora", "lora_bias"):
        assert entries[name] == theirs[name]
    assert set(entries["target_modules"]) == set(theirs["target_modules"])
    for path, (down, _, alpha) in BOTH["unet"].items():
        for config in (entries, theirs):
            assert _pattern(config["rank_pattern"], path, config["r"]) == len(down)
            assert _pattern(config["alpha_pattern"], path, config["lora_alpha"]) == alpha
    assert entries["rank_pattern"] == theirs["rank_pattern"]


def _pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the whole path, or its end behind a dot."""
    return next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", path)), default)


# CompVis' names -----------------------------------------------------------------------------------------------


def test_compvis_names_as_the_peer_maps_them():
    attended = [path for path in UNET_LAYERS if ".attentions." in path]
    part = lora({"unet": attended}, alphas=False)
    ours, _ = write_lora(part, "kohya")
    theirs = {_compvis(key): value for key, value in ours.items()}
    mapped = peer_kohya._maybe_map_sgm_blocks_to_diffusers(dict(theirs), SimpleNamespace(layers_per_block=2))
    words = {
        "input_blocks": "down_blocks",
        "middle_block": "mid_block",
        "output_blocks": "up_blocks",
    }  # done later there
    assert {re.sub("|".join(words), lambda word: words[word[0]], key) for key in mapped} == set(ours)
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.alpha" in theirs
    same(read_lora(theirs, LAYERS), part)


def _compvis(key: str) -> str:
    """Two residual blocks a stage: our name of an attention → CompVis'."""
    match = re.match(r"lora_unet_(down|up)_blocks_(\d)_attentions_(\d)_(.*)", key)
    if match is None:
        return key.replace("mid_block_attentions_0", "middle_block_1")
    stage, layer = int(match[2]), int(match[3])
    if match[1] == "down":
        return f"lora_unet_input_blocks_{1 + 3 * stage + layer}_1_{match[4]}"
    return f"lora_unet_output_blocks_{3 * stage + layer}_1_{match[4]}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_2_0_in_layers_2", "down_blocks.0.resnets.1.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("output_blocks_8_0_emb_layers_1", "up_blocks.2.resnets.2.time_emb_proj"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("out_2", "conv_out"),
    ],
)
def test_compvis_names_of_convolutions(theirs: str, ours: str):
    down, up = torch.randn(2, 8, 3, 3), torch.randn(8, 2, 1, 1)
    state = {f"lora_unet_{theirs}.lora_down.weight": down, f"lora_unet_{theirs}.lora_up.weight": up}
    read = read_lora(state, LAYERS)
    assert list(read["unet"]) == [ours]
    assert read["unet"][ours][0] is down
    assert read["unet"][ours][2] == 2


# α ------------------------------------------------------------------------------------------------------------

PATH = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def halves(path: str = f"unet.{PATH}", rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(rank, 6), f"{path}.lora_B.weight": torch.ones(8, rank)}


def alpha(state: Mapping[str, torch.Tensor], **entries: object) -> float:
    metadata = {METADATA: json.dumps(entries)} if entries else {}
    return read_lora(state, LAYERS, metadata)["unet"][PATH][2]


def test_alpha():
    assert alpha(halves()) == 4
    for key, value in ((f"unet.{PATH}.alpha", torch.tensor(3)), (f"unet.{PATH}.lora.alpha", torch.tensor([1.5]))):
        assert alpha({**halves(), key: value}, **{"unet.lora_alpha": 9}) == value.item()
    assert alpha(halves(), **{"unet.lora_alpha": 9, "text_encoder.lora_alpha": 2}) == 9
    assert alpha(halves(), **{"unet.r": 4, "unet.alpha_pattern": {"^mid_block.attn2.to_k": 1, "attn2.to_k": 2}}) == 2
    assert alpha(halves(), **{"unet.lora_alpha": 1, "unet.alpha_pattern": {f"^{PATH}$": 5}}) == 5
    assert alpha(halves(), **{"unet.lora_alpha": 1, "unet.alpha_pattern": {PATH.replace(".", "\\."): 5}}) == 5
    assert alpha(halves(), **{"unet.lora_alpha": 1, "unet.alpha_pattern": {"tn2.to_k": 5, "to_q": 6}}) == 1
    assert alpha(halves(), **{"unet.lora_alpha": 6, "unet.use_rslora": True}) / 4 == 6 / 2
    assert alpha(halves(PATH), lora_alpha=9) == 9  # as a UNet saves itself: no component anywhere
    assert alpha(halves()) == alpha(halves(f"unet.{PATH.replace('to_k', 'processor.to_k')}"))


def test_an_adapters_name_in_the_keys():
    state = {key.replace(".weight", ".default_0.weight"): value for key, value in halves().items()}
    assert alpha(state, **{"unet.lora_alpha": 2}) == 2


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ('{"unet.lora_alpha": "8"}', "no numbers as lora_alpha"),
        ('{"unet.lora_alpha": NaN}', "no numbers as lora_alpha"),
        ('{"unet.alpha_pattern": [1]}', "no numbers as lora_alpha"),
        ('{"unet.alpha_pattern": {"(a+)+$": 1}}', "only paths are supported"),
        ('{"unet.use_dora": true}', "unet uses DoRA"),
    ],
)
def test_broken_metadata(entries: str, message: str):
    with pytest.raises(ArtifactError, match=message):
        read_lora(halves(), LAYERS, {METADATA: entries})


def test_settings_of_the_text_encoder_mean_both_spellings():
    for pattern in ("text_model.encoder.layers.1.mlp.fc1", "encoder.layers.1.mlp.fc1", "layers.1.mlp.fc1"):
        config = AdapterConfig(8.0, {pattern: 2.0})
        assert [config.alpha_of(p, 4) for p in (TEXT_LAYERS[10], PREFIXED[10], TEXT_LAYERS[4])] == [2, 2, 8]
    assert read_configs({}) == {}


# What is not a LoRA of ours -----------------------------------------------------------------------------------

KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{KOHYA}.hada_w1_a", "LoHa"),
        (f"{KOHYA}.lokr_w1", "LoKr"),
        (f"{KOHYA}.dora_scale", "DoRA"),
        (f"unet.{PATH}.lora_magnitude_vector", "DoRA"),
        (f"{KOHYA}.oft_blocks", "OFT"),
        (f"{KOHYA}.lora_mid.weight", "LoCon with a Tucker core"),
        (f"{KOHYA}.diff", "whole differences of weights"),
        (f"{KOHYA}.on_input", "IA3"),
        (f"unet.{PATH}.lora_B.bias", "LoRA with a bias"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "SDXL text encoder"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "SDXL text encoder"),
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "diffusion transformer"),
        (f"base_model.model.{PATH}.lora_A.weight", "PEFT folder"),
        (f"{PATH}.weight", "tensors of no known layout"),
    ],
)
def test_other_kinds_are_named(key: str, what: str):
    with pytest.raises(
        ArtifactError, match=rf"found {what}.* \(1 tensors\), first {re.escape(key)}; supported are A and"
    ):
        read_lora({**halves(), key: torch.ones(1)}, LAYERS)


def test_an_empty_file_is_no_lora():
    with pytest.raises(ArtifactError, match="found nothing; supported"):
        read_lora({}, LAYERS)


def test_everything_that_does_not_fit_is_said_at_once():
    state = {
        **halves(),
        **halves("unet.mid_block.attentions.7.to_q"),
        "lora_unet_nowhere.alpha": torch.ones(()),
        **halves("text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        f"unet.{ATTENTION[0]}.lora_A.weight": torch.ones(2, 3),
        f"unet.{ATTENTION[1]}.lora_A.weight": torch.ones(()),
        f"unet.{ATTENTION[1]}.lora_B.weight": torch.ones(2, 3),
        f"unet.{ATTENTION[2]}.alpha": torch.ones(()),
        f"{KOHYA}.lora_down.weight": torch.ones(4, 6),
        f"{KOHYA}.lora_up.weight": torch.ones(8, 4),
    }
    with pytest.raises(ArtifactError) as caught:
        read_lora(state, {"unet": UNET_LAYERS})
    said = str(caught.value)
    text = "text_encoder text_model.encoder.layers.0.mlp.fc1"
    assert f"3 not in this network: {text}, unet lora_unet_nowhere, unet mid_block.attentions.7.to_q;" in said
    assert f"3 without both A and B: {', '.join(sorted(f'unet {p}' for p in ATTENTION[:3]))};" in said
    assert f"1 there twice: unet {KOHYA}" in said


def test_two_adapters_in_one_file_are_refused():
    state = {key.replace(".weight", f".{name}.weight"): v for name in ("a", "b") for key, v in halves().items()}
    with pytest.raises(ArtifactError, match="2 there twice"):
        read_lora(state, LAYERS)


def test_names_that_underscores_make_alike_are_not_guessed():
    state = {"lora_unet_a_b.lora_down.weight": torch.ones(1, 2), "lora_unet_a_b.lora_up.weight": torch.ones(2, 1)}
    assert list(read_lora(state, {"unet": ["a.b"]})["unet"]) == ["a.b"]
    with pytest.raises(ArtifactError, match="1 not in this network: unet lora_unet_a_b"):
        read_lora(state, {"unet": ["a.b", "a_b"]})
    with pytest.raises(InputError, match="two layers are called 'lora_unet_a_b'"):
        write_lora({"unet": dict.fromkeys(("a.b", "a_b"), (torch.ones(1, 2), torch.ones(2, 1), 1.0))}, "kohya")


def test_an_alpha_of_many_numbers_is_refused():
    with pytest.raises(ArtifactError, match=r"alpha must be one number, has shape \(2,\)"):
        read_lora({**halves(), f"unet.{PATH}.alpha": torch.ones(2)}, LAYERS)


def test_layers_of_one_component():
    state = {key.removeprefix("unet."): value for key, value in halves().items()}
    assert read_layers(state, {})[PATH][2] == 4
    assert read_layers(state, {"lora_alpha": 6})[PATH][2] == 6
    older = {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value for key, value in state.items()}
    assert read_layers(older, {"lora_alpha": 6}).keys() == {PATH}
    with pytest.raises(ArtifactError, match="leaves the layer open"):
        read_layers({f"{PATH}_lora.down.weight": torch.ones(1)}, {})
    with pytest.raises(ArtifactError, match="1 without both A and B"):
        read_layers({f"{PATH}.lora_A.weight": torch.ones(1, 1)}, {})


def test_what_cannot_be_written():
    with pytest.raises(UnknownChoiceError, match="known: diffusers, kohya"):
        write_lora(BOTH, "webui")
    with pytest.raises(UnknownChoiceError, match="unknown component of a LoRA 'vae'"):
        write_lora({"vae": BOTH["unet"]})
    for empty in ({}, {"unet": {}}):
        with pytest.raises(InputError, match="nothing to save"):
            write_lora(empty)
