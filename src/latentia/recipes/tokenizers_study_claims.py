"""What `tokenizers-study` was to show, each target beside what this run found; sentences made of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from latentia.recipes.tokenizers_study_kept import FIRST_STAGE, LABELS
from latentia.training.codebook_health import ADVICE, COLLAPSED

Stages = Mapping[str, Any]
RULER = {"digits": "frechet_digits", "photos": "frechet_photo_features"}
GOAL_PSNR, GOAL_GAIN, GOAL_ACCURACY, GOAL_SPEED = 27.5, 0.25, 0.95, 5.0
BOTH = LABELS["flowmo"]
KINDS = {"FSQ": "fixed", "LFQ": "signs"}
"""Codec → how its codes come about, for advice; all others follow moving averages."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One target.

    Attributes:
        claim: what was to be shown.
        wanted, here: the bound, and what was found.
        holds: whether it was reached.
        says: one sentence, with by how much it was missed or passed; then, where other stages tell, why.
    """

    claim: str
    wanted: str
    here: str
    holds: bool
    says: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def claims(stages: Stages) -> list[Claim]:
    """Every target that these stages say something about."""
    rows = codec_rows(stages)
    found = [*of_codecs(rows), *of_flowmo(rows)]
    for data, each in stages.get("samplers", {}).items():
        found += of_samplers(data, each)
    found += of_priors(stages.get("priors", {}))
    return [each if each.holds else explained(each, stages) for each in found]


def explained(claim: Claim, stages: Stages) -> Claim:
    """A missed target with the numbers of other stages that say why, where they have been measured."""
    found = [reason for name, tell in REASONS.items() if name in claim.claim for reason in tell(claim, stages)]
    return replace(claim, says=" ".join([claim.says, *found]))


def _data_of(claim: Claim) -> str:
    return next(data for data, ruler in RULER.items() if ruler in claim.claim)


def _why_behind_gan(claim: Claim, stages: Stages) -> Iterator[str]:
    """How well a code is heard, and what more training would bring."""
    data = _data_of(claim)
    plain = codec_rows(stages)[data].get("VQ-VAE")
    ways = stages.get("samplers", {}).get(data, {}).get(FIRST_STAGE, {})
    if plain and ways:
        best = max(ways, key=lambda name: ways[name]["psnr"])
        less = "less" if ways[best]["psnr"] < plain["psnr"] else "no less"
        yield (
            f"Sampled in the most faithful way ({best}), stage 1A has {ways[best]['psnr']:.1f} dB where VQ-VAE has "
            f"{plain['psnr']:.1f}: code and decoder together have learnt {less} of the picture."
        )
    risen = slope(stages[f"flowmo-{data}"].get("curve") or [])
    if risen is not None:
        yield f"The last doubling of its training brought {risen:+.2f} dB."


def _why_post_training(claim: Claim, stages: Stages) -> Iterator[str]:
    """Samples of one code that have drawn together."""
    modes = stages.get("modes", {}).get(_data_of(claim), {})
    if FIRST_STAGE in modes and BOTH in modes:
        yield (
            f"1B seeks the one picture nearest to the original: samples of one code deviate by "
            f"{modes[BOTH]['deviation']:.3f} after it, by {modes[FIRST_STAGE]['deviation']:.3f} before, and what is "
            "nearer to each picture is not nearer to their distribution."
        )


def _why_shifted(claim: Claim, stages: Stages) -> Iterator[str]:
    """Steps that are spent where the picture is known already."""
    modes = stages.get("modes", {}).get(_data_of(claim), {}).get(FIRST_STAGE)
    if modes:
        yield (
            f"Samples of one code differ by {modes['deviation']:.3f} only: once the code is heard little is left to "
            "decide, and the shifted grid spends most of its steps there, where errors of the network may add up. The "
            "article's decoder is trained far longer."
        )


def _why_unused(claim: Claim, stages: Stages) -> Iterator[str]:
    yield "Counted on the held-out tiles alone: codes may stand for what only photographs of training show."


REASONS: Mapping[str, Callable[[Claim, Stages], Iterator[str]]] = {
    "at most VQGAN's": _why_behind_gan,
    "of 1A+1B, below 1A's": _why_post_training,
    "of the shifted sampler": _why_shifted,
    "codes in use": _why_unused,
}
"""Part of a claim → what tells why it was missed."""


def codec_rows(stages: Stages) -> dict[str, dict[str, Any]]:
    """Data → label → numbers, of the codecs that there are."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages.values():
        if "codecs" in stage:
            found.setdefault(stage["data"], {}).update(stage["codecs"])
    return found


def of_codecs(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Claim]:
    """VQ-VAE's PSNR and codes, VQGAN's Fréchet distance: on photographs."""
    photos = rows.get("photos", {})
    plain, gan = photos.get("VQ-VAE"), photos.get("VQGAN")
    if plain:
        yield at_least(
            "VQ-VAE's PSNR on photographs", GOAL_PSNR, plain["psnr"], "dB", f"{plain['cpu_seconds']:.0f} CPU seconds"
        )
        used, codes = plain["usage"]["used"], plain["usage"]["codes"]
        yield at_least("VQ-VAE's codes in use on photographs", codes, used, "codes", f"{plain['n']} tiles")
    if plain and gan:
        ruler = RULER["photos"]
        gain = 1 - gan["frechet"][ruler] / plain["frechet"][ruler]
        yield at_least(
            f"how far VQGAN's {ruler} is below VQ-VAE's", 100 * GOAL_GAIN, 100 * gain, "%", "equal bits, photographs"
        )


