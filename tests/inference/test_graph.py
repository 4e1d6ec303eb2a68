"""What is read off a network of one's own, and what is made simpler on the way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import DIALECTS, UsageError
from mnv2_jax.inference.graph import trace
from mnv2_jax.inference.operations import run
from mnv2_jax.models.layers import ConvNorm

SIZE = (6, 5)


class Own(nn.Module):
    """One layer of flax, then anything."""

    then: object

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), (2, 2), name="first")(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return self.then(x)


def avg_pool(x):
    with jax.numpy_dtype_promotion("standard"):  # Flax divides by an integer
        return nn.avg_pool(x, (2, 2))


def graph_of(randomize, module):
    """Traces, and compares with the module for a batch of another size."""
    variables = randomize(module, (1, *SIZE, 3))
    graph = trace(module, variables, SIZE)
    x = np.random.default_rng(1).uniform(-1, 1, (3, *SIZE, 3)).astype(np.float32)
    expected = module.apply(variables, x)
    np.testing.assert_allclose(run(graph, x)[0], expected, atol=1e-5 * np.abs(expected).max())
    return graph


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "ops"),
    [
        (lambda x: x, "conv"),
        (nn.relu6, "conv"),
        (lambda x: jnp.minimum(jnp.maximum(2 * x + 1, -1), 0.5), "conv"),
        (nn.hard_swish, "conv hard_swish"),
        (lambda x: x * nn.relu6(x + 3) / 6, "conv hard_swish"),
        (lambda x: nn.relu6(3 + x) * (1 / 6) * x, "conv hard_swish"),
        (lambda x: x * nn.relu6(x + 2) / 6, "conv add mul mul"),
        (nn.silu, "conv logistic mul"),
        (lambda x: x * nn.sigmoid(x.mean((1, 2), keepdims=True)), "conv mean reshape logistic mul"),
        (lambda x: jnp.broadcast_to(x[:, :1, :1], x.shape) - x, "conv slice expand sub"),
        (lambda x: x.sum((1, 2)) / 9, "conv mean"),
        (lambda x: x.sum((1, 2)) / 8, "conv sum mul"),
        (lambda x: 1 - x / (2 + x * x), "conv mul add div mul add"),
        (lambda x: 1 / (2 + x * x), "conv mul add div of this form"),
        (nn.gelu, "conv pow mul add mul tanh add mul mul"),
        # What has no place among the operations is computed as JAX does.
        (lambda x: jnp.swapaxes(x, 1, 2).max(axis=2), "conv transpose reduce_max"),
        (avg_pool, "conv reduce_window_sum mul"),
        (nn.leaky_relu, "conv ge mul select_n"),
        (lambda x: x * (x > 0).astype(x.dtype), "conv gt convert_element_type mul"),
        (lambda x: x.reshape(x.shape[0], -1)[:, 1:-1], "conv reshape slice"),
    ],
)  # fmt: skip
def test_operations(randomize, then, ops):
    graph = graph_of(randomize, Own(then))
    assert " ".join(node.op for node in graph.nodes) == ops


@pytest.mark.slow
def test_layers_are_named_by_their_modules(randomize):
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = ConvNorm(4, kernel=5, stride=2, dialect=DIALECTS["torchvision"], name="stem")(x)
            x = x + ConvNorm(4, kernel=5, depthwise=True, name="filter")(x)
            return nn.Dense(2, name="classifier")(nn.Dense(8, name="wide")(x).mean((1, 2)))

    graph = graph_of(randomize, Named())
    stem, filter_, add, wide, mean, classifier = graph.nodes
    assert (stem.name, stem.clip, stem.padding) == ("stem", (0.0, 6.0), ((2, 2), (2, 2)))
    assert (filter_.name, filter_.groups, filter_.kernel.shape) == ("filter", 4, (5, 5, 1, 4))
    assert (add.name, add.inputs, mean.name) == ("add", ("stem", "filter"), "mean")
    assert (wide.op, classifier.op, classifier.name) == ("conv", "dense", "classifier")


def test_a_network_that_mixes_images_is_refused(randomize):
    module = Own(lambda x: x - jnp.transpose(x, (1, 0, 2, 3))[:1])
    with pytest.raises(UsageError, match=r"'transpose' .* mixes the images of a batch"):
        trace(module, randomize(module, (1, *SIZE, 3)), SIZE)


def test_reading_leaves_convolutions_as_they_were(randomize):
    module = ConvNorm(4, kernel=3, depthwise=False)
    variables = randomize(module, (1, *SIZE, 3))
    trace(module, variables, SIZE)
    text = str(jax.make_jaxpr(module.apply)(variables, jnp.zeros((1, *SIZE, 3))))
    assert "conv_general_dilated" not in text
