"""Small networks for tests of files: Table 2's blocks with next to no channels."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mnv2_jax import MobileNetV2
from mnv2_jax.models.spec import IMAGENET, Spec
from mnv2_jax.weights import ECOSYSTEMS
from mnv2_jax.weights.tensors import tensors, their_shape

THIN = Spec(
    stem=2,
    stem_stride=2,
    rows=tuple(row._replace(c=1 + i) for i, row in enumerate(IMAGENET.rows)),
    last=5,
    divisor=1,
)


def network(ecosystem="torchvision", classes=3, spec=THIN, width=1.0, seed=0):
    """A model in an ecosystem's dialect, and random variables for it."""
    dialect = ECOSYSTEMS[ecosystem].dialect
    offset = ECOSYSTEMS[ecosystem].class_offset if classes == 1001 else 0
    model = MobileNetV2(classes, width, spec=spec, dialect=dialect, class_offset=offset)
    rng = np.random.default_rng(seed)
    flat = {
        tensor.ours: rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
        for tensor in tensors(ECOSYSTEMS[ecosystem], spec, width, 3, classes)
    }
    return model, unflatten_dict(flat, sep="/")


def same(left, right):
    """Whether two trees are equal bit by bit."""
    left, right = (flatten_dict(jax.device_get(tree)) for tree in (left, right))
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def shapes_of(ecosystem, spec=IMAGENET, width=1.0, in_channels=3, classes=1000):
    """The names and shapes of a file, in the ecosystem's order of axes."""
    target = ECOSYSTEMS[ecosystem]
    return {
        tensor.theirs: their_shape(target.framework, tensor)
        for tensor in tensors(target, spec, width, in_channels, classes)
    }
