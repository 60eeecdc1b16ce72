"""Instruction → task: accuracy on held-out phrasings, honest probabilities, folders, and T5 in its place."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from latentia import T5TaskPredictor, TaskPredictor
from latentia.errors import ArtifactError, ConfigError, InputError
from latentia.methods.emu_edit.predictor import TaskGuess
from latentia.methods.emu_edit.predictor_training import (
    Instructions,
    PredictorObjective,
    judged,
    to_bytes,
    to_texts,
    train_task_predictor,
)
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.training.loop import train
from latentia.training.phase import Optim, Phase
from latentia.training.settings import Settings


@pytest.fixture(scope="module")
def trained():
    return train_task_predictor(examples=2500, steps=250, batch_size=64, lr=1e-2)


def test_held_out_phrasings_are_told(trained):
    report = judged(trained, examples=800, seed=9)
    assert report.n == 800
    assert report.accuracy >= 0.97
    assert report.calibration < 0.04
    assert report.sure > 0.9
    assert report.accuracy_when_sure >= 0.99
    assert sum(report.confused.values()) == round((1 - report.accuracy) * 800)


def test_it_says_when_it_is_not_sure(trained):
    texts = ["Get rid of the red square!", "make the background grey", "hello how are you", "asdf qwer zxcv"]
    clear, also, chat, letters = trained.predict(texts)
    assert (clear.task, also.task) == ("remove", "background")
    assert clear.sure
    assert "name the task" not in clear.note
    for guess in (chat, letters):
        assert guess.probability < 0.7
        assert guess.note.startswith(f"{guess.task} ({guess.probability:.2f}), which is not sure (or {guess.second}")


def test_a_letter_wrong_is_no_matter(trained):
    guesses = trained.predict(["make the backgroud grey", "segmemt the red square", "draw a rectangel around the star"])
    assert [guess.task for guess in guesses] == ["background", "segment", "detect"]


def test_training_is_repeatable():
    first, second = (train_task_predictor(("add", "remove"), examples=40, steps=5, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert first.tasks == ("add", "remove")
    assert not first.training


def test_round_trip(trained, tmp_path):
    softened = copy.deepcopy(trained)
    softened.temperature.fill_(1.25)
    again = TaskPredictor.from_pretrained(softened.save_pretrained(tmp_path))
    text = "now swap the star for a moon"
    assert torch.equal(again.probabilities(text), softened.probabilities(text))
    assert float(again.temperature) == 1.25
    half = TaskPredictor.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(half.probabilities(text), softened.probabilities(text), atol=0.05, rtol=0)


def test_a_text_is_told_alike_in_any_batch(trained):
    texts = ["remove the red square", "now make it snow", "x"]
    together = trained.probabilities(texts)
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    for i, text in enumerate(texts):
        torch.testing.assert_close(trained.probabilities(text)[0], together[i])


def test_temperature_softens_by_hand():
    predictor = TaskPredictor(("a", "b"), buckets=8, width=2, hidden=2).eval()
    predictor.logits = lambda texts: torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    t = predictor.calibrate(["x"] * 4, torch.tensor([0, 0, 0, 1]))
    assert t == pytest.approx(2 / torch.logit(torch.tensor(0.75)).item(), rel=0.06)
    report = predictor.evaluate(["x"] * 4, torch.tensor([0, 0, 0, 1]))
    assert report.accuracy == 0.75
    assert report.calibration == pytest.approx(0, abs=0.02)
    assert report.confused == {("b", "a"): 1}


def test_loss_by_hand():
    predictor = TaskPredictor(("a", "b"), buckets=8, width=2, hidden=2)
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    predictor.logits = lambda texts: logits
    p = logits.log_softmax(-1)
    total = predictor.loss(["x", "y"], torch.tensor([1, -1]))
    assert float(total) == pytest.approx(float(-p[0, 1] - p[1].mean()) / 2)


def test_instructions_belong_to_their_splits():
    train, again = (Instructions("train", 60, 1, nonsense=0.1, misspelt=0.2) for _ in range(2))
    assert train.texts == again.texts
    assert int((train.labels == -1).sum()) == 6
    batch = train.batch([0, 59])
    assert to_texts(batch["text"]) == [train.texts[0], train.texts[59]]
    assert batch["label"].tolist() == [int(train.labels[0]), -1]
    plain = Instructions("train", 54, 1)
    assert 2 < sum(a != b for a, b in zip(plain.texts, train.texts)) < 25
    assert set(Instructions("test", 20, 0, ("add", "text")).labels.tolist()) == {0, 1}
    with pytest.raises(InputError, match="nonsense"):
        Instructions(nonsense=1.0)
    with pytest.raises(InputError, match="smoothing"):
        PredictorObjective(TaskPredictor(), smoothing=1.0)


def test_it_is_a_phase_like_any_other(tmp_path):
    settings = Settings(device="cpu", progress=False, tensorboard=False)
    predictor = TaskPredictor(("add", "remove"), buckets=64, width=4, hidden=8)
    data = Instructions("train", 40, 0, ("add", "remove"), nonsense=0.1)
    phase = Phase("predictor", PredictorObjective(predictor), data, 30, 16, Optim(lr=0.05))
    train([("predictor", lambda: phase)], tmp_path, settings)
    assert predictor.eval().evaluate(data.texts[:36], data.labels[:36]).accuracy > 0.9


def test_texts_travel_as_bytes():
    texts = ["añade una estrella ★", "x", ""]
    assert to_texts(to_bytes(texts)) == texts
    assert to_bytes(texts).shape == (3, len(texts[0].encode()))


def test_bad_input_is_refused(trained):
    for wrong in ("", ["  "], ["a", ""], [], None, 7, ["a", 7]):
        with pytest.raises(InputError, match="instruction"):
            trained.predict(wrong)
    for wrong in ({"tasks": ()}, {"tasks": ("a", "a")}, {"buckets": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TaskPredictor(**wrong)
    assert trained.predict("?!")[0].probability < 0.6  # no word at all


# T5 ------------------------------------------------------------------------------------------------------


def t5_folder(folder):
    """A tiny T5 with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "remove",
        "add",
        "the",
        "red",
        "square",
        "a",
        "star",
        "Which",
        "kind",
        "is",
        "this",
    ]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(words)}
    t5 = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0))
    t5.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = t5_folder(tmp_path_factory.mktemp("t5"))
    return T5TaskPredictor.from_t5(folder, ("add", "remove"), local_files_only=True)


