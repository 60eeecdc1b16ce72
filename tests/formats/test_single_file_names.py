"""The tables against published key lists, on names and shapes alone: no weights, no torch."""

import hashlib
import json
import subprocess
import sys
from math import prod

import pytest

from latentia.core.weight_files import Entry
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.formats import autoencoder, unet
from latentia.formats.detect import averaged_name, sort_names
from latentia.formats.families import prediction, schedule
from latentia.formats.plan import Options, make_plan
from latentia.formats.rules import to_ours, to_theirs


def fingerprint(shapes):
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def entries(shapes, dtype="F32"):
    return {name: Entry(dtype, tuple(shape), 0, 0) for name, shape in shapes.items()}


# Their layout, written out by hand from the authors' code: an independent statement of what the tables should know.


def resnet(at, before, after, emb=None):
    shapes = {}
    if emb:  # openaimodel
        shapes |= norm(f"{at}.in_layers.0", before) | conv(f"{at}.in_layers.2", before, after)
        shapes |= linear(f"{at}.emb_layers.1", emb, after) | norm(f"{at}.out_layers.0", after)
        shapes |= conv(f"{at}.out_layers.3", after, after)
        return shapes | (conv(f"{at}.skip_connection", before, after, 1) if before != after else {})
    shapes |= norm(f"{at}.norm1", before) | conv(f"{at}.conv1", before, after)
    shapes |= norm(f"{at}.norm2", after) | conv(f"{at}.conv2", after, after)
    return shapes | (conv(f"{at}.nin_shortcut", before, after, 1) if before != after else {})


def norm(at, width):
    return {f"{at}.weight": (width,), f"{at}.bias": (width,)}


def linear(at, before, after, bias=True):
    return {f"{at}.weight": (after, before)} | ({f"{at}.bias": (after,)} if bias else {})


def conv(at, before, after, kernel=3):
    return {f"{at}.weight": (after, before, kernel, kernel), f"{at}.bias": (after,)}


def transformer(at, width, context, linear_projection):
    project = linear if linear_projection else lambda name, a, b: conv(name, a, b, 1)
    block = f"{at}.transformer_blocks.0"
    shapes = norm(f"{at}.norm", width) | project(f"{at}.proj_in", width, width)
    for name, read in (("attn1", width), ("attn2", context)):
        shapes |= linear(f"{block}.{name}.to_q", width, width, False) | linear(f"{block}.{name}.to_out.0", width, width)
        for part in ("to_k", "to_v"):
            shapes |= linear(f"{block}.{name}.{part}", read, width, False)
    shapes |= linear(f"{block}.ff.net.0.proj", width, 8 * width) | linear(f"{block}.ff.net.2", 4 * width, width)
    for i in (1, 2, 3):
        shapes |= norm(f"{block}.norm{i}", width)
    return shapes | project(f"{at}.proj_out", width, width)


def plain_attention(at, width):
    return (
        norm(f"{at}.norm", width)
        | {f"{at}.qkv.weight": (3 * width, width, 1), f"{at}.qkv.bias": (3 * width,)}
        | {f"{at}.proj_out.weight": (width, width, 1), f"{at}.proj_out.bias": (width,)}
    )


def their_unet(widths, attends, layers=2, channels=4, out=4, context=None, linear_projection=False):
    """`UNetModel` of openaimodel.py, walked through as its constructor does."""
    emb = 4 * widths[0]

    def attention(at, width):
        return transformer(at, width, context, linear_projection) if context else plain_attention(at, width)

    shapes = linear("time_embed.0", widths[0], emb) | linear("time_embed.2", emb, emb)
    shapes |= conv("input_blocks.0.0", channels, widths[0])
    skips, width, n = [widths[0]], widths[0], 1
    for level, (target, attend) in enumerate(zip(widths, attends)):
        for _ in range(layers):
            shapes |= resnet(f"input_blocks.{n}.0", width, target, emb)
            shapes |= attention(f"input_blocks.{n}.1", target) if attend else {}
            width, n = target, n + 1
            skips.append(width)
        if level < len(widths) - 1:
            shapes |= conv(f"input_blocks.{n}.0.op", width, width)
            skips.append(width)
            n += 1
    shapes |= resnet("middle_block.0", width, width, emb) | attention("middle_block.1", width)
    shapes |= resnet("middle_block.2", width, width, emb)
    n = 0
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            shapes |= resnet(f"output_blocks.{n}.0", width + skips.pop(), widths[level], emb)
            width, slot = widths[level], 1
            if attends[level]:
                shapes |= attention(f"output_blocks.{n}.1", width)
                slot = 2
            if level and layer == layers:
                shapes |= conv(f"output_blocks.{n}.{slot}.conv", width, width)
            n += 1
    return shapes | norm("out.0", width) | conv("out.2", width, out)


