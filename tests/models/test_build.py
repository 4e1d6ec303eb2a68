"""Names of a configuration: parts of one's own beside those of the paper, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

from mnv2_jax import DIALECTS, SPECS, MobileNetV2, UsageError, add_parts, between_bottlenecks, build
from mnv2_jax.models import build as tables
from mnv2_jax.models.block import STANDARD


def five(conv, x, block):
    return conv(x, x.shape[-1], kernel=5, stride=block.stride, depthwise=True, name="filter")


def half(expand, filter_, project, thin, wide, stride):
    return between_bottlenecks(expand, filter_, lambda x: 0.5 * project(x), thin, wide, stride)


@pytest.fixture(autouse=True)
def own_tables(monkeypatch):
    """Names that a test gives do not outlive it."""
    monkeypatch.setattr(tables, "PARTS", {kind: dict(t) for kind, t in tables.PARTS.items()})


def test_the_defaults_are_the_class_s():
    assert MobileNetV2() == build()
    assert build(class_offset=1) == MobileNetV2(class_offset=1) != build()


def test_parts_of_ones_own_by_name():
    narrow = SPECS["tiny_8"]._replace(stem=4)
    slow = DIALECTS["keras"]._replace(bn_decay=0.99)
    add_parts(
        {"filter": {"five": five}, "shortcut": {"half": half}, "activation": {"tanh": jnp.tanh}}
    )
    add_parts({"spec": {"narrow": narrow}, "dialect": {"slow": slow}})
    named = build(
        filter="five",
        shortcut="half",
        activation="tanh",
        spec="narrow",
        dialect="slow",
        bn_decay=0.5,
    )
    given = build(
        filter=five, shortcut=half, activation=jnp.tanh, spec=narrow, dialect=slow, bn_decay=0.5
    )
    assert named == given and named.dialect.bn_decay == 0.5
    assert (named.expand, named.filter, named.project) == (STANDARD[0], five, STANDARD[2])


def test_a_function_that_is_loaded_again_replaces_the_first():
    code = "def five(conv, x, block): return x"
    once, twice = ({"__name__": "experiments.five"} for _ in range(2))
    exec(code, once)
    exec(code, twice)
    add_parts({"filter": {"five": once["five"]}})
    add_parts({"filter": {"five": twice["five"]}})
    assert build(filter="five").filter is twice["five"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"filtre": {"five": five}}, "unknown kind of part 'filtre': did you mean 'filter'"),
        ({"dtype": {"half": jnp.float16}}, "unknown kind of part 'dtype'"),
        ({"filter": {"standard": five}}, r"filter 'standard' is taken by .*standard_filter: give"),
        ({"dialect": {"slim": DIALECTS["hf"]}}, r"dialect 'slim' is taken by Dialect\(name='slim'"),
        (
            {"filter": [five]},
            r"the parts of kind 'filter' are \[.*: give a mapping, \{name: part\}",
        ),
        ({"filter": {"five": 5}}, "filter 'five' is 5: give a function under a name"),
        ({"spec": {"mine": five}}, "spec 'mine' is <function .*: give a Spec under a name"),
        ({"filter": {5: five}}, "filter 5 is <function"),
    ],
)
def test_parts_that_cannot_be_named(parts, message):
    with pytest.raises(UsageError, match=message) as caught:
        add_parts(parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", tables.PARTS)
def test_unknown_parts_say_how_to_give_ones_own(kind):
    with pytest.raises(UsageError, match=f"unknown {kind} 'mine': .*--code FILE") as caught:
        build(**{kind: "mine"})
    assert "add_parts in Python" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_detector_and_a_segmenter_take_them_too():
    add_parts({"filter": {"five": five}})
    for network in (tables.build_ssdlite, tables.build_deeplab):
        model = network(width=0.1, filter="five")
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        kernel = variables["params"]["backbone"]["block_1"]["filter"]["conv"]["kernel"]
        assert kernel.shape[:2] == (5, 5)