def of_flowmo(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Claim]:
    """FlowMo against VQGAN, and 1B against 1A."""
    for data, codecs in rows.items():
        name = RULER[data]
        first, both, gan = codecs.get(FIRST_STAGE), codecs.get(BOTH), codecs.get("VQGAN")
        if both and gan:
            best = min((each for each in (first, both) if each), key=lambda each: each["frechet"][name])
            note = f"{best['cpu_seconds']:.0f} against {gan['cpu_seconds']:.0f} CPU seconds, equal bits"
            yield at_most(f"FlowMo's {name}, at most VQGAN's", gan["frechet"][name], best["frechet"][name], note)
        if first and both:
            yield at_least(f"PSNR of 1A+1B above 1A's on {data}", first["psnr"], both["psnr"], "dB", "Table 5", True)
            yield at_most(
                f"{name} of 1A+1B, below 1A's", first["frechet"][name], both["frechet"][name], "Table 5", True
            )


def of_samplers(data: str, stage: Mapping[str, Any]) -> Iterator[Claim]:
    """The shifted grid against the linear one, guidance in an interval against none; after 1A, as in Table 4."""
    if FIRST_STAGE not in stage:
        return
    name, rows = RULER[data], stage[FIRST_STAGE]
    own = rows[stage["own"]]["frechet"][name]
    note = f"{stage['own']}, n = {stage['n']}"
    linear, shifted = value(rows, "linear", name), value(rows, "shifted", name)
    yield at_most(f"{name} of the shifted sampler, below the linear one's", linear, shifted, note, True)
    yield at_most(f"{name} of guidance in an interval, below none's", value(rows, "no guidance", name), own, note, True)


def of_priors(found: Mapping[str, Any]) -> Iterator[Claim]:
    """Accuracy of both, and MaskGIT's speed."""
    names = {"maskgit-digits": "MaskGIT", "gpt-digits": "the autoregressive transformer"}
    for key, name in names.items():
        if key in found:
            each = found[key]
            yield at_least(
                f"judge's accuracy on digits by {name}", GOAL_ACCURACY, accuracy_of(each), "", f"n = {each['n']}"
            )
    if len(found) == len(names):
        ratio = found["gpt-digits"]["seconds_alone"] / found["maskgit-digits"]["seconds_alone"]
        yield at_least("MaskGIT's speed over the autoregressive one's", GOAL_SPEED, ratio, "×", "one picture alone")


def accuracy_of(prior: Mapping[str, Any]) -> float:
    """The judge's accuracy in a prior's row."""
    return next(float(v) for key, v in prior["numbers"].items() if key.startswith("accuracy"))


def value(rows: Mapping[str, Any], name: str, ruler: str) -> float:
    """A Fréchet distance in a table of samplers."""
    return float(rows[name]["frechet"][ruler])


def at_least(claim: str, wanted: float, here: float, unit: str, note: str, strictly: bool = False) -> Claim:
    """A bound from below; `strictly` above it."""
    unit = f" {unit}" if unit else ""
    gap = abs(here - wanted)
    holds = here > wanted if strictly else here >= wanted
    verdict = f"reached, by {gap:.3g}{unit}" if holds else f"missed by {gap:.3g}{unit}"
    says = f"{claim}: {here:.4g}{unit} where {wanted:.4g}{unit} was asked for ({note}): {verdict}."
    return Claim(claim, f"{'>' if strictly else '≥'} {wanted:.4g}{unit}", f"{here:.4g}{unit}", holds, sentence(says))


def at_most(claim: str, wanted: float, here: float, note: str, strictly: bool = False) -> Claim:
    """A bound from above, on a distance; `strictly` below it."""
    ratio = here / wanted if wanted else float("inf")
    holds = here < wanted if strictly else here <= wanted
    verdict = f"reached, {ratio:.3g} × of it" if holds else f"missed: {ratio:.3g} × of it"
    says = f"{claim}: {here:.4g} beside {wanted:.4g} ({note}): {verdict}."
    return Claim(claim, f"{'<' if strictly else '≤'} {wanted:.4g}", f"{here:.4g}", holds, sentence(says))


def sentence(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:] if text[:7] != "frechet" else text


def collapsed(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A warning for each codec whose codes have collapsed: perplexity below a tenth of its ceiling."""
    return [
        f"{label} on {data} has collapsed: perplexity {usage['perplexity']:.1f} of {usage['ceiling']:.0f} possible "
        f"({usage['used']:.0f} of {usage['codes']:.0f} codes used); {ADVICE[KINDS.get(label, 'ema')]}."
        for data, codecs in rows.items()
        for label, numbers in codecs.items()
        if (usage := numbers["usage"]) and usage["perplexity"] < COLLAPSED * usage["ceiling"]
    ]


def slope(curve: list[dict[str, Any]]) -> float | None:
    """dB that the last doubling of training compute brought, interpolated; None where the curve is too short."""
    import math

    if len(curve) < 2:
        return None
    points = [(math.log2(max(each["cpu_seconds"], 1e-3)), each["psnr"]) for each in curve]
    end, last = points[-1]
    before = [(x, y) for x, y in points if x <= end - 1]
    if not before:
        return None
    (x0, y0), (x1, y1) = before[-1], points[len(before)]
    share = (end - 1 - x0) / (x1 - x0) if x1 > x0 else 0.0
    return float(last - (y0 + share * (y1 - y0)))
