"""Results found on a disk: which count, what they say, and which cannot be read."""

import contextlib
import json
import re

import numpy as np
import pytest

from mnv2_jax import account
from mnv2_jax.errors import UsageError
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.lab.paper.figure_5 import points
from mnv2_jax.lab.paper.results import (
    evaluation_table,
    find,
    find_evaluations,
    imagenet_results,
    read,
    voc_scores,
)
from mnv2_jax.lab.predict import EVALUATION
from mnv2_jax.markdown import markdown_table
from mnv2_jax.models.build import build
from tests.lab.paper.sweeps import network, write_evaluation, write_results, write_sweep


def test_earlier_folders_win_and_presets_count(tmp_path):
    first, second = tmp_path / "runs", tmp_path / "results"
    write_sweep(first, "ablate_linear")
    write_sweep(second, "ablate_linear")
    (second / "ablate_linear").rename(second / "ablate_linear-cifar10")
    write_sweep(second, "ablate_linear")
    write_sweep(second, "ablate_shortcut")
    results = find((first, second), "ablate_linear")
    assert [result.folder for result in results] == [
        first / "ablate_linear",
        second / "ablate_linear-cifar10",
    ]
    # A sweep's own folder does as well as one that holds it.
    (own,) = find((second / "ablate_shortcut",), "ablate_shortcut")
    assert own.folder == second / "ablate_shortcut"


def test_what_was_measured_and_its_curves(tmp_path):
    result = read(write_sweep(tmp_path, "ablate_linear", logs=True))
    assert result.what == "Top-1 accuracy on the test split of digits after 20 steps of 64 images"
    assert result.caption.endswith("(`python main.py --config experiments/ablate_linear.py`)")
    steps, curves = result.curves("relu6")
    assert steps == [10, 20]
    np.testing.assert_allclose(curves, [[0.5, 0.92], [0.5, 0.93], [0.5, 0.94]])
    assert read(write_sweep(tmp_path, "tradeoff")).curves("small") is None


@pytest.mark.slow
def test_results_of_earlier_versions_have_no_setting(tmp_path):
    """Their networks are those of the sweep's models, where these are at hand."""
    options = {"spec": "tiny_8", "width": 0.5, "num_classes": 3, "in_channels": 1}
    place = write_results(tmp_path / "imagenet", {"a": [0.5], "b": [0.6]})
    model = place / "a" / "seed_0"
    model.mkdir(parents=True)
    (model / "config.json").write_text(
        json.dumps({"model": options, "resolution": 8, "classes": []})
    )
    result = read(place)
    assert "did not keep the setting" in result.what and result.data == ""
    madds = account(build(**options), (1, 8, 8, 1)).madds
    assert [n[:3] for n in result.networks.values()] == [(8, madds, (0.5, 8))]
    assert imagenet_results(Sources((tmp_path,))) == {}
    (place / "config.json").write_text('{"data.name": "imagenet2012"}')
    assert imagenet_results(Sources((tmp_path,)))[0.5, 8].scores == {"a": [0.5]}
    (model / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"seed_0/config\.json.* has no 'model' entry"):
        read(place)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"metric": "eval/accuracy"}', '{"runs": {}}', "",
     '{"metric": "eval/accuracy", "runs": {}, "command": ""}'],
)  # fmt: skip
def test_a_damaged_result_is_named(tmp_path, text):
    place = write_sweep(tmp_path, "ablate_linear")
    (place / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"ablate_linear/results\.json cannot be read"):
        find((tmp_path,), "ablate_linear")


WRONG = [None, "x", "", -1, 0.5, True, [], ["x"], {}, {"a": 1}, 1e400, 10**400, "1" * 5000]


def changed(content, value):
    """Yields a JSON value with one of its leaves, or groups, made another, for each of them."""
    yield value
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            for other in changed(content[key], value):
                copy = content.copy()
                copy[key] = other
                yield copy


def refusals(path, use):
    """Uses a file with every one of its values made wrong; counts those that are refused."""
    content, refused = json.loads(path.read_text()), 0
    for other in (other for value in WRONG for other in changed(content, value)):
        path.write_text(json.dumps(other).replace("Infinity", "1e400"))
        with contextlib.suppress(UsageError):
            use()
            continue
        refused += 1
        with pytest.raises(UsageError, match=re.escape(path.name)) as error:
            use()
        assert len(str(error.value).splitlines()) == 1
    return refused


@pytest.mark.slow
def test_values_of_another_type_in_results_are_one_line(tmp_path):
    """What is not refused can be shown as it is."""
    networks = {"small": network(0.35, 8, 38_032)}
    folder = write_results(tmp_path / "runs" / "tradeoff", {"small": [0.9]}, networks)
    options = {"width": 1.4, "output_stride": 8}
    write_evaluation(tmp_path / "eval", "imagenet2012", {"accuracy": 0.7}, options, 224)

    def use_result():
        result = read(folder)
        assert markdown_table(*result.table()[:2]) and result.first and result.caption
        assert all(f"{madds:,}" for _, _, madds, _ in points(result))
        result.curves(next(iter(result.seeds)))

    def use_evaluation():
        found = find_evaluations((tmp_path / "eval",), "imagenet2012", "accuracy")
        assert markdown_table(*evaluation_table(found, "top-1 %")[:2])

    assert refusals(folder / "results.json", use_result) > 100
    assert refusals(tmp_path / "eval" / EVALUATION, use_evaluation) > 100


def test_a_damaged_evaluation_is_named(tmp_path):
    (tmp_path / EVALUATION).write_text('{"data": "imagenet2012"}')
    with pytest.raises(UsageError, match=r"evaluation\.json cannot be read \(KeyError"):
        find_evaluations((tmp_path,), "imagenet2012", "accuracy")


def test_runs_on_imagenet_and_voc_are_told_by_their_networks(tmp_path):
    wide = {"default": network(1.4, 224)}
    write_results(tmp_path / "imagenet-a1b2c3", {"default": [0.7]}, wide, data="imagenet2012")
    write_results(tmp_path / "imagenet-other", {"default": [0.9]}, {"default": network()})
    assert list(imagenet_results(Sources((tmp_path,)))) == [(1.4, 224)]
    segmenters = {"a": network(), "b": network(output_stride=8, aspp=True)}
    write_results(tmp_path / "segment_voc", {"a": [0.7], "b": [0.8]}, segmenters)
    assert voc_scores(Sources((tmp_path,))) == {(16, False): [0.7], (8, True): [0.8]}
