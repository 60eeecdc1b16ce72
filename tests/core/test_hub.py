import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import nn

from latentia.core import hub
from latentia.core.config import register_to_config
from latentia.core.hub import resolve_folder
from latentia.core.model import ModelMixin
from latentia.errors import ArtifactError, InputError

SHA = "0123456789abcdef0123456789abcdef01234567"


class Little(ModelMixin):
    @register_to_config
    def __init__(self, width=2):
        super().__init__()
        self.linear = nn.Linear(width, width)


def cache(root: Path, name: str, files: dict[str, bytes], revision: str = "main") -> Path:
    """A repository in the Hub's cache layout: refs, blobs, and a snapshot of links to them."""
    repository = root / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(SHA)
    (repository / "blobs").mkdir(exist_ok=True)
    for i, (path, content) in enumerate(files.items()):
        (repository / "blobs" / f"{i}").write_bytes(content)
        link = repository / "snapshots" / SHA / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repository / "blobs" / f"{i}")
    return repository / "snapshots" / SHA


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Every call of the Hub's downloader; only those with the network are answered by hand."""
    calls: list[dict] = []
    real = huggingface_hub.snapshot_download

    def download(name, **options):
        calls.append({"name": name, **options})
        if options.get("local_files_only"):
            return real(name, **options)
        if not answer:
            raise ConnectionError("[Errno -2] Name or service not known\nand much more")
        return answer[0]

    answer: list[str] = []
    download.calls, download.answer = calls, answer
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return download


def network(downloads) -> list[dict]:
    return [call for call in downloads.calls if not call.get("local_files_only")]


@pytest.fixture
def saved(tmp_path) -> dict[str, bytes]:
    folder = Little(3).save_pretrained(tmp_path / "saved")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_existing_folder_needs_no_hub(tmp_path, downloads, monkeypatch):
    (tmp_path / "owner" / "name" / "unet").mkdir(parents=True)
    assert resolve_folder("owner/name") == Path("owner/name")
    assert resolve_folder(tmp_path / "owner" / "name", subfolder="unet") == tmp_path / "owner" / "name" / "unet"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_folder("~/owner/name") == tmp_path / "owner" / "name"
    assert downloads.calls == []


def test_cached_model_is_used_without_the_network(tmp_path, downloads, saved):
    snapshot = cache(tmp_path / "hub", "owner/name", saved)
    model = Little.from_pretrained("owner/name", cache_dir=tmp_path / "hub")
    assert model.config.width == 3
    assert resolve_folder("owner/name", cache_dir=tmp_path / "hub") == snapshot
    assert network(downloads) == []


def test_cached_subfolder_and_revision(tmp_path, downloads, saved):
    cache(tmp_path / "hub", "owner/pipe", {f"unet/{k}": v for k, v in saved.items()}, revision="v2")
    options = {"cache_dir": tmp_path / "hub", "revision": "v2", "local_files_only": True}
    assert Little.from_pretrained("owner/pipe", subfolder="unet", **options).config.width == 3
    with pytest.raises(ArtifactError, match="no subfolder 'vae'; subfolders there: unet"):
        Little.from_pretrained("owner/pipe", subfolder="vae", **options)
    with pytest.raises(ArtifactError, match="not in the Hub's cache, and the network is not allowed"):
        resolve_folder("owner/pipe", cache_dir=tmp_path / "hub", local_files_only=True)


def test_only_what_is_needed_is_asked_for(tmp_path, downloads, saved):
    downloads.answer.append(
        str(cache(tmp_path / "elsewhere", "owner/name", {f"unet/{k}": v for k, v in saved.items()}))
    )
    Little.from_pretrained("owner/name", subfolder="unet", variant=None, revision="v1", cache_dir=tmp_path / "hub")
    (call,) = network(downloads)
    assert call["name"] == "owner/name"
    assert call["revision"] == "v1"
    assert call["allow_patterns"] == [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model-?????-of-?????.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    resolve_folder("owner/other", cache_dir=tmp_path / "hub")
    assert network(downloads)[1]["allow_patterns"] == ["*.json", "*.safetensors", "*.txt", "*.model"]


def test_incomplete_cache_is_completed(tmp_path, downloads, saved):
    cache(tmp_path / "hub", "owner/name", {"config.json": saved["config.json"]})
    downloads.answer.append(str(cache(tmp_path / "elsewhere", "owner/name", saved)))
    assert Little.from_pretrained("owner/name", cache_dir=tmp_path / "hub").config.width == 3
    assert len(network(downloads)) == 1
    with pytest.raises(ArtifactError, match=r"has no diffusion_pytorch_model\.safetensors"):
        Little.from_pretrained("owner/name", cache_dir=tmp_path / "hub", local_files_only=True)
    assert len(network(downloads)) == 1


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_switch(tmp_path, downloads, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(
        ArtifactError, match="run `hf download owner/name` once where there is a network, or pass its folder"
    ):
        resolve_folder("owner/name", cache_dir=tmp_path / "hub")
    assert network(downloads) == []


def test_unreachable_hub_says_how_to_go_on(tmp_path, downloads):
    with pytest.raises(ArtifactError) as caught:
        resolve_folder("owner/name", cache_dir=tmp_path / "hub")
    text = str(caught.value)
    assert "(ConnectionError: [Errno -2] Name or service not known). Check the name and revision" in text
    assert "run `hf download owner/name` where there is one, copy the folder, and pass its path" in text
    assert "much more" not in text
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_mistyped_paths_name_their_neighbours_and_ask_nobody(tmp_path, downloads):
    for name in ("demo", "demo-2", "other"):
        (tmp_path / "runs" / name / "pipeline").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"no folder 'dmo' in .*runs: did you mean demo, demo-2"):
        resolve_folder("runs/dmo", cache_dir=tmp_path / "hub")
    for path in ("runs/demo/pipelin", tmp_path / "runs" / "demo" / "pipelin", "./runs/demo/pipelin"):
        with pytest.raises(ArtifactError, match=r"no folder 'pipelin' in .*demo: did you mean pipeline"):
            resolve_folder(path)
    with pytest.raises(ArtifactError, match=r"no folder 'rums' in .*: did you mean runs"):
        resolve_folder("rums/demo/pipeline")
    with pytest.raises(ArtifactError, match=r"no folder 'rnus' in"):
        resolve_folder("rnus")
    with pytest.raises(ArtifactError, match="no folder"):
        resolve_folder("../../x")
    assert network(downloads) == []


@pytest.mark.parametrize("bad", ["", None, 3])
def test_what_is_no_name_at_all(bad):
    with pytest.raises(InputError, match="expected a folder or a Hub id"):
        resolve_folder(bad)


def test_names_that_the_hub_would_not_take(tmp_path, downloads):
    for name in ("owner/na--me", "owner/name.git", "owner/" + "x" * 200):
        with pytest.raises(ArtifactError):
            resolve_folder(name, cache_dir=tmp_path / "hub")


def test_hub_library_is_imported_only_when_needed(tmp_path):
    (tmp_path / "m").mkdir()
    code = (
        "import sys; from latentia.core.hub import resolve_folder; resolve_folder('m');"
        "sys.exit('huggingface_hub' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
    assert hub.SAFE_PATTERNS == ("*.json", "*.safetensors", "*.txt", "*.model")
    assert torch.is_tensor(Little().linear.weight)
