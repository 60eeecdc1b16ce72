import pytest

from latentia.errors import InputError
from latentia.recipes import registry
from latentia.recipes.overrides import nearest_key, override


@pytest.fixture
def recipe():
    return registry.recipe("digits-ldm")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("steps=7", "steps", 7),
        ("steps=1e2", "steps", 100),
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("unet.channels=(8,16)", "unet.channels", (8, 16)),
        ("unet.channels=[8, 16]", "unet.channels", (8, 16)),
        ("unet.channels=8,16", "unet.channels", (8, 16)),
        ("unet.channels=8,", "unet.channels", (8,)),
        ("unet.attention=()", "unet.attention", ()),
        ("optim.betas=0.5,0.9", "optim.betas", (0.5, 0.9)),
        ("optim.clip=none", "optim.clip", None),
        ("optim.clip=None", "optim.clip", None),
        ("optim.clip=null", "optim.clip", None),
        ("cache=false", "cache", False),
        ("cache=True", "cache", True),
        ("cache=no", "cache", False),
        ("precision=no", "precision", "no"),
        ("precision=bf16", "precision", "bf16"),
        ("device=cuda:1", "device", "cuda:1"),
        ("codec=runs/a=b/vae", "codec", "runs/a=b/vae"),
        ("codec=none", "codec", None),
        ("codec=123", "codec", "123"),
        (" steps = 7 ", "steps", 7),
    ],
)
def test_values_are_read_for_their_field(recipe, text, field, value):
    changed = override(recipe, [text])
    for part in field.split("."):
        changed = getattr(changed, part)
    assert changed == value
    assert type(changed) is type(value)


def test_the_original_is_untouched(recipe):
    before = recipe.to_json()
    override(recipe, ["steps=7", "unet.channels=8,16"])
    assert recipe.to_json() == before


def test_everything_wrong_is_said_at_once(recipe):
    with pytest.raises(InputError) as caught:
        override(
            recipe,
            ["stps=3", "lr=1", "vae=3", "optim.betas=0.9,x", "batch_size=2.5", "seed", "precision=bf15", "steps=0",
             "optim.lr=nan", "device=gpu", "save_every=1", "save_every=2", "name=x", "unet.channels=()"],
        )  # fmt: skip
    lines = str(caught.value).splitlines()
    said = {line.strip().partition(":")[0]: line for line in lines[1:-1]}
    assert lines[0] == "digits-ldm: 13 settings are wrong"
    assert "did you mean 'steps'?" in said["stps"]
    assert "did you mean 'optim.lr'?" in said["lr"]
    assert "is a group, set its fields: vae.channels" in said["vae"]
    assert "valid number" in said["optim.betas"]
    assert "fractional part" in said["batch_size"]
    assert "expected key=value" in said["seed"]
    assert "'no', 'bf16', 'fp16' or 'auto', got 'bf15'" in said["precision"]
    assert "greater than 0, got 0 (optimizer steps" in said["steps"]
    assert "finite number" in said["optim.lr"]
    assert "got 'gpu'" in said["device"]
    assert "given twice" in said["save_every"]
    assert "unknown key" in said["name"]
    assert "at least 1 item" in said["unet.channels"]
    assert lines[-1] == "all keys: latentia recipes digits-ldm"


def test_one_error_is_singular(recipe):
    with pytest.raises(InputError, match="1 setting is wrong\n  steps: input should be a valid integer"):
        override(recipe, ["steps=many"])


def test_booleans_are_no_numbers_of_steps(recipe):
    with pytest.raises(InputError, match="steps"):
        override(recipe, ["steps=[1]"])
    assert override(recipe, ["fsdp=true"]).fsdp is True


@pytest.mark.parametrize(
    ("given", "found"),
    [("lr", "optim.lr"), ("unet.chanels", "unet.channels"), ("batchsize", "batch_size"), ("vae.step", "vae.steps")],
)
def test_nearest_key(given, found):
    known = ["steps", "batch_size", "vae.optim.lr", "vae.steps", "unet.channels", "optim.lr"]
    assert nearest_key(given, dict.fromkeys(known)) == found


def test_nothing_near_is_no_match():
    assert nearest_key("zzzzzz", {"steps": None}) is None