def their_vae(widths, latent=4, layers=2, attends=(), codes=None, dim=None, middle=True):
    """`AutoencoderKL` / `VQModel` of LDM: `Encoder` and `Decoder` of model.py."""

    def attention(at, width):
        return norm(f"{at}.norm", width) | {
            name: shape
            for part in ("q", "k", "v", "proj_out")
            for name, shape in conv(f"{at}.{part}", width, width, 1).items()
        }

    def mid(half, width):
        shapes = resnet(f"{half}.mid.block_1", width, width) | resnet(f"{half}.mid.block_2", width, width)
        return shapes | (attention(f"{half}.mid.attn_1", width) if middle else {})

    last = len(widths) - 1
    shapes, width = conv("encoder.conv_in", 3, widths[0]), widths[0]
    for i, target in enumerate(widths):
        for j in range(layers):
            shapes |= resnet(f"encoder.down.{i}.block.{j}", width, target)
            shapes |= attention(f"encoder.down.{i}.attn.{j}", target) if i in attends else {}
            width = target
        shapes |= conv(f"encoder.down.{i}.downsample.conv", width, width) if i < last else {}
    ends = latent if codes else 2 * latent
    shapes |= mid("encoder", width) | norm("encoder.norm_out", width) | conv("encoder.conv_out", width, ends)
    shapes |= conv("decoder.conv_in", latent, width) | mid("decoder", width)
    for i in reversed(range(len(widths))):
        for j in range(layers + 1):
            shapes |= resnet(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
            shapes |= attention(f"decoder.up.{i}.attn.{j}", width) if i in attends else {}
        shapes |= conv(f"decoder.up.{i}.upsample.conv", width, width) if i else {}
    shapes |= norm("decoder.norm_out", width) | conv("decoder.conv_out", width, 3)
    if codes:
        shapes |= {"quantize.embedding.weight": (codes, dim)}
        return shapes | conv("quant_conv", latent, dim, 1) | conv("post_quant_conv", dim, latent, 1)
    return shapes | conv("quant_conv", ends, ends, 1) | conv("post_quant_conv", latent, latent, 1)


def below(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


SD1_WIDTHS, SD1_ATTENDS = (320, 640, 1280, 1280), (True, True, True, False)
SD1_UNET = {"widths": SD1_WIDTHS, "attends": SD1_ATTENDS, "context": 768}


@pytest.mark.parametrize(
    ("theirs", "expected", "parameters"),
    [
        (their_unet(**SD1_UNET), "a86ffab7c6f1ad19", 859_520_964),
        (their_unet(**SD1_UNET, channels=9), "28e8258d8d458ad6", 859_535_364),
        (their_vae((128, 256, 512, 512)), "0afb81fba3b73b60", 83_653_863),
        (their_vae((128, 256, 512), 3, codes=8192, dim=3), "baa7709b41f74cfb", 55_322_782),
        (
            their_unet((224, 448, 672, 896), (False, True, True, True), channels=3, out=3),
            "87ecbd8b18ba5340",
            274_056_163,
        ),
    ],
    ids=["unet15", "unet15_inpaint", "vae15", "vq_f4", "ldm_celeba"],
)
def test_full_size_names_become_the_published_ones_and_back(theirs, expected, parameters):
    (part,) = make_plan(entries(theirs)).parts.values()
    assert fingerprint(part.shapes) == expected
    assert sum(map(prod, part.shapes.values())) == parameters
    assert {move.theirs for move in part.moves} == set(theirs)
    is_unet = part.class_name.startswith("UNet")
    rules = (
        unet.rules(unet.our_structure(part.shapes))
        if is_unet
        else autoencoder.rules(*autoencoder.our_stages(part.shapes))
    )
    moves, lost = to_theirs(rules, part.shapes)
    assert lost == []
    assert {move.theirs for move in moves} == set(theirs)


def test_arguments_of_stable_diffusion():
    theirs = below("model.diffusion_model.", their_unet(**SD1_UNET)) | below("first_stage_model.", their_vae(SD_VAE))
    plan = make_plan(entries(theirs | below("cond_stage_model.transformer.text_model.", clip(768, 12))))
    assert (plan.family.name, plan.family.pipeline) == ("Stable Diffusion 1", "StableDiffusionPipeline")
    assert plan.parts["unet"].config == {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": SD1_WIDTHS,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "use_linear_projection": False,
        "attention_head_dim": 8,
        "sample_size": 64,
    }
    assert plan.parts["vae"].config["sample_size"] == 512
    assert plan.parts["vae"].config["scaling_factor"] == 0.18215
    text = plan.parts["text_encoder"].config
    assert (text["num_attention_heads"], text["hidden_act"], text["eos_token_id"]) == (12, "quick_gelu", 49407)
    assert (plan.scheduler, plan.notes) == ({"prediction_type": "epsilon"}, [])


SD_VAE = (128, 256, 512, 512)


def clip(width, layers, vocab=49408):
    shapes = {"embeddings.token_embedding.weight": (vocab, width), "embeddings.position_embedding.weight": (77, width)}
    shapes["embeddings.position_ids"] = (1, 77)
    for i in range(layers):
        at = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}.self_attn.{name}", width, width)
        shapes |= norm(f"{at}.layer_norm1", width) | norm(f"{at}.layer_norm2", width)
        shapes |= linear(f"{at}.mlp.fc1", width, 4 * width) | linear(f"{at}.mlp.fc2", 4 * width, width)
    return shapes | norm("final_layer_norm", width)


def open_clip(width, blocks, vocab=49408):
    shapes = {"token_embedding.weight": (vocab, width), "positional_embedding": (77, width)}
    shapes |= {"text_projection": (width, width), "logit_scale": (), "attn_mask": (77, 77)}
    for i in range(blocks):
        at = f"transformer.resblocks.{i}"
        shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{at}.attn.out_proj", width, width) | norm(f"{at}.ln_1", width) | norm(f"{at}.ln_2", width)
        shapes |= linear(f"{at}.mlp.c_fc", width, 4 * width) | linear(f"{at}.mlp.c_proj", 4 * width, width)
    return shapes | norm("ln_final", width)


def stable_diffusion_2(channels=4):
    network = their_unet(SD1_WIDTHS, SD1_ATTENDS, context=1024, linear_projection=True, channels=channels)
    theirs = below("model.diffusion_model.", network) | below("first_stage_model.", their_vae(SD_VAE))
    return theirs | below("cond_stage_model.model.", open_clip(1024, 24))


def test_stable_diffusion_2_drops_the_last_block_and_guesses_v_aloud():
    plan = make_plan(entries(stable_diffusion_2()))
    assert plan.family.name == "Stable Diffusion 2"
    config = plan.parts["unet"].config
    assert config["attention_head_dim"] == (5, 10, 20, 20)
    assert (config["use_linear_projection"], config["sample_size"], config["upcast_attention"]) == (True, 96, True)
    text = plan.parts["text_encoder"]
    assert (text.config["num_hidden_layers"], text.config["num_attention_heads"]) == (23, 16)
    assert (text.config["hidden_act"], text.config["hidden_size"]) == ("gelu", 1024)
    assert len(text.shapes) == 23 * 16 + 4
    assert plan.scheduler == {"prediction_type": "v_prediction"}
    assert "prediction_type='epsilon'" in plan.notes[0]


def test_prediction_is_what_is_asked_then_what_is_stated_then_the_family_s():
    theirs = entries(stable_diffusion_2())
    plan = make_plan(theirs, options=Options(prediction_type="epsilon"))
    assert (plan.scheduler["prediction_type"], plan.notes) == ("epsilon", [])
    assert plan.parts["unet"].config["sample_size"] == 64
    plan = make_plan(theirs, {"modelspec.prediction_type": "epsilon"})
    assert (plan.scheduler["prediction_type"], plan.notes) == ("epsilon", [])
    plan = make_plan(entries(stable_diffusion_2(channels=9)))
    assert (plan.family.pipeline, plan.scheduler) == ("StableDiffusionInpaintPipeline", {"prediction_type": "epsilon"})
    assert prediction(False, 4, None, "v")[0] == "v_prediction"
    with pytest.raises(UnknownChoiceError, match="did you mean 'v_prediction'"):
        make_plan(theirs, options=Options(prediction_type="v-prediction"))


@pytest.mark.parametrize(
    ("channels", "pipeline"),
    [
        (9, "StableDiffusionInpaintPipeline"),
        (8, "StableDiffusionInstructPix2PixPipeline"),
        (4, "StableDiffusionPipeline"),
    ],
)
def test_input_channels_tell_the_pipeline(channels, pipeline):
    small = their_unet((32, 64), (True, False), layers=1, channels=channels, context=32)
    theirs = below("model.diffusion_model.", small) | below("first_stage_model.", their_vae((32, 64), layers=1))
    theirs |= below("cond_stage_model.transformer.text_model.", clip(32, 2, vocab=100))
    assert make_plan(entries(theirs)).family.pipeline == pipeline


def test_unconditional_class_and_text_latent_diffusion():
    network = below("model.diffusion_model.", their_unet((64, 96), (False, True), 1, 3, 3))
    stage = below("first_stage_model.", their_vae((32, 64), 3, 1, codes=16, dim=3))
    plan = make_plan(entries(network | stage))
    assert (plan.family.pipeline, plan.parts["unet"].class_name) == ("LDMPipeline", "UNet2DModel")
    assert plan.parts["unet"].config["down_block_types"] == ("DownBlock2D", "AttnDownBlock2D")
    assert plan.parts["vae"].config["scaling_factor"] == 1.0
    classes = below("model.diffusion_model.", their_unet((64, 96), (False, True), 1, 3, 3, context=16))
    plan = make_plan(entries(classes | stage | {"cond_stage_model.embedding.weight": (11, 16)}))
    assert plan.family.pipeline is None
    assert plan.parts["unet"].config["attention_head_dim"] == 1
    assert plan.notes == [
        "cond_stage_model.embedding.weight: the embedding of the classes has no class here and is left out"
    ]
    seven = below("model.diffusion_model.", their_unet((64, 96), (False, True), 1, 7, 3))
    assert make_plan(entries(seven | stage)).family.pipeline is None


def test_attention_inside_the_stages_of_a_first_stage():
    (part,) = make_plan(entries(their_vae((32, 32, 64), 8, attends=(2,), codes=64, dim=8, middle=True))).parts.values()
    assert part.config["down_block_types"] == ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",)
    assert part.config["up_block_types"] == ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2
    (part,) = make_plan(entries(their_vae((32, 64), 3, codes=64, dim=3, middle=False))).parts.values()
    assert part.config["mid_block_add_attention"] is False


def test_residual_blocks_that_resample():
    theirs = their_unet((64, 96, 96), (True, True, True), 2, 4, 4)
    for n, width in ((3, 64), (6, 96)):
        theirs = {k: v for k, v in theirs.items() if not k.startswith(f"input_blocks.{n}.0.op")}
        theirs |= resnet(f"input_blocks.{n}.0", width, width, 256)
    for n in (2, 5):
        theirs = {k: v for k, v in theirs.items() if not k.startswith(f"output_blocks.{n}.2.conv")}
        theirs |= resnet(f"output_blocks.{n}.2", 96, 96, 256)
    theirs = {k: (2 * v[0], *v[1:]) if ".emb_layers." in k else v for k, v in theirs.items()}
    (part,) = make_plan(entries(theirs)).parts.values()
    assert (part.config["downsample_type"], part.config["resnet_time_scale_shift"]) == ("resnet", "scale_shift")
    assert part.config["attn_norm_num_groups"] == 32
    assert "up_blocks.1.upsamplers.0.time_emb_proj.weight" in part.shapes
    moves, lost = to_theirs(unet.rules(unet.our_structure(part.shapes)), part.shapes)
    assert (lost, {m.theirs for m in moves}) == ([], set(theirs))


TINY = below("model.diffusion_model.", their_unet((32, 64), (True, False), 1, context=32))
TINY |= below("first_stage_model.", their_vae((32, 64), layers=1))
TINY |= below("cond_stage_model.transformer.text_model.", clip(32, 2, vocab=100))


def test_training_leftovers_are_harmless_and_anything_else_is_listed():
    leftovers = {"betas": (1000,), "sqrt_recipm1_alphas_cumprod": (1000,), "model_ema.decay": (), "logvar": (1000,)}
    leftovers |= {"first_stage_model.loss.discriminator.main.0.weight": (64, 3, 4, 4), "posterior_mean_coef2": (1000,)}
    assert make_plan(entries(TINY | leftovers)).family.pipeline == "StableDiffusionPipeline"
    strange = {
        "model.diffusion_model.adapter.weight": (1,),
        "first_stage_model.encoder.extra.bias": (1,),
        "other.x": (2,),
    }
    with pytest.raises(ArtifactError, match=r"3 tensors belong to no part") as error:
        make_plan(entries(TINY | strange))
    assert all(name in str(error.value) for name in strange)
    options = Options(ignore=("model.diffusion_model.adapter.", "first_stage_model.encoder.extra.", "other."))
    assert len(make_plan(entries(TINY | strange), options=options).parts) == 3


def test_averaged_weights_on_request():
    networks = [name for name in TINY if name.startswith("model.diffusion_model.")]
    assert (
        averaged_name("model.diffusion_model.input_blocks.0.0.weight")
        == "model_ema.diffusion_modelinput_blocks00weight"
    )
    averages = {averaged_name(name): TINY[name] for name in networks}
    both = entries(TINY | averages | {"model_ema.num_updates": ()})
    plan = make_plan(both)
    assert plan.averaged
    assert not any(move.theirs in averages for move in plan.parts["unet"].moves)
    plan = make_plan(both, options=Options(use_ema=True))
    assert {move.theirs for move in plan.parts["unet"].moves} == set(averages)
    assert not any(move.theirs in averages for move in plan.parts["vae"].moves)
    with pytest.raises(InputError, match="has no averaged weights"):
        make_plan(entries(TINY), options=Options(use_ema=True))
    del averages[averaged_name(networks[5])]
    with pytest.raises(ArtifactError, match=f"averaged weights of the unet lack {networks[5]}"):
        make_plan(entries(TINY | averages), options=Options(use_ema=True))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("quantize.embed.weight", "Gumbel"),
        ("depth_model.model.x", "Stable Diffusion 2 depth"),
    ],
)
def test_families_that_are_not_read_are_named(name, family):
    with pytest.raises(ArtifactError, match=rf"this is .*{family}.*; read are: Stable Diffusion 1 and 2"):
        make_plan(entries(TINY | {name: (1,)}))


