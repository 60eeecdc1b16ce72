import copy
import enum
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import latentia
from latentia.core.config import FORMAT_VERSION, ConfigMixin, FrozenConfig, freeze, register_to_config, to_json
from latentia.errors import ArtifactError, ConfigError

KEYS = st.text(max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=4)
)


class Red(ConfigMixin):
    renamed = {"hue": "colour", "depth": None}
    extensions = frozenset({"glow"})
    compatible_names = ("Blue", "Red")

    @register_to_config
    def __init__(self, size=4, colour="red", widths=(1, 2), options=None, glow=0.5):
        self.size = size


class Blue(ConfigMixin):
    compatible_names = ("Blue", "Red")

    @register_to_config
    def __init__(self, size=8, colour="blue", waves=True):
        self.size = size


@pytest.fixture(autouse=True)
def _public(monkeypatch):
    """Red and Blue as public classes of one family."""
    monkeypatch.setattr(latentia, "__all__", [*latentia.__all__, "Blue", "Red"])
    monkeypatch.setattr(latentia, "Red", Red, raising=False)
    monkeypatch.setattr(latentia, "Blue", Blue, raising=False)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_config_equals_itself_after_json(values):
    config = FrozenConfig(values)
    again = FrozenConfig(json.loads(to_json(config)))
    assert again == config
    assert to_json(again) == to_json(config)
    assert FrozenConfig(again) == config
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(),
    colour=VALUES,
    widths=VALUES,
    options=VALUES,
    glow=st.floats(allow_nan=False),
    n=st.integers(0, 5),
)
def test_object_comes_back_from_its_file(tmp_path_factory, size, colour, widths, options, glow, n):
    arguments = {"size": size, "colour": colour, "widths": widths, "options": options, "glow": glow}
    positional = list(arguments.values())[:n]
    red = Red(*positional, **dict(list(arguments.items())[n:]))
    folder = tmp_path_factory.mktemp("c")
    red.save_config(folder)
    again = Red.from_config(Red.load_config(folder))
    assert dict(again.config) == dict(red.config) == dict(Red(**arguments).config)
    assert red.config.defaulted == frozenset()


def test_file_is_diffusers_own_layout(tmp_path):
    path = Red(9, options={"b": (1, 2), "a": None}).save_config(tmp_path / "x" / "y")
    assert path == tmp_path / "x" / "y" / "config.json"
    assert path.read_text() == (
        '{\n  "_class_name": "Red",\n  "_diffusers_version": "' + FORMAT_VERSION + '",\n  "colour": "red",\n'
        '  "options": {\n    "a": null,\n    "b": [\n      1,\n      2\n    ]\n  },\n  "size": 9,\n'
        '  "widths": [\n    1,\n    2\n  ]\n}\n'
    )


def test_extension_reaches_the_file_only_when_changed():
    assert "glow" not in Red().config_to_save()
    assert "glow" not in Red(glow=0.5).config_to_save()
    assert Red(glow=0.25).config_to_save()["glow"] == 0.25
    assert Red().config["glow"] == 0.5


def test_defaulted_names_what_the_caller_left_out():
    assert Red(3, colour="x").config.defaulted == {"widths", "options", "glow"}


def test_all_unknown_and_renamed_arguments_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        Red(sise=1, hue="x", depth=3, zzzzzz=2)
    text = str(caught.value)
    assert "'sise' (did you mean 'size'?)" in text
    assert "'hue' (is now called 'colour')" in text
    assert "'depth' (no longer has an effect: drop it)" in text
    assert "'zzzzzz'" in text
    assert text.endswith("known: size, colour, widths, options, glow")


def test_too_many_or_twice_given_arguments_are_type_errors():
    with pytest.raises(TypeError, match="positional"):
        Red(1, 2, 3, 4, 5, 6)
    with pytest.raises(TypeError, match="multiple values for argument 'size'"):
        Red(1, size=2)


