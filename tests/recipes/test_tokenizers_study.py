"""`tokenizers-study` with a handful of steps: stages are kept, left out, interrupted and taken up again."""

import json

import numpy as np
import pytest
import torch

from latentia.core.files import read_json
from latentia.errors import InputError
from latentia.metrics.classifier import ConvClassifier
from latentia.metrics.photo_features import PhotoFeatures
from latentia.recipes import tokenizers_study_kept as kept
from latentia.recipes import tokenizers_study_runs as sub
from latentia.recipes import tokenizers_study_stages as stages
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench
from latentia.recipes.run import load_recipe, run_recipe
from latentia.recipes.tokenizers_study import CODECS, SIZES, STAGES, Size, tokenizers_study

pytestmark = pytest.mark.filterwarnings("ignore:.*a covariance is singular")

VQ = ("steps=4", "batch_size=4", "codec.channels=8,", "codec.latent_channels=8", "codec.groups=4", "preview_every=2")
FLOW = (
    *("steps=4", "batch_size=4", "preview_every=2", "sizes.encoder.width=16", "sizes.encoder.depth=1"),
    *("sizes.decoder.width=16", "sizes.decoder.depth=1", "sampling.steps=2", "post.batch_size=2", "post.chain_steps=2"),
)
FEATURES = ("perceptual.steps=1",)
PRIOR = (
    *("steps=2", "batch_size=4", "tokenizer.steps=2", "tokenizer.batch_size=4", "tokenizer.channels=8,"),
    *("tokenizer.groups=4", "transformer.width=16", "transformer.layers=1", "judge_steps=2", "pictures=10"),
)
TINY = Size(
    shares={
        **dict.fromkeys(CODECS, 0.001),
        "post-digits": 0.001,
        "post-photos": 0.001,
        "ablations": 0.0001,
        "priors": 0.001,
    },
    pictures=8,
    sampled=4,
    points=2,
    noted=4,
    ablations=("FSQ", "no perceptual loss"),
    settings={
        **{f"vqvae-{data}": VQ for data in ("digits", "photos")},
        **{f"vqgan-{data}": (*VQ, *FEATURES, "discriminator.width=16") for data in ("digits", "photos")},
        **{f"flowmo-{data}": (*FLOW, *FEATURES) for data in ("digits", "photos")},
        **dict.fromkeys(sub.PRIORS, tuple(each for each in PRIOR if not each.startswith("steps="))),
    },
)


@pytest.fixture(autouse=True, scope="module")
def tiny_parts():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SIZES, "tiny", TINY)
        judge, features = ConvClassifier(name="digits", num_classes=10, in_channels=1), PhotoFeatures()
        patched.setitem(kept.RULERS, "digits", lambda folder: judge.eval())
        patched.setitem(kept.RULERS, "photos", lambda folder: features.eval())
        patched.setattr("latentia.recipes.photo_features.BATCH", 8)
        patched.setattr(stages, "RATES", (1.0, 4.0))
        patched.setattr(stages, "CURVE_PICTURES", 2)
        patched.setattr(stages, "DRAWS", 3)
        patched.setattr("latentia.recipes.token_prior_judging.TIMED", 1)
        patched.setattr("latentia.recipes.token_prior.JUDGED", 4)
        yield


def tiny(*more):
    return override(tokenizers_study(), ["size=tiny", "device=cpu", *more])


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    run_recipe(tiny("stages=vqvae-digits,vqgan-digits,flowmo-digits,samplers,modes"), out, progress=False)
    return out, read_json(out / "report.json")


def test_every_codec_writes_the_stated_bits():
    for stage in CODECS:
        recipe = sub.published(stage)
        side, bits = kept.BITS[stage.split("-")[1]]
        with torch.device("meta"):
            codec = recipe.build_codec()
        assert codec.bits((recipe.image_channels, side, side)) == pytest.approx(bits), stage


def test_what_is_told_in_steps_shrinks_with_them():
    quick = override(tokenizers_study(), ["size=quick"])
    gan, whole = sub.codec_run(quick, "vqgan-digits"), sub.published("vqgan-digits")
    assert gan.discriminator.start / gan.steps == pytest.approx(whole.discriminator.start / whole.steps, rel=0.02)
    flow, whole = sub.codec_run(quick, "flowmo-digits"), sub.published("flowmo-digits")
    assert flow.target.anneal_steps / flow.steps == pytest.approx(whole.target.anneal_steps / whole.steps, rel=0.02)
    assert flow.steps % flow.preview_every == 0
    full = tokenizers_study()
    assert sub.codec_run(full, "vqvae-photos").steps == sub.published("vqvae-photos").steps