def test_t5_scores_the_names_of_the_tasks(t5):
    text = "remove the red square"
    scores = t5.logits([text, "add a star"])
    assert scores.shape == (2, 2)
    prompt = t5.tokenizer(t5.config.prompt.format(instruction=text), return_tensors="pt").input_ids
    with torch.no_grad():
        for place, task in enumerate(t5.tasks):
            labels = t5.tokenizer(task, return_tensors="pt").input_ids
            loss = t5.t5(input_ids=prompt, labels=labels).loss  # a mean over two tokens
            torch.testing.assert_close(scores[0, place], -2 * loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(t5.probabilities(text)[0], scores[0].softmax(-1).detach())


def test_t5_is_fine_tuned_by_the_same_objective(t5):
    import copy

    tuned = copy.deepcopy(t5).train()
    texts = ["remove the red square", "add a star"]
    batch = {"text": to_bytes(texts), "label": torch.tensor([1, 0])}
    objective, adam = PredictorObjective(tuned), torch.optim.Adam(tuned.parameters(), lr=0.02)
    for _ in range(25):
        adam.zero_grad()
        objective(batch).total.backward()
        adam.step()
    guesses = tuned.eval().predict(texts)
    assert [guess.task for guess in guesses] == ["remove", "add"]
    assert min(guess.probability for guess in guesses) > 0.9


def test_t5_round_trip_with_its_tokenizer(t5, tmp_path):
    again = T5TaskPredictor.from_pretrained(t5.save_pretrained(tmp_path))
    texts = ["remove the red square", "add a star"]
    assert torch.equal(again.probabilities(texts), t5.probabilities(texts))
    assert again.num_parameters() == t5.num_parameters()
    again.tokenizer = None
    with pytest.raises(InputError, match="no tokenizer"):
        again.predict("add a star")


def test_t5_in_an_editors_folder(t5, tmp_path):
    from latentia import DiffusionPipeline
    from tiny_editor import editor, picture

    again = DiffusionPipeline.from_pretrained(editor(task_predictor=t5).save_pretrained(tmp_path))
    again.set_progress_bar_config(disable=True)
    guess = again(picture(), "add a star", num_inference_steps=1).guesses[0]
    assert guess == t5.predict("add a star")[0]


def test_t5_that_cannot_be_read(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read as a T5"):
        T5TaskPredictor.from_t5(tmp_path, local_files_only=True)
    with pytest.raises(ConfigError, match="instruction"):
        T5TaskPredictor({"d_model": 8}, prompt="which?")


def test_guesses_read_as_sentences():
    assert TaskGuess("add", 0.97, "local", 0.02).note == "add (0.97)"
    assert len(TASK_NAMES) == len(TaskPredictor().tasks) == 16
