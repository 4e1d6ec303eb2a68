"""Fig. 7's counts against loops in numpy, and its threshold against the appendix's lemma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.paper.content import Sources
from mnv2_jax.lab.paper.figure_7 import Layer, figure_7, find_model, positive_channels
from mnv2_jax.models.build import build
from mnv2_jax.models.spec import IMAGENET, Row, unroll

TWO_BLOCKS = IMAGENET._replace(
    stem=4, stem_stride=1, rows=(Row(1, 4, 1, 1), Row(6, 6, 1, 2)), last=None, divisor=2
)


def network():
    return build(num_classes=None, in_channels=1).clone(spec=TWO_BLOCKS)


@pytest.mark.slow
def test_counts_are_those_of_a_loop(randomize):
    model, shape = network(), (3, 6, 6, 1)
    variables = randomize(model, shape)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layers = positive_channels(model, variables, jnp.asarray(images))
    tensors = model.apply(variables, images, method="endpoints")
    for i, (layer, block) in enumerate(zip(layers, unroll(spec=TWO_BLOCKS).blocks, strict=True)):
        tensor = np.asarray(tensors[f"block_{i}/expansion"])
        counts = [
            sum(float(value) > 0 for value in tensor[position])
            for position in np.ndindex(tensor.shape[:-1])
        ]
        assert layer.counts.tolist() == counts
        assert (layer.channels, layer.expansion) == (tensor.shape[-1], block.expansion)
        enough = [count >= block.in_channels for count in counts]
        assert layer.above == pytest.approx(np.mean(enough))


@pytest.mark.parametrize(("positive", "above"), [(0, 0.0), (3, 0.0), (4, 1.0), (5, 1.0), (24, 1.0)])
def test_threshold_is_the_dimension_of_the_input(positive, above):
    """An expansion of 4 channels to 24 needs 4 positive ones: 1/6, not more and not less."""
    assert Layer(24, 6, np.array([positive])).above == above


def test_lemma_2_at_the_threshold():
    """With n of m·n values positive ReLU(Bx) gives x back; with fewer it cannot."""
    rng = np.random.default_rng(0)
    n, told = 4, {True: 0, False: 0}
    for _ in range(400):
        matrix, x = rng.normal(size=(3 * n, n)), rng.normal(size=n)
        image = np.maximum(matrix @ x, 0)
        alive = matrix[image > 0]
        above = Layer(len(image), 3, np.array([(image > 0).sum()])).above == 1.0
        determined = np.linalg.matrix_rank(alive) == n if len(alive) else False
        assert determined == above
        told[above] += 1
    assert min(told.values()) > 5  # both sides of the threshold were seen


@pytest.mark.nightly
@pytest.mark.slow
def test_step_0_takes_the_statistics_of_the_images():
    """Batch norm by the batch leaves about half of each channel positive; nothing else does."""
    model = network()
    images = 5 + jax.random.normal(jax.random.key(1), (8, 6, 6, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    by_batch = positive_channels(model, variables, images, train=True)
    assert 0.35 < by_batch[1].counts.mean() / by_batch[1].channels < 0.65
    again = positive_channels(model, variables, images)
    assert again[1].counts.mean() != by_batch[1].counts.mean()


def test_the_model_is_the_given_one_or_an_ablations(tmp_path):
    place = tmp_path / "ablate_linear/linear/seed_0"
    assert find_model(Sources((tmp_path,))) is None
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    assert find_model(Sources((tmp_path,))) == place
    assert find_model(Sources((tmp_path,), tmp_path)) == tmp_path


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is no saved model, for it has no model\.safetensors"):
        next(iter(figure_7(Sources((), tmp_path))))
