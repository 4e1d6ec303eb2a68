"""A finished classifier at low precision: names, scores, and the report's lines."""

import jax
import numpy as np
import pytest

from mnv2_jax import normalize
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.tasks import make_model
from mnv2_jax.lab.train.config import flatten
from mnv2_jax.lab.train.precision import PRECISIONS, low_precision_scores
from mnv2_jax.lab.train.report import environment, make_setting, report_text
from tests.lab.train.setting import tiny


@pytest.mark.nightly
@pytest.mark.slow
def test_scores_are_those_of_a_network_that_is_nearly_the_float_one(randomize):
    config = tiny()
    config.low_precision = tuple(PRECISIONS)
    model = make_model(config, 10, 1)
    variables = randomize(model, (1, 8, 8, 1))
    arrays = open_source("digits", "test").arrays()
    logits = jax.jit(model.apply)(variables, normalize(arrays["image"], model.dialect))
    plain = float((np.asarray(logits).argmax(1) == arrays["label"]).mean())
    scores = low_precision_scores(config, model, variables, 0)
    assert scores.keys() == {f"{name}/accuracy" for name in PRECISIONS}
    assert abs(scores["bfloat16/accuracy"] - plain) < 0.05
    assert abs(scores["int8/accuracy"] - plain) < 0.08
    # Two epochs teach a random network something, with rounding as without.
    assert scores["int8_trained/accuracy"] > plain
    assert abs(scores["int8_trained/accuracy"] - scores["float32_trained/accuracy"]) < 0.08


def test_the_report_says_what_each_precision_costs(tmp_path):
    config = tiny()
    config.low_precision = ("int8",)
    config.sweep.seeds = (0, 1)
    lost = {"linear": 0.01, "relu6": 0.03}
    results = {
        "metric": "eval/accuracy", "setting": make_setting(tmp_path, config, 1, False),
        "config": flatten(config), "environment": environment(), "command": "main.py",
        "runs": {
            name: [
                {
                    "metrics": {"eval/accuracy": s, "int8/accuracy": s - lost[name]},
                    "seconds": 1.0, "skipped": 0, "steps": 1,
                }
                for s in (0.9, 0.8)
            ]
            for name in lost
        },
    }  # fmt: skip
    text = report_text(results)
    assert "- int8, linear: 84.0 %, -1.0 points" in text
    assert "- int8, what changes: *linear* above *relu6*: +2.0 points, n = 2, p = 0.5" in text
