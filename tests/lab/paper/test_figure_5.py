"""Fig. 5: trained and evaluated networks at their cost."""

import pytest

from mnv2_jax.lab.paper.content import Note, Sources, Table
from mnv2_jax.lab.paper.figure_5 import figure_5, points
from mnv2_jax.lab.paper.results import read
from tests.lab.paper.sweeps import SWEEPS, network, write_evaluation, write_results, write_sweep


@pytest.mark.slow
def test_points_of_a_trade_off_are_its_networks(tmp_path):
    place = write_sweep(tmp_path, "tradeoff")
    found = points(read(place))
    assert [p[:3] for p in found] == [(8, 0.35, 38_032), (8, 1.0, 112_976), (16, 1.0, 449_984)]
    assert found[0][3] == pytest.approx([0.89, 0.90, 0.91])
    picture, *_ = figure_5(Sources((tmp_path,)))
    assert [line.get_label() for line in picture.drawn.axes[1].lines] == ["8²", "16²"]


def test_networks_of_unknown_cost_are_only_listed(tmp_path):
    write_results(tmp_path / "tradeoff", {name: [s] for name, s in SWEEPS["tradeoff"].items()})
    picture, *parts = figure_5(Sources((tmp_path,)))
    assert len(picture.drawn.axes) == 1
    _, table = (part for part in parts if isinstance(part, Table))
    assert table.rows[0] == ("small", 1, "90.0")
    note = next(part.text for part in parts if isinstance(part, Note))
    assert "`python main.py --config experiments/tradeoff.py`" in note


def test_own_runs_are_stars_and_published_weights_rings(tmp_path):
    write_evaluation(tmp_path / "a", "imagenet2012", {"accuracy": 0.7183}, {}, 224)
    write_evaluation(
        tmp_path / "b", "tfds:imagenet2012", {"accuracy": 0.5883}, {"width": 0.75}, 96,
        ecosystem="keras",
    )  # fmt: skip
    wide = {"default": network(1.4, 224)}
    write_results(tmp_path / "imagenet", {"default": [0.74]}, wide, data="imagenet2012")
    picture, _, released, *_ = figure_5(Sources((tmp_path,)))
    here = {row[:2]: row[4] for row in released.rows}
    assert here[1.0, 224] == "71.8 (slim)" and here[0.75, 96] == "58.8 (keras)"
    assert here[1.4, 224] == "74.0" and here[0.5, 96] == "not run"
    lines = picture.drawn.axes[0].lines
    rings = [line for line in lines if line.get_fillstyle() == "none"]
    assert sorted(float(ring.get_ydata()[0]) for ring in rings) == pytest.approx([58.83, 71.83])
    (star,) = (line for line in lines if line.get_marker() == "*")
    assert float(star.get_ydata()[0]) == pytest.approx(74.0)
    # Without any, the column is left out.
    assert len(next(p for p in figure_5(Sources()) if isinstance(p, Table)).header) == 4
