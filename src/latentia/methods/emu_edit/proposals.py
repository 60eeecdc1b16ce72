"""Instructions from a language model, one agent a task, as the article makes them; and masks for its pairs.

An agent's prompt is a system message, an introduction of the output keys, and a simulated dialogue of worked
examples; then the caption. Against collapse, the dialogue is new each time: the examples shuffled, a random 60 % of
them kept, their verbs replaced by others of the same meaning.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Protocol

import numpy as np

from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.engine import Proposal
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.render import World, box_of
from latentia.methods.emu_edit.world.sampling import Rejected

KEPT = 0.6
"""Share of the examples that a dialogue keeps."""

TEMPERATURE, TOP_P = 0.9, 0.9
"""The article's sampling of Llama 2."""

VERBS = (
    ("add", "insert", "place", "put"),
    ("change", "turn", "transform", "convert"),
    ("remove", "delete", "erase"),
    ("replace", "swap", "exchange"),
    ("make", "render"),
    ("find", "locate", "detect"),
)
"""Groups of verbs that may stand for each other at the beginning of an instruction."""

Message = Mapping[str, str]
"""`role` (`system`, `user`, `assistant`) and `content`."""


class LanguageModel(Protocol):
    """A dialogue model."""

    def __call__(self, messages: Sequence[Message], temperature: float, top_p: float, seed: int) -> str:
        """The next message."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """One worked example: the caption, and the four keys of the answer."""

    caption: str
    instruction: str
    output_caption: str
    original_object: str
    edited_object: str


@dataclass(frozen=True, slots=True)
class Agent:
    """What makes proposals of one task. `description`: what the task changes."""

    task: str
    description: str
    examples: tuple[Example, ...]

    def messages(self, caption: str, rng: Random) -> list[Message]:
        """The prompt for a caption, with a dialogue of its own."""
        system = (
            "You write one editing instruction for a picture that is described by a caption. "
            'Answer with one JSON object and nothing else: {"instruction", "output_caption", "original_object", '
            '"edited_object"}.'
        )
        introduction = (
            f"The task is '{self.task}': {self.description} 'instruction' tells an editor what to do. 'output_caption' "
            "describes the edited picture and differs from the caption only where it must. 'original_object' names "
            "what is edited, 'edited_object' what it becomes, both without possessives; either may be empty."
        )
        prompt: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": introduction}]
        for example in chosen_examples(self.examples, rng):
            keys = asdict(example)
            prompt.append({"role": "user", "content": keys.pop("caption")})
            keys["instruction"] = with_other_verb(example.instruction, rng)
            prompt.append({"role": "assistant", "content": json.dumps(keys)})
        return [*prompt, {"role": "user", "content": caption}]


def chosen_examples(examples: Sequence[Example], rng: Random, kept: float = KEPT) -> list[Example]:
    """A random share of the examples in random order: `kept` of them, rounded, at least one."""
    if not 0 < kept <= 1:
        raise InputError(f"kept must lie in (0, 1], got {kept}")
    return rng.sample(list(examples), max(1, round(kept * len(examples)))) if examples else []


def with_other_verb(instruction: str, rng: Random) -> str:
    """The instruction with its first verb replaced by one of its group, where it has one; capitals are kept."""
    first, space, rest = instruction.partition(" ")
    group = next((verbs for verbs in VERBS if first.lower() in verbs), None)
    if group is None:
        return instruction
    verb = rng.choice(group)
    return (verb.capitalize() if first[:1].isupper() else verb) + space + rest


def parse_answer(text: str) -> dict[str, str]:
    """The four keys of an answer. Raises `Rejected` when it is no JSON object with them, or leaves the edit empty."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        raise Rejected("answer is no JSON") from None
    keys = ("instruction", "output_caption", "original_object", "edited_object")
    if not isinstance(found, dict) or any(not isinstance(found.get(key), str) for key in keys):
        raise Rejected("answer lacks a key")
    answer = {key: found[key].strip() for key in keys}
    if not answer["instruction"] or not answer["output_caption"]:
        raise Rejected("answer is empty")
    return answer


def without_possessive(phrase: str) -> str:
    """`the dog's tail` → `the tail`: detectors look for plain nouns."""
    for mark in ("'s ", "’s ", "s' ", "s’ "):
        owner, found, rest = phrase.rpartition(mark)
        if found:
            return f"the {rest}" if owner.lower().startswith("the ") else rest
    return phrase


class LanguageSource:
    """A `Source` that asks a language model: a task, a real caption, the agent's prompt, the parsed answer."""

    def __init__(self, model: LanguageModel, agents: Sequence[Agent], captions: Mapping[str, Sequence[str]]) -> None:
        """`captions` by split: `train`, `select`, `test`. Raises `InputError` when there are none, or no agent."""
        if not agents or not captions or not all(captions.values()):
            raise InputError("a language source needs at least one agent and one caption a split")
        for agent in agents:
            check_choice("task", agent.task, TASKS)
        self.model, self.agents, self.captions = model, tuple(agents), captions

    def __call__(self, rng: Random, split: str) -> Proposal:
        """One proposal; raises `Rejected` for an answer that cannot be used."""
        check_choice("split", split, self.captions)
        agent, caption = rng.choice(self.agents), rng.choice(self.captions[split])
        prompt = agent.messages(caption, rng)
        answer = parse_answer(self.model(prompt, TEMPERATURE, TOP_P, rng.getrandbits(31)))
        if answer["output_caption"] == caption:
            raise Rejected("caption unchanged")
        old, new = (without_possessive(answer[key]) for key in ("original_object", "edited_object"))
        return Proposal(agent.task, answer["instruction"], caption, answer["output_caption"], old, new)


def scene_examples(task: str, count: int, seed: int = 0, size: int = 64) -> tuple[Example, ...]:
    """Worked examples of a task from the world's training rows."""
    check_choice("task", task, TASKS)
    rng = Random(seed)
    examples: list[Example] = []
    while len(examples) < count:
        try:
            row = TASKS[task].make(rng, World.of(size), "train")
        except Rejected:
            continue
        objects = row.meta["original_object"], row.meta["edited_object"]
        examples.append(Example(row.input_caption, row.instruction, row.output_caption, *objects))
    return tuple(examples)


def edit_masks(mask: np.ndarray, dilate: float = 0.05, sigma: float = 8 / 512) -> dict[str, np.ndarray]:
    """The article's three masks of a region, float32 (H, W) in [0, 1]: `exact`, `soft` and `box`.

    `soft` is the mask dilated by `dilate` of its box's diagonal, then blurred by a Gaussian of `sigma` of the height;
    both are this project's choice, the article does not say. `box` hides the outline, so that a removed thing is not
    drawn anew.
    """
    from scipy.ndimage import binary_dilation, gaussian_filter  # imported late: only generated pairs need it

    left, top, right, bottom = box_of(mask)
    box = np.zeros(mask.shape, dtype=np.float32)
    box[top:bottom, left:right] = 1
    steps = round(dilate * float(np.hypot(right - left, bottom - top)))
    grown = binary_dilation(mask, iterations=steps) if steps > 0 else mask
    soft = gaussian_filter(grown.astype(np.float32), sigma * len(mask))
    return {"exact": mask.astype(np.float32), "soft": np.clip(soft, 0, 1), "box": box}
