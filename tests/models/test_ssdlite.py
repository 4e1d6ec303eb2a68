"""SSDLite: counts of Tables 5 and 6, shapes for any size, the order of outputs, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import SPECS, MobileNetV2, UsageError, account
from mnv2_jax.models.build import build_ssdlite
from mnv2_jax.models.spec import Row, Spec
from mnv2_jax.models.ssdlite import DETECTION, EXTRAS, SSD, SSDLITE, SSDLite

SMALL = Spec(stem=8, stem_stride=2, rows=(Row(1, 8, 1, 1), Row(3, 8, 2, 2)), last=16)


def structure(model, size):
    x = jax.ShapeDtypeStruct((2, *size, model.backbone.in_channels), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


def small(heads=SSDLITE, extras=(32,)):
    """Three maps, so that it compiles in a second."""
    backbone = MobileNetV2(num_classes=None, spec=SMALL, dialect=DETECTION)
    return SSDLite(3, backbone, heads, extras)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "params", "madds"), [(80, 4.337e6, 0.789e9), (90, 4.501e6, 0.804e9)]
)
def test_counts_of_table_6(classes, params, madds):
    counted = account(SSDLite(classes), (1, 320, 320, 3))
    np.testing.assert_allclose(counted.params, params, rtol=2e-4)
    np.testing.assert_allclose(counted.madds, madds, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "params", "madds"), [(SSDLITE, 2.11e6, 0.178e9), (SSD, 14.78e6, 1.26e9)]
)
def test_counts_of_table_5(heads, params, madds):
    layers = account(SSDLite(80, heads=heads), (1, 320, 320, 3)).layers
    after = [layer for layer in layers if not layer.path.startswith("backbone/")]
    np.testing.assert_allclose(sum(layer.params for layer in after), params, rtol=2e-3)
    np.testing.assert_allclose(sum(layer.madds for layer in after), madds, rtol=3e-3)
    backbone = account(SSDLite().backbone, (1, 320, 320, 3))
    both = (sum(layer.params for layer in layers), sum(layer.params for layer in after))
    assert both[0] - both[1] == backbone.params == 2_223_872


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "size"),
    [
        (0.35, (129, 514)),
        *(
            pytest.param(*v, marks=pytest.mark.nightly)
            for v in ((1.0, (300, 300)), (1.4, (20, 33)))
        ),
    ],
)
def test_any_width_and_size_has_an_output_for_every_anchor(width, size):
    model = build_ssdlite(num_classes=7, width=width)
    (codes, logits), variables = structure(model, size)
    anchors = model.anchors(size)
    assert codes.shape == (2, len(anchors), 4) and logits.shape == (2, len(anchors), 8)
    assert codes.dtype == logits.dtype == jnp.float32
    params = variables["params"]
    for i, d in enumerate((512, 256, 256, 128)):
        assert params[f"extra_{i}"]["expand"]["conv"]["kernel"].shape[-1] == int(d * width)
        squeezed = params[f"extra_{i}"]["squeeze"]["conv"]["kernel"].shape[-1]
        assert squeezed == max(int(d / 2 * width), 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "dialect", "tap", "channels"),
    [
        ("imagenet", "torchvision", 13, 576),
        ("tiny_8", "torchvision", 6, 36),
    ],
)
def test_the_first_map_of_every_spec(spec, dialect, tap, channels):
    model = build_ssdlite(num_classes=2, spec=spec, in_channels=1, dialect=dialect)
    assert model.tap() == tap
    (codes, _), variables = structure(model, (37, 50))
    assert codes.shape[1] == len(model.anchors((37, 50)))
    kernel = variables["params"]["boxes_0"]["filter"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 1, channels)


def test_the_numbers_of_anchors():
    assert len(SSDLite().anchors((320, 320))) == 2034
    assert len(SSDLite().anchors((300, 300))) == 1917


@pytest.mark.slow
@pytest.mark.parametrize("heads", [SSDLITE, SSD])
def test_outputs_are_in_the_order_of_the_anchors(randomize, heads):
    """With only biases left, every cell says which shape, class or coordinate an output is."""
    model, size = small(heads=heads), (16, 24)
    variables = randomize(model, (1, *size, 3))
    for name in [n for n in variables["params"] if n.startswith(("boxes", "classes"))]:
        project = variables["params"][name]["project"]
        project["kernel"] = np.zeros_like(project["kernel"])
        project["bias"] = np.arange(len(project["bias"]), dtype=np.float32)
    codes, logits = jax.jit(model.apply)(variables, np.zeros((1, *size, 3), np.float32))
    shapes = np.concatenate(
        [
            np.tile(np.arange(k), h * w)
            for k, (h, w) in zip((3, 6, 6), model.grids(size), strict=True)
        ]
    )
    np.testing.assert_array_equal(codes[0], shapes[:, None] * 4 + np.arange(4))
    np.testing.assert_array_equal(logits[0], shapes[:, None] * 4 + np.arange(4))


@pytest.mark.slow
def test_a_predictor_sees_its_cell_and_the_eight_around_it(randomize):
    """The predictor alone, against its formula written with numpy loops."""
    model, size = small(), (16, 16)
    variables = randomize(model, (1, *size, 3))
    x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    codes, _ = jax.jit(model.apply)(variables, x)
    last = jax.jit(model.backbone.apply)(
        {kind: tree["backbone"] for kind, tree in variables.items()}, x
    )
    params, stats = variables["params"]["boxes_1"], variables["batch_stats"]["boxes_1"]["filter"]
    kernel, norm = params["filter"]["conv"]["kernel"][:, :, 0], params["filter"]["norm"]
    h, w = np.shape(last)[1:3]
    padded = np.pad(np.asarray(last)[0], ((1, 1), (1, 1), (0, 0)))
    expected = []
    for i in range(h):
        for j in range(w):
            y = (padded[i : i + 3, j : j + 3] * kernel).sum((0, 1))
            scale = norm["scale"] / np.sqrt(stats["norm"]["var"] + 1e-3)
            y = ((y - stats["norm"]["mean"]) * scale + norm["bias"]).clip(0, 6)
            expected.append(y @ params["project"]["kernel"][0, 0] + params["project"]["bias"])
    first = 3 * np.prod(model.grids(size)[0])
    found = np.asarray(codes)[0, first : first + 6 * h * w].reshape(h * w, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_parameter_names_are_a_public_format():
    _, variables = structure(small(extras=EXTRAS), (16, 16))
    params = variables["params"]
    maps = range(6)
    assert set(params) == {
        "backbone", *(f"extra_{i}" for i in range(4)),
        *(f"boxes_{i}" for i in maps), *(f"classes_{i}" for i in maps),
    }  # fmt: skip
    assert set(params["extra_0"]) == {"squeeze", "filter", "expand"}
    assert set(params["boxes_0"]) == set(params["classes_5"]) == {"filter", "project"}
    full = structure(small(heads=SSD), (16, 16))[1]["params"]
    assert set(full["boxes_0"]) == {"project"} and set(full["extra_0"]) == {"squeeze", "expand"}


@pytest.mark.slow
def test_training_with_a_mask_leaves_other_rows_alone(randomize):
    model = small()
    variables = randomize(model, (3, 16, 16, 3))
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    run = jax.jit(
        lambda x: model.apply(
            variables, x, train=True, mask=jnp.array([1.0, 1.0, 0.0]), mutable=["batch_stats"]
        )
    )
    (codes, _), updates = run(x)
    (other, _), same = run(np.concatenate([x[:2], 100 * x[2:]]))
    np.testing.assert_array_equal(codes[:2], other[:2])
    jax.tree.map(np.testing.assert_array_equal, updates, same)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), updates["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    head, old = (v["classes_2"]["filter"]["norm"]["mean"] for v in
                 (updates["batch_stats"], variables["batch_stats"]))  # fmt: skip
    assert np.abs(head - old).max() < 0.01  # the decay is 0.9997


def test_detection_has_its_own_decay():
    assert (DETECTION.bn_decay, DETECTION.bn_epsilon) == (0.9997, 1e-3)
    model = build_ssdlite()
    assert model.backbone.dialect == DETECTION and model == SSDLite()
    assert hash(model) == hash(build_ssdlite())
    assert build_ssdlite(bn_decay=0.9, dialect="keras").backbone.dialect.bn_decay == 0.9
    assert build_ssdlite(heads="ssd").heads is SSD


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_ssdlite(num_classes=0), "num_classes is 0"),
        (lambda: build_ssdlite(heads="ssdlight"), "unknown heads 'ssdlight': did you mean 'ssdlit"),
        (lambda: build_ssdlite(split=2), "split=2.*use split=1"),
        (lambda: build_ssdlite(widht=1), "unknown model option 'widht'"),
        (lambda: build_ssdlite(output_stride=2), r"output_stride 2.*no|no block.*output_stride 2"),
        (lambda: SSDLite(backbone=MobileNetV2()), "classifier of 1000 .*num_classes=None"),
    ],
)
def test_wrong_options_are_refused_in_one_line(build, message):
    with pytest.raises(UsageError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_every_spec_can_carry_the_heads():
    for spec in SPECS:
        assert build_ssdlite(spec=spec).tap() > 0
