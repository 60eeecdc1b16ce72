"""Names of a user's functions: what is found, and what is said when it is not."""

import pytest

from latentia.errors import InputError
from latentia.recipes.user_code import called, images_of, load_named, network_of
from own_networks import Tagger


def test_a_name_is_found_with_dots_too():
    assert load_named("own_networks:Tagger", "module") is Tagger
    assert load_named("own_networks:Tagger.forward", "module") is Tagger.forward
    assert isinstance(network_of("own_networks:build"), Tagger)
    assert isinstance(network_of("own_networks:Tagger"), Tagger)


def test_a_module_of_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("elsewhere")
    package = tmp_path / "my_own_package_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n")
    assert network_of("my_own_package_here.nets:build").weight.shape == (2, 2)
    with pytest.raises(InputError, match=r"no module 'my_own_packge_here' in .*did you mean 'my_own_package_here'"):
        load_named("my_own_packge_here:build", "module")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("own_networks.build", "with a colon before the name: own_networks:build"),
        ("own_networks.py:build", r"without .py .*: own_networks:build"),
        ("./nets/own.py:build", r"with dots for folders: nets.own:build"),
        ("own_networks:", "such as mynets:build"),
        ("", "such as mynets:build"),
        ("own_networks:biuld", "own_networks has no 'biuld': did you mean 'build'"),
        ("own_networks:Tagger.forwrd", "own_networks:Tagger has no 'forwrd'"),
        ("own_networks:number", "is an int, not a function"),
        ("own_networks:network", "is a network, not a function"),
        ("own_networks:listed", "returned a list: it must return a torch.nn.Module"),
        ("own_networks:fails", r"called with no arguments: RuntimeError: no such disk"),
        ("own_networks:needs", "TypeError: .*missing 1 required positional argument"),
        ("torch.nn:ReLU", "has no parameters"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(InputError, match=words):
        network_of(text)


def test_a_module_that_cannot_be_imported_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, words in (
        ("own_bad_syntax", "x = = 3\n", "SyntaxError: invalid syntax"),
        (
            "own_bad_import",
            "\nimport not_there_at_all\n",
            r"No module named 'not_there_at_all' \(own_bad_import.py, line 2",
        ),
        ("own_exits", "import sys\nsys.exit(1)\n", r"SystemExit: 1 \(own_exits.py, line 2"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(InputError, match=rf"importing {name} failed: .*{words}"):
            load_named(f"{name}:build", "module")


def test_an_error_of_the_user_names_their_line_and_is_its_cause(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_deep.py").write_text("import json\n\n\ndef build():\n    return json.loads('{')\n")
    with pytest.raises(InputError, match=r"own_deep.py, line 5") as caught:
        called("own_deep:build", "module")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("name", "words"), [("listed", "returned int"), ("build", "returned Tagger"), ("fails", "no such disk")]
)
def test_data_are_two_tensors(name, words):
    with pytest.raises(InputError, match=words):
        images_of(f"own_networks:{name}")
