"""The page of `tokenizers-study`: rate and distortion, pictures, curves, ablations, samplers, modes, priors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.recipes import tokenizers_study_figures as figures
from latentia.recipes.codec_evaluation import PROTOCOL
from latentia.recipes.codec_report import format_rows
from latentia.recipes.study import FOLDER, StudyPage
from latentia.recipes.tokenizers_study import CODECS, DATA
from latentia.recipes.tokenizers_study_claims import RULER, Claim, accuracy_of, claims, codec_rows, collapsed, slope
from latentia.recipes.tokenizers_study_kept import BITS, FIRST_STAGE
from latentia.recipes.tokenizers_study_stages import DRAWN

if TYPE_CHECKING:
    from latentia.recipes.tokenizers_study import TokenizersStudy

TABLE_4 = {
    "whole": (2.87, 20.71),
    "patches twice as large": (6.39, 19.94),
    "no perceptual loss": (13.86, 22.11),
    "FSQ": (3.14, 21.31),
    "plain logit-normal times": (4.08, 16.45),
    "no guidance": (3.28, 20.67),
}
"""The article's Table 4: rFID and PSNR, ImageNet 256×256, 517 M parameters, 40 epochs, stage 1A."""
BY_MSE = (3.82, 21.40)
"""Its row of an encoder that learns by MSE first, as digits' does here; "encoder with the decoder" is its `whole`."""
TABLE_5 = {"FlowMo-Lo": ((1.10, 21.38), (0.95, 22.07)), "FlowMo-Hi": ((0.73, 24.02), (0.56, 24.93))}
"""Table 5: (rFID, PSNR) after 1A, and after 1A and 1B."""
NAMES = {"digits": "Handwritten digits", "photos": "Photographs"}
CURVES = ("vqvae", "vqgan", "flowmo")
Stages = Mapping[str, Any]


def write_study(recipe: TokenizersStudy, stages: Stages, out: Path) -> list[dict[str, Any]]:
    """Write report.html into `out` from the stages that there are; returns the claims as plain values."""
    rows, found = codec_rows(stages), claims(stages)
    held = sum(each.holds for each in found)
    page = StudyPage(
        "Tokenizers at equal bits",
        f"{' and '.join(f'{BITS[data][1]} bits a picture of {NAMES[data].lower()}' for data in rows) or 'No codec yet'}"
        f" (size={recipe.size}, seed {recipe.seed}). {held} of {len(found)} targets were reached.",
    )
    tell_claims(page, found, collapsed(rows))
    for data in DATA:
        if data in rows:
            tell_data(page, data, rows[data], stages, out)
    tell_whole(page, stages, out)
    tell_ablations(page, stages)
    tell_post_training(page, rows)
    tell_samplers(page, stages)
    tell_modes(page, stages, out)
    tell_priors(page, stages, out)
    page.section("How it was measured", PROTOCOL)
    page.write(out / "report.html")
    return [each.to_dict() for each in found]


def tell_claims(page: StudyPage, found: list[Claim], warnings: list[str]) -> None:
    """Every target with what came of it; collapsed codebooks are warned of here and in the log."""
    page.section("What was to be shown", *(each.says for each in found if not each.holds))
    marks = [[each.claim, each.wanted, each.here, "reached" if each.holds else "missed"] for each in found]
    page.table(["target", "wanted", "here", ""], marks, best=[i for i, each in enumerate(found) if each.holds])
    if warnings:
        page.section("Collapsed codebooks", *warnings)
        for each in warnings:
            logging.getLogger(__name__).warning("%s", each)


def tell_data(page: StudyPage, data: str, codecs: Mapping[str, Any], stages: Stages, out: Path) -> None:
    """Table, plots and pictures of one data set."""
    side, bits = BITS[data]
    formats = stages.get("formats", {}).get(data)
    ruler = RULER[data]
    page.section(
        f"{NAMES[data]}, {side}×{side}, {bits} bits",
        f"All codecs write {bits} bits a picture, {bits / side**2:.4g} a pixel. {ruler}: Fréchet distance between "
        "reconstructions and originals, lower is better. Perplexity stands beside its ceiling. Formats: `payload` "
        "counts entropy-coded bits alone, as tokens are counted; `file` counts everything. A format that cannot make "
        "files so small is shown at the smallest it makes.",
    )
    columns = ["codec", "bits", "bits per pixel", "n", "PSNR", "pooled", "SSIM", ruler]
    columns += ["judge reads", "perplexity", "used", "CPU s", "parameters"]
    table = [codec_row(label, row, ruler) for label, row in codecs.items()]
    rules = []
    if formats:
        rules = [len(table)]
        width = len(columns)
        for each in format_rows(formats, side**2, ruler):
            table.append([*each, *[""] * (width - len(each))])
    best = min(range(len(codecs)), key=lambda i: list(codecs.values())[i]["frechet"][ruler])
    page.table(columns, table, best=[best], rules=rules)
    page.figure(figures.rate_distortion(data, codecs, formats))
    curves = {
        next(reversed(stage["codecs"])).partition("-1A")[0]: stage["curve"]
        for kind in CURVES
        if (stage := stages.get(f"{kind}-{data}")) and stage["curve"]
    }
    if curves:
        page.section(f"{NAMES[data]} against training compute", *curve_sentences(curves))
        page.figure(figures.compute_curves(data, curves))
    page.section(f"{NAMES[data]}, side by side")
    page.pictures(figures.side_by_side(out, [name for name in CODECS if name.endswith(data)], data))


