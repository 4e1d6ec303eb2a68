"""What stops a set from being prepared; what is prepared is read in `readers/test_prepared.py`."""

import sys

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import prepare
from tests.lab.data.pictures import write_mnist


@pytest.mark.slow
def test_preparing_another_set_needs_tensorflow(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no set 'fashion_mnits'"):
        prepare("fashion_mnits", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"needs TensorFlow.*mnv2_jax\[tf\]"):
        prepare("mnist", str(tmp_path))


def test_preparing_where_nothing_can_be_written(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot prepare fashion_mnist"):
        prepare("fashion_mnist", str(tmp_path / "file"), idx_root=str(tmp_path))
