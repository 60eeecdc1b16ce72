"""Numbers that others have published, each with its scale, so that they stand beside ours only where they may.

A and B of the Emu Edit test set: Sheynin et al. 2023, tables 1 and 2; the reprint in UniReal; UltraEdit. C: ICEdit. M:
MagicBrush, table 2. Movie Gen: Polyak et al. 2024, section 5. Values as printed; DINO and L1 of A to C are against the
input, those of M and of B on MagicBrush against the right answer.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """One row of a published table.

    Attributes:
        benchmark, protocol, scale: what it may be compared with.
        method: who made the edits.
        source: who printed it.
        numbers: measure → value, in the names of `measures.measure`.
    """

    benchmark: str
    protocol: str
    scale: str
    method: str
    source: str
    numbers: dict[str, float]


_INPUT = ("clip_dir", "clip_im", "clip_out", "l1_input", "dino_input")
_TARGET = ("l1_target", "l2_target", "clip_i", "dino_target", "clip_t")
_N = None

_Rows = tuple[tuple[str, str, tuple[float | None, ...]], ...]

_EMU_A: _Rows = (
    ("InstructPix2Pix", "Emu Edit", (0.078, 0.834, 0.219, 0.121, 0.762)),
    ("MagicBrush", "Emu Edit", (0.090, 0.838, 0.222, 0.100, 0.776)),
    ("PnP (true captions)", "Emu Edit", (0.028, 0.521, 0.089, 0.304, 0.153)),
    ("Null-text + P2P (true captions)", "Emu Edit", (0.101, 0.761, 0.236, 0.075, 0.678)),
    ("Emu Edit", "Emu Edit", (0.109, 0.859, 0.231, 0.094, 0.819)),
    ("ACE", "UniReal", (0.086, 0.895, 0.274, 0.076, 0.862)),
    ("OmniGen", "UniReal", (_N, 0.836, 0.233, _N, 0.804)),
    ("PixWizard", "UniReal", (0.104, 0.845, 0.248, 0.069, 0.798)),
    ("UniReal", "UniReal", (0.127, 0.851, 0.285, 0.099, 0.790)),
    ("Movie Gen Edit, adapter", "Movie Gen", (0.115, 0.843, 0.235, 0.099, 0.794)),
    ("Movie Gen Edit, whole network", "Movie Gen", (0.128, 0.840, 0.238, 0.088, 0.789)),
)
_MAGIC_A: _Rows = (
    ("InstructPix2Pix", "Emu Edit", (0.115, 0.837, 0.245, 0.093, 0.767)),
    ("MagicBrush", "Emu Edit", (0.123, 0.883, 0.261, 0.058, 0.871)),
    ("PnP", "Emu Edit", (0.025, 0.568, 0.101, 0.289, 0.220)),
    ("Null-text", "Emu Edit", (0.121, 0.752, 0.263, 0.077, 0.664)),
    ("Emu Edit", "Emu Edit", (0.135, 0.897, 0.261, 0.052, 0.879)),
)
_EMU_B: _Rows = (
    ("Emu Edit", "UltraEdit", (0.1066, _N, 0.2843, _N, _N)),
    ("UltraEdit, 450 K", "UltraEdit", (0.0823, _N, 0.2778, _N, _N)),
    ("UltraEdit, 3 M", "UltraEdit", (0.1076, 0.793, 0.2832, 0.071, 0.844)),
)
_EMU_C: _Rows = (("Emu Edit", "ICEdit", (_N, 0.877, 0.306, _N, 0.844)),)
_MAGIC_B_SINGLE: _Rows = (("UltraEdit", "UltraEdit", (0.0575, 0.0172, 0.9307, 0.8982, _N)),)
_MAGIC_B_MULTI: _Rows = (("UltraEdit", "UltraEdit", (0.0745, 0.0236, 0.9045, 0.8505, _N)),)
_MAGIC_M_SINGLE: _Rows = (
    ("SD-SDEdit", "MagicBrush", (0.1014, 0.0278, 0.8526, 0.7726, 0.2777)),
    ("Text2LIVE", "MagicBrush", (0.0636, 0.0169, 0.9244, 0.8807, 0.2424)),
    ("Null-text", "MagicBrush", (0.0749, 0.0197, 0.8827, 0.8206, 0.2737)),
    ("HIVE", "MagicBrush", (0.1092, 0.0341, 0.8519, 0.7500, 0.2752)),
    ("HIVE, tuned on MagicBrush", "MagicBrush", (0.0658, 0.0224, 0.9189, 0.8655, 0.2812)),
    ("InstructPix2Pix", "MagicBrush", (0.1122, 0.0371, 0.8524, 0.7428, 0.2764)),
    ("InstructPix2Pix, tuned on MagicBrush", "MagicBrush", (0.0625, 0.0203, 0.9332, 0.8987, 0.2781)),
)
_MAGIC_M_MULTI: _Rows = (
    ("SD-SDEdit", "MagicBrush", (0.1616, 0.0602, 0.7933, 0.6212, 0.2694)),
    ("Text2LIVE", "MagicBrush", (0.0989, 0.0284, 0.8795, 0.7926, 0.2716)),
    ("Null-text", "MagicBrush", (0.1057, 0.0335, 0.8468, 0.7529, 0.2710)),
    ("HIVE", "MagicBrush", (0.1521, 0.0557, 0.8004, 0.6463, 0.2673)),
    ("HIVE, tuned on MagicBrush", "MagicBrush", (0.0966, 0.0365, 0.8785, 0.7891, 0.2796)),
    ("InstructPix2Pix", "MagicBrush", (0.1584, 0.0598, 0.7924, 0.6177, 0.2726)),
    ("InstructPix2Pix, tuned on MagicBrush", "MagicBrush", (0.0964, 0.0353, 0.8924, 0.8273, 0.2754)),
)


def _table(benchmark: str, protocol: str, scale: str, measures: tuple[str, ...], rows: _Rows) -> tuple[Published, ...]:
    return tuple(
        Published(
            benchmark,
            protocol,
            scale,
            method,
            source,
            {measure: value for measure, value in zip(measures, values, strict=True) if value is not None},
        )
        for method, source, values in rows
    )


PUBLISHED: tuple[Published, ...] = (
    *_table("emu-edit", "", "A", _INPUT, _EMU_A),
    *_table("emu-edit", "", "B", _INPUT, _EMU_B),
    *_table("emu-edit", "", "C", _INPUT, _EMU_C),
    *_table("magicbrush", "", "A", _INPUT, _MAGIC_A),
    *_table("magicbrush", "single-turn", "B", _TARGET, _MAGIC_B_SINGLE),
    *_table("magicbrush", "multi-turn", "B", _TARGET, _MAGIC_B_MULTI),
    *_table("magicbrush", "single-turn", "M", _TARGET, _MAGIC_M_SINGLE),
    *_table("magicbrush", "multi-turn", "M", _TARGET, _MAGIC_M_MULTI),
)
"""UniReal reprints UltraEdit's row among those of A; it is UltraEdit's own, of B, and stands there alone."""


def beside(benchmark: str, split: str, protocol: str, scale: str) -> list[Published]:
    """The rows that numbers of this kind may be read beside: same benchmark, protocol and scale, `test` alone.

    Papers report the test splits; other splits have nothing beside them. A row of no stated protocol fits any.
    """
    if split != "test":
        return []
    return [
        row for row in PUBLISHED if row.benchmark == benchmark and row.scale == scale and row.protocol in ("", protocol)
    ]
