"""Tokenizers: learnt ones lose nothing, all survive a folder, broken folders say what is missing."""

import json
import os
import socket
import subprocess
import sys

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from latentia.conditioners.tokenizers import (
    LEAST_VOCABULARY,
    TOKENIZER_CLASSES,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from latentia.core.transaction import JOURNAL
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from tiny_sd import SENTENCES, bert_tokenizer, clip_tokenizer

TEXT = "It's 3 small CATS, é 日本 🦊"
LEARNT = train_bpe(SENTENCES)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def assert_same(one, other):
    assert one.get_vocab() == other.get_vocab()
    assert one.model_max_length == other.model_max_length
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(one, name) == getattr(other, name), name
    for text in (TEXT, "", *SENTENCES):
        assert one(text).input_ids == other(text).input_ids
        assert one.decode(one(text).input_ids) == other.decode(one(text).input_ids)


def test_learnt_words_are_one_token():
    tokenizer = train_bpe(["two digits: 4 and 7", "a three"] * 3, vocab_size=512, max_length=20)
    ids = tokenizer("A  THREE and two digits").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>", "a</w>", "three</w>", "and</w>", "two</w>", "digits</w>", "<|endoftext|>"
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a three and two digits"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == 20
    assert len(tokenizer("a", padding="max_length").input_ids) == 20


def test_the_size_of_the_vocabulary():
    assert len(train_bpe(SENTENCES, vocab_size=LEAST_VOCABULARY)) == LEAST_VOCABULARY == 385
    assert len(train_bpe(SENTENCES, vocab_size=450)) == 450
    assert len(train_bpe(["a"], vocab_size=450)) == LEAST_VOCABULARY  # nothing more to merge
    small, large = (train_bpe(SENTENCES, vocab_size=n) for n in (400, 450))
    assert set(small.get_vocab()) < set(large.get_vocab())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_every_text_survives(text):
    """No token is unknown, and what comes back differs in case and spaces alone (and in Unicode's composed forms)."""
    rules = LEARNT.backend_tokenizer
    ids = LEARNT(text, add_special_tokens=False).input_ids
    assert LEARNT.eos_token_id not in ids or "<|endoftext|>" in text
    letters = "".join(LEARNT.convert_ids_to_tokens(ids)).replace("</w>", "")
    wanted = "".join(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(text)))
    assert letters == wanted


def test_equal_texts_give_equal_tokenizers_in_other_processes(tmp_path):
    """Many ties: every word stands once. Another process has another hash seed."""
    code = (
        "import sys, json; from latentia.conditioners.tokenizers import train_bpe;"
        "t = train_bpe(json.loads(sys.argv[1]), 440); print(t.backend_tokenizer.to_str())"
    )
    words = ["".join(chr(97 + (i * k) % 26) for k in range(1, 6)) for i in range(60)]
    call = [sys.executable, "-c", code, json.dumps(words)]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.stdout.strip() == train_bpe(words, 440).backend_tokenizer.to_str()


def test_bad_texts_and_sizes_are_named():
    with pytest.raises(InputError, match="at least one text to learn from, got none"):
        train_bpe([])
    with pytest.raises(InputError, match="got 3"):
        train_bpe(["a", 3])
    with pytest.raises(InputError, match="vocab_size must be an integer of at least 385, got 100"):
        train_bpe(["a"], vocab_size=100)
    with pytest.raises(InputError, match="max_length"):
        train_bpe(["a"], max_length=2)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LEARNT, "CLIPTokenizer"),
        (lambda: clip_tokenizer("!"), "CLIPTokenizerFast"),
        (bert_tokenizer, "BertTokenizer"),
    ],
)
def test_round_trip(make, name, whole, tmp_path, no_network):
    """Through tokenizer.json, and through the vocabulary files alone as older releases do."""
    tokenizer = make()
    assert save_tokenizer(tokenizer, tmp_path) == tmp_path
    if not whole:
        (tmp_path / "tokenizer.json").unlink()
    assert_same(load_tokenizer(tmp_path, name), tokenizer)
    assert_same(transformers.AutoTokenizer.from_pretrained(tmp_path), tokenizer)


