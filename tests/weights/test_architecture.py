"""Width, depth, channels and classes are read off the shapes of a file."""

import pytest

from mnv2_jax.models.spec import IMAGENET, Row
from mnv2_jax.weights import ECOSYSTEMS
from mnv2_jax.weights.architecture import PUBLISHED, find_architecture
from tests.weights.networks import shapes_of


@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_architecture_is_read_off_the_shapes(ecosystem):
    found = ECOSYSTEMS[ecosystem]
    for width in (*PUBLISHED, 0.25, 0.9, 2.0):
        for channels, classes in ((3, 1001), (1, 10)):
            shapes = shapes_of(ecosystem, IMAGENET, width, channels, classes)
            inferred = find_architecture(found, shapes)
            assert inferred.in_channels == channels
            assert inferred.classes == (classes if found.head else None)
            again = shapes_of(ecosystem, inferred.spec, inferred.width, channels, classes)
            assert again == shapes
            if width in PUBLISHED:
                assert (inferred.spec, inferred.width) == (found.spec, width)


def test_depth_is_read_off_timm_names():
    rows = tuple(
        Row(t, c, n, s)
        for (t, c, n, s) in (
            (1, 16, 1, 1),
            (6, 32, 3, 2),
            (6, 40, 5, 2),
            (6, 80, 6, 2),
            (6, 112, 5, 1),
            (6, 192, 5, 2),
            (6, 384, 1, 1),
        )
    )  # mobilenetv2_120d
    deep = IMAGENET._replace(rows=rows, divisor=1)
    inferred = find_architecture(ECOSYSTEMS["timm"], shapes_of("timm", deep))
    assert inferred.spec == deep and inferred.width == 1.0