def test_unknown_files_say_what_was_found():
    with pytest.raises(ArtifactError, match=r"these 2 tensors tell no family \(they begin with backbone, head\)"):
        make_plan(entries({"backbone.x.weight": (1,), "head.weight": (1,)}))
    with pytest.raises(ArtifactError, match="these 0 tensors are of no model"):
        make_plan({})
    with pytest.raises(ArtifactError, match="the unet in this file is of no known kind"):
        sort_names(["model.diffusion_model.x"])


def test_incomplete_and_irregular_networks():
    lost = {k: v for k, v in TINY.items() if not k.startswith("model.diffusion_model.output_blocks.1.")}
    with pytest.raises(ArtifactError, match="no network of equal stages"):
        make_plan(entries(lost))
    lost = {k: v for k, v in TINY.items() if "decoder.conv_in" not in k}
    with pytest.raises(ArtifactError, match=r"no decoder.conv_in.weight"):
        make_plan(entries(lost))
    odd = TINY | {"first_stage_model.quant_conv.weight": (6, 8, 1, 1)}
    with pytest.raises(ArtifactError, match="change width around the latent space"):
        make_plan(entries(odd))
    with pytest.raises(UnknownChoiceError, match="unknown part in overrides 'unte': did you mean 'unet'"):
        make_plan(entries(TINY), options=Options(overrides={"unte": {}}))


