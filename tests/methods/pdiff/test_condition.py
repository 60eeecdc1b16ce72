"""Condition, its pipeline and its objective: what is typed, what is told, what is refused."""

import pytest
import torch

from latentia import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from latentia.denoisers.unet_1d import UNet1D
from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.methods.pdiff.condition import Condition
from latentia.methods.pdiff.conditional_objective import ConditionalLatentPriorObjective
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.normalise import Standardiser, Whitener
from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
from latentia.methods.pdiff.template import ParameterTemplate

TOLD = Condition(3, ("a", "b", "c"), on=1.0, off=-1.0, guided=True)
CALL = {"seed": 0, "num_inference_steps": 2}


def unet(width=3, **changes):
    torch.manual_seed(0)
    told = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width} if width else {}
    given = {"in_channels": 2, "out_channels": 2, "sample_size": 4, "block_out_channels": (8,), "norm_num_groups": 4}
    return UNet1D(**{**given, "layers_per_block": 1, "zero_init": False, **told, **changes}).eval()


def build(condition=TOLD, network=None):
    net = torch.nn.Linear(3, 3)
    layout = ParameterLayout.select(net, "*")
    torch.manual_seed(1)
    codec = ParameterAutoencoder(
        12, encoder_channels=(4,), decoder_channels=(4,), strides=(2,), latent_dim=8, latent_channels=2
    )
    template = ParameterTemplate.of(
        layout, net.state_dict(), Standardiser(12, "none"), Whitener((2, 4), "none"), condition=condition
    )
    pipe = ParameterDiffusionPipeline(codec, network or unet(), DDIMScheduler(clip_sample=False), template)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# What is typed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a,c", [1, -1, 1]),
        (" b ", [-1, 1, -1]),
        ("a=0.5, c", [0.5, -1, 1]),
        ("[0, 1, 2.5]", [0, 1, 2.5]),
        ("b=-1", [-1, -1, -1]),
    ],
)
def test_names_or_all_numbers(text, numbers):
    assert TOLD.parse(text).tolist() == numbers
    assert TOLD.check(text).tolist() == [numbers]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,d", "unknown name in the condition 'd'"),
        ("", "unknown name"),
        ("a=x", "'a=x' in the condition: after = stands a number, got 'x'"),
        ("a=nan", "stands a number"),
        ("[0, 1", "not a JSON list of numbers"),
        ("[0, 1]", r"shape \(2,\): expected \(3,\)"),
        ("[[0, 1, 2], [0, 1, 2]]", "holds 2 rows"),
        ('[{"a": 1}]', "must be numbers, 3 numbers, named a, b, c: 1 where named, else -1"),
        ("[0, 1, Infinity]", "NaN or infinity"),
    ],
)
def test_what_cannot_be_typed(text, words):
    with pytest.raises(InputError, match=words):
        TOLD.parse(text)


def test_a_nameless_condition_takes_lists_alone():
    assert Condition(2).parse("[1, 2]").tolist() == [1, 2]
    with pytest.raises(InputError, match="have no names, got '3': give all 2 as a JSON list"):
        Condition(2).parse("3")


@pytest.mark.parametrize(
    "config",
    [
        {"width": 0},
        {"width": 2, "names": ["a"]},
        {"width": 2, "names": ["a", "a"]},
        {"width": 1, "names": ["a,b"]},
        {"width": 1, "names": [" a"]},
        {"width": 1, "on": float("nan")},
        {"width": 1, "more": 3},
        {},
    ],
)
def test_a_broken_config_is_refused(config):
    with pytest.raises(ConfigError):
        Condition.from_config(config)


def test_the_config_comes_back():
    assert Condition.from_config(TOLD.to_config()) == TOLD


# The pipeline --------------------------------------------------------------------------------------------


def test_a_condition_is_told_in_any_form():
    pipe = build()
    each = pipe(condition=torch.eye(3), **CALL).vectors
    assert len(each) == 3
    for other in (
        pipe(condition=[1, 0, 0], **CALL),
        pipe(condition="a=1,b=0,c=0", **CALL),
        pipe(class_labels=torch.eye(3)[0], **CALL),
        pipe(condition=[[1, 0, 0]], num_samples=1, **CALL),
    ):
        torch.testing.assert_close(other.vectors, each[:1], atol=1e-5, rtol=1e-4)
    many = pipe(condition="a", num_samples=2, **CALL).vectors
    assert (many[0] - many[1]).abs().max() > 1e-3
    assert (pipe(condition="b", **CALL).vectors - many[:1]).abs().max() > 1e-4


def test_guidance_goes_away_from_the_null_condition():
    """With one DDIM step from T to 0 the x̂₀ is affine in the prediction, so guidance extrapolates latents exactly."""
    pipe = build()
    noise = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))

    def made(condition, scale=1.0):
        return pipe(condition=condition, guidance_scale=scale, latents=noise, num_inference_steps=1).latents

    null, told = made([0, 0, 0]), made("a")
    assert (told - null).abs().max() > 1e-4
    torch.testing.assert_close(made("a", 3.0), null + 3 * (told - null), atol=1e-4, rtol=1e-4)
    assert torch.equal(made("a", 0.5), told)