def test_a_codec_is_a_run_of_its_own_with_numbers_and_a_curve(started):
    out, report = started
    stage = report["stages"]["flowmo-digits"]
    assert list(stage["codecs"]) == ["FlowMo-1A", "FlowMo-1A+1B"]
    assert [row["n"] for row in stage["codecs"].values()] == [8, 8]
    assert {row["bits"] for row in stage["codecs"].values()} == {128}
    assert stage["codecs"]["FlowMo-1A"]["cpu_seconds"] <= stage["codecs"]["FlowMo-1A+1B"]["cpu_seconds"]
    assert [(line["phase"], line["step"], line["n"]) for line in stage["curve"]] == [
        ("pretraining", 2, 4),
        ("pretraining", 4, 4),
    ]
    folder = out / "stages/flowmo-digits"
    first, last = (kept.open_saved(folder / name, Bench()) for name in ("pipeline-1a", "pipeline"))
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), last.state_dict().values())]
    assert not all(same)
    assert load_recipe(folder).name == "flowmo-digits"
    assert list(report["stages"]["vqgan-digits"]["codecs"]) == ["VQGAN"]


def test_a_finished_stage_is_not_done_again_and_the_page_holds_its_numbers(started, monkeypatch):
    out, report = started
    done = []
    for name in STAGES:
        stage = stages.FUNCTIONS[name]
        monkeypatch.setitem(
            stages.FUNCTIONS, name, lambda recipe, bench, n=name, s=stage: done.append(n) or s(recipe, bench)
        )
    chosen = {"stages": ("vqvae-digits", "formats")}
    run_recipe(load_recipe(out).model_copy(update=chosen), out, resume=True, progress=False)
    assert done == ["formats"]
    again = read_json(out / "report.json")["stages"]
    assert again["vqvae-digits"] == report["stages"]["vqvae-digits"]
    assert set(again) == {*report["stages"], "formats"}
    page = (out / "report.html").read_text()
    row = again["vqvae-digits"]["codecs"]["VQ-VAE"]
    assert f"<td>{row['psnr']:.2f}</td>" in page
    assert f"<td>{row['frechet']['frechet_digits']:.4g}</td>" in page
    jpeg = again["formats"]["digits"]["with headers"]["jpeg"]
    assert f"<td>{jpeg['bits_per_pixel']:.4g}</td>" in page
    for claim in read_json(out / "report.json")["claims"]:
        assert claim["here"] in page


def test_samplers_and_modes(started):
    found = started[1]["stages"]
    assert set(found["samplers"]["digits"]) == {"n", "own", "FlowMo-1A", "FlowMo-1A+1B"}
    rows = found["samplers"]["digits"]["FlowMo-1A"]
    assert {"25 steps", "10 steps", "4 steps", "2 steps", "1 steps", "linear", "shifted", "no guidance"} <= set(rows)
    row = found["modes"]["digits"]["FlowMo-1A+1B"]
    assert row["deviation"] > 0
    assert row["psnr_of_mean"] > row["psnr"]  # the mean of samples is closer than one


def test_a_whole_photograph_goes_through_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr("latentia.data.photos.photograph", lambda name: np.zeros((64, 96, 3), np.uint8))
    out = tmp_path / "run"
    run_recipe(tiny("stages=lfq-photos,whole"), out, progress=False)
    stage = read_json(out / "report.json")["stages"]["whole"]
    assert (stage["tiles"], stage["bits"]) == (6, 6 * 576)
    assert set(stage["rows"]) == {"LFQ", "jpeg", "webp", "avif"}
    assert stage["rows"]["webp"]["bytes"] * 8 <= stage["bits"]
    assert "A whole photograph" in (out / "report.html").read_text()


def test_ablations_are_all_as_long_and_at_equal_bits(tmp_path):
    out = tmp_path / "run"
    run_recipe(tiny("stages=ablations"), out, progress=False)
    stage = read_json(out / "report.json")["stages"]["ablations"]
    assert list(stage["rows"]) == ["whole", "FSQ", "shifted sampler", "no guidance", "no perceptual loss"]
    assert stage["rows"]["FSQ"]["bits"] == stage["rows"]["whole"]["bits"] == 128
    assert stage["rows"]["shifted sampler"]["psnr"] != stage["rows"]["whole"]["psnr"]
    page = (out / "report.html").read_text()
    assert "Table 4" in page
    assert "<td>13.86</td>" in page


def test_priors_tell_what_their_own_reports_say(tmp_path, monkeypatch):
    def own(recipe, folder):
        numbers = {"accuracy_digits": {"value": 0.96}, "frechet_digits": {"value": 3.0}}
        seconds = {"maskgit-digits": 0.01, "gpt-digits": 0.06}[recipe.name]
        row = {"drawn by": "8 rounds", "n": 540, "numbers": numbers, "seconds_alone": seconds, "seconds_in_batch": 0.1}
        told = {"rows": [row], "floor": {"value": 1.5}, "training": {"prior": {"seconds": 7.0}}}
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(told))

    monkeypatch.setattr(sub, "go_on", own)
    out = tmp_path / "run"
    run_recipe(tiny("stages=priors"), out, progress=False)
    report = read_json(out / "report.json")
    assert {each["claim"]: each["here"] for each in report["claims"]} == {
        "judge's accuracy on digits by MaskGIT": "0.96",
        "judge's accuracy on digits by the autoregressive transformer": "0.96",
        "MaskGIT's speed over the autoregressive one's": "6 ×",
    }
    assert all(each["holds"] for each in report["claims"])
    assert "<td>2.00</td>" in (out / "report.html").read_text()  # Fréchet distance over its floor