def test_old_names_are_translated_and_overrides_win():
    assert Red.from_config({"hue": "old", "depth": 3}).config.colour == "old"
    assert Red.from_config({"hue": "old", "colour": "new"}).config.colour == "new"
    assert Red.from_config({"colour": "file"}, hue="call").config.colour == "call"


def test_unknown_entry_warns_once_and_unknown_override_raises():
    with pytest.warns(
        UserWarning, match=r"Red ignores unknown arguments 'sise' \(did you mean 'size'\?\), 'q'"
    ) as caught:
        Red.from_config({"sise": 1, "q": 2})
    assert len(caught) == 1
    with pytest.raises(ConfigError, match=r"Red: unknown arguments 'sise' \(did you mean"):
        Red.from_config(Red().config, sise=3)
    red, unused = Red.from_config({"q": 2, "size": 5}, return_unused_kwargs=True, wings=3)
    assert (red.config.size, unused) == (5, {"q": 2, "wings": 3})
    assert "wings" not in red.config


def test_defaults_are_the_new_class_s_own():
    assert Blue.from_config(Red().config).config.size == 8
    assert Blue.from_config(Red(size=4).config).config.size == 4
    assert Blue.from_config({"size": 4, "_use_default_values": ["size"]}).config.size == 8


def test_there_and_back_loses_nothing(recwarn):
    red = Red(colour="rose", widths=(3,), options={"k": [1]}, glow=0.25)
    blue = Blue.from_config(red.config, waves=False)
    assert blue.config_to_save()["widths"] == (3,)
    assert blue.config["waves"] is False
    back = Red.from_config(blue.config)
    assert {k: back.config[k] for k in Red.config_arguments()} == dict(red.config)
    assert back.config.size == 4
    again = Blue.from_config(json.loads(to_json(back.config_to_save())))
    assert again.config["waves"] is False
    assert not recwarn.list


def test_clone_changes_only_what_is_asked():
    red = Red(9, glow=0.75).clone_config(colour="pink")
    assert dict(red.config) == dict(Red(9, "pink", glow=0.75).config)
    assert red.config.defaulted == {"widths", "options"}


def test_inherited_constructor_records_for_the_subclass_and_a_nested_one_does_not():
    class Scarlet(Red):
        pass

    class Crimson(Red):
        @register_to_config
        def __init__(self, shade=1, size=2):
            super().__init__(size, colour="crimson")

    assert Scarlet(3).config_to_save()["_class_name"] == "Scarlet"
    assert dict(Crimson(5).config) == {"shade": 5, "size": 2}
    assert Crimson.config_arguments() == ("shade", "size")


def test_misuse_of_the_decorator_teaches():
    with pytest.raises(TypeError, match=r"takes \*args: a recorded constructor names every argument"):

        class Stars(ConfigMixin):
            @register_to_config
            def __init__(self, a, *args): ...

    with pytest.raises(TypeError, match=r"takes \*\*kw"):

        class Words(ConfigMixin):
            @register_to_config
            def __init__(self, a, **kw): ...

    class Plain(Red):
        def __init__(self):
            super().__init__(3)

    for act in (lambda: Plain().config, Plain.config_arguments, lambda: Plain.from_config({})):
        with pytest.raises(ConfigError, match="write @register_to_config above it"):
            act()
    with pytest.raises(ConfigError, match="not built by its constructor"):
        _ = Red.__new__(Red).config


def test_from_config_of_a_path_points_at_from_pretrained():
    with pytest.raises(ConfigError, match="for a folder or Hub id call from_pretrained"):
        Red.from_config("runs/demo")


