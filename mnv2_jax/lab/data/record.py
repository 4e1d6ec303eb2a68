"""What a record is, and what to raise for one that cannot be used."""

from typing import TypedDict

import numpy as np

from mnv2_jax.errors import one_line


class Record(TypedDict):
    """One labelled image: `image` is uint8 (height, width, channels)."""

    image: np.ndarray
    label: int


class BadRecord(ValueError):
    """A record that cannot be used: training masks and counts it, evaluation stops at it.

    Attributes:
        name: which record, as the user can find it: a path, or an archive and a member.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return one_line(f"{self.name}: {self.reason}")