def test_a_stopped_codec_goes_on_where_it_was(tmp_path, monkeypatch):
    out, recipe = tmp_path / "run", tiny("stages=fsq-digits", "seed=3")
    note = sub.Watch.note

    def stop(self, bench):
        note(self, bench)
        raise KeyboardInterrupt

    monkeypatch.setattr(sub.Watch, "note", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, out, progress=False)
    assert not (out / "stages/fsq-digits.json").exists()
    monkeypatch.undo()
    run_recipe(load_recipe(out), out, resume=True, progress=False)
    curve = read_json(out / "stages/fsq-digits.json")["curve"]
    assert [line["step"] for line in curve] == [2, 4]
    assert curve[0]["cpu_seconds"] <= curve[1]["cpu_seconds"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("stages=vqvae-digit", "did you mean 'vqvae-digits'"),
        ("stages=all", "no stage 'all'"),
        ("size=huge", "no size 'huge': choose from quick, full"),
    ],
)
def test_what_is_not_there_is_refused(typed, words):
    with pytest.raises(InputError, match=words):
        override(tokenizers_study(), [typed])


def test_a_stage_says_which_codecs_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"'modes' needs a codec: add one of flowmo-digits, flowmo-photos"):
        run_recipe(tiny("stages=modes"), tmp_path / "run", progress=False)


def test_claims_say_by_how_much():
    from latentia.recipes.tokenizers_study_claims import claims, codec_rows, collapsed, slope

    usage = {"perplexity": 20.0, "ceiling": 512, "used": 30, "codes": 512}
    ruler = "frechet_photo_features"

    def row(psnr, frechet):
        return {"psnr": psnr, "frechet": {ruler: frechet}, "usage": usage, "cpu_seconds": 60.0, "n": 9}

    found = {
        "vqvae-photos": {"data": "photos", "codecs": {"VQ-VAE": row(26.5, 2.0)}},
        "vqgan-photos": {"data": "photos", "codecs": {"VQGAN": row(25.0, 1.0)}},
        "flowmo-photos": {
            "data": "photos",
            "codecs": {"FlowMo-1A": row(22.0, 3.0), "FlowMo-1A+1B": row(23.0, 2.0)},
        },
    }
    by_name = {each.claim: each for each in claims(found)}
    missed = by_name["VQ-VAE's PSNR on photographs"]
    assert not missed.holds
    assert missed.says.endswith("missed by 1 dB.")
    assert by_name[f"how far VQGAN's {ruler} is below VQ-VAE's"].holds
    assert by_name[f"FlowMo's {ruler}, at most VQGAN's"].says.endswith("missed: 2 × of it.")
    assert by_name["PSNR of 1A+1B above 1A's on photos"].holds

    # What other stages measured says why a target was missed, and is not there for one that was reached.
    found["flowmo-photos"]["codecs"]["FlowMo-1A"] = row(22.0, 1.5)
    modes = {"FlowMo-1A": {"deviation": 0.03}, "FlowMo-1A+1B": {"deviation": 0.01}}
    samplers = {"own": "10 steps", "n": 9, "FlowMo-1A": {}}
    for name, frechet in (("10 steps", 1.5), ("1 steps", 4.0), ("linear", 1.5), ("shifted", 2.0), ("no guidance", 3.0)):
        samplers["FlowMo-1A"][name] = {"psnr": 24.0, "frechet": {ruler: frechet}}
    told = {
        each.claim: each for each in claims({**found, "modes": {"photos": modes}, "samplers": {"photos": samplers}})
    }
    assert (
        "24.0 dB where VQ-VAE has 26.5: code and decoder together have learnt less"
        in told[f"FlowMo's {ruler}, at most VQGAN's"].says
    )
    assert "0.010 after it, by 0.030 before" in told[f"{ruler} of 1A+1B, below 1A's"].says
    assert "differ by 0.030 only" in told[f"{ruler} of the shifted sampler, below the linear one's"].says
    reached = told[f"{ruler} of guidance in an interval, below none's"]
    assert reached.holds
    assert reached.says.endswith("reached, 0.5 × of it.")

    assert "VQ-VAE on photos has collapsed: perplexity 20.0 of 512" in collapsed(codec_rows(found))[0]
    curve = [{"cpu_seconds": 10 * 2**i, "psnr": 20.0 + 1.5 * i} for i in range(4)]
    assert slope(curve) == pytest.approx(1.5)
    assert slope(curve[:1]) is None
    assert json.dumps([each.to_dict() for each in claims(found)])
