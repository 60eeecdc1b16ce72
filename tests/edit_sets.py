"""Small files in the layouts of the Emu Edit test set and of MagicBrush."""

import io
import json
import sys
import types

import numpy as np
from PIL import Image


def picture(seed, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    handle = io.BytesIO()
    Image.fromarray(pixels).save(handle, "PNG")
    return {"bytes": handle.getvalue(), "path": None}


def write_folder(folder, split, rows, images):
    """ImageFolder with metadata.jsonl: `images` are the columns whose cells are pixels."""
    (folder / split).mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        line = {}
        for name, value in row.items():
            if name in images:
                file = f"{name}-{number}.png"
                if value is not None:
                    Image.fromarray(value).save(folder / split / file)
                line["file_name" if name == "image" else f"{name}_file_name"] = None if value is None else file
            else:
                line[name] = value
        lines.append(json.dumps(line))
    (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def emu_row(idx, task="add", before="a cat", after="a cat and a dog", split="test", **changes):
    row = {
        "instruction": f"add a dog {idx}",
        "image": picture(idx),
        "task": task,
        "split": split,
        "idx": idx,
        "hash": f"h{idx}{task}",
        "input_caption": before,
        "output_caption": after,
    }
    return {**row, **changes}


EMU_ROWS = [
    emu_row(0),
    emu_row(0, "remove", "a cat and a dog", "a cat"),  # idx alone is not unique
    emu_row(1, after="A cat ."),  # identical but for case and stops
    emu_row(2, before="a train station in city", after="a train station in city with a bus"),
    emu_row(3, after=""),
    emu_row(0, instruction="something else"),  # the id of the first row again
    emu_row(4, "style", "a house", "a painting of a house"),
]


def brush_rows():
    """Two sessions of three turns and one, with what is wrong in such files: a turn twice, and a gap."""
    rows = []
    for session, turns in (("139", 3), ("30", 1)):
        for turn in range(1, turns + 1):
            rows.append(
                {
                    "img_id": session,
                    "turn_index": turn,
                    "source_img": picture(10 * int(session) + turn - 1),
                    "mask_img": picture(1),
                    "instruction": f"do {turn}",
                    "target_img": picture(10 * int(session) + turn),
                }
            )
    rows.insert(1, dict(rows[0]))
    rows.append({**rows[-1], "img_id": "77", "turn_index": 2})
    return rows


def write_archive(folder, sessions=(("139", 3), ("30", 1))):
    """MagicBrush's archive of files, with its local and global captions."""
    told, local, everywhere = {}, {}, {}
    for session, turns in sessions:
        inner = folder / "images" / session
        inner.mkdir(parents=True)
        names = [f"{session}-input.png", *(f"{session}-output{k}.png" for k in range(1, turns + 1))]
        for number, name in enumerate(names):
            Image.fromarray(picture(10 * int(session) + number)).save(inner / name)
        told[session] = [
            {
                "input": names[k],
                "mask": f"{session}-mask{k + 1}.png",
                "output": names[k + 1],
                "instruction": f"do {k + 1}",
            }
            for k in range(turns)
        ]
        local[session] = {name: f"local {name}" for name in names[1:]}
        everywhere[session] = {name: f"global {name}" for name in names}
    (folder / "edit_sessions.json").write_text(json.dumps(told))
    (folder / "local_descriptions.json").write_text(json.dumps(local))
    (folder / "global_descriptions.json").write_text(json.dumps(everywhere))
    return folder


def results_of(folder, names, pixels):
    """A folder of result pictures."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


# As much of pyarrow and of datasets as is used; neither need be installed ------------------------------------------


class ParquetFile:
    """Rows from a JSON stand-in, two in a group; pictures as bytes of PNG files."""

    contents: dict = {}

    def __init__(self, path):
        self.rows = self.contents[path.name]
        self.schema_arrow = types.SimpleNamespace(names=list(self.rows[0]))
        self.num_row_groups = -(-len(self.rows) // 2)
        self.metadata = types.SimpleNamespace(
            row_group=lambda i: types.SimpleNamespace(num_rows=len(self.rows[2 * i : 2 * i + 2]))
        )
        self.read_groups = []

    def read_row_group(self, number):
        self.read_groups.append(number)
        return Batch(self.rows[2 * number : 2 * number + 2])

    def read(self, columns):
        return Batch([{name: row[name] for name in columns} for row in self.rows])


class Batch(list):
    def to_pylist(self):
        return [dict(row) for row in self]


def fake_pyarrow(monkeypatch, folder, files):
    """Write empty files of these names and let `pyarrow.parquet` find their rows."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    plain = {name.split("/")[-1]: [encoded(row) for row in rows] for name, rows in files.items()}
    monkeypatch.setattr(ParquetFile, "contents", plain)
    module = types.SimpleNamespace(ParquetFile=ParquetFile)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=module))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)


def encoded(row):
    return {name: png(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


class HubRows:
    """As much of a `datasets.Dataset` as is used."""

    def __init__(self, rows):
        self.rows = [encoded(row) for row in rows]
        self.column_names = list(rows[0])
        self.features = {
            name: ImageFeature() if isinstance(value, np.ndarray) else None for name, value in rows[0].items()
        }

    def cast_column(self, name, feature):
        self.features = {**self.features, name: feature}
        return self

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            assert not isinstance(self.features[key], ImageFeature), "columns of pictures are not read whole"
            return [row[key] for row in self.rows]
        assert not any(f.decode for f in self.features.values() if f is not None)
        return self.rows[key]


def fake_datasets(monkeypatch, splits):
    """`datasets.load_dataset("owner/name")` gives these splits, `load_from_disk` the first."""
    tables = {split: HubRows(rows) for split, rows in splits.items()}

    def load_dataset(name, config, revision, cache_dir):
        if name != "owner/name":
            raise FileNotFoundError(f"no data set {name}")
        return tables

    module = types.SimpleNamespace(
        load_dataset=load_dataset, load_from_disk=lambda folder: next(iter(tables.values())), Image=ImageFeature
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
