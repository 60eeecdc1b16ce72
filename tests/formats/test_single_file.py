"""Weights through the tables, bit for bit, against Diffusers' own converters and against the authors' arithmetic."""

import warnings

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as peer
from safetensors.torch import save_file

from latentia.core.artifacts import load_state_dict
from latentia.errors import ArtifactError, UnknownChoiceError
from latentia.formats.rules import Rule
from latentia.formats.single_file import read_single_file, to_single_file
from latentia.nn.attention import SelfAttention
from tiny_sd import tiny_pipeline, tiny_sd

KINDS = ["sd1", "sd2", "inpaint", "pix2pix"]
OPEN_CLIP = "cond_stage_model.model."


def states(kind):
    """Our state dicts of a tiny pipeline that Diffusers wrote."""
    folder = tiny_sd(kind)
    text = load_state_dict(folder / "text_encoder", stem="model")
    text = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in text.items()}
    text.pop("text_model.embeddings.position_ids", None)
    return {"unet": load_state_dict(folder / "unet"), "vae": load_state_dict(folder / "vae"), "text_encoder": text}


def config(kind, part):
    return dict(getattr(tiny_pipeline(kind), part).config)


def equal(ours, theirs):
    assert set(ours) == set(theirs)
    return all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)


def untold(kind):
    """What no tensor tells of the tiny networks."""
    unet = {"norm_num_groups": 8, "attention_head_dim": (2, 4) if kind == "sd2" else 2}
    return {"unet": unet, "vae": {"norm_num_groups": 8}, "text_encoder": {"num_attention_heads": 4}}


@pytest.mark.parametrize("kind", KINDS)
def test_our_checkpoint_is_read_alike_by_diffusers_and_by_us(kind, tmp_path):
    ours = states(kind)
    checkpoint = to_single_file(ours, open_clip=kind == "sd2")
    assert equal(peer.convert_ldm_unet_checkpoint(dict(checkpoint), config(kind, "unet")), ours["unet"])
    assert equal(peer.convert_ldm_vae_checkpoint(dict(checkpoint), config(kind, "vae")), ours["vae"])
    if kind != "sd2":
        assert equal(peer.convert_ldm_clip_checkpoint(dict(checkpoint)), ours["text_encoder"])
    else:
        model = tiny_pipeline(kind).text_encoder
        assert equal(peer.convert_open_clip_checkpoint(model, dict(checkpoint)), ours["text_encoder"])
    save_file(checkpoint, tmp_path / "model.safetensors")
    read = read_single_file(tmp_path / "model.safetensors", overrides=untold(kind))
    assert list(read.parts) == ["unet", "vae", "text_encoder"]
    assert all(equal(read.parts[name].tensors, state) for name, state in ours.items())
    recorded = config(kind, "unet")
    for name, value in read.parts["unet"].config.items():
        assert name in ("sample_size", "upcast_attention") or recorded[name] == value, name


def test_a_whole_open_clip_tower_loses_its_last_block(tmp_path):
    checkpoint = to_single_file(states("sd2"), open_clip=True)
    extra = {k.replace("resblocks.2.", "resblocks.3."): v + 1 for k, v in checkpoint.items() if "resblocks.2." in k}
    tail = {f"{OPEN_CLIP}text_projection": torch.randn(32, 32), f"{OPEN_CLIP}logit_scale": torch.tensor(1.0)}
    save_file(checkpoint | extra | tail, tmp_path / "model.safetensors")
    assert equal(
        read_single_file(tmp_path / "model.safetensors").parts["text_encoder"].tensors, states("sd2")["text_encoder"]
    )


def test_pickles_are_read_as_tensors_only(tmp_path):
    ours = states("sd1")
    lightning = {"epoch": 3, "global_step": 17, "state_dict": to_single_file(ours), "optimizer_states": [{"state": {}}]}
    torch.save(lightning, tmp_path / "model.ckpt")
    read = read_single_file(tmp_path / "model.ckpt")
    assert all(equal(read.parts[name].tensors, state) for name, state in ours.items())
    torch.save({"state_dict": {}, "callbacks": {Strange: 1}}, tmp_path / "evil.ckpt")
    with pytest.raises(ArtifactError, match="asks for more than tensors, which is refused"):
        read_single_file(tmp_path / "evil.ckpt")


class Strange:
    pass