def test_the_folder_keeps_what_the_condition_means(tmp_path):
    pipe = build()
    pipe.save_pretrained(tmp_path)
    back = DiffusionPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert back.template.condition == TOLD
    assert torch.equal(back(condition="a,b", **CALL).vectors, pipe(condition="a,b", **CALL).vectors)
    build(None, unet(0)).save_pretrained(tmp_path / "plain")
    assert DiffusionPipeline.from_pretrained(tmp_path / "plain").template.condition is None


def test_what_does_not_fit_is_refused():
    pipe = build()
    for given, words in (
        ({}, "this pipeline is conditional: pass condition, 3 numbers, named a, b, c"),
        ({"condition": [1, 2]}, r"shape \(2,\): expected \(3,\) for all networks or \(N, 3\)"),
        ({"condition": torch.ones(0, 3)}, "expected"),
        ({"condition": [1, float("nan"), 0]}, "NaN"),
        ({"condition": 3}, "expected"),
        ({"condition": "a", "class_labels": [1, 0, 0]}, "the same: give one"),
        ({"condition": torch.eye(3), "num_samples": 2}, "condition"),
        ({"condition": "a", "guidance_scale": -1}, "guidance_scale"),
    ):
        with pytest.raises(InputError, match=words):
            pipe(**given, **CALL)
    with pytest.raises(UnknownChoiceError, match="'d'"):
        pipe(condition="d", **CALL)
    with pytest.raises(InputError, match="condition given, but this network is unconditional: leave it out"):
        build(None, unet(0))(condition="a", **CALL)
    with pytest.raises(InputError, match="this pipeline is unconditional: use 1"):
        build(None, unet(0))(guidance_scale=2.0, **CALL)
    with pytest.raises(InputError, match="trained without condition dropout: use 1"):
        build(Condition(3))(condition=[1, 0, 0], guidance_scale=2.0, **CALL)
    classes = unet(0, num_class_embeds=3)
    with pytest.raises(InputError, match="pass class_labels instead"):
        build(None, classes)(condition=[1], **CALL)


def test_parts_that_were_not_made_for_each_other():
    with pytest.raises(InputError, match="condition of width 3 but unet is told 4 numbers"):
        build(network=unet(4))
    with pytest.raises(InputError, match="condition of width 3 but unet takes no vectors"):
        build(network=unet(0))


def test_a_stored_width_is_enough():
    """A conditional network of a folder without a stored condition."""
    pipe = build(None)
    assert len(pipe(condition=[1, 0, 0], **CALL).vectors) == 1
    with pytest.raises(InputError, match="have no names"):
        pipe(condition="a", **CALL)


# The objective -------------------------------------------------------------------------------------------


def test_dropped_conditions_are_zeros():
    objective = ConditionalLatentPriorObjective(unet(), DDPMScheduler(clip_sample=False), condition_dropout=0.25)
    torch.manual_seed(0)
    (seen,) = objective.conditions({"condition": torch.ones(4000, 3)}).values()
    dropped = (seen == 0).all(1)
    assert bool((dropped | (seen == 1).all(1)).all())
    assert abs(float(dropped.double().mean()) - 0.25) < 0.03
    plain = ConditionalLatentPriorObjective(unet(), DDPMScheduler(clip_sample=False))
    given = torch.randn(5, 3)
    assert plain.conditions({"condition": given})["class_labels"] is given
    assert objective.settings()["condition_dropout"] == 0.25


def test_the_condition_is_learnt():
    """Latents that equal their condition: the loss falls well below what a network without it can reach."""
    torch.manual_seed(0)
    one = {"sample_size": 1, "kernel_size": 1, "downsample": False, "norm_num_groups": 1, "zero_init": True}
    network = unet(2, block_out_channels=(16,), **one)
    objective = ConditionalLatentPriorObjective(network, DDPMScheduler(prediction_type="sample", clip_sample=False))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    condition = torch.randn(64, 2)
    losses = []
    for _ in range(40):
        loss = objective({"x": condition.unsqueeze(-1), "condition": condition}).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_bad_objectives():
    scheduler = DDPMScheduler(clip_sample=False)
    with pytest.raises(InputError, match="needs a denoiser that is told numbers"):
        ConditionalLatentPriorObjective(unet(0), scheduler)
    with pytest.raises(InputError, match="condition_dropout"):
        ConditionalLatentPriorObjective(unet(), scheduler, condition_dropout=1.5)
    with pytest.raises(InputError, match="condition"):
        ConditionalLatentPriorObjective(unet(), scheduler)({"x": torch.zeros(2, 2, 4)})
    with pytest.raises(InputError, match="width 2: expected 3"):
        ConditionalLatentPriorObjective(unet(), scheduler)({"x": torch.zeros(2, 2, 4), "condition": torch.zeros(2, 2)})
