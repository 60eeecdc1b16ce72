"""The objective of text to image: captions reach the network encoded, some of them replaced by the empty one."""

import json

import pytest
import torch
from torch import nn

from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, UnknownChoiceError
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.objective import Objective
from latentia.training.objectives import DiffusionObjective
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.text_objective import TextDiffusionObjective

LENGTH, WIDTH = 5, 3
EMPTY = torch.tensor([1, 2, 0, 0, 0])


class Answer:
    def __init__(self, sample):
        self.sample = sample


class Encoded:
    def __init__(self, last_hidden_state):
        self.last_hidden_state = last_hidden_state


class Painter(ModelMixin):
    """Says what a linear layer makes of the mean of the text, and remembers what it was asked."""

    @register_to_config
    def __init__(self, num_class_embeds: int | None = None):
        super().__init__()
        self.read = nn.Linear(WIDTH, 1)
        self.drop = nn.Dropout(0.5)
        self.asked = {}

    def forward(self, sample, timestep, encoder_hidden_states, class_labels=None):
        self.asked = {"sample": sample, "t": timestep, "text": encoder_hidden_states, "labels": class_labels}
        said = self.read(encoder_hidden_states.mean(1))[:, :, None, None]
        return Answer(said.expand_as(sample))


class Reader(nn.Module):
    """A table of tokens with dropout."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)
        self.drop = nn.Dropout(0.5)

    def forward(self, input_ids):
        self.read = input_ids
        return Encoded(self.drop(self.table(input_ids)))


def batch(count=8):
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(3, 50, (count, LENGTH), generator=generator)
    return {"x": torch.randn(count, 1, 4, 4, generator=generator), "input_ids": ids}


def objective(**options):
    torch.manual_seed(0)
    options = {"caption_dropout": 0.0, **options}
    return TextDiffusionObjective(Painter(), DDPMScheduler(), Reader(), EMPTY, **options)


def test_the_network_is_told_the_encoded_caption():
    made, data = objective(), batch()
    made(data)
    assert torch.equal(made.denoiser.asked["text"], made.text_encoder.table(data["input_ids"]))
    assert made.denoiser.asked["labels"] is None


def test_the_rest_is_diffusion_objectives():
    """The same draws in the same order, hence the same noisy samples, times and loss."""
    made, data = objective(min_snr_gamma=5.0, loss="l1"), batch()
    torch.manual_seed(3)
    total = made(data).total
    torch.manual_seed(3)

    class Plain(DiffusionObjective):
        def conditions(self, batch):
            return {"encoder_hidden_states": made.text_encoder.table(batch["input_ids"])}

    same = Plain(made.denoiser, DDPMScheduler(), min_snr_gamma=5.0, loss="l1")
    assert torch.equal(same(data).total, total)


def test_captions_are_dropped_one_by_one():
    made, data = objective(caption_dropout=0.25), batch(8000)
    torch.manual_seed(0)
    made(data)
    read = made.text_encoder.read
    dropped = (read == EMPTY).all(1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(read[~dropped], data["input_ids"][~dropped])
    always = objective(caption_dropout=1.0)
    always(batch())
    assert (always.text_encoder.read == EMPTY).all()


def test_an_untrained_text_encoder_is_frozen():
    made = objective()
    assert list(made.modules_by_name) == ["denoiser"]
    made.train()
    assert made.denoiser.drop.training
    assert not made.text_encoder.drop.training
    made(batch()).total.backward()
    assert made.text_encoder.table.weight.grad is None
    assert made.denoiser.read.weight.grad is not None
    assert not made.denoiser.asked["text"].requires_grad


def test_a_trained_text_encoder_learns_along():
    made = objective(train_text_encoder=True)
    assert list(made.modules_by_name) == ["denoiser", "text_encoder"]
    made.train()
    assert made.text_encoder.drop.training
    made(batch()).total.backward()
    assert made.text_encoder.table.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not made(batch()).total.requires_grad


def test_frozen_is_each_objectives_own():
    frozen, trained = objective(), objective(train_text_encoder=True)
    assert frozen.frozen == ("text_encoder",)
    assert trained.frozen == Objective.frozen == TextDiffusionObjective.frozen == ()


@pytest.mark.parametrize("trained", [False, True])
def test_the_loop_trains_averages_and_saves_what_is_not_frozen(lab, tmp_path, trained):
    made = objective(caption_dropout=0.5, train_text_encoder=trained)
    before = made.text_encoder.table.weight.clone()
    data = TensorDataset(batch(10))
    phase = Phase("unet", made, data, 5, 8, Optim(lr=1e-2), ema=EMA(0.9))
    result = lab.train([("unet", lambda: phase)], tmp_path, lab.quiet())["unet"]
    names = {"denoiser", "text_encoder"} if trained else {"denoiser"}
    assert set(result.averaged) == set(result.modules) == names
    assert torch.equal(made.text_encoder.table.weight, before) is not trained
    assert made.text_encoder.table.weight.requires_grad is trained
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) > 0


def test_a_resumed_run_must_agree_on_dropout_and_what_is_trained():
    settings = objective(caption_dropout=0.2, train_text_encoder=True).settings()
    assert settings["caption_dropout"] == 0.2
    assert settings["train_text_encoder"] is True
    assert settings["times"] == "uniform"
    json.dumps(settings)


def test_tokens_pass_through_the_cache_of_latents():
    from latentia.codecs.autoencoder import Autoencoder
    from latentia.training.latents import cache_latents

    codec = Autoencoder(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=2,
        latent_channels=1,
    )
    data = batch(6)
    cached = cache_latents(codec, TensorDataset(data), batch_size=4)
    assert torch.equal(cached.tensors["input_ids"], data["input_ids"])


def test_labels_and_captions_go_together():
    made = TextDiffusionObjective(
        Painter(num_class_embeds=4), DDPMScheduler(), Reader(), EMPTY, caption_dropout=0.0, label_dropout=1.0
    )
    made(batch() | {"label": torch.zeros(8, dtype=torch.int64)})
    assert (made.denoiser.asked["labels"] == 3).all()
    assert made.denoiser.asked["text"].shape == (8, LENGTH, WIDTH)


def test_a_subclass_overrides_one_hook():
    class Inpaint(TextDiffusionObjective):
        def model_input(self, noisy, batch):
            return torch.cat([noisy, batch["mask"]], 1)

        def weight(self, t, batch):
            return batch["weight"]

    painter = Painter()
    made = Inpaint(painter, DDPMScheduler(), Reader(), EMPTY, caption_dropout=0.0)
    data = batch() | {"mask": torch.ones(8, 1, 4, 4), "weight": torch.zeros(8)}
    painter.forward_ = painter.forward
    painter.forward = lambda sample, t, **more: Answer(painter.forward_(sample, t, **more).sample[:, :1])
    assert made(data).total == 0
    assert painter.asked["sample"].shape == (8, 2, 4, 4)
    assert (painter.asked["sample"][:, 1] == 1).all()


def test_bad_input():
    with pytest.raises(InputError, match=r"caption_dropout is a probability in \[0, 1\], got 1.5"):
        objective(caption_dropout=1.5)
    with pytest.raises(UnknownChoiceError, match="unknown loss"):
        objective(loss="hinge")
    with pytest.raises(InputError, match=r"empty_ids must be \(L,\) int64"):
        TextDiffusionObjective(Painter(), DDPMScheduler(), Reader(), EMPTY[None])
    with pytest.raises(InputError, match="empty_ids must be"):
        TextDiffusionObjective(Painter(), DDPMScheduler(), Reader(), EMPTY.float())
    data = batch()
    with pytest.raises(InputError, match="the batch has no 'input_ids'; it has: x"):
        objective()({"x": data["x"]})
    with pytest.raises(InputError, match=r"input_ids must be \(B, 5\) int64, as long as empty_ids"):
        objective()(data | {"input_ids": data["input_ids"][:, :4]})
    with pytest.raises(InputError, match=r"got \(8, 5\) of torch.int32"):
        objective()(data | {"input_ids": data["input_ids"].int()})
