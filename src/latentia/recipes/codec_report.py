"""The report of a codec, whichever family it is of: report.json, report.html and reconstructions.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentia.core.files import write_text_atomic
from latentia.core.images import grid
from latentia.core.protocols import Codec, FeatureNetwork
from latentia.recipes.codec_evaluation import PROTOCOL, CodecNumbers, evaluate_codec, evaluate_formats
from latentia.recipes.report import Report
from latentia.training.codebook_health import COLLAPSED

SHOWN = 16
FORMAT_PIXELS = 2**20
"""Formats are tried on at most so many pixels: 1024 tiles of 32×32; on the first n and without Fréchet distance where
there are more."""


def write_report(
    name: str,
    codec: Codec,
    pictures: torch.Tensor,
    rulers: Sequence[FeatureNetwork],
    out: Path,
    split: str,
    facts: Mapping[str, Any] | None = None,
) -> CodecNumbers:
    """Judge the codec on pictures (N, C, H, W) in [-1, 1], beside image formats at the same bits; returns its numbers.

    Args:
        name: of the recipe.
        codec: with or without tokens; formats are tried for one with tokens.
        pictures: held-out.
        rulers: of Fréchet distances.
        out: folder of the three files.
        split: where the pictures come from, said in the report.
        facts: further entries of report.json.
    """
    numbers, back = evaluate_codec(codec, pictures, rulers)
    rows = torch.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).long()
    sheet = grid(torch.cat([pictures[rows], back[rows]]), columns=len(rows), scale=3)
    sheet.save(out / "reconstructions.png")
    formats = formats_beside(pictures, numbers.bits_per_pixel, rulers)
    assert isinstance(codec, torch.nn.Module)
    told = {"recipe": name, "split": split, **numbers.to_dict(), "formats": formats}
    told |= {"parameters": sum(p.numel() for p in codec.parameters()), **(facts or {})}
    write_text_atomic(out / "report.json", json.dumps(told, indent=2) + "\n")
    page(told, tuple(pictures.shape[1:]), sheet).write(out / "report.html")
    return numbers


def formats_beside(
    pictures: torch.Tensor, bits_per_pixel: float | None, rulers: Sequence[FeatureNetwork]
) -> dict[str, Any]:
    """JPEG, WebP and AVIF at the same bits: entropy-coded bits alone, and whole files. Empty without bits."""
    if bits_per_pixel is None:
        return {}
    most = max(1, FORMAT_PIXELS // (pictures.shape[-1] * pictures.shape[-2]))
    measured = rulers if len(pictures) <= most else ()
    few = pictures[:most]
    return {
        "n": len(few),
        "without headers": evaluate_formats(few, bits_per_pixel, measured, headers=False),
        "with headers": evaluate_formats(few, bits_per_pixel, measured, headers=True),
    }


def format_rows(formats: Mapping[str, Any], pixels: int, ruler: str | None) -> list[list[str]]:
    """Lines of a table: name, bits of a picture, bits per pixel, n, PSNR, pooled, SSIM and, with `ruler`, its number.

    `pixels` of a picture.
    """
    rows = []
    for how, word in (("without headers", "payload"), ("with headers", "file")):
        for name, row in formats[how].items():
            spent = row["bits_per_pixel"]
            fits = "" if row["fits"] == 1 else f", {row['fits']:.0%} fit"
            cells = [f"{name}, {word}{fits}", f"{pixels * spent:.0f}", f"{spent:.4g}"]
            cells += [f"{row['n']}", f"{row['psnr']:.2f}", f"{row['psnr_pooled']:.2f}"]
            cells.append("" if row["ssim"] is None else f"{row['ssim']:.3f}")
            if ruler:
                cells.append(f"{row['frechet'][ruler]:.4g}" if ruler in row["frechet"] else "")
            rows.append(cells)
    return rows


def page(told: Mapping[str, Any], shape: tuple[int, ...], sheet: Any) -> Report:
    """report.html of what report.json holds."""
    usage, pixels = told["usage"], shape[-1] * shape[-2]
    lead = f"PSNR {told['psnr']:.2f} dB on {told['n']:,} held-out pictures ({told['split']})"
    if told["bits_per_pixel"] is not None:
        lead += f" at {told['bits_per_pixel'] * pixels:.0f} bits each, {told['bits_per_pixel']:.4g} a pixel"
    made = Report(f"{told['recipe']}: a codec of {'×'.join(map(str, shape))}", f"{lead}.")
    made.section("There and back", "Held-out pictures above, what comes back below.")
    made.pictures([(sheet, told["split"])])
    rulers = list(told["frechet"])
    columns = ["by", "bits", "bits per pixel", "n", "PSNR", "pooled", "SSIM", *rulers[:1]]
    bits = None if told["bits_per_pixel"] is None else told["bits_per_pixel"] * pixels
    own = [told["recipe"], *(("", "") if bits is None else (f"{bits:.0f}", f"{told['bits_per_pixel']:.4g}"))]
    own += [f"{told['n']}", f"{told['psnr']:.2f}", f"{told['psnr_pooled']:.2f}"]
    own += ["" if told["ssim"] is None else f"{told['ssim']:.3f}", *(f"{told['frechet'][r]:.4g}" for r in rulers[:1])]
    rows = [own]
    if bits is not None and told["formats"]:
        rows += format_rows(told["formats"], pixels, rulers[0] if rulers else None)
    made.section("Beside image formats at the same bits", PROTOCOL)
    made.table(columns, rows, best=[0], rules=[1] if len(rows) > 1 else [])
    if usage is not None:
        made.section("Codes", told_usage(usage))
    timed = f"{1000 * told['encode_seconds']:.2f} ms to encode, {1000 * told['decode_seconds']:.2f} ms to decode a"
    made.section("Cost", f"{told['parameters']:,} parameters; {timed} picture.")
    return made


def told_usage(usage: Mapping[str, float]) -> str:
    """Perplexity beside its ceiling; with a warning where the codebook has collapsed."""
    said = (
        f"Perplexity {usage['perplexity']:.1f} of {usage['ceiling']:.0f} possible; {usage['used']:.0f} of "
        f"{usage['codes']:.0f} codes used."
    )
    if usage["perplexity"] < COLLAPSED * usage["ceiling"]:
        said += " The codebook has collapsed: try vq_ema with revive above 0, a greater entropy weight, or a lower lr."
    return said