@pytest.mark.parametrize("quantised", [False, True])
def test_first_stages_alone(quantised, tmp_path):
    shape = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4}
    stages = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
    stages["up_block_types"] = ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
    if quantised:
        model = diffusers.VQModel(**shape, **stages, num_vq_embeddings=12, vq_embed_dim=3)
    else:
        model = diffusers.AutoencoderKL(**shape, **stages)
    ours = dict(model.state_dict())
    checkpoint = to_single_file({"vae": ours})
    middle = {
        k: v for k, v in checkpoint.items() if ".attn." not in k
    }  # Diffusers converts attention of the middle only
    theirs = peer.convert_ldm_vae_checkpoint(middle, dict(model.config))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert checkpoint["encoder.down.1.attn.0.q.weight"].shape == (64, 64, 1, 1)
    save_file(checkpoint | {"loss.logvar": torch.zeros(())}, tmp_path / "stage.safetensors")
    (part,) = read_single_file(tmp_path / "stage.safetensors").parts.values()
    assert equal(part.tensors, ours)
    assert part.class_name == type(model).__name__
    assert {name: model.config[name] for name in shape | stages} == {name: part.config[name] for name in shape | stages}


def test_heads_of_fused_attention_are_untangled_as_the_authors_use_them():
    """`QKVAttentionLegacy` of openaimodel.py: rows are (head, q|k|v, channel of the head)."""
    torch.manual_seed(0)
    width, head_dim, heads = 64, 16, 4
    x, weight, bias = torch.randn(2, width, 3, 5), torch.randn(3 * width, width, 1) / 8, torch.randn(3 * width)
    out, gain = torch.randn(width, width, 1) / 8, torch.randn(width)
    flat = x.flatten(2)
    h = torch.nn.functional.group_norm(flat, 32, gain, None, 1e-5)
    q, k, v = torch.nn.functional.conv1d(h, weight, bias).reshape(2 * heads, 3 * head_dim, -1).split(head_dim, dim=1)
    attended = torch.einsum("bts,bcs->bct", torch.einsum("bct,bcs->bts", q, k).div(head_dim**0.5).softmax(-1), v)
    expected = flat + torch.nn.functional.conv1d(attended.reshape(2, width, -1), out)

    rule = Rule("qkv.", ("to_q.", "to_k.", "to_v."), trailing=1, head_dim=head_dim)
    layer = SelfAttention(width, head_dim, 32, 1e-5)
    state = {"group_norm.weight": gain, "group_norm.bias": torch.zeros(width)}
    state |= {f"{stem}weight": t for stem, t in zip(rule.ours, rule.to_ours(weight))}
    state |= {f"{stem}bias": t for stem, t in zip(rule.ours, rule.to_ours(bias))}
    layer.load_state_dict(state | {"to_out.0.weight": out[:, :, 0], "to_out.0.bias": torch.zeros(width)})
    torch.testing.assert_close(layer(x).flatten(2), expected, rtol=1e-5, atol=1e-5)
    for tensor in (weight, bias):
        assert torch.equal(rule.to_theirs(rule.to_ours(tensor)), tensor)
        assert [t.shape for t in rule.to_ours(tensor)] == [rule.our_shape(tuple(tensor.shape))] * 3


def test_unconditional_latent_diffusion_there_and_back(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=64, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    codec = diffusers.VQModel(latent_channels=3, num_vq_embeddings=8)
    ours = {"unet": dict(unet.state_dict()), "vae": dict(codec.state_dict())}
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64).square().float()
    scale = {"scale_factor": torch.tensor(0.25), "betas": betas}
    save_file(to_single_file(ours) | scale, tmp_path / "ldm.safetensors")
    read = read_single_file(tmp_path / "ldm.safetensors")
    assert all(equal(read.parts[name].tensors, state) for name, state in ours.items())
    arguments = read.parts["unet"].config
    assert {name: unet.config[name] for name in arguments if name != "attn_norm_num_groups"} == {
        name: value for name, value in arguments.items() if name != "attn_norm_num_groups"
    }
    assert read.parts["vae"].config["scaling_factor"] == 0.25
    name, arguments = read.scheduler
    assert (name, arguments["beta_start"], arguments["beta_end"]) == ("DDIMScheduler", 0.0015, 0.0155)
    assert arguments["beta_schedule"] == "scaled_linear"


BERT_LAYER = {
    "0.0": "self_attn_layer_norm", "0.1.to_q": "self_attn.q_proj", "0.1.to_k": "self_attn.k_proj",
    "0.1.to_v": "self_attn.v_proj", "0.1.to_out": "self_attn.out_proj",
    "1.0": "final_layer_norm", "1.1.net.0.0": "fc1", "1.1.net.2": "fc2",
}  # fmt: skip


