"""Sec. 5.1: the memory of inference falls with t."""

import pytest

from mnv2_jax.lab.paper import section_5_1
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.models.build import build
from tests.lab.paper.sweeps import fake_bytes


@pytest.mark.slow
def test_memory_falls_with_groups(monkeypatch):
    """On a thin network, for compiling the paper's takes long; the count is the paper's own."""
    tiny = build(spec="tiny_8", num_classes=None)
    # At least the largest tensor, 32 × 32 × 24 floats between expansion and depthwise.
    assert section_5_1.temporary_bytes(tiny, 32) >= 32 * 32 * 24 * 4
    peaks = [section_5_1.peak_elements(t) for t in (1, 2, 3, 4, 5)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > section_5_1.peak_elements(None) > peaks[1]
    monkeypatch.setattr(section_5_1, "temporary_bytes", fake_bytes)
    _, _, count, table, _ = section_5_1.section_5_1(Sources())
    assert count.rows[0] == ("whole tensors", "1,505,280", "3,011")
    assert table.rows[0] == ("whole tensors", "2.24", "1.00", "10.24", "1.00")
    assert table.rows[2] == ("t = 3", "0.75", "0.33", "3.41", "0.33")
    assert table.rows[-1] == ("bands of rows", "1.12", "0.50", "5.12", "0.50")
