"""The package's edges: public names, cheap import, version."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import latentia

ROOT = Path(__file__).parents[1]


def test_public_names_are_sorted_and_listed():
    assert latentia.__all__ == sorted(latentia.__all__)
    assert set(latentia.__all__) <= set(dir(latentia))


@pytest.mark.parametrize("name", latentia.__all__)
def test_every_public_name_is_documented(name):
    found = getattr(latentia, name)
    assert found.__name__ == name
    assert len(inspect.getdoc(found) or "") > 20
    if inspect.isclass(found):
        public = [m for n, m in vars(found).items() if not n.startswith("_") and inspect.isfunction(m)]
        assert not [m.__qualname__ for m in public if not inspect.getdoc(m)]


def test_unknown_name_gives_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'DDIMScheduler'"):
        _ = latentia.DDIMSheduler


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "PIL", "pydantic", "typer", "rich", "huggingface_hub"]
    code = f"import sys, latentia; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_changelog_tells_of_this_version():
    assert f"## {latentia.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