def test_text_latent_diffusion(tmp_path):
    pipe = tiny_pipeline("ldm")
    bert = dict(pipe.bert.state_dict())
    theirs = {
        "token_emb.weight": bert["model.embed_tokens.weight"],
        "pos_emb.emb.weight": bert["model.embed_positions.weight"],
    }
    for end in ("weight", "bias"):
        theirs |= {f"norm.{end}": bert[f"model.layer_norm.{end}"], f"to_logits.{end}": bert[f"to_logits.{end}"]}
        for i in range(2):
            for their, our in BERT_LAYER.items():
                half, rest = their.split(".", 1)
                if f"model.layers.{i}.{our}.{end}" in bert:
                    name = f"attn_layers.layers.{2 * i + int(half)}.{rest}.{end}"
                    theirs[name] = bert[f"model.layers.{i}.{our}.{end}"]
    assert len(theirs) == len(bert)
    ours = {"unet": dict(pipe.unet.state_dict()), "vae": dict(pipe.vqvae.state_dict())}
    checkpoint = to_single_file(ours) | {f"cond_stage_model.transformer.{k}": v for k, v in theirs.items()}
    assert equal(checkpoint, to_single_file(ours | {"text_encoder": bert}))
    save_file(checkpoint, tmp_path / "ldm.safetensors")
    read = read_single_file(tmp_path / "ldm.safetensors")
    assert read.family.pipeline == "LDMTextToImagePipeline"
    assert all(equal(read.parts[name].tensors, state) for name, state in (ours | {"text_encoder": bert}).items())
    config = read.parts["text_encoder"].config
    assert (config["d_model"], config["encoder_ffn_dim"], config["encoder_layers"]) == (32, 48, 2)
    assert config["encoder_attention_heads"] * config["head_dim"] == 32


def test_half_precision_and_averages_and_order_of_reading(tmp_path):
    ours = {name: {k: v.half() for k, v in state.items()} for name, state in states("sd1").items()}
    checkpoint = to_single_file(ours)
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1
        for k, v in checkpoint.items()
        if k.startswith("model.diffusion_model.")
    }
    save_file(checkpoint | averages, tmp_path / "model.safetensors")
    read = read_single_file(tmp_path / "model.safetensors")
    assert (read.averaged, read.parts["unet"].tensors.dtype) == (True, torch.float16)
    assert equal(read.parts["unet"].tensors, ours["unet"])
    read = read_single_file(tmp_path / "model.safetensors", use_ema=True)
    assert equal(read.parts["unet"].tensors, {k: v + 1 for k, v in ours["unet"].items()})
    assert equal(read.parts["vae"].tensors, ours["vae"])
    meta = read.parts["unet"].tensors.on_meta()
    assert {k: (v.shape, v.dtype, v.device.type) for k, v in meta.items()} == {
        k: (v.shape, torch.float16, "meta") for k, v in ours["unet"].items()
    }


def test_bad_files(tmp_path):
    checkpoint = to_single_file(states("sd1"))
    save_file(checkpoint, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(ArtifactError, match="is truncated"):
        read_single_file(tmp_path / "cut.safetensors")
    with pytest.raises(ArtifactError, match="no file"):
        read_single_file(tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="from_pretrained reads folders"):
        read_single_file(tmp_path)
    save_file({"conditioner.embedders.0.x": torch.zeros(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(ArtifactError, match=r"xl.safetensors: this is Stable Diffusion XL"):
        read_single_file(tmp_path / "xl.safetensors")
    read = read_single_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="became shorter"):
        dict(read.parts["unet"].tensors)


def test_what_the_layout_has_no_place_for():
    with pytest.raises(ArtifactError, match=r"no place for extra\.weight of the vae"):
        to_single_file({"vae": states("sd1")["vae"] | {"extra.weight": torch.zeros(1)}})
    with pytest.raises(UnknownChoiceError, match="unknown part 'vea': did you mean 'vae'"):
        to_single_file({"vea": {}})


def test_old_attention_names_in_diffusers_layout(tmp_path):
    ours = states("sd1")["vae"]
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in ours.items():
        for new, legacy in words.items():
            name = name.replace(f".{new}.", f".{legacy}.")
        old[name] = tensor[:, :, None, None].contiguous() if name.endswith("proj_attn.weight") else tensor
    save_file(old, tmp_path / "vae.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (part,) = read_single_file(tmp_path / "vae.safetensors").parts.values()
    assert equal(part.tensors, ours)
