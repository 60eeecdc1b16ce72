"""Text to image in miniature, with a handful of steps: everything is trained, saved, judged and told."""

import json
import warnings

import pytest
import torch

from latentia import AutoencoderKL, ConvClassifier, DiffusionPipeline
from latentia.data.captioned_digits import PAIR_PHRASINGS, captioned_digits
from latentia.errors import InputError
from latentia.nn.transformer import BasicTransformerBlock
from latentia.recipes.digits_text import digits_text
from latentia.recipes.digits_text_judging import CONTENTS, GUIDANCE, PANEL, PROMISED, score
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=3", "vae.steps=2", "judge_steps=20", "batch_size=8", "vae.batch_size=4", "log_every=1"),
    *("unet.channels=8,8", "unet.groups=4", "unet.head_dim=4", "vae.channels=4,4,8", "vae.groups=4"),
    *("text.width=8", "text.heads=2", "text.layers=1", "num_pictures=60", "judged=40", "preview_every=2"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits_text")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*singular and the distance biased")
        run_recipe(override(digits_text(), TINY), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_real_images_controls_and_both_phrasings_are_judged(told):
    _, report = told
    rows = [(row["name"], row["phrasings"], row["guidance"]) for row in report["rows"]]
    assert rows == [
        ("real images", "", None),
        ("real images through the codec", "", None),
        ("training phrasings", "train", PROMISED),
        *(("held-out phrasings", "held_out", scale) for scale in GUIDANCE),
        ("captions shuffled", "held_out", PROMISED),
        ("empty prompt", "", 1.0),
    ]
    for row in report["rows"]:
        assert row["n"] == 40
        assert set(row["numbers"]) == set(CONTENTS)
        single = row["numbers"]["single"]
        assert single["accuracy"]["n_generated"] == 40
        assert row["times_floor"] == pytest.approx(single["frechet_digits"]["value"] / report["floor"]["value"])
        for content in ("pair", "held_out_pair"):
            found = row["numbers"][content]
            assert found["each"]["n_generated"] == 80
            assert found["accuracy"]["value"] <= found["each"]["value"]


def test_accuracy_by_phrasing_adds_up(told):
    _, report = told
    row = next(r for r in report["rows"] if r["name"] == "held-out phrasings" and r["guidance"] == PROMISED)
    for content in CONTENTS:
        shares = report["by_phrasing"][content].values()
        assert sum(s["n_generated"] for s in shares) == 40
        hits = sum(s["value"] * s["n_generated"] for s in shares)
        assert hits == pytest.approx(40 * row["numbers"][content]["accuracy"]["value"])


def test_the_page_and_everything_behind_it_are_there(told):
    out, report = told
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 6 + 1 + 1 + len(GUIDANCE) + 2
    assert page.count("<svg") == 3
    assert (out / "overview.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((out / "samples").rglob("*.png"))) == 1
    assert set(report["training"]) == {"judge", "vae", "unet"}
    assert ConvClassifier.from_pretrained(out / "judge").name == "digits"


def test_the_pipeline_comes_back_and_draws(told):
    out, _ = told
    pipe = DiffusionPipeline.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "LDMTextToImagePipeline"
    assert isinstance(pipe.vqvae, AutoencoderKL)
    assert pipe.vqvae.config.scaling_factor != 1
    images = pipe(["a three", "two digits: 4 and 7"], num_inference_steps=2, seed=0, output_type="pt").images
    assert images.shape == (2, 1, 16, 32)
    alone = pipe("two digits: 4 and 7", num_inference_steps=2, seed=0, sample_indices=[1], output_type="pt").images
    assert torch.allclose(images[1], alone[0], atol=1e-5)


def test_the_tokenizer_is_saved_and_a_resumed_run_learns_the_same(told):
    out, _ = told
    recipe = override(digits_text(), TINY)
    saved = DiffusionPipeline.from_pretrained(out / "pipeline").tokenizer
    assert saved.get_vocab() == recipe.tokenizer().get_vocab()
    assert saved.model_max_length == recipe.text.length


def test_text_encoder_and_unet_are_trained_together_and_saved_averaged():
    recipe, bench = override(digits_text(), TINY), Bench()
    bench.keep("vae", recipe.vae.build(16, 1))
    objective = dict(recipe.phases(bench))["unet"]().objective
    assert set(objective.modules_by_name) == {"denoiser", "text_encoder"}
    assert objective.caption_dropout == recipe.caption_dropout > 0
    tokenizer = bench.parts["tokenizer"]
    assert objective.empty_ids.tolist() == tokenizer("", padding="max_length").input_ids


@torch.no_grad()
def test_attention_to_the_text_starts_sharp_and_the_output_at_zero():
    """Scores of unit-variance tokens start with a deviation of 3, where PyTorch's own start gives 1/3."""
    recipe = digits_text()
    torch.manual_seed(0)
    unet = recipe.unet.build_for_text(4, 4, recipe.text)
    block = next(m for m in unet.modules() if isinstance(m, BasicTransformerBlock))
    attention, tokens = block.attn2, 18
    width = attention.to_q.in_features
    q = attention.to_q(torch.randn(200, width)).view(200, attention.heads, -1).transpose(0, 1)
    k = attention.to_k(torch.randn(tokens, recipe.text.width)).view(tokens, attention.heads, -1).transpose(0, 1)
    scores = q @ k.transpose(1, 2) / attention.head_dim**0.5
    assert scores.std() == pytest.approx(3, rel=0.25)
    assert attention.to_v(torch.randn(500, recipe.text.width)).var() == pytest.approx(tokens, rel=0.25)
    z, text = torch.randn(2, 4, 4, 8), torch.randn(2, tokens, recipe.text.width)
    assert (unet(z, 500, text).sample == 0).all()


def test_captions_fit_the_text_encoder():
    recipe = digits_text()
    tokenizer = recipe.tokenizer()
    assert len(tokenizer) <= recipe.text.vocab_size
    for phrasings in ("train", "held_out"):
        ids = tokenizer(list(captioned_digits(2000, phrasings=phrasings, content="pair").captions)).input_ids
        assert max(map(len, ids)) <= recipe.text.length


class Reads(torch.nn.Module):
    """A classifier that reads the digit off the first pixel."""

    name = "pixel"

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].mul(10).round().long(), 10).float()


