"""The network in one file beside the package's: the same parameters, logits and counts."""

import ast
import importlib.util
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnv2_jax
from mnv2_jax.models.spec import SPECS

FILE = Path(__file__).resolve().parents[1] / "examples" / "minimal.py"
BOTTLENECKS = ("linear", "relu6")
SHORTCUTS = ("between_bottlenecks", "between_expansions", "no_shortcut")


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_is_read_in_one_sitting_and_needs_four_packages():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 500
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"jax", "flax", "optax", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bottleneck", "shortcut"),
    [
        pytest.param(*pair, marks=[pytest.mark.nightly] * (pair != ("relu6", "between_expansions")))
        for pair in itertools.product(BOTTLENECKS, SHORTCUTS)
    ],
)
def test_parameters_and_logits_are_the_packages(minimal, randomize, bottleneck, shortcut):
    theirs = mnv2_jax.MobileNetV2(
        num_classes=10,
        spec=SPECS["tiny_8"],
        in_channels=1,
        bottleneck=getattr(mnv2_jax, bottleneck),
        shortcut=getattr(mnv2_jax, shortcut),
    )
    ours = minimal.MobileNetV2(
        classes=10,
        architecture=minimal.TINY,
        bottleneck=getattr(minimal, bottleneck),
        shortcut=getattr(minimal, shortcut),
    )
    # One odd side, so that both paddings of a stride of 2 occur.
    images = jax.random.uniform(jax.random.key(1), (2, 9, 8, 1), minval=-1.0)
    fresh = jax.jit(theirs.init)(jax.random.key(0), images)
    mine = jax.jit(ours.init)(jax.random.key(0), images)
    # Names, shapes and first values: both draw them by the names of the modules.
    jax.tree.map(np.testing.assert_array_equal, mine, fresh)
    variables = randomize(theirs, images.shape)
    logits = jax.jit(ours.apply)(variables, images)
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(logits, jax.jit(theirs.apply)(variables, images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "width", [1.0, *(pytest.param(w, marks=pytest.mark.nightly) for w in (0.35, 1.4))]
)
def test_counts_are_the_packages(minimal, width):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    trees = [
        jax.eval_shape(model.init, jax.random.key(0), images)
        for model in (minimal.MobileNetV2(width=width), mnv2_jax.MobileNetV2(width=width))
    ]
    assert trees[0] == trees[1]
    counted = mnv2_jax.account(mnv2_jax.MobileNetV2(width=width), images.shape)
    assert minimal.multiply_adds(minimal.TABLE_2, 224, 1000, width) == counted.madds


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_a_short_training_learns(minimal):
    model = minimal.MobileNetV2(classes=10, architecture=minimal.TINY)
    accuracy = minimal.train(model, minimal.load_digits(), [0], steps=50)
    assert accuracy.shape == (1,)
    assert accuracy[0] > 25  # guessing is right for 10; 300 steps make it 97


def test_no_seeds_are_refused(minimal, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minimal.py", "--seeds", "0"])
    with pytest.raises(SystemExit):
        minimal.main()
    assert "--seeds and --steps have to be at least 1" in capsys.readouterr().err
