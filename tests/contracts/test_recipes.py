"""Every recipe keeps its promises: frozen, saved and read back equal, documented, costed without allocation."""

import inspect
import re

import pytest
from pydantic import BaseModel, ValidationError

from latentia.recipes import registry
from latentia.recipes.overrides import keys, override
from latentia.recipes.recipe import Bench, Recipe

NAMES = registry.names()
STUDIES = ("edit-study", "tokenizers-study")
"""Recipes without phases of their own: they carry out others."""

every_recipe = pytest.mark.parametrize("name", NAMES)


def test_names_are_sorted_and_their_own():
    assert list(NAMES) == sorted(NAMES)
    assert {name: registry.recipe(name).name for name in NAMES} == {name: name for name in NAMES}


@every_recipe
def test_is_a_frozen_value(name):
    recipe = registry.recipe(name)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.steps = 3
    assert recipe == registry.recipe(name)


@every_recipe
def test_json_round_trip_is_equal(name):
    recipe = registry.recipe(name)
    back = type(recipe).from_json(recipe.to_json())
    assert back == recipe
    assert back.differences(recipe) == {}
    assert back.to_json() == recipe.to_json()


@every_recipe
def test_docstring_states_command_cost_and_number(name):
    build = registry.builder(name)
    facts = registry.stated(build)
    assert list(facts) == ["Command", "Cost", "Expect"]
    assert facts["Command"].startswith("latentia ")
    assert name in facts["Command"]
    assert "CPU" in facts["Cost"]
    assert re.search(r"\d", facts["Expect"])
    assert registry.summaries()[name] == (inspect.getdoc(build) or "").splitlines()[0]


@every_recipe
def test_the_stated_settings_are_accepted(name):
    command = registry.stated(registry.builder(name))["Command"]
    changed = override(registry.recipe(name), re.findall(r"(?<= )[\w.]+=\S+", command))
    assert changed.name == name


@every_recipe
def test_every_key_has_a_meaning_and_knows_the_common_ones(name):
    found = {key.name: key for key in keys(registry.recipe(name))}
    assert [key for key, each in found.items() if not each.description] == []
    assert {"steps", "batch_size", "seed", "save_every", "log_every", "device", "precision", "fsdp"} <= set(found)
    assert "name" not in found


@every_recipe
def test_every_default_can_be_typed_as_an_override(name):
    recipe = registry.recipe(name)
    typed = [f"{key.name}={_typed(key.value)}" for key in keys(recipe)]
    assert override(recipe, typed) == recipe


def _typed(value):
    return ",".join(map(str, value)) + "," if isinstance(value, tuple) else str(value)


@every_recipe
def test_plan_costs_everything_without_building_it(name):
    recipe = registry.recipe(name)
    plan = recipe.plan(measure=False)
    main = [row for row in plan.rows if row.trained][-1]
    if name not in STUDIES:
        assert main.samples == recipe.steps * recipe.batch_size
    assert 0 < main.trained_parameters <= main.parameters
    passes = 2 + main.trained_parameters / main.parameters  # frozen weights need no gradient of their own
    assert main.total_flops == pytest.approx(passes * main.forward_flops * main.samples, rel=1e-12)
    assert main.input_shape == main.output_shape
    assert all(row.parameters > 0 and row.forward_flops > 0 and row.activation_bytes > 0 for row in plan.rows)
    assert plan.seconds_here is None
    assert plan.memory_bytes > 4 * 4 * main.trained_parameters


@every_recipe
def test_phases_are_named_and_not_built_yet(name):
    recipe = registry.recipe(name)
    bench = Bench()
    phases = recipe.phases(bench)
    assert len({phase for phase, _ in phases}) == len(phases)
    assert bench.parts == {}
    if name not in STUDIES:
        assert {row.phase for row in recipe.work()} <= {phase for phase, _ in phases} | set(recipe.beside)


@every_recipe
def test_groups_are_values_too(name):
    recipe = registry.recipe(name)
    groups = [value for value in dict(recipe).values() if isinstance(value, BaseModel)]
    assert groups or name in STUDIES
    for group in groups:
        assert type(group).model_config["frozen"]
        assert type(group).model_config["extra"] == "forbid"
