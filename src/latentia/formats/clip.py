"""Text encoders inside checkpoints, their names ↔ ours: CLIP, OpenCLIP and the BERT of latent diffusion."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from latentia.errors import ArtifactError
from latentia.formats.rules import Rule, Shape, same
from latentia.formats.unet import count

CLIP_LAYER = (
    *(f"self_attn.{name}." for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *("layer_norm1.", "layer_norm2.", "mlp.fc1.", "mlp.fc2."),
)
CLIP_ENDS = ("embeddings.token_embedding.", "embeddings.position_embedding.", "final_layer_norm.")

HEAD_DIM = 64
"""Width of a head in every published text encoder; no tensor tells it."""
OPEN_CLIP_H_BLOCKS = 24
"""Blocks of OpenCLIP ViT-H, of which Stable Diffusion 2 reads the last but one."""


def clip(names: Iterable[str]) -> Iterator[Rule]:
    """CLIP as transformers names it, with or without `text_model.`, below `transformer.` or not."""
    names = list(names)
    prefix = "transformer." if any(name.startswith("transformer.") for name in names) else ""
    prefix += "text_model." if any(name.startswith(f"{prefix}text_model.") for name in names) else ""
    inner = (
        f"encoder.layers.{i}.{layer}" for i in range(count(names, f"{prefix}encoder.layers.")) for layer in CLIP_LAYER
    )
    for name in (*CLIP_ENDS, *inner):
        yield same(f"{prefix}{name}", f"text_model.{name}")


def our_clip(names: Iterable[str]) -> Iterator[Rule]:
    """CLIP as Stable Diffusion 1 stores it, from our names."""
    for name in names:
        yield same(f"transformer.{name}", name)


def open_clip(blocks: int, prefix: str = "model.") -> Iterator[Rule]:
    """OpenCLIP's text tower, `blocks` deep, as Stable Diffusion 2 stores it."""
    yield same(f"{prefix}token_embedding.", "text_model.embeddings.token_embedding.")
    yield Rule(f"{prefix}positional_embedding", ("text_model.embeddings.position_embedding.weight",))
    yield same(f"{prefix}ln_final.", "text_model.final_layer_norm.")
    for i in range(blocks):
        theirs, ours = f"{prefix}transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        yield Rule(f"{theirs}attn.in_proj_", tuple(f"{ours}self_attn.{x}_proj." for x in "qkv"))
        yield same(f"{theirs}attn.out_proj.", f"{ours}self_attn.out_proj.")
        for their, our in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
            yield same(f"{theirs}{their}.", f"{ours}{our}.")
        for their, our in (("c_fc", "fc1"), ("c_proj", "fc2")):
            yield same(f"{theirs}mlp.{their}.", f"{ours}mlp.{our}.")


def used_blocks(names: Iterable[str], prefix: str = "model.") -> int:
    """How many blocks of an OpenCLIP tower Stable Diffusion 2 runs: all but the last of a whole one.

    A file that somebody already cut has no `text_projection` and lacks the last block.
    """
    names = set(names)
    blocks = count(names, f"{prefix}transformer.resblocks.")
    whole = f"{prefix}text_projection" in names or blocks == OPEN_CLIP_H_BLOCKS
    return blocks - 1 if whole else blocks


def unused_by_stable_diffusion(name: str, blocks: int, prefix: str = "model.") -> bool:
    """Whether an OpenCLIP tensor lies behind the `blocks` that are run."""
    rest = name.removeprefix(prefix)
    block = re.match(r"transformer\.resblocks\.(\d+)\.", rest)
    return rest in ("text_projection", "logit_scale", "attn_mask") or (block is not None and int(block[1]) >= blocks)


def their_bert_layers(names: Iterable[str]) -> int:
    """Layers of LDM's BERT, each of which is two in its own counting."""
    return count(names, "transformer.attn_layers.layers.") // 2


def bert(layers: int) -> Iterator[Rule]:
    """LDM's BERT, an `x-transformers` encoder: attentions are its even layers, feed-forwards the odd ones."""
    yield same("transformer.token_emb.", "model.embed_tokens.")
    yield same("transformer.pos_emb.emb.", "model.embed_positions.")
    yield same("transformer.norm.", "model.layer_norm.")
    yield same("transformer.to_logits.", "to_logits.")
    for i in range(layers):
        attention, feed = (f"transformer.attn_layers.layers.{2 * i + k}." for k in (0, 1))
        ours = f"model.layers.{i}."
        yield same(f"{attention}0.", f"{ours}self_attn_layer_norm.")
        for their, our in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")):
            yield same(f"{attention}1.{their}.", f"{ours}self_attn.{our}.")
        yield same(f"{feed}0.", f"{ours}final_layer_norm.")
        yield same(f"{feed}1.net.0.0.", f"{ours}fc1.")
        yield same(f"{feed}1.net.2.", f"{ours}fc2.")


def clip_config(shapes: Mapping[str, Shape], openai: bool) -> dict[str, Any]:
    """Arguments of `CLIPTextModel` from the shapes of our tensors; `openai` tells quick_gelu from OpenCLIP's gelu."""
    table, inner = "text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight"
    positions = "text_model.embeddings.position_embedding.weight"
    _need(shapes, (table, positions, inner))
    vocab, width = shapes[table]
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": shapes[inner][0],
        "num_hidden_layers": count(shapes, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // HEAD_DIM),
        "max_position_embeddings": shapes[positions][0],
        "hidden_act": "quick_gelu" if openai else "gelu",
        "projection_dim": width,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
    }


def bert_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Arguments of `LDMBertModel` from the shapes of our tensors."""
    table, positions = "model.embed_tokens.weight", "model.embed_positions.weight"
    inner, query = "model.layers.0.fc1.weight", "model.layers.0.self_attn.q_proj.weight"
    _need(shapes, (table, positions, inner, query))
    vocab, width = shapes[table]
    heads = max(1, shapes[query][0] // HEAD_DIM)
    return {
        "vocab_size": vocab,
        "d_model": width,
        "encoder_ffn_dim": shapes[inner][0],
        "encoder_layers": count(shapes, "model.layers."),
        "encoder_attention_heads": heads,
        "head_dim": shapes[query][0] // heads,
        "max_position_embeddings": shapes[positions][0],
    }


def _need(shapes: Mapping[str, Shape], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ArtifactError(
            f"the text encoder has no {', '.join(missing)}: the file is incomplete, or of another family"
        )
