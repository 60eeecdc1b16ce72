"""Judge edits, a model's or a folder's, on a benchmark; every number says on what, how and with which networks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentia.core.config import to_json
from latentia.core.files import write_text_atomic
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Editor, carry_out
from latentia.methods.emu_edit.benchmarks.emu_edit_set import EmuEditSet
from latentia.methods.emu_edit.benchmarks.magicbrush import MagicBrush
from latentia.methods.emu_edit.benchmarks.published import Published, beside
from latentia.methods.emu_edit.benchmarks.results import BASELINES, oracle, write_inputs
from latentia.methods.emu_edit.benchmarks.scales import OWN, SCALES, captions_of, choose_scale, result_name
from latentia.methods.emu_edit.benchmarks.scenes import Scenes
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.measures.contrastive import retrieval
from latentia.methods.emu_edit.measures.measure import EditMeter, Extractors
from latentia.methods.emu_edit.measures.towers import SceneTowers, SceneTrunk
from latentia.metrics.measurement import Measurement
from latentia.recipes.edit_editors import PipelineEditor, open_editor
from latentia.recipes.scene_towers import scene_towers
from latentia.recipes.sources import resolve_device

BENCHMARKS = ("emu-edit", "magicbrush", "scenes")
SPLITS = {"emu-edit": "test", "magicbrush": "dev", "scenes": "test"}
SCENES = 512
"""Rows of `scenes` that are measured when no number is given."""


@dataclass(frozen=True, slots=True)
class EditRequest:
    """What to judge, on what, with what.

    Attributes:
        benchmark: one of `BENCHMARKS`.
        data: folder or Hub id of the benchmark; not for `scenes`.
        split: None: `test`, of MagicBrush `dev`.
        protocol: of MagicBrush.
        scale: one of `SCALES` or `own`; None: the first that the networks fit.
        clip, dino: folders or Hub ids of published networks.
        towers: folder of the scenes' own network, trained there first if it is not there. `scenes` uses it when there
            is neither `clip` nor `dino`; None: the `towers` of the run, or one trained for this evaluation alone.
        captions, global_captions: MagicBrush's files.
        count: the first so many edits; None: all, of `scenes` `SCENES`.
        size: side of the pictures of `scenes`.
        seed: of `scenes`' rows and of a pipeline's noise.
        steps, guidance, image_guidance: of a pipeline; None: its own.
        tell_task: tell a pipeline the true task instead of letting it guess.
        batch_size: edits made and measured together.
        device: where networks run.
        baselines: editors measured beside, of `copy`, `grey` and `oracle`.
        export: folder that inputs and instructions are written into, for another program to edit.
    """

    benchmark: str
    data: str | None = None
    split: str | None = None
    protocol: str = "single-turn"
    scale: str | None = None
    clip: str | None = None
    dino: str | None = None
    towers: Path | None = None
    captions: Path | None = None
    global_captions: Path | None = None
    count: int | None = None
    size: int = 64
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    tell_task: bool = False
    batch_size: int = 16
    device: str = "auto"
    baselines: Sequence[str] = ("copy",)
    export: Path | None = None

    def __post_init__(self) -> None:
        check_choice("benchmark", self.benchmark, BENCHMARKS)
        for name in self.baselines:
            check_choice("baseline", name, (*BASELINES, "oracle"))
        if self.data is None and self.benchmark != "scenes":
            raise InputError(f"{self.benchmark} is not shipped: give its folder or Hub id")


@dataclass(slots=True)
class Judged:
    """The numbers of one editor: over all edits, over each group, and of exact scoring by task where there is one."""

    numbers: list[Measurement]
    groups: dict[str, list[Measurement]]
    exact: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        groups = {name: [each.to_dict() for each in numbers] for name, numbers in self.groups.items()}
        return {"measurements": [each.to_dict() for each in self.numbers], "groups": groups, "exact": self.exact}


@dataclass(slots=True)
class EditReport:
    """Everything that `latentia evaluate edit` found.

    Attributes:
        what: benchmark, split, protocol, scale, what was judged, the networks.
        editors: the judged editor under `edited`, and each baseline under its name.
        skipped: rows of the benchmark that were left out, by reason.
        notes: what a reader must know.
        published: rows of papers on the same scale.
    """

    what: dict[str, Any]
    editors: dict[str, Judged]
    skipped: dict[str, int]
    notes: list[str]
    published: list[Published]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = {name: judged.to_dict() for name, judged in self.editors.items()}
        rows = [row._asdict() for row in self.published]
        return {**self.what, "skipped": self.skipped, "notes": self.notes, "editors": told, "published": rows}

    def write(self, path: Path) -> None:
        """The report as a JSON file."""
        write_text_atomic(path, to_json(self.to_dict()))


def evaluate_edits(edited: str | os.PathLike[str] | Editor, request: EditRequest) -> EditReport:
    """Judge `edited`: a pipeline (folder, run, Hub id), a folder of results, a baseline's name, or any editor.

    Raises `InputError` for a scale that the networks are not of, or an argument that the benchmark does not know;
    `ArtifactError` for missing files, pictures and results.
    """
    plain = request.benchmark == "scenes" and request.towers is None and request.clip is None and request.dino is None
    if plain and not callable(edited):
        request = replace(request, towers=towers_beside(Path(edited)))
    extractors = open_extractors(request)
    scale = choose_scale(request.scale, request.benchmark, *extractors.names())
    benchmark = open_benchmark(request, scale)
    if not benchmark.cases:
        raise InputError(f"nothing is left of {benchmark.name}: skipped {dict(benchmark.skipped)}")
    if request.export is not None:
        write_inputs(benchmark, request.export)
    editor, made = (edited, True) if callable(edited) else open_editor(edited, benchmark, request)
    meters = {"edited": judge(benchmark, editor, extractors, request, scale, continued=made)}
    for name in request.baselines:
        chosen = oracle(benchmark) if name == "oracle" else BASELINES[name]
        meters[name] = judge(benchmark, chosen, extractors, request, scale)
    what = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "protocol": benchmark.protocol,
        "scale": scale,
        "edited": "an editor" if callable(edited) else os.fspath(edited),
        "clip": extractors.names()[0],
        "dino": extractors.names()[1],
        "n": sum(case.counted for case in benchmark.cases),
        "seed": request.seed,
    }
    published = [] if scale == OWN else beside(benchmark.name, benchmark.split, benchmark.protocol, scale)
    told = editor.told_right(benchmark.cases) if isinstance(editor, PipelineEditor) else None
    notes = [
        *([] if told is None else [told]),
        *benchmark.notes,
        *scale_notes(scale, extractors),
        *own_worth(extractors),
    ]
    if request.count is not None and published:
        published = []
        notes.append("a part of the set was measured: published numbers of the whole are left out")
    return EditReport(what, meters, dict(benchmark.skipped), notes, published)


def towers_beside(path: Path) -> Path | None:
    """The scenes' network that a run, or the run that this is the pipeline of, has kept; None without one."""
    near = (path / "towers", path.parent / "towers")
    return next((folder for folder in near if (folder / "config.json").is_file()), None)


