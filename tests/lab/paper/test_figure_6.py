"""Fig. 6: ablations with their spread, verdict and curves."""

from base64 import b64encode
from pathlib import Path

import numpy as np

from mnv2_jax.lab.paper.content import Missing, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.figure_6 import figure_6a, figure_6b
from mnv2_jax.lab.paper.report import write_paper
from tests.lab.paper.sweeps import write_sweep


def test_an_ablation_is_shown_with_its_spread_and_verdict(tmp_path):
    write_sweep(tmp_path, "ablate_linear", logs=True)
    parts = list(figure_6a(Sources((tmp_path,))))
    (table,) = (part for part in parts if isinstance(part, Table))
    assert table.rows[0] == ("linear bottleneck", 3, "96.0 ± 1.0", "reference")
    # The same noise in both variants cancels in the paired difference.
    assert table.rows[1] == ("ReLU6 in bottleneck", 3, "93.0 ± 1.0", "-3.0 [-3.0, -3.0]")
    # Three signs can be flipped in eight ways, which is not enough to be sure.
    assert any("p = 0.25: **undecided**" in p.text for p in parts if isinstance(p, Text))
    (picture,) = (part for part in parts if isinstance(part, Picture))
    curves, ends = picture.drawn.axes
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [50, 96])
    np.testing.assert_allclose(ends.lines[0].get_ydata(), [95, 96, 97])


def test_without_logs_only_the_ends_are_drawn(tmp_path):
    write_sweep(tmp_path, "ablate_shortcut")
    parts = list(figure_6b(Sources((tmp_path,))))
    (picture,) = (part for part in parts if isinstance(part, Picture))
    assert len(picture.drawn.axes) == 1


def test_without_results_the_command_is_shown():
    parts = list(figure_6b(Sources()))
    assert all(isinstance(part, Missing) for part in parts)
    assert parts[0].command == "python main.py --config experiments/ablate_shortcut.py"


def test_curves_that_a_run_drew_stand_for_logs_that_were_not_kept(tmp_path):
    place = write_sweep(tmp_path, "ablate_linear")
    (place / "curves.png").write_bytes(b"\x89PNG drawn")
    pictures = [part for part in figure_6a(Sources((tmp_path,))) if isinstance(part, Picture)]
    (image,) = (picture for picture in pictures if isinstance(picture.drawn, Path))
    assert image.drawn == place / "curves.png"
    files = write_paper(tmp_path / "out", Sources((tmp_path,)), ["fig-6a"])
    assert (tmp_path / "out" / f"{image.name}.png").read_bytes() == b"\x89PNG drawn"
    encoded = b64encode(b"\x89PNG drawn").decode()
    assert f'src="data:image/png;base64,{encoded}"' in files[0].read_text()
