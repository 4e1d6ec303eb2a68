"""Results found on a disk: which count, what they say, and which cannot be read."""

import json

import numpy as np
import pytest

from mnv2_jax import account
from mnv2_jax.errors import UsageError
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.lab.paper.results import (
    find,
    find_evaluations,
    imagenet_results,
    read,
    voc_scores,
)
from mnv2_jax.lab.predict import EVALUATION
from mnv2_jax.models.build import build
from tests.lab.paper.sweeps import network, write_results, write_sweep


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


def test_results_of_earlier_versions_have_no_setting(tmp_path):
    """Their networks are those of the sweep's models, where these are at hand."""
    options = {"spec": "tiny_8", "width": 0.5, "num_classes": 3, "in_channels": 1}
    place = write_results(tmp_path / "imagenet", {"a": [0.5], "b": [0.6]})
    model = place / "a" / "seed_0"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model": options, "resolution": 8}))
    result = read(place)
    assert "did not keep the setting" in result.what and result.data == ""
    madds = account(build(**options), (1, 8, 8, 1)).madds
    assert result.networks == {"a": (options, 8, madds)}
    assert imagenet_results(Sources((tmp_path,))) == {}
    (place / "config.json").write_text('{"data.name": "imagenet2012"}')
    assert imagenet_results(Sources((tmp_path,)))[0.5, 8].scores == {"a": [0.5]}
    (model / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"seed_0/config\.json cannot be read: KeyError"):
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
