"""The task predictor at its full size, over three seeds."""

import time

import pytest

from latentia.methods.emu_edit.predictor_training import judged, train_task_predictor


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_thousandth_is_told_wrong_after_a_few_seconds(seed):
    started = time.process_time()
    predictor = train_task_predictor(seed=seed)
    assert time.process_time() - started < 20
    report = judged(predictor, examples=3000, seed=100 + seed)
    assert report.accuracy >= 0.995
    assert report.calibration < 0.02
    assert report.accuracy_when_sure >= 0.998
