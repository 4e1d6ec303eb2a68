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


def spec_of(ecosystem, spec=IMAGENET):
    """A spec as an ecosystem has it, which may have no last convolution and dilate other blocks."""
    own = ECOSYSTEMS[ecosystem].spec
    changed = spec._replace(last=own.last and spec.last, dilates_first=own.dilates_first)
    return own if spec == IMAGENET else changed


def network(ecosystem="torchvision", classes=3, spec=THIN, width=1.0, seed=0):
    """A model in an ecosystem's dialect, and random variables for it.

    It has no classifier where the ecosystem has none.
    """
    own, spec = ECOSYSTEMS[ecosystem], spec_of(ecosystem, spec)
    classes = classes if own.head else None
    model = MobileNetV2(
        classes,
        width,
        own.output_stride,
        spec=spec,
        expand=own.expand,
        dialect=own.dialect,
        class_offset=own.class_offset if classes == 1001 else 0,
    )
    rng = np.random.default_rng(seed)
    flat = {
        tensor.ours: rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
        for tensor in tensors(own, spec, width, 3, classes)
    }
    return model, unflatten_dict(flat, sep="/")


def same(left, right):
    """Whether two trees are equal bit by bit."""
    left, right = (flatten_dict(jax.device_get(tree)) for tree in (left, right))
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def shapes_of(ecosystem, spec=IMAGENET, width=1.0, in_channels=3, classes=1000):
    """The names and shapes of a file, in the ecosystem's order of axes."""
    target, spec = ECOSYSTEMS[ecosystem], spec_of(ecosystem, spec)
    classes = classes if target.head else None
    return {
        tensor.theirs: their_shape(target.framework, tensor)
        for tensor in tensors(target, spec, width, in_channels, classes)
    }