def test_config_refuses_every_change():
    config = Red(options={"deep": {"x": 1}}).config
    with pytest.raises(AttributeError, match=r"frozen: build a new object with from_config\(config, size=7\)"):
        config.size = 7
    with pytest.raises(AttributeError, match="frozen"):
        del config.size
    with pytest.raises(TypeError):
        config["size"] = 7
    for act in (
        lambda d: d.update(a=1), lambda d: d.pop("x"), lambda d: d.clear(), lambda d: d.setdefault("y", 1),
        lambda d: d.__setitem__("x", 2), lambda d: d.__delitem__("x"), lambda d: d.popitem(), lambda d: d.__ior__({}),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="frozen"):
            act(config.options["deep"])
    assert config.options == {"deep": {"x": 1}}
    assert dict(config.options["deep"]) | {"y": 2} == {"x": 1, "y": 2}


def test_config_does_not_follow_the_caller_s_objects():
    widths, options = [1], {"a": [1]}
    red = Red(widths=widths, options=options)
    widths.append(2)
    options["a"].append(2)
    assert red.config.widths == (1,)
    assert red.config.options == {"a": (1,)}


def test_missing_entry_names_the_nearest():
    config = Red().config
    with pytest.raises(AttributeError, match="no entry 'color': did you mean 'colour'"):
        _ = config.color
    with pytest.raises(AttributeError, match="no entry 'qqq'; it has: colour, glow"):
        _ = config.qqq
    assert config.get("qqq", 3) == 3
    with pytest.raises(KeyError):
        config["qqq"]


def test_copies_need_no_pickle_and_keep_the_defaulted_names():
    config = Red(size=1, options={"a": {"b": 1}}).config
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert other.defaulted == config.defaulted
    assert copy.deepcopy({"c": config.options}) == {"c": {"a": {"b": 1}}}


class Tone(enum.Enum):
    SOFT = "soft"


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([[1, 2]]), ((1, 2),)),
        (torch.tensor([1.5]), (1.5,)),
        (Path("a/b"), "a/b"),
        (Tone.SOFT, "soft"),
        ({1: "a"}, {"1": "a"}),
        (float("inf"), float("inf")),
        (True, True),
    ],
)
def test_foreign_values_are_held_as_plain_ones(value, held):
    frozen = freeze(value, "x")
    assert frozen == held
    assert type(frozen) is type(held) or isinstance(frozen, dict)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", torch.float16, lambda: 0, 1j, [object()], {"a": {2}}])
def test_values_that_json_cannot_hold_are_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"argument 'options' of type|argument 'a' of type"):
        Red(options=value)


def test_nan_and_colliding_keys_are_refused():
    with pytest.raises(ConfigError, match="'options' is NaN"):
        Red(options=[float("nan")])
    with pytest.raises(ConfigError, match="not all different as strings"):
        Red(options={1: "a", "1": "b"})


def test_load_config_takes_folder_or_file_and_explains_what_is_broken(tmp_path):
    path = Red(7).save_config(tmp_path)
    assert Red.load_config(tmp_path) == Red.load_config(str(path)) == json.loads(path.read_text())
    path.write_text('{"size": ')
    with pytest.raises(ArtifactError, match="truncated"):
        Red.load_config(tmp_path)
    with pytest.raises(ArtifactError, match=r"no config\.json in"):
        Red.load_config(tmp_path / "nowhere")


def test_threads_record_their_own():
    built: dict[int, Red] = {}

    def build(i):
        for _ in range(50):
            built[i] = Red(i, options={"i": i})

    threads = [threading.Thread(target=build, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(red.config.size == i and red.config.options == {"i": i} for i, red in built.items())
    assert len(built) == 8


def test_torch_module_can_be_recorded_before_its_own_constructor_ran():
    class Net(torch.nn.Module, ConfigMixin):
        @register_to_config
        def __init__(self, width=2):
            super().__init__()
            self.layer = torch.nn.Linear(self.config.width, 1)

    net = copy.deepcopy(Net(3))
    assert net.config.width == 3
    assert net.layer.in_features == 3


def test_import_does_not_touch_torch():
    code = "import sys, latentia.core.config, latentia.core.inspect_path; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
