"""EmuEditModel: starts as what it was made from, hears source, text and task, and leaves the rest alone."""

import pytest
import torch

from latentia import EmuEditModel, UNet2DConditionModel
from latentia.errors import ConfigError, InputError
from latentia.methods.emu_edit.model import GATE_MARGIN, waves
from tiny_editor import UNET

WIDTH = UNET["cross_attention_dim"]


def pixels(**options):
    torch.manual_seed(0)
    return EmuEditModel(**{"unet": UNET, "sample_size": 16, "in_channels": 3, "patch_size": 2, **options}).eval()


def shaken(model, seed=1):
    """The model with no weight at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(batch=2, channels=3, side=16, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, source = (torch.randn(batch, channels, side, side, generator=generator) for _ in range(2))
    return x, torch.tensor([7] * batch), torch.randn(batch, length, WIDTH, generator=generator), source


def unet(in_channels):
    torch.manual_seed(3)
    return shaken(
        UNet2DConditionModel(**UNET, sample_size=8, in_channels=in_channels, out_channels=4, upcast_attention=False)
    ).eval()


@torch.no_grad()
def test_starts_as_stable_diffusion_for_any_source_and_task():
    base = unet(4)
    model = EmuEditModel.from_stable_diffusion(base, num_tasks=5).eval()
    x, t, text, source = inputs(channels=4, side=8)
    expected = base(x, t, text).sample
    for task in (None, torch.tensor([0, 4]), torch.tensor([-1, 2]), torch.randn(2, model.task_dim)):
        for seen in (source, torch.zeros_like(source)):
            assert model(x, t, text, source=seen, task=task).sample == pytest.approx(expected, abs=2e-6)
    assert model.config.in_channels == 4
    assert model.tasks.weight.shape == (5, model.unet.emb_channels)
    assert model.tasks.weight.std() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_starts_as_instruct_pix2pix_and_reads_folders(tmp_path):
    base = unet(8)
    base.save_pretrained(tmp_path / "pipe" / "unet")
    x, t, text, source = inputs(channels=4, side=8)
    expected = base(torch.cat([x, source], 1), t, text).sample
    for folder in (tmp_path / "pipe", tmp_path / "pipe" / "unet"):
        model = EmuEditModel.from_stable_diffusion(folder).eval()
        assert model(x, t, text, source=source, task=torch.tensor([1, 2])).sample == pytest.approx(expected, abs=2e-6)


def test_other_networks_are_refused():
    with pytest.raises(ConfigError, match="4 or 8 input channels, got 9"):
        EmuEditModel.from_stable_diffusion(unet(9))
    classes = UNet2DConditionModel(**UNET, in_channels=4, out_channels=4, num_class_embeds=3)
    with pytest.raises(ConfigError, match="without classes"):
        EmuEditModel.from_stable_diffusion(classes)


def test_every_new_weight_learns_from_the_first_step():
    model = EmuEditModel.from_stable_diffusion(unet(4))
    x, t, text, source = inputs(channels=4, side=8)
    model(x, t, text, source=source, task=torch.tensor([0, 3])).sample.square().sum().backward()
    assert model.unet.conv_in.weight.grad[:, 4:].abs().sum() > 0
    assert model.to_time.weight.grad.abs().sum() > 0
    tokens = model.to_tokens.weight.grad.view(4, WIDTH, -1)
    assert (tokens.abs().sum((1, 2)) > 0).all()
    assert not torch.allclose(tokens[0], tokens[1])  # the four tokens do not stay equal


@torch.no_grad()
def test_tasks_are_heard_in_both_ways_and_null_is_the_network_without():
    model = shaken(pixels())
    x, t, text, source = inputs()

    def said(task):
        return model(x, t, text, source=source, task=task).sample

    assert torch.equal(said(None), said(torch.tensor([-1, -1])))
    assert torch.equal(said(None), said(torch.zeros(2, model.task_dim)))
    assert torch.equal(said(torch.tensor([3, 5])), said(model.tasks.weight[[3, 5]]))
    both = said(torch.tensor([3, 3]))
    assert not torch.allclose(both, said(None), atol=1e-4)
    model.to_time.weight.zero_()
    by_tokens = said(torch.tensor([3, 3]))
    assert not torch.allclose(by_tokens, said(None), atol=1e-5)
    assert not torch.allclose(by_tokens, both, atol=1e-5)


@torch.no_grad()
def test_masked_tokens_are_not_read():
    model = shaken(pixels())
    x, t, text, source = inputs()
    mask = torch.ones(2, 6)
    mask[:, 4:] = 0
    other = text.clone()
    other[:, 4:] += 5
    # The task's tokens split the last ones, so that masked ones give none.
    first = model(x, t, text, source=source, encoder_attention_mask=mask).sample
    assert model(x, t, other, source=source, encoder_attention_mask=mask).sample == pytest.approx(first, abs=1e-5)
    assert not torch.allclose(model(x, t, other, source=source).sample, first, atol=1e-3)


@torch.no_grad()
def test_gate_keeps_the_source_bit_by_bit_and_opens_whole():
    model = pixels(copy_gate=True)
    x, t, text, source = inputs()
    first = model(x, t, text, source=source)
    assert model.prediction_type == "sample"
    assert torch.equal(first.gate, torch.zeros(2, 1, 16, 16))
    assert first.sample == pytest.approx(source / 2, abs=1e-6)  # y = 0 and g = ½ at the start
    bias = model.unet.conv_out.bias.view(4, 4)  # channel, place in the patch
    bias[:3], bias[3] = 0.25, -4.0
    assert torch.equal(model(x, t, text, source=source).sample, source)
    bias[3] = 4.0
    opened = model(x, t, text, source=source)
    assert opened.sample == pytest.approx(torch.full_like(source, 0.25), abs=1e-6)
    assert opened.edit == pytest.approx(torch.full_like(source, 0.25), abs=1e-6)
    bias[3] = 1.0
    opening = (torch.sigmoid(torch.tensor(1.0)) - GATE_MARGIN) / (1 - 2 * GATE_MARGIN)
    assert model(x, t, text, source=source).sample == pytest.approx(source + opening * (0.25 - source), abs=1e-6)


@torch.no_grad()
def test_affine_edits_change_what_is_there_and_start_as_a_copy():
    model = pixels(copy_gate=True, affine=True)
    x, t, text, source = inputs()
    assert torch.equal(model(x, t, text, source=source).sample, source)
    bias = model.unet.conv_out.bias
    assert len(bias) == (3 + 3 + 1) * 4
    bias[24:] = 9.0  # the gate, open
    bias[4:8] = 2.0  # a of the second channel
    bias[12:16] = 0.5  # d of the first
    expected = source + torch.stack([torch.full_like(source[:, 0], 0.5), 2 * source[:, 1], 0 * source[:, 2]], 1)
    assert model(x, t, text, source=source).sample == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_paints_are_mixed_by_words_and_task_and_laid_on_by_the_maps():
    model = shaken(pixels(copy_gate=True, pooled_text=True, paints=2))
    x, t, text, source = inputs()
    model.unet.conv_out.weight.zero_()
    bias = model.unet.conv_out.bias.zero_()
    assert len(bias) == (3 + 2 + 1) * 4
    bias[20:] = 9.0  # the gate, open
    bias[12:16], bias[16:20] = 0.5, 1.0  # how much of each paint
    task = torch.tensor([3, 5])
    told = model.to_time(model.task_vectors(task, 2)) + model.pooled(text.amax(1))
    first, second = model.mix(told).view(2, 2, 3).unbind(1)
    expected = (0.5 * first + second)[:, :, None, None].expand_as(source)
    assert model(x, t, text, source=source, task=task).sample == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_patches_positions_sentence_and_gain():
    model = shaken(pixels(position_channels=5, pooled_text=True))
    x, t, text, source = inputs()
    assert model.unet.conv_in.in_channels == 2 * 3 * 4 + 5
    assert model(x, t, text, source=source).sample.shape == x.shape
    larger = (torch.nn.functional.pad(v, (0, 8, 0, 16)) for v in (x, source))
    bigger, seen = larger
    assert model(bigger, t, text, source=seen).sample.shape == bigger.shape
    moved = text.clone()
    moved[:, 0] = text.amax(1)  # the same maximum, other tokens: without cross-attention nothing would change
    assert not torch.allclose(model(x, t, moved, source=source).sample, model(x, t, text, source=source).sample)

    gained = pixels(noise_gain=True)
    blind = gained(x, t, text, source=source).sample
    assert torch.equal(gained(x + 1, t, text, source=source).sample, blind)
    gained.gain.bias.fill_(1.0)
    assert not torch.allclose(gained(x + 1, t, text, source=source).sample, gained(x, t, text, source=source).sample)


@torch.no_grad()
def test_facts_are_told_from_the_greatest_features():
    model = shaken(pixels(facts=7))
    x, t, text, source = inputs()
    before = model(x, t, text, source=source).sample
    model.facts.bias.copy_(torch.full((7,), -1e4))  # nothing is stated
    silent = model(x, t, text, source=source).sample
    assert not torch.allclose(before, silent)
    model.of_facts.weight.mul_(3)
    assert torch.equal(model(x, t, text, source=source).sample, silent)


def test_waves_are_smooth_and_differ():
    maps = waves(6, 8)
    assert maps.shape == (1, 6, 8, 8)
    assert maps.abs().max() <= 0.5
    flat = maps.flatten(2)[0]
    gram = flat @ flat.T
    assert gram == pytest.approx(torch.diag(gram.diagonal()), abs=1e-5)


@torch.no_grad()
def test_saved_and_read_back(tmp_path):
    model = shaken(pixels(copy_gate=True, position_channels=2, pooled_text=True, noise_gain=True, task_dim=7))
    model.save_pretrained(tmp_path)
    back = EmuEditModel.from_pretrained(tmp_path)
    x, t, text, source = inputs()
    task = torch.tensor([0, 15])
    assert torch.equal(
        back(x, t, text, source=source, task=task).sample, model(x, t, text, source=source, task=task).sample
    )
    assert back.config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": torch.zeros(2, 3, 8, 8)}, r"source has shape \(2, 3, 8, 8\)"),
        ({"sample": torch.zeros(2, 4, 16, 16)}, r"expected \(batch, 3, H, W\)"),
        ({"sample": torch.zeros(2, 3, 15, 16)}, "multiples of 2"),
        ({"task": torch.tensor([0, 16])}, "give 0 to 15, or -1"),
        ({"task": torch.tensor([0])}, r"expected \(2,\) int64"),
        ({"task": torch.zeros(2, 3)}, "task vectors have shape"),
        ({"encoder_hidden_states": torch.zeros(2, 3, WIDTH)}, "at least 4"),
    ],
)
def test_bad_input_is_explained(change, message):
    x, t, text, source = inputs()
    given = {"sample": x, "timestep": t, "encoder_hidden_states": text, "source": source}
    with pytest.raises(InputError, match=message):
        pixels()(**{**given, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet": {**UNET, "in_channels": 3}}, "in_channels follow"),
        ({"sample_size": 15}, "multiple of patch_size"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"affine": True}, "need copy_gate"),
        ({"paints": 2}, "need copy_gate"),
        ({"facts": -1}, "facts"),
        ({"task_tokens": -1}, "task_tokens"),
    ],
)
def test_bad_arguments_are_explained(options, message):
    with pytest.raises((ConfigError, InputError), match=message):
        pixels(**options)