def open_extractors(request: EditRequest) -> Extractors:
    """The networks that were asked for; for `scenes`, without any, the scenes' own."""
    from latentia.methods.emu_edit.measures.clip import ClipFeatures
    from latentia.methods.emu_edit.measures.dino import DinoFeatures

    device = resolve_device(request.device)
    published = request.clip is not None or request.dino is not None
    if published and request.towers is not None:
        raise InputError("give published networks (clip, dino) or the scenes' own (towers), not both")
    if published:
        clip = None if request.clip is None else ClipFeatures(request.clip, device)
        return Extractors(clip, None if request.dino is None else DinoFeatures(request.dino, device))
    if request.towers is None and request.benchmark != "scenes":
        return Extractors()
    towers = scene_towers(request.towers).to(device)
    return Extractors(towers, SceneTrunk(towers))


def open_benchmark(request: EditRequest, scale: str) -> Benchmark:
    """The benchmark with its cases read, cut to `count`."""
    split = request.split or SPLITS[request.benchmark]
    made: Benchmark
    if request.benchmark == "scenes":
        return Scenes(request.count or SCENES, request.size, split, seed=request.seed)
    source = request.data or ""
    if request.benchmark == "emu-edit":
        made = EmuEditSet(source, split, captions_of(scale))
    else:
        made = MagicBrush(source, split, request.protocol, request.captions, request.global_captions)
    made.first(request.count)
    return made


def judge(
    benchmark: Benchmark,
    editor: Editor,
    extractors: Extractors,
    request: EditRequest,
    scale: str,
    continued: bool = True,
) -> Judged:
    """Let the editor do every case, and measure."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def exactly(case: Case, result: np.ndarray) -> None:
        for name, value in benchmark.score(case, result).items():
            found[case.group][name].append(value)

    meter = EditMeter(extractors, request.batch_size)
    meter.add(carry_out(benchmark, editor, request.batch_size, continued, exactly))
    seed = request.seed if request.benchmark == "scenes" else None

    def named(group: str | None) -> list[Measurement]:
        return [
            Measurement(
                result_name(benchmark.name, benchmark.split, benchmark.protocol, scale, each.name.split("[")[0])
                + each.name,
                each.value,
                each.n_generated,
                seed=seed,
                details=each.details,
            )
            for each in meter.measurements(group)
        ]

    numbers = named(None)
    prefix = result_name(benchmark.name, benchmark.split, benchmark.protocol, OWN, "")
    total = [Measurement(f"{prefix}unchanged", meter.unchanged / meter.edits, meter.edits, seed=seed)]
    if meter.captions_cut:
        total.append(Measurement(f"{prefix}captions_cut", float(meter.captions_cut), meter.edits))
    means = {task: {"n": len(next(iter(v.values()))), **_means(v)} for task, v in sorted(found.items())}
    if found:
        hits = [value for measures in found.values() for value in measures["success"]]
        total.append(Measurement(f"{prefix}success[exact]", float(np.mean(hits)), len(hits), seed=seed))
    return Judged([*numbers, *total], {group: named(group) for group in meter.group_names() if group}, means)


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(each)) for name, each in values.items()}


def own_worth(extractors: Extractors) -> list[str]:
    """What the scenes' own network is worth on held-out scenes, in a sentence; nothing for published networks."""
    towers = extractors.joint
    if not isinstance(towers, SceneTowers):
        return []
    rows = SceneRows("test", WORTH, towers.config.size, seed=WORTH)
    found = retrieval(towers, [rows.row(i) for i in range(WORTH)])
    return [
        f"{towers.name} is a small network trained on the scenes, not CLIP or DINO; on held-out scenes "
        + " and ".join(f"{each.name} is {each.value:.2f} (n = {each.n_generated})" for each in found.values())
    ]


WORTH = 400
"""Held-out rows that this is measured on."""


def scale_notes(scale: str, extractors: Extractors) -> list[str]:
    """What is to be said of a scale, and of what was not measured."""
    notes = [] if scale == OWN else [f"scale {scale}: {SCALES[scale].told}"]
    joint, alike = extractors.names()
    missing = [name for name, there in (("clip", joint), ("dino", alike)) if there is None]
    if missing:
        notes.append(f"no {' and no '.join(missing)} network was given: only the other measures")
    return notes