def test_schedule_is_read_off_the_betas():
    from latentia import DDIMScheduler

    for name, first, last in (("scaled_linear", 0.0015, 0.0195), ("linear", 0.0001, 0.02)):
        betas = DDIMScheduler(beta_schedule=name, beta_start=first, beta_end=last).betas.float().tolist()
        expected = {"num_train_timesteps": 1000, "beta_start": first, "beta_end": last, "beta_schedule": name}
        assert schedule(betas) == expected
    betas = DDIMScheduler(beta_schedule="squaredcos_cap_v2").betas.float().tolist()
    assert schedule(betas) == {"num_train_timesteps": 1000, "trained_betas": tuple(betas)}


def test_names_in_our_layout_pass_and_old_attention_names_are_renewed():
    (part,) = make_plan(entries(their_vae((32, 64), layers=1))).parts.values()
    old = {}
    for name, shape in part.shapes.items():
        for new, legacy in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{legacy}.")
        old[name] = shape
    assert len(set(old) - set(part.shapes)) == 16
    (again,) = make_plan(entries(old)).parts.values()
    assert (again.shapes, again.config) == (part.shapes, part.config)
    assert to_ours(autoencoder.identity(part.shapes), part.shapes)[1] == []


def test_planning_needs_no_torch_and_little_time():
    code = (
        "import sys, json, time; from latentia.core.weight_files import Entry;"
        "from latentia.formats.plan import make_plan;"
        "shapes = json.load(sys.stdin); t = time.process_time();"
        "make_plan({k: Entry('F32', tuple(v), 0, 0) for k, v in shapes.items()});"
        "assert time.process_time() - t < 0.5; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(TINY), text=True, check=False)
    assert done.returncode == 0
