"""Prompts to embeddings: short ones exactly as the peer's, long ones in windows, none told by its neighbours."""

import threading

import diffusers
import pytest
import torch
import transformers

from latentia.conditioners.clip import CLIPTextModel
from latentia.conditioners.ldm_bert import LDMBertModel
from latentia.conditioners.prompts import count_windows, encode_prompts, text_width, token_ids, window_length
from latentia.errors import InputError
from tiny_sd import SENTENCES, bert_tokenizer, clip_tokenizer, randomize, tiny_sd

LONG = " ".join(SENTENCES) + " 日本 🦊 " + " ".join(SENTENCES)
PROMPTS = ["a red cube", "", "it's 3 cats é 🦊 <|endoftext|> on mars", LONG]


def gpt2_tokenizer():
    """Byte pairs without any special token around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*letters, "<pad>"])}, merges=[]))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=learner, pad_token="<pad>", model_max_length=16)


def t5_tokenizer():
    """One special token, behind the text."""
    from tokenizers import processors

    tokenizer = gpt2_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <pad>", special_tokens=[("<pad>", 256)]
    )
    return tokenizer


TOKENIZERS = {
    "clip": clip_tokenizer,
    "clip, other padding": lambda: clip_tokenizer("!"),
    "bert": bert_tokenizer,
    "t5": t5_tokenizer,
    "gpt2": gpt2_tokenizer,
}


def encoder(kind="ours", tokenizer=None, **changed):
    """A tiny text encoder of 77 positions for a tokenizer."""
    vocab = 688 if tokenizer is None else len(tokenizer)
    sizes = {"vocab_size": vocab, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 3, "max_position_embeddings": 77, **changed}
    if kind == "ours":
        return randomize(CLIPTextModel(**sizes, eos_token_id=2), 1)
    if kind == "clip":
        return randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, eos_token_id=2)), 1)
    if kind == "bert":
        return randomize(transformers.BertModel(transformers.BertConfig(**sizes)), 1)
    if kind == "t5":
        sizes = {"vocab_size": vocab, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
        return randomize(transformers.T5EncoderModel(transformers.T5Config(**sizes)), 1)
    sizes = {"vocab_size": vocab, "encoder_layers": 3, "encoder_ffn_dim": 24, "encoder_attention_heads": 2}
    return randomize(LDMBertModel(**sizes, head_dim=8, d_model=16), 1)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_window_is_what_the_tokenizer_gives(name, side):
    tokenizer = TOKENIZERS[name]()
    tokenizer.padding_side = tokenizer.truncation_side = side
    length = tokenizer.model_max_length
    for text in PROMPTS:
        expected = tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids
        assert token_ids(tokenizer, text).tolist() == [[expected]], text
    ids = token_ids(tokenizer, PROMPTS)
    assert (ids.shape, ids.dtype) == ((4, 1, length), torch.int64)
    assert torch.equal(ids[2:3], token_ids(tokenizer, PROMPTS[2]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_windows_hold_the_whole_text_in_order(name):
    tokenizer = TOKENIZERS[name]()
    around = tokenizer("").input_ids
    room = tokenizer.model_max_length - len(around)
    body = tokenizer(LONG, add_special_tokens=False, verbose=False).input_ids
    needed = count_windows(tokenizer, PROMPTS)
    assert needed[:2] == [1, 1]
    assert needed[3] == -(-len(body) // room) > 1
    ids = token_ids(tokenizer, PROMPTS, windows=needed[3] + 1)
    empty = token_ids(tokenizer, "")[0, 0]
    assert torch.equal(ids[3, -1], empty)
    assert torch.equal(ids[0, 1], empty)
    begin = {"t5": 0, "gpt2": 0}.get(name, 1)
    held = [i for window in ids[3].tolist() for i in window[begin : begin + room]][: len(body)]
    assert held == body
    assert all(window[:begin] == around[:begin] for window in ids[3].tolist())
    assert all(window[begin + room :] == around[begin:] for window in ids[3, : needed[3] - 1].tolist())


def test_exactly_full_windows():
    tokenizer = clip_tokenizer()
    assert count_windows(tokenizer, ["3" * n for n in (0, 1, 75, 76, 150, 151)]) == [1, 1, 1, 2, 2, 3]
    assert count_windows(tokenizer, "3" * 9, max_length=5) == [3]
    assert token_ids(tokenizer, "3" * 9, windows=3, max_length=5).shape == (1, 3, 5)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
@torch.no_grad()
def test_equal_to_the_peer(kind, clip_skip):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd(kind), safety_checker=None)
    diffusers.utils.logging.set_verbosity_error()
    own = CLIPTextModel.from_pretrained(tiny_sd(kind), subfolder="text_encoder")
    classic = tie_text_model(pipe.text_encoder)
    expected, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["blurry"] * 4, clip_skip=clip_skip)
    assert classic
    for text_encoder in (own, pipe.text_encoder):
        found = encode_prompts(pipe.tokenizer, text_encoder, PROMPTS, clip_skip=clip_skip)
        assert (found - expected).abs().max() <= 1e-6
        assert (encode_prompts(pipe.tokenizer, text_encoder, ["blurry"] * 4) - negative).abs().max() <= 1e-6


def tie_text_model(text_encoder):
    """diffusers 0.42 looks for the last normalisation where transformers kept it before 5.6."""
    if not hasattr(text_encoder, "text_model"):
        object.__setattr__(text_encoder, "text_model", text_encoder)
    return text_encoder.text_model.final_layer_norm is not None


@pytest.mark.parametrize("kind", ["ours", "clip", "bert", "t5", "ldm"])
@torch.no_grad()
def test_encoders_of_every_kind(kind):
    tokenizer = bert_tokenizer() if kind in ("bert", "ldm") else clip_tokenizer()
    text_encoder = encoder(kind, tokenizer)
    assert text_width(text_encoder) == 16
    assert window_length(tokenizer, text_encoder) == 77
    ids = token_ids(tokenizer, PROMPTS, windows=3)
    found = encode_prompts(tokenizer, text_encoder, PROMPTS, windows=3)
    assert found.shape == (4, 3 * 77, 16)
    for i in range(3):
        expected = text_encoder(ids[:, i])[0]
        assert (found[:, 77 * i : 77 * (i + 1)] - expected).abs().max() <= 2e-6
    if kind == "bert":
        with pytest.raises(InputError, match="BertModel has no normalisation behind its last layer"):
            encode_prompts(tokenizer, text_encoder, PROMPTS, clip_skip=1)
        return
    skipped = encode_prompts(tokenizer, text_encoder, PROMPTS, clip_skip=1)
    norm = {
        "ours": lambda: text_encoder.text_model.final_layer_norm,
        "clip": lambda: text_encoder.final_layer_norm,
        "t5": lambda: text_encoder.encoder.final_layer_norm,
        "ldm": lambda: text_encoder.model.layer_norm,
    }[kind]()
    states = text_encoder(ids[:, 0], output_hidden_states=True).hidden_states
    assert (skipped - norm(states[-2])).abs().max() <= 2e-6
    assert (skipped - found[:, :77]).abs().max() > 0.1
    assert encode_prompts(tokenizer, text_encoder, "", clip_skip=3).shape == (1, 77, 16)
    with pytest.raises(InputError, match="has 3 layers; give 0 to 3"):
        encode_prompts(tokenizer, text_encoder, PROMPTS, clip_skip=4)


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_neighbours():
    tokenizer, text_encoder = clip_tokenizer(), encoder()
    together = encode_prompts(tokenizer, text_encoder, PROMPTS, windows=4)
    for i, text in enumerate(PROMPTS):
        assert torch.equal(encode_prompts(tokenizer, text_encoder, text, windows=4)[0], together[i])
    backwards = encode_prompts(tokenizer, text_encoder, PROMPTS[::-1], windows=4)
    assert torch.equal(backwards.flip(0), together)


@torch.no_grad()
def test_equal_windows_are_encoded_once():
    tokenizer, text_encoder = clip_tokenizer(), encoder()
    calls = []
    text_encoder.register_forward_hook(lambda *_: calls.append(1))
    out = encode_prompts(tokenizer, text_encoder, ["a cube", "", "a cube", LONG, LONG], windows=4)
    needed = count_windows(tokenizer, LONG)[0]
    assert len(calls) == 2 + needed
    assert torch.equal(out[0], out[2])
    assert torch.equal(out[3], out[4])
    assert not torch.equal(out[0], out[1])


@torch.no_grad()
def test_a_mask_goes_only_to_those_that_ask_for_it():
    tokenizer, text = clip_tokenizer("!"), "a small red cube !"
    plain, masked = encoder(), encoder(use_attention_mask=True)
    dressed = tokenizer([text, "a"], padding="max_length", max_length=77, return_tensors="pt")
    wanted = masked(dressed.input_ids, attention_mask=dressed.attention_mask)[0]
    assert (encode_prompts(tokenizer, masked, [text, "a"]) - wanted).abs().max() <= 1e-6
    assert (encode_prompts(tokenizer, plain, [text, "a"]) - plain(dressed.input_ids)[0]).abs().max() <= 1e-6
    # Equal ids with other masks are other windows: the end of the text is also what CLIP pads with.
    clip = clip_tokenizer()
    peer = encoder("bert", clip)
    peer.config.use_attention_mask = True
    pair = encode_prompts(clip, peer, ["a<|endoftext|>", "a"])
    assert torch.equal(token_ids(clip, "a<|endoftext|>"), token_ids(clip, "a"))
    assert not torch.equal(pair[0], pair[1])


def test_the_shorter_of_both_lengths_counts():
    tokenizer = clip_tokenizer()
    short = encoder(max_position_embeddings=20)
    assert window_length(tokenizer, short) == 20
    assert encode_prompts(tokenizer, short, LONG, windows=2).shape == (1, 40, 16)
    assert window_length(gpt2_tokenizer(), encoder()) == 16
    endless = gpt2_tokenizer()
    endless.model_max_length = int(1e30)
    assert window_length(endless, encoder()) == 77
    with pytest.raises(InputError, match=r"set tokenizer\.model_max_length"):
        token_ids(endless, "a")


def test_gradients_and_dtypes_pass():
    tokenizer, text_encoder = clip_tokenizer(), encoder()
    encode_prompts(tokenizer, text_encoder, PROMPTS).square().mean().backward()
    assert all(p.grad is not None for p in text_encoder.parameters())
    half = encode_prompts(tokenizer, encoder().to(torch.bfloat16), "a")
    assert half.dtype == torch.bfloat16


def test_not_a_word_of_long_texts(capfd, caplog):
    transformers.logging.set_verbosity_warning()
    tokenizer = clip_tokenizer()
    count_windows(tokenizer, LONG)
    encode_prompts(tokenizer, encoder(), [LONG, "a"], windows=2)
    transformers.logging.set_verbosity_error()
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""


def test_threads_share_a_tokenizer():
    tokenizer, text_encoder = clip_tokenizer(), encoder()
    expected = {n: encode_prompts(tokenizer, text_encoder, PROMPTS, windows=n) for n in (1, 2, 3, 4)}
    wrong = []

    def work(n):
        for _ in range(5):
            if not torch.equal(encode_prompts(tokenizer, text_encoder, PROMPTS, windows=n), expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("prompts", [[], None, 3, ["a", 3], [["a"]]])
def test_wrong_prompts_are_named(prompts):
    for call in (count_windows, token_ids, lambda t, p: encode_prompts(t, encoder(), p)):
        with pytest.raises(InputError, match="expected a prompt or a list of at least one, got"):
            call(clip_tokenizer(), prompts)


def test_wrong_numbers_and_tokenizers_are_named():
    tokenizer, text_encoder = clip_tokenizer(), encoder()
    with pytest.raises(InputError, match="windows must be an integer of at least 1, got 0"):
        token_ids(tokenizer, "a", windows=0)
    with pytest.raises(InputError, match="clip_skip must be an integer of at least 0, got -1"):
        encode_prompts(tokenizer, text_encoder, "a", clip_skip=-1)
    with pytest.raises(InputError, match="no room for text beside 2 special ones"):
        token_ids(tokenizer, "a", max_length=2)
    padless = gpt2_tokenizer()
    padless.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        token_ids(padless, "a")
    with pytest.raises(InputError, match="vocabulary: is this the tokenizer that belongs to it"):
        encode_prompts(tokenizer, encoder(vocab_size=100), "a")
    with pytest.raises(InputError, match="neither hidden_size nor d_model"):
        text_width(_Widthless())


class _Widthless:
    config = object()