def codec_row(label: str, row: Mapping[str, Any], ruler: str) -> list[str]:
    """One line of the table of codecs."""
    usage = row["usage"]
    return [
        label,
        f"{row['bits']:.0f}",
        f"{row['bits_per_pixel']:.4g}",
        f"{row['n']}",
        f"{row['psnr']:.2f}",
        f"{row['psnr_pooled']:.2f}",
        "" if row["ssim"] is None else f"{row['ssim']:.3f}",
        f"{row['frechet'][ruler]:.4g}",
        f"{row['accuracy']:.3f}" if "accuracy" in row else "",
        f"{usage['perplexity']:.0f} of {usage['ceiling']:.0f}",
        f"{usage['used']:.0f} of {usage['codes']:.0f}",
        f"{row['cpu_seconds']:.0f}",
        f"{row['parameters']:,}",
    ]


def curve_sentences(curves: Mapping[str, Any]) -> list[str]:
    """What each curve's last doubling of compute brought."""
    said = []
    for name, curve in curves.items():
        gain = slope(curve)
        if gain is not None:
            said.append(f"{name}: the last doubling of compute brought {gain:+.2f} dB.")
    return said


def tell_whole(page: StudyPage, stages: Stages, out: Path) -> None:
    """A whole photograph."""
    if "whole" not in stages:
        return
    stage = stages["whole"]
    page.section(
        "A whole photograph",
        f"coffee, {stage['width']}×{stage['height']}: {stage['tiles']} tiles side by side, {stage['bits']:,} bits; "
        "JPEG, WebP and AVIF files of at most as many, headers included. No codec here was trained on it.",
    )
    full, details = figures.whole_photo(out, stage["rows"])
    page.pictures(full)
    page.pictures(details)
    rows = [
        [name, f"{row['bytes']:,}", f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", seconds(row)]
        for name, row in stage["rows"].items()
    ]
    page.table(["by", "bytes", "PSNR", "SSIM", "seconds"], rows)


def seconds(row: Mapping[str, Any]) -> str:
    """There and back, where it was timed."""
    return f"{row['seconds']:.1f}" if "seconds" in row else ""


def tell_ablations(page: StudyPage, stages: Stages) -> None:
    """Beside Table 4."""
    if "ablations" not in stages:
        return
    stage, ruler = stages["ablations"], RULER["digits"]
    rows = stage["rows"]
    whole = rows["whole"]
    table, agree, known = [], 0, 0
    for name, row in rows.items():
        paper = TABLE_4.get(name)
        here = row["frechet"][ruler]
        cells = [name, f"{here:.4g}", f"{here / whole['frechet'][ruler]:.2f} ×", f"{row['psnr']:.2f}"]
        cells.append(f"{row['psnr'] - whole['psnr']:+.2f}")
        cells += [f"{paper[0]:.2f}", f"{paper[1]:.2f}", f"{paper[1] - TABLE_4['whole'][1]:+.2f}"] if paper else [""] * 3
        table.append([*cells, f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "as whole"])
        if paper and name != "whole":
            known += 1
            agree += here > whole["frechet"][ruler]
    page.section(
        "FlowMo's parts",
        f"Stage 1A on digits, {stage['steps']:,} steps each, the encoder's own included, n = {stage['n']}, beside the "
        "article's Table 4 (ImageNet, rFID). Networks, data and lengths differ: compare signs. The rows without a "
        "number of the paper's are choices of this recipe. In the article each change makes rFID worse; here "
        f"{agree} of {known} do. Here the encoder learns by MSE first, which the article found worse ({BY_MSE[0]} and "
        f'{BY_MSE[1]} dB): "encoder with the decoder" is its way, given as many steps.',
    )
    columns = ["changed", ruler, "of whole", "PSNR", "± whole", "paper's rFID", "paper's PSNR", "± whole", "CPU s"]
    page.table(columns, table, best=[0])


def tell_post_training(page: StudyPage, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Beside Table 5."""
    found = {data: codecs for data, codecs in rows.items() if FIRST_STAGE in codecs}
    if not found:
        return
    page.section("What stage 1B does", "Beside the article's Table 5, whose Fréchet distance is rFID on ImageNet.")
    table = []
    for data, codecs in found.items():
        one, two = codecs[FIRST_STAGE], codecs["FlowMo-1A+1B"]
        distances = one["frechet"][RULER[data]], two["frechet"][RULER[data]]
        table.append(change(f"here, {data}: {RULER[data]}", distances, (one["psnr"], two["psnr"])))
    for name, (before, after) in TABLE_5.items():
        table.append(change(f"paper, {name}: rFID", (before[0], after[0]), (before[1], after[1])))
    columns = ["", "1A", "1A+1B", "change", "PSNR, 1A", "PSNR, 1A+1B", "change, dB"]
    page.table(columns, table, rules=[len(found)])


def change(name: str, distance: tuple[float, float], psnr: tuple[float, float]) -> list[str]:
    """Before, after and what became of it."""
    moved = f"{100 * (distance[1] / distance[0] - 1):+.0f} %"
    return [name, *(f"{d:.4g}" for d in distance), moved, *(f"{p:.2f}" for p in psnr), f"{psnr[1] - psnr[0]:+.2f}"]


def tell_samplers(page: StudyPage, stages: Stages) -> None:
    """Steps, grids and guidance."""
    for data, stage in stages.get("samplers", {}).items():
        rows = {label: found for label, found in stage.items() if label not in ("n", "own")}
        page.section(
            f"FlowMo's sampler, {NAMES[data].lower()}", f"n = {stage['n']}; the recipe's own is {stage['own']}."
        )
        page.figure(figures.steps_plot(data, rows))
        table = []
        for name in next(iter(rows.values())):
            cells = [name]
            for found in rows.values():
                each = found[name]
                cells += [f"{each['frechet'][RULER[data]]:.4g}", f"{each['psnr']:.2f}"]
            last = next(reversed(rows.values()))[name]
            table.append([*cells, f"{1000 * last['cpu_seconds_a_picture']:.2f}"])
        columns = ["sampler", *(f"{label}: {what}" for label in rows for what in (RULER[data], "PSNR"))]
        page.table([*columns, "CPU ms a picture"], table)


def tell_modes(page: StudyPage, stages: Stages, out: Path) -> None:
    """Several samples of one code."""
    for data, stage in stages.get("modes", {}).items():
        labels = [label for label in stage if label not in ("codes", "draws")]
        said = [
            f"{label}: pixels of {stage['draws']} samples of one code deviate by {row['deviation']:.4f} on average "
            f"(pictures span 2), {row['largest']:.3f} at most; one sample reaches {row['psnr']:.2f} dB, the mean of "
            f"all {row['psnr_of_mean']:.2f} dB."
            for label, row in ((label, stage[label]) for label in labels)
        ]
        page.section(f"One code, many pictures: {NAMES[data].lower()}", *said)
        page.pictures(figures.modes(out, data, labels, DRAWN))


def tell_priors(page: StudyPage, stages: Stages, out: Path) -> None:
    """Samples of each prior."""
    from PIL import Image

    found = stages.get("priors", {})
    if not found:
        return
    page.section("Digits from tokens", "One class a column; each prior's own page has more.")
    pictures = []
    for name in found:
        file = out / FOLDER / name / "samples.png"
        if file.is_file():
            with Image.open(file) as opened:
                pictures.append((opened.convert("L"), name))
    page.pictures(pictures)
    rows = [
        [
            name,
            each["drawn by"],
            f"{each['n']}",
            f"{accuracy_of(each):.3f}",
            f"{each['numbers'][RULER['digits']]:.4g}",
            f"{each['numbers'][RULER['digits']] / each['floor']:.2f}",
            f"{1000 * each['seconds_alone']:.1f}",
            f"{each['training_seconds']:.0f}",
        ]
        for name, each in found.items()
    ]
    columns = ["prior", "drawn by", "n", "judge's accuracy", RULER["digits"], "× floor", "ms a picture", "training s"]
    page.table(columns, rows)