def test_the_row_that_is_promised_is_judged_and_the_panel_was_never_read():
    assert PROMISED in GUIDANCE
    assert PANEL in PAIR_PHRASINGS["held_out"]


def test_score_counts_places_and_order():
    """Four pictures of pairs: right, swapped, half right, and equal digits; the value of a half is its digit."""
    seen = torch.tensor([[4, 7], [7, 4], [4, 9], [5, 5]])
    asked = torch.tensor([[4, 7], [4, 7], [4, 7], [5, 5]])
    x = torch.zeros(4, 1, 16, 32)
    for place in (0, 1):
        x[:, :, :, 16 * place : 16 * place + 16] = (seen[:, place] / 10).view(4, 1, 1, 1)
    found = score(Reads(), x, asked, seed=0)
    assert found["accuracy"].value == 0.5
    assert found["each"].value == 5 / 8
    assert found["swapped"].value == pytest.approx(1 / 3)
    assert found["swapped"].n_generated == 3
    assert found["accuracy"].details["standard_error"] == pytest.approx(0.25)
    single = score(Reads(), x[:1] * 0 + 0.3, torch.tensor([[3, -1]]), seed=0)
    assert single["accuracy"].value == 1
    assert set(single) == {"accuracy"}


@pytest.mark.parametrize("setting", ["num_classes=10", "image_channels=3", "codec=somewhere", "image_size=15"])
def test_another_kind_of_data_is_refused_before_it_trains(setting):
    with pytest.raises(InputError, match=r"learns from captions|must be even"):
        override(digits_text(), [setting])


def test_the_dry_run_counts_the_text_encoder():
    work = {(each.phase, each.network) for each in digits_text().work() if each.trained}
    assert work == {("judge", "judge"), ("vae", "codec"), ("unet", "text encoder"), ("unet", "unet")}
    plan = digits_text().plan(measure=False)
    text = next(row for row in plan.rows if row.network == "text encoder")
    recipe = digits_text().text
    # Two FLOPs a weight a token, beside attention; the embeddings and the unused logits cost nothing.
    inner = recipe.layers * 12 * recipe.width**2
    assert text.forward_flops == pytest.approx(2 * recipe.length * inner, rel=0.2)
