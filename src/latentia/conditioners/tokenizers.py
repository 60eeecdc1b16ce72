"""Tokenizers of transformers: loaded from local folders, saved so that old and new readers find their files, trained.

transformers is imported when a function is called, and of it only the tokenizers.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from latentia.core.arguments import check_count
from latentia.core.files import read_json
from latentia.core.transaction import JOURNAL, current, names, write_together
from latentia.errors import ArtifactError, InputError, check_choice

_WHOLE = "tokenizer.json"
_BPE = ("vocab.json", "merges.txt")
_WORDPIECE = ("vocab.txt",)
_UNIGRAM = ("spiece.model",)

TOKENIZER_CLASSES: dict[str, tuple[str, ...]] = {
    "BertTokenizer": _WORDPIECE,
    "BertTokenizerFast": _WORDPIECE,
    "CLIPTokenizer": _BPE,
    "CLIPTokenizerFast": _BPE,
    "GPT2Tokenizer": _BPE,
    "GPT2TokenizerFast": _BPE,
    "PreTrainedTokenizerFast": (),
    "RobertaTokenizer": _BPE,
    "RobertaTokenizerFast": _BPE,
    "T5Tokenizer": _UNIGRAM,
    "T5TokenizerFast": _UNIGRAM,
    "TokenizersBackend": (),
}
"""Classes that a folder may name, and the files that make one up when there is no tokenizer.json."""

_FILES = {_WHOLE, *_BPE, *_WORDPIECE, *_UNIGRAM}
_FILES |= {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
"""What a tokenizer may leave in a folder; a save removes those that it does not write."""

BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


def load_tokenizer(folder: str | os.PathLike[str], class_name: str = "PreTrainedTokenizerFast") -> Any:
    """The tokenizer in a local folder: no network, no code from the folder.

    Args:
        folder: with `tokenizer.json`, or the vocabulary files of older releases (`vocab.json` and `merges.txt`, …).
        class_name: as `model_index.json` names it, one of `TOKENIZER_CLASSES`.

    Raises `UnknownChoiceError` for another class, `ArtifactError` that names what is missing or broken.
    """
    check_choice("tokenizer class", class_name, TOKENIZER_CLASSES)
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(f"no folder {path}: a {class_name} needs one with {_needs(class_name)}")
    _check_complete(path, class_name)
    import transformers

    with _settled(path) as settled:
        try:
            return getattr(transformers, class_name).from_pretrained(str(settled), local_files_only=True)
        except Exception as error:  # the library raises anything, bare Exception from its compiled half included
            for name in sorted(names(path) & _FILES):
                if name.endswith(".json"):
                    read_json(current(path / name))  # says which file is truncated
            raise ArtifactError(
                f"{path} does not hold a readable {class_name} ({type(error).__name__}: {error}): "
                "it may be truncated; save or copy it again"
            ) from error


@contextlib.contextmanager
def _settled(path: Path) -> Iterator[Path]:
    """A folder in which the files have their names: `path`, or a copy where a save was interrupted."""
    if not (path / JOURNAL).exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in names(path) & _FILES:
            shutil.copyfile(current(path / name), Path(copy, name))
        yield Path(copy)


def _needs(class_name: str) -> str:
    parts = TOKENIZER_CLASSES[class_name]
    return _WHOLE + (f", or {' and '.join(parts)}" if parts else "")


def _check_complete(path: Path, class_name: str) -> None:
    """Raise `ArtifactError` for missing files: without them transformers quietly makes a tokenizer of two tokens."""
    found = names(path)
    parts = TOKENIZER_CLASSES[class_name]
    if _WHOLE in found or (parts and found.issuperset(parts)):
        return
    missing = [name for name in parts if name not in found] if found & set(parts) else [_needs(class_name)]
    raise ArtifactError(
        f"{path} is not a complete {class_name}: missing {', '.join(missing)}; found: "
        f"{', '.join(sorted(found)) or 'nothing'}. Download or save the folder again"
    )


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write `tokenizer` into `folder`, all or nothing, and return the folder.

    Beside what transformers writes today (`tokenizer.json`, `tokenizer_config.json`) stand the vocabulary files that
    older releases need: `vocab.json` and `merges.txt`, or `vocab.txt`. Raises `ArtifactError` when the disk refuses.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file: give a folder to save into")
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and type(backend.model).__name__ in ("BPE", "WordPiece"):
            backend.model.save(made)
        contents = {file.name: file.read_bytes() for file in sorted(Path(made).iterdir()) if file.is_file()}
    config = contents["tokenizer_config.json"]
    contents["tokenizer_config.json"] = config.replace(b'"TokenizersBackend"', b'"PreTrainedTokenizerFast"')
    writes: dict[str, Callable[[Path], None]] = {name: partial(_write, content) for name, content in contents.items()}
    write_together(target, writes, remove=_FILES - set(writes))
    return target


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def train_bpe(texts: Iterable[str], vocab_size: int = 512, max_length: int = 77) -> Any:
    """A small tokenizer in CLIP's style, learnt from `texts`: byte pairs (Sennrich et al. 2016) of lowercased words.

    Every text in every script can be encoded: all bytes are tokens. Equal texts give equal tokenizers.

    Args:
        texts: what to learn from.
        vocab_size: at most so many tokens, `LEAST_VOCABULARY` of which are bytes and the start and end of a text.
        max_length: L, the tokenizer's `model_max_length`.

    Returns a `CLIPTokenizer` whose last two ids are BOS and EOS, and that pads with EOS. Raises `InputError` for
    texts that are not strings, or sizes too small.
    """
    check_count("vocab_size", vocab_size, LEAST_VOCABULARY)
    check_count("max_length", max_length, 3)
    given = [texts] if isinstance(texts, str) else list(texts)
    wrong = next((text for text in given if not isinstance(text, str)), None)
    if not given or wrong is not None:
        raise InputError(f"expected at least one text to learn from, got {'none' if not given else repr(wrong)}")
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    # A CLIP tokenizer's own rules for lowercasing and for splitting text into words.
    rules = CLIPTokenizer().backend_tokenizer
    base = _base_tokens()
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    # Given as special tokens the bytes get their ids in this order. Left to itself the trainer numbers them as its hash
    # table falls out, and ties between equally frequent pairs are broken by number.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, special_tokens=base, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    learner.train_from_iterator(given, trainer)
    with tempfile.TemporaryDirectory() as made:
        learner.model.save(made)
        lines = Path(made, "merges.txt").read_text(encoding="utf-8").splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    tokens = [*base, *dict.fromkeys("".join(pair) for pair in merges), BOS, EOS]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=max_length)


def _base_tokens() -> list[str]:
    """The bytes of lowercased UTF-8, written as CLIP writes them, inside a word and at its end."""
    written = _byte_letters()
    upper, never = range(ord("A"), ord("Z") + 1), (0xC0, 0xC1, *range(0xF5, 0x100))
    inside = [b for b in range(256) if b not in upper and b not in never]
    last = [b for b in inside if b < 0xC0]  # a character ends in ASCII or in a continuation byte
    return [written[b] for b in inside] + [written[b] + END_OF_WORD for b in last]


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for every byte: itself where it is printable Latin-1, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    strangers = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in printable else next(strangers) for byte in range(256)]


LEAST_VOCABULARY = len(_base_tokens()) + 2
"""Tokens that every vocabulary of `train_bpe` has."""
