"""A training gives the bits that it gave before, where they were recorded."""

import pytest

from tests import bits

KNOWN = {"arrays": "a", "configuration": "c", "data": "d", "program": "p"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (KNOWN, ""),
        (KNOWN | {"configuration": "other", "program": "other"}, ""),  # which computes the same
        (KNOWN | {"arrays": "other"}, "the same programs, data and configuration give other bits"),
        (KNOWN | {"arrays": "b", "program": "q", "data": "e"}, "data, program of the training"),
    ],
)
def test_other_bits_are_told_with_what_may_have_changed_them(found, said):
    problem = bits.compare(KNOWN, found)
    assert problem.startswith(said) and bool(problem) == bool(said)
    assert not said or "`python -m tests.bits --record`" in problem


@pytest.mark.nightly
@pytest.mark.multiprocess
def test_a_short_training_gives_the_bits_that_were_recorded():
    key, known = bits.recorded()
    if known is None:
        pytest.skip(f"no bits are recorded for {key}: `{bits.RECORD}` records them")
    assert bits.compare(known, bits.train()) == ""
