"""The one check of a configuration: no key escapes it, and every mistake is one line."""

import contextlib
import math

import pytest
from ml_collections import ConfigDict

from mnv2_jax import UsageError
from mnv2_jax.lab.train.check import RULES, check
from mnv2_jax.lab.train.config import flatten
from mnv2_jax.lab.train.defaults import base
from tests.lab.train.setting import tiny

LEAVES = {key: value for key, value in flatten(base()).items() if ".variants" not in key}
# What only the data, the disk or a reader can judge.
FREE = {
    "name", "title", "data.name", "data.root", "data.train_split", "data.eval_split", "init.model",
    "teacher.model",
}  # fmt: skip
NUMBERS = [
    key
    for key, value in LEAVES.items()
    if not isinstance(value, (str, bool, tuple)) and key not in FREE
]


def refused(key: str, value: object) -> str:
    """What a configuration with one other value is refused with."""
    config = tiny()
    given = config
    *groups, leaf = key.split(".")
    for group in groups:
        given = given[group]
    # As an experiment's own code could: ConfigDict would refuse most other types itself.
    object.__getattribute__(given, "_fields")[leaf] = value
    with pytest.raises(UsageError) as error:
        check(config)
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_every_key_of_the_base_has_a_rule_and_no_rule_is_of_another():
    assert RULES.keys() == LEAVES.keys()
    check(tiny())


@pytest.mark.slow
def test_every_number_has_bounds():
    assert {key for key, value in LEAVES.items() if type(value) in (int, float)} <= set(NUMBERS)
    for key in NUMBERS:
        for value in (-1, -1e30, math.inf, math.nan, 10**40 if RULES[key](0.5) else -math.inf):
            assert key in refused(key, value)


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in LEAVES if key not in FREE])
def test_values_of_another_type_are_refused(key):
    """Also None, which ConfigDict takes for any key."""
    taken = (str,) if isinstance(LEAVES[key], str) else ()
    groups = () if key == "model.dialect" else ({}, ConfigDict())  # which may be given by values
    for value in (None, "no such name", 0.5, True, [1], (None,), *groups):
        rule = RULES[key]
        with contextlib.suppress(UsageError):
            if callable(rule) and not rule(value):
                assert type(value) in (type(LEAVES[key]), type(None), float, int, *taken)
                continue
        assert key in refused(key, value)


@pytest.mark.parametrize("key", sorted(FREE))
def test_texts_are_texts(key):
    assert key in refused(key, 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "clasify", "unknown task 'clasify': did you mean 'classify'"),
        ("data.train.crop", "inceptoin", "unknown training crop"),
        ("data.train.policy", "auto", "unknown augmentation policy"),
        ("data.eval.crop", "centre", "unknown evaluation crop"),
        ("low_precision", ("int8", "int4"), "unknown precision in low_precision 'int4'"),
        ("model.output_stride", 3, "output_stride is 3"),
        ("data.train.area", (0.5, 0.2), "two numbers that rise"),
        ("needs", ("init.model",), "needs init.model: give --config.init.model=VALUE"),
    ],
)
def test_what_must_fit_something_else(key, value, message):
    assert message in refused(key, value)


def test_what_only_classification_reads_is_refused_elsewhere():
    config = tiny(task="detect", low_precision=("int8",))
    with pytest.raises(UsageError, match="low_precision is for classification"):
        check(config)
