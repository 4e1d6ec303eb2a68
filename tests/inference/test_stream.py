"""Rows that stream through blocks, against the same graph computed whole."""

import itertools
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import DIALECTS, MobileNetV2, UsageError, fold, folded_apply
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.operations import run
from mnv2_jax.inference.stream import Group, block_ends, cost, flow, schedule, streamed
from mnv2_jax.lab.cli import main
from mnv2_jax.models.build import build_deeplab, build_ssdlite
from mnv2_jax.models.spec import IMAGENET
from tests.inference.test_run import BANDED, THIN

BY_DAY = [("strides", "slim"), ("dilated", "torchvision")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "padding"),
    [
        pytest.param(*pair, marks=[pytest.mark.nightly] * (pair not in BY_DAY))
        for pair in itertools.product(BANDED, ("slim", "torchvision"))
    ],
)
def test_rows_are_those_of_the_whole(randomize, case, padding):
    """Of heights that no number of rows divides, with borders where padding is no image."""
    spec, shape, options = BANDED[case]
    model = MobileNetV2(num_classes=7, spec=spec, dialect=DIALECTS[padding], **options)
    graph = trace(model, randomize(model, shape), shape[1:3])
    images = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    (expected,) = jax.jit(partial(run, graph))(images)
    ends = block_ends(graph)
    assert ends
    for end, rows in ((ends[-1], 1), (ends[-1], 2), (ends[0], 3)):
        (found,) = jax.jit(partial(run, streamed(graph, [Group(0, end, rows)])))(images)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [
        pytest.param(
            build_ssdlite(num_classes=2, spec=THIN).clone(extras=(64,)),
            20,
            marks=pytest.mark.nightly,
        ),
        (build_deeplab(num_classes=3, spec=THIN, output_stride=2), 9),
    ],
)
def test_detectors_and_segmenters(randomize, model, size):
    shape = (2, size, size + 1, 3)
    graph = trace(model, randomize(model, shape), shape[1:3])
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    in_rows = streamed(graph, [Group(0, block_ends(graph)[-1], 2)])
    for ours, theirs in zip(*(jax.jit(partial(run, g))(x) for g in (in_rows, graph)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_images_one_by_one_within_a_budget(randomize):
    model, shape = MobileNetV2(7, spec=THIN), (3, 33, 32, 3)
    variables = randomize(model, shape)
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    graph = trace(model, variables, shape[1:3])
    memory = cost(graph, [])[0] / 2
    (group,) = schedule(graph, memory)
    assert cost(graph, [group])[0] <= memory
    found = jax.jit(partial(folded_apply, model, memory=memory))(fold(model, variables), x)
    np.testing.assert_allclose(found, jax.jit(model.apply)(variables, x), rtol=1e-5, atol=1e-5)


def test_a_flow_in_numbers():
    """Two kernels of 3 rows, the first of stride 2: read off by hand."""
    model = MobileNetV2(
        num_classes=None,
        spec=THIN._replace(stem_stride=2, last=None),
        dialect=DIALECTS["torchvision"],
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    ones = jax.tree.map(lambda v: np.ones(v.shape, np.float32), shapes)
    graph = trace(model, ones, (16, 16))
    nodes = graph.nodes[: block_ends(graph)[0] + 1]
    assert [node.name for node in nodes][:2] == ["stem", "block_0/filter"]
    found = flow(nodes, 2)
    # Rows 0 and 1 of the filter read -1..2 of the stem, and these -3..5 of the images.
    assert found.new == {"block_0/project": 2, "block_0/filter": 2, "stem": 2, "images": 4}
    assert found.lead == {"block_0/project": 0, "block_0/filter": 0, "stem": 1, "images": 2}
    assert {name: n for name, n in found.kept.items() if n} == {"stem": 2, "images": 1}
    assert (found.fill, found.steps) == (1, 4)


@pytest.fixture(scope="module")
def paper():
    model = MobileNetV2()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return trace(model, jax.tree.map(lambda v: np.ones(v.shape, np.float32), shapes), (224, 224))


@pytest.mark.slow
def test_what_has_the_least_work_is_taken_and_less_than_the_least_is_refused(paper):
    whole, work = cost(paper, [])
    assert schedule(paper, whole) == [] and work > 300e6  # the paper's multiply-adds
    before = work
    for share in (0.5, 0.25, 0.15):
        groups = schedule(paper, share * whole)
        bytes_, more = cost(paper, groups)
        assert bytes_ <= share * whole and before <= more < 1.25 * work
        before = more
    message = r"memory is 0.1 MB, and 1 image.* take (1\.\d+) MB at least"
    with pytest.raises(UsageError, match=message) as error:
        schedule(paper, 1e5)
    least = re.match(message, str(error.value))[1]
    assert schedule(paper, 1e6 * float(least))


@pytest.mark.slow
def test_early_blocks_take_an_eighth_by_xlas_own_account():
    """Of memory, at the paper's size (Sec. 5.1); and the estimate is near."""
    rows = IMAGENET.rows[:4]
    model = MobileNetV2(None, spec=IMAGENET._replace(rows=rows, last=None))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    folded = jax.eval_shape(partial(fold, model), variables)

    def temporaries(memory):
        apply = jax.jit(partial(folded_apply, model, memory=memory))
        return apply.lower(folded, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1.3e6) < min(1.2 * 1.3e6, temporaries(1e9) / 6)


@pytest.mark.slow
def test_the_verb_says_what_is_computed_in_rows(capsys):
    assert main(["account", "--memory-plan", "1.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["temporaries"] < 1.4e6 and found["of_the_whole"] <= 0.15
    assert found["first"] == "stem" and found["last"].startswith("block_")
    assert main(["account", "--memory-plan", "nan"]) == 2
    assert "take 1." in capsys.readouterr().err
