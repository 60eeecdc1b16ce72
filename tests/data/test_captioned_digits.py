"""Pictures show what their captions say, and what is kept from training stays out of it."""

import pytest
import torch

from latentia.data.captioned_digits import (
    HELD_OUT_PAIRS,
    NO_DIGIT,
    PAIR,
    SINGLE,
    TRAINED_PAIRS,
    WORDS,
    captioned_digits,
    close_up,
    phrase,
)
from latentia.data.digits import digits
from latentia.errors import InputError, UnknownChoiceError

NUMBER = {word: i for i, word in enumerate(WORDS)} | {str(i): i for i in range(10)}


@pytest.fixture(scope="module")
def training():
    return captioned_digits(3000)


def spoken(caption):
    """The digits of a caption, in the order of the text."""
    text = caption.lower()
    for word, i in zip(WORDS, range(10)):
        text = text.replace(word, f" {i} ")
    text = text.replace(" 1  digit", "").replace("2  digits", "").replace("2  handwritten digits", "")
    return [int(character) for character in text if character.isdigit()]


def test_shapes_ranges_and_determinism(training):
    assert training.x.shape == (3000, 1, 32, 32)
    assert -1 <= training.x.min() < training.x.max() <= 1
    assert training.digits.dtype == torch.int64
    assert len(training) == len(training.captions) == 3000
    again = captioned_digits(3000)
    assert torch.equal(again.x, training.x)
    assert again.captions == training.captions
    assert captioned_digits(3000, seed=1).captions != training.captions


def test_captions_name_the_digits_of_the_picture(training):
    swapped = 0
    for caption, (left, right) in zip(training.captions, training.digits.tolist()):
        said, shown = spoken(caption), [left] if right == NO_DIGIT else [left, right]
        backwards = "to the right of" in caption or " after a" in caption or caption.lower().startswith("on the right")
        assert said == (shown[::-1] if backwards else shown), caption
        swapped += backwards
    assert 200 < swapped < 500


def test_pictures_show_real_scans(training):
    """Every picture is a training scan as large as the canvas, or two at half its size on paper."""
    big, small = digits("train", 32).tensors, digits("train", 16).tensors
    for i in range(60):
        left, right = training.digits[i].tolist()
        if right == NO_DIGIT:
            scans = big["x"][big["label"] == left]
            assert (scans == training.x[i]).flatten(1).all(1).any()
            continue
        for place, digit in enumerate((left, right)):
            scans = small["x"][small["label"] == digit]
            found = training.x[i, :, 8:24, 16 * place : 16 * place + 16]
            assert (scans == found).flatten(1).all(1).any()
        assert (training.x[i, :, :8] == -1).all()
        assert (training.x[i, :, 24:] == -1).all()


def test_singles_and_pairs_come_in_their_shares(training):
    single = training.digits[:, 1] == NO_DIGIT
    assert single.float().mean() == pytest.approx(0.3, abs=0.03)
    shown = {tuple(pair) for pair in training.digits[~single].tolist()}
    assert shown == set(TRAINED_PAIRS)
    assert torch.bincount(training.digits[single, 0], minlength=10).min() > 50


def test_held_out_pairs_never_appear_but_their_mirrors_do():
    assert len(HELD_OUT_PAIRS) == 10
    assert len(TRAINED_PAIRS) == 90
    assert {left for left, _ in HELD_OUT_PAIRS} == {right for _, right in HELD_OUT_PAIRS} == set(range(10))
    assert {(right, left) for left, right in HELD_OUT_PAIRS} <= set(TRAINED_PAIRS)
    held = captioned_digits(400, content="held_out_pair")
    assert {tuple(pair) for pair in held.digits.tolist()} == set(HELD_OUT_PAIRS)


def test_templates_are_those_of_the_captions(training):
    for caption, template, shown in zip(training.captions, training.templates, training.digits.tolist()):
        said = {phrase(template, shown, words) for words in (True, False)}
        assert caption.rstrip(".").lower() in said


def test_held_out_phrasings_share_no_text_with_training():
    train, held_out = (
        {
            phrase(template, (left, right), words)
            for templates, rights in ((SINGLE, [NO_DIGIT]), (PAIR, range(10)))
            for template in templates[phrasings]
            for left in range(10)
            for right in rights
            for words in (True, False)
        }
        for phrasings in ("train", "held_out")
    )
    assert len(train) > 3000
    assert not train & held_out


def test_held_out_phrasings_use_only_words_of_training():
    """So that what is tested is the phrasing, not the vocabulary."""
    words = {word for template in (*SINGLE["train"], *PAIR["train"]) for word in split(template)}
    assert {w for t in (*SINGLE["held_out"], *PAIR["held_out"]) for w in split(t)} - words == {"numbers"}


def split(template):
    return template.replace("{left}", " ").replace("{right}", " ").replace(",", " ").replace(":", " ").split()


def test_splits_do_not_share_scans():
    test = captioned_digits(200, "test", content="single").x.flatten(1)
    train = digits("train", 32).tensors["x"].flatten(1)
    same = (test[:, None] == train[None]).all(2).any(1)
    assert not same.any()


def test_phrases():
    assert phrase("a {left}", (8, NO_DIGIT), words=True) == "an eight"
    assert phrase("a {left}", (8, NO_DIGIT), words=False) == "an 8"
    assert phrase("the number {left}{right}", (4, 7), words=True) == "the number 47"
    assert phrase("a {right} after a {left}", (8, 3), words=True) == "a three after an eight"
    assert phrase("two digits: {left} and {right}", (4, 7), words=False) == "two digits: 4 and 7"


def test_close_up_enlarges_one_of_two():
    pair = captioned_digits(5, content="pair")
    crop = pair.x[:, :, 8:24, 16:]
    found = close_up(pair.x, 1)
    assert found.shape == (5, 1, 32, 32)
    assert -1 <= found.min() <= found.max() <= 1
    back = torch.nn.functional.avg_pool2d(found, 2)
    assert (back - crop).abs().mean() < 0.05
    assert (torch.nn.functional.avg_pool2d(close_up(pair.x, 0), 2) - crop).abs().mean() > 0.2


def test_bad_input():
    with pytest.raises(InputError, match="count"):
        captioned_digits(0)
    with pytest.raises(InputError, match=r"size must be even.*got 31"):
        captioned_digits(4, size=31)
    with pytest.raises(UnknownChoiceError, match="did you mean 'held_out'"):
        captioned_digits(4, phrasings="heldout")
    with pytest.raises(UnknownChoiceError, match="unknown content"):
        captioned_digits(4, content="triple")
    with pytest.raises(UnknownChoiceError, match="unknown split"):
        captioned_digits(4, split="validation")
