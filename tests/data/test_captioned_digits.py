"""Pictures show what their captions say, and what is kept from training stays out of it."""

import pytest
import torch

from latentia.data.captioned_digits import (
    HELD_OUT_PAIRS,
    NO_DIGIT,
    OPENERS,
    PAIR,
    PAIR_PHRASINGS,
    SINGLE,
    SINGLE_PHRASINGS,
    TRAINED_PAIRS,
    WORDS,
    captioned_digits,
    look_at,
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
    text = text.replace(" 1  digit", "").replace(" 2  digits", "")
    return [int(character) for character in text if character.isdigit()]


def test_shapes_ranges_and_determinism(training):
    assert training.x.shape == (3000, 1, 16, 32)
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
        backwards = "right of" in caption or " after " in caption or "on the right and" in caption
        assert said == (shown[::-1] if backwards else shown), caption
        swapped += backwards
    assert 250 < swapped < 500


def test_pictures_show_real_scans(training):
    """Every picture is a training scan between paper, or two side by side."""
    real = digits("train", 16).tensors
    for i in range(60):
        left, right = training.digits[i].tolist()
        asked = {"middle": left} if right == NO_DIGIT else {"left": left, "right": right}
        for place, digit in asked.items():
            scans = real["x"][real["label"] == digit]
            found = look_at(training.x[i : i + 1], place)
            assert (scans == found).flatten(1).all(1).any()
        if right == NO_DIGIT:
            assert (training.x[i, :, :, :8] == -1).all()
            assert (training.x[i, :, :, 24:] == -1).all()


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
        said = {
            phrase(template, shown, words, definite).lower() for words in (True, False) for definite in (True, False)
        }
        assert caption.rstrip(".").lower() in said


def test_held_out_phrasings_share_no_text_with_training():
    train, held_out = (
        {
            phrase(template, (left, right), words, definite)
            for templates, rights in ((SINGLE_PHRASINGS, [NO_DIGIT]), (PAIR_PHRASINGS, range(10)))
            for template in templates[phrasings]
            for left in range(10)
            for right in rights
            for words in (True, False)
            for definite in (True, False)
        }
        for phrasings in ("train", "held_out")
    )
    assert len(train) > 20_000
    assert not train & held_out


@pytest.mark.parametrize(("cores", "phrasings"), [(SINGLE, SINGLE_PHRASINGS), (PAIR, PAIR_PHRASINGS)])
def test_training_knows_every_opener_and_every_core(cores, phrasings):
    """So that what is tested is their combination, not the vocabulary."""
    whole = {opener + core for opener in OPENERS for core in cores}
    assert set(phrasings["train"]) | set(phrasings["held_out"]) == whole
    assert len(phrasings["train"]) + len(phrasings["held_out"]) == len(OPENERS) * len(cores)
    assert 0.15 < len(phrasings["held_out"]) / len(whole) < 0.25
    assert set(cores) <= set(phrasings["train"])
    for known, openers in (("train", OPENERS), ("held_out", OPENERS[1:])):
        assert {o for o in openers for c in cores if o + c in phrasings[known]} == set(openers)
        assert {c for o in openers for c in cores if o + c in phrasings[known]} == set(cores)


def test_splits_do_not_share_scans():
    test = look_at(captioned_digits(200, "test", content="single").x, "middle").flatten(1)
    train = digits("train", 16).tensors["x"].flatten(1)
    same = (test[:, None] == train[None]).all(2).any(1)
    assert not same.any()


def test_phrases():
    assert phrase("a {left}", (8, NO_DIGIT), words=True) == "an eight"
    assert phrase("a {left}", (8, NO_DIGIT), words=False) == "an 8"
    assert phrase("the number {left}{right}", (4, 7), words=True) == "the number 47"
    assert phrase("a {right} after a {left}", (8, 3), words=True) == "a three after an eight"
    assert phrase("draw a {left}, then a {right}", (4, 8), words=True, definite=True) == "draw the four, then the eight"
    assert phrase("two digits: {left} and {right}", (4, 7), words=False) == "two digits: 4 and 7"


def test_look_at_crops_a_place():
    x = torch.arange(8.0).expand(2, 1, 4, 8)
    assert look_at(x, "left")[0, 0, 0].tolist() == [0, 1, 2, 3]
    assert look_at(x, "middle")[0, 0, 0].tolist() == [2, 3, 4, 5]
    assert look_at(x, "right")[0, 0, 0].tolist() == [4, 5, 6, 7]
    with pytest.raises(UnknownChoiceError, match="unknown place 'centre'"):
        look_at(x, "centre")


def test_bad_input():
    with pytest.raises(InputError, match="count"):
        captioned_digits(0)
    with pytest.raises(InputError, match=r"size must be even.*got 15"):
        captioned_digits(4, size=15)
    with pytest.raises(UnknownChoiceError, match="did you mean 'held_out'"):
        captioned_digits(4, phrasings="heldout")
    with pytest.raises(UnknownChoiceError, match="unknown content"):
        captioned_digits(4, content="triple")
    with pytest.raises(UnknownChoiceError, match="unknown split"):
        captioned_digits(4, split="validation")
