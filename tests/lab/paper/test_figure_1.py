"""Fig. 1's loss against a computation of its own, and against what the appendix predicts."""

import numpy as np
import pytest

from mnv2_jax.lab.paper.content import Picture, Sources, Table
from mnv2_jax.lab.paper.figure_1 import (
    DIMENSIONS,
    collapsed_share,
    expected_collapse,
    figure_1,
    losses,
    relative_error,
    spiral,
    through_relu,
)


def error_by_least_squares(x, embedding):
    """Point by point: the way back as a least-squares problem, and the scale as one of its own."""
    back = []
    for point in x:
        image = [max(0.0, row[0] * point[0] + row[1] * point[1]) for row in embedding]
        back.append(np.linalg.lstsq(embedding, np.array(image), rcond=None)[0])
    back = np.array(back)
    scale = np.linalg.lstsq(back.reshape(-1, 1), x.ravel(), rcond=None)[0][0]
    return np.linalg.norm(x - scale * back) / np.linalg.norm(x)


@pytest.mark.parametrize("n", DIMENSIONS)
def test_loss_agrees_with_least_squares(n):
    x, embedding = spiral(40), np.random.default_rng(n).normal(size=(n, 2))
    found = relative_error(x, through_relu(x, embedding))
    assert found == pytest.approx(error_by_least_squares(x, embedding), rel=1e-9)


def test_loss_falls_with_n():
    errors, collapsed = losses(dimensions=DIMENSIONS, draws=150, seed=3).mean(axis=2).tolist()
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]
    assert collapsed == sorted(collapsed, reverse=True)


def test_collapsed_points_are_those_that_cannot_be_told_apart():
    """Lemma 2: a collapsed point shares its image with others, any other point with none."""
    x = spiral(60)
    for seed in range(5):
        embedding = np.random.default_rng(seed).normal(size=(3, 2))
        images = np.maximum(x @ embedding.T, 0)
        collapsed = 0
        for point, image in zip(x, images, strict=True):
            alive = embedding[image > 0]
            # Steps that change no positive coordinate, and are short enough to raise none above 0.
            _, singular, basis = np.linalg.svd(np.vstack([alive, np.zeros((2, 2))]))
            free = basis[singular < 1e-9]
            if len(free):
                moved = np.maximum((point + 1e-6 * free[0]) @ embedding.T, 0)
                assert np.allclose(moved, image, atol=1e-12)
            collapsed += bool(len(free))
        assert collapsed_share(x, embedding) == pytest.approx(collapsed / len(x))


@pytest.mark.slow
def test_collapse_has_its_expectation():
    _, (collapsed,) = losses(dimensions=(4,), draws=3000, seed=1)
    # Every T is a draw; points of one T depend on each other.
    margin = 4 * collapsed.std() / np.sqrt(len(collapsed))
    assert abs(collapsed.mean() - 5 / 16) < margin < 0.03
    assert expected_collapse(4) == 5 / 16


@pytest.mark.slow
def test_the_item_shows_the_papers_dimensions():
    parts = list(figure_1(Sources()))
    drawn = [part for part in parts if isinstance(part, Picture)]
    assert [part.name for part in drawn] == ["fig-1", "fig-1-loss"]
    titles = [ax.get_title() for ax in drawn[0].drawn.axes]
    assert titles == ["input", *(f"n = {n}" for n in (2, 3, 5, 15, 30))]
    (table,) = (part for part in parts if isinstance(part, Table))
    assert [row[0] for row in table.rows] == [2, 3, 5, 15, 30]
