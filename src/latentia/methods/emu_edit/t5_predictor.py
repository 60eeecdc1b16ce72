"""T5TaskPredictor: the article's way to tell the task, a Flan-T5 that reads the instruction; by transformers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from latentia.conditioners.tokenizers import load_tokenizer, save_tokenizer
from latentia.core.config import register_to_config
from latentia.errors import ArtifactError, ConfigError, InputError
from latentia.methods.emu_edit.predictor import TaskPredictorBase, check_tasks
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES

PROMPT = "Which kind of picture edit is this? {instruction}"
TOKENIZER = "tokenizer"
"""Sub-folder of a saved predictor."""
LONGEST = 128
"""Tokens of an instruction that are read."""


class T5TaskPredictor(TaskPredictorBase):
    """A sequence-to-sequence T5 that is asked for the task (Sheynin et al. 2023 fine-tune Flan-T5-XL).

        logit of a task = Σ_j log p(its name's token j | prompt, the tokens before j)

    so that whatever the network would rather say, the answer is one of `tasks`. `loss` fine-tunes it.

    Args:
        t5: arguments of transformers' `T5Config`.
        tasks: names; they are what is scored, so telling ones help a network that was not fine-tuned.
        prompt: what the encoder reads, with `{instruction}` in it.

    `from_t5` starts from published weights. Raises `ConfigError` for a prompt without its slot.
    """

    @register_to_config
    def __init__(self, t5: Mapping[str, Any], tasks: Sequence[str] = TASK_NAMES, prompt: str = PROMPT) -> None:
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        if "{instruction}" not in prompt:
            raise ConfigError(f"the prompt must have {{instruction}} in it, got {prompt!r}")
        self.tasks = check_tasks(tasks)
        self.t5 = T5ForConditionalGeneration(T5Config(**t5))
        self.register_buffer("temperature", torch.ones(()))
        self.tokenizer: Any = None

    @classmethod
    def from_t5(
        cls,
        name_or_path: str | os.PathLike[str],
        tasks: Sequence[str] = TASK_NAMES,
        prompt: str = PROMPT,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = False,
    ) -> Self:
        """Start from a T5 in a folder or on the Hub, `google/flan-t5-xl` say, and its tokenizer.

        Raises `ArtifactError` for what cannot be read; only safetensors are.
        """
        from transformers import AutoTokenizer, T5ForConditionalGeneration

        place: dict[str, Any] = {
            "pretrained_model_name_or_path": os.fspath(name_or_path),
            "local_files_only": local_files_only,
        }
        try:
            t5 = T5ForConditionalGeneration.from_pretrained(**place, use_safetensors=True, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(**place)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{name_or_path} cannot be read as a T5 and its tokenizer: {error}") from error
        made = cls(t5.config.to_diff_dict(), tasks, prompt)
        made.t5.load_state_dict(t5.state_dict())
        made.tokenizer = tokenizer
        return made.to(dtype).eval()

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Prompts (B, L), their mask, and the tasks' names (T, M) padded with −100 → Σ log p (B, T), float32."""
        encoder = self.t5.get_encoder()
        states = encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        count = len(names)
        labels = names.repeat(len(states), 1)
        told = self.t5(
            encoder_outputs=(states.repeat_interleave(count, 0),),
            attention_mask=mask.repeat_interleave(count, 0),
            labels=labels,
        ).logits.float()
        scores = told.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (scores * (labels >= 0)).sum(-1).view(len(states), count)

    def logits(self, instructions: Sequence[str]) -> torch.Tensor:
        """See the base class. Raises `InputError` for a predictor without a tokenizer."""
        if self.tokenizer is None:
            raise InputError("this T5TaskPredictor has no tokenizer: set predictor.tokenizer, or load it from a folder")
        prompts = [self.config.prompt.format(instruction=text) for text in instructions]
        asked = self.tokenizer(prompts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        named = self.tokenizer(list(self.tasks), padding=True, return_tensors="pt")
        names = named["input_ids"].masked_fill(named["attention_mask"] == 0, -100)
        given = asked["input_ids"], asked["attention_mask"], names
        logits: torch.Tensor = self(*(tensor.to(self.device) for tensor in given))
        return logits

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> Path:
        """As `ModelMixin.save_pretrained`, and the tokenizer in a sub-folder."""
        path = super().save_pretrained(folder, **options)
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, path / TOKENIZER)
        return path

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """As `ModelMixin.from_pretrained`, from a folder, with the tokenizer in its sub-folder."""
        found = super().from_pretrained(name_or_path, **options)
        tokenizer = Path(name_or_path) / TOKENIZER
        if tokenizer.is_dir():
            found.tokenizer = load_tokenizer(tokenizer)
        return found
