"""`size=quick` as a user starts it: every stage, the page, and what must hold however short the trainings are."""

import pytest

from latentia.core.files import read_json
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe
from latentia.recipes.tokenizers_study import STAGES, tokenizers_study


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    out = tmp_path / "study"
    run_recipe(override(tokenizers_study(), ["size=quick", "device=cpu"]), out, progress=False)
    report = read_json(out / "report.json")
    assert list(report["stages"]) == list(STAGES)
    rows = {name: stage["codecs"] for name, stage in report["stages"].items() if "codecs" in stage}
    assert rows["vqvae-photos"]["VQ-VAE"]["psnr"] > 22
    assert rows["vqvae-digits"]["VQ-VAE"]["psnr"] > 22
    for name, codecs in rows.items():
        for label, row in codecs.items():
            assert row["bits"] == {"digits": 128, "photos": 576}[name.split("-")[1]], label
    both = rows["flowmo-digits"]
    assert both["FlowMo-1A+1B"]["cpu_seconds"] > both["FlowMo-1A"]["cpu_seconds"]
    for data in ("digits", "photos"):
        curve = report["stages"][f"flowmo-{data}"]["curve"]
        assert curve[-1]["psnr"] > curve[0]["psnr"]
        assert report["stages"]["modes"][data]["FlowMo-1A"]["deviation"] > 0
    assert (out / "report.html").stat().st_size > 100_000