def test_what_is_written(tmp_path):
    save_tokenizer(LEARNT, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == LEARNT.get_vocab()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "CLIPTokenizer"
    (tmp_path / "readme.md").touch()
    save_tokenizer(bert_tokenizer(), tmp_path)  # another kind: nothing of the old one stays, other files do
    assert {f.name for f in tmp_path.iterdir()} == {"readme.md", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    with pytest.raises(ArtifactError, match="is a file"):
        save_tokenizer(LEARNT, tmp_path / "vocab.txt")


def test_tokenizers_without_a_class_of_their_own(tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=LEARNT.backend_tokenizer, pad_token="<|endoftext|>", model_max_length=77
    )
    save_tokenizer(tokenizer, tmp_path)
    # The name that all releases know, though the class is now called TokenizersBackend.
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    for again in (load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert again(TEXT).input_ids == tokenizer(TEXT).input_ids
        assert again.pad_token_id == tokenizer.pad_token_id


def test_a_folder_of_2022_loads_without_a_word(tmp_path, no_network, capfd, caplog):
    """The files of Stable Diffusion 1's tokenizer."""
    transformers.logging.set_verbosity_warning()
    tokenizer = clip_tokenizer()
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = {**token, "content": "<|startoftext|>"}
    tokens = {"bos_token": start, "eos_token": token, "pad_token": "<|endoftext|>", "unk_token": token}
    config = {
        **{k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in tokens.items()},
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    loaded = load_tokenizer(tmp_path, "CLIPTokenizer")
    transformers.logging.set_verbosity_error()
    assert_same(loaded, tokenizer)
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"no folder .*tokenizer\.json, or vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path / "nowhere", "CLIPTokenizer")
    with pytest.raises(ArtifactError, match=r"missing tokenizer\.json, or vocab\.txt; found: nothing"):
        load_tokenizer(tmp_path, "BertTokenizer")
    save_tokenizer(LEARNT, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ArtifactError, match=r"missing merges\.txt; found: tokenizer_config\.json, vocab\.json"):
        load_tokenizer(tmp_path, "CLIPTokenizer")
    with pytest.raises(ArtifactError, match=r"missing tokenizer\.json; found"):
        load_tokenizer(tmp_path, "PreTrainedTokenizerFast")
    save_tokenizer(LEARNT, tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(tmp_path, "CLIPTokenizer")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not hold a readable CLIPTokenizer"):
        load_tokenizer(tmp_path, "CLIPTokenizer")


def test_an_interrupted_save_reads_as_new_and_stays_untouched(tmp_path):
    save_tokenizer(clip_tokenizer("!"), tmp_path)
    save_tokenizer(LEARNT, tmp_path / "new")
    for file in (tmp_path / "new").iterdir():
        file.rename(tmp_path / f".{file.name}.beside")
    (tmp_path / "new").rmdir()
    replace = {file.name[1:].removesuffix(".beside"): file.name for file in tmp_path.glob(".*.beside")}
    (tmp_path / JOURNAL).write_text(json.dumps({"replace": replace, "remove": []}))
    before = sorted(tmp_path.iterdir())
    assert_same(load_tokenizer(tmp_path, "CLIPTokenizer"), LEARNT)
    assert sorted(tmp_path.iterdir()) == before


def test_only_known_classes_and_no_code_of_the_folder(tmp_path):
    with pytest.raises(UnknownChoiceError, match="did you mean 'CLIPTokenizer'"):
        load_tokenizer(tmp_path, "CLIPTokeniser")
    with pytest.raises(UnknownChoiceError, match="unknown tokenizer class 'AutoTokenizer'"):
        load_tokenizer(tmp_path, "AutoTokenizer")
    save_tokenizer(LEARNT, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    assert_same(load_tokenizer(tmp_path, "CLIPTokenizer"), LEARNT)
    for name in TOKENIZER_CLASSES:
        assert callable(getattr(transformers, name).from_pretrained)


def test_loading_imports_no_model(tmp_path):
    save_tokenizer(LEARNT, tmp_path)
    code = (
        "import sys; from latentia.conditioners.tokenizers import load_tokenizer;"
        "load_tokenizer(sys.argv[1], 'CLIPTokenizer');"
        "print([m for m in sys.modules if '.modeling_' in m or m in ('accelerate', 'torch._dynamo')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
