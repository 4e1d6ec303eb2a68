"""Sources in memory, and the names of splits."""

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import ArraySource


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8)), np.zeros(2), ("a",))
    with pytest.raises(UsageError, match="must be uint8"):
        ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3), ("a",))
