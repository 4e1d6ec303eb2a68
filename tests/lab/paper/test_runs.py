"""Results found on a disk, and the figures drawn from them."""

from base64 import b64encode

import numpy as np
import pytest

from mnv2_jax import account
from mnv2_jax.errors import UsageError
from mnv2_jax.lab.paper.ablations import figure_6a, figure_6b
from mnv2_jax.lab.paper.content import Image, Missing, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.report import write_paper
from mnv2_jax.lab.paper.runs import find, read
from mnv2_jax.lab.paper.tradeoff import points
from mnv2_jax.models.build import build
from tests.lab.paper.sweeps import write_sweep


def test_earlier_folders_win_and_presets_count(tmp_path):
    first, second = tmp_path / "runs", tmp_path / "results"
    write_sweep(first, "ablate_linear")
    write_sweep(second, "ablate_linear")
    (second / "ablate_linear").rename(second / "ablate_linear-cifar10")
    write_sweep(second, "ablate_linear")
    write_sweep(second, "ablate_shortcut")
    found = find((first, second), "ablate_linear")
    assert [result.folder for result in found] == [
        first / "ablate_linear",
        second / "ablate_linear-cifar10",
    ]
    # A sweep's own folder does as well as one that holds it.
    assert find((second / "ablate_shortcut",), "ablate_shortcut")[0].steps == 20


def test_what_was_measured_is_read_from_the_report(tmp_path):
    result = read(write_sweep(tmp_path, "ablate_linear", logs=True))
    assert result.setting == "Top-1 accuracy on the test split of ablate_linear digits"
    steps, curves = result.curves("relu6")
    assert steps == [10, 20]
    np.testing.assert_allclose(curves, [[0.5, 0.92], [0.5, 0.93], [0.5, 0.94]])
    assert read(write_sweep(tmp_path, "tradeoff")).curves("width_35-size_8") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"metric": "eval/accuracy"}', '{"runs": {}}', ""])
def test_a_damaged_result_is_named(tmp_path, text):
    place = write_sweep(tmp_path, "ablate_linear")
    (place / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"ablate_linear/results\.json cannot be read"):
        find((tmp_path,), "ablate_linear")


def test_an_ablation_is_shown_with_its_spread_and_verdict(tmp_path):
    write_sweep(tmp_path, "ablate_linear", logs=True)
    parts = list(figure_6a(Sources((tmp_path,))))
    (table,) = (part for part in parts if isinstance(part, Table))
    assert table.rows[0] == ("linear bottleneck", 3, "96.0 ± 1.0", "reference")
    # The same noise in both variants cancels in the paired difference.
    assert table.rows[1] == ("ReLU6 in bottleneck", 3, "93.0 ± 1.0", "-3.0 [-3.0, -3.0]")
    assert any("as in the paper" in part.text for part in parts if isinstance(part, Text))
    (picture,) = (part for part in parts if isinstance(part, Picture))
    curves, ends = picture.figure.axes
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [50, 96])
    np.testing.assert_allclose(ends.lines[0].get_ydata(), [95, 96, 97])


def test_without_logs_only_the_ends_are_drawn(tmp_path):
    write_sweep(tmp_path, "ablate_shortcut")
    parts = list(figure_6b(Sources((tmp_path,))))
    (picture,) = (part for part in parts if isinstance(part, Picture))
    assert len(picture.figure.axes) == 1


def test_without_results_the_command_is_shown():
    parts = list(figure_6b(Sources()))
    assert all(isinstance(part, Missing) for part in parts)
    assert parts[0].command == "python main.py --config experiments/ablate_shortcut.py"


def test_points_of_a_trade_off_have_their_size_from_their_name(tmp_path):
    found = points(read(write_sweep(tmp_path, "tradeoff")))
    assert [(p.width, p.resolution) for p in found] == [(0.35, 8), (1.0, 8), (1.0, 16)]
    # No model was kept, so the experiment says what to count.
    for point in found:
        model = build(spec="tiny_8", width=point.width, num_classes=10, in_channels=1)
        size = point.resolution
        assert point.madds == account(model, (1, size, size, 1)).madds
    assert found[0].scores == pytest.approx([0.89, 0.90, 0.91])


def test_without_model_and_experiment_nothing_is_counted(tmp_path):
    result = read(write_sweep(tmp_path, "tradeoff"))
    result = result._replace(command="python main.py --config experiments/gone.py")
    assert [p.madds for p in points(result)] == [None] * 3


def test_curves_that_a_run_drew_stand_for_logs_that_were_not_kept(tmp_path):
    place = write_sweep(tmp_path, "ablate_linear")
    (place / "curves.png").write_bytes(b"\x89PNG drawn")
    (image,) = (part for part in figure_6a(Sources((tmp_path,))) if isinstance(part, Image))
    assert image.path == place / "curves.png"
    files = write_paper(tmp_path / "out", Sources((tmp_path,)), ["fig-6a"])
    assert (tmp_path / "out" / f"{image.name}.png").read_bytes() == b"\x89PNG drawn"
    encoded = b64encode(b"\x89PNG drawn").decode()
    assert f'src="data:image/png;base64,{encoded}"' in files[0].read_text()
