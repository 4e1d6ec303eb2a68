"""Fig. 1: what ReLU leaves of a spiral that a random matrix T embeds in n dimensions."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mnv2_jax.lab.paper.content import Note, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, figure

DIMENSIONS = (2, 3, 5, 15, 30)  # as in the paper
CURVE = (*range(2, 13), 15, 20, 25, 30)
SEED = 0
DRAWS = POINTS = 400
Points = Float[np.ndarray, "p 2"]
Embedding = Float[np.ndarray, "n 2"]


def spiral(points: int = POINTS, turns: float = 2.5) -> Points:
    """Returns points of an Archimedean spiral around the origin, of radius up to 1.

    >>> spiral(3, turns=1)[-1].round(6)
    array([ 1., -0.])
    """
    t = np.linspace(0.02, 1.0, points)
    angle = 2 * np.pi * turns * t
    return np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1)


def through_relu(x: Points, embedding: Embedding) -> Points:
    """Embeds points, applies ReLU, and projects back by the pseudo-inverse.

    >>> through_relu(np.array([[1.0, -2.0]]), np.eye(2))
    array([[1., 0.]])
    """
    return np.maximum(x @ embedding.T, 0) @ np.linalg.pinv(embedding).T


def relative_error(x: Points, back: Points) -> float:
    """Returns |x - a x'| / |x|, with the scale a that brings x' nearest.

    >>> x = np.array([[3.0, 4.0]])
    >>> relative_error(x, x / 2), relative_error(x, np.array([[-4.0, 3.0]]))
    (0.0, 1.0)
    """
    power = float((back**2).sum())
    scale = float((x * back).sum()) / power if power else 0.0
    return float(np.sqrt(((x - scale * back) ** 2).sum() / (x**2).sum()))


def collapsed_share(x: Points, embedding: Embedding) -> float:
    """Returns the share of points with fewer than two positive coordinates after T.

    By Lemma 2 of the appendix these are exactly the points that ReLU(T x) does not determine.

    >>> collapsed_share(np.array([[1.0, 1.0], [1.0, -1.0]]), np.eye(2))
    0.5
    """
    return float(((x @ embedding.T > 0).sum(axis=1) < 2).mean())


def losses(
    dimensions: Sequence[int] = CURVE, draws: int = DRAWS, seed: int = SEED
) -> Float[np.ndarray, "2 n t"]:
    """Measures `relative_error` and `collapsed_share` in n dimensions over standard normal T."""
    x, rng = spiral(), np.random.default_rng(seed)
    drawn = [rng.normal(size=(draws, n, 2)) for n in dimensions]
    errors = [[relative_error(x, through_relu(x, t)) for t in each] for each in drawn]
    return np.array([errors, [[collapsed_share(x, t) for t in each] for each in drawn]])


def figure_1(_: Sources) -> Iterator[Part]:
    """Fig. 1, and the loss behind it as a curve."""
    x = spiral()
    # The first matrices that the generator draws: none was chosen for its looks.
    rng = np.random.default_rng(SEED)
    shown = [through_relu(x, rng.normal(size=(n, 2))) for n in DIMENSIONS]
    alt = "A spiral, and what comes back from 2, 3, 5, 15 and 30 dimensions after ReLU: rays and "
    alt += "corners from 2 and 3, a deformed but unfolded spiral from 15 and 30."
    yield Picture("fig-1", _spirals(x, shown), alt)
    yield Text(
        "A spiral is embedded in n dimensions by a random matrix T, passes ReLU, and comes back "
        "by the pseudo-inverse of T. The color runs along the spiral; T is the first that the "
        f"generator draws (seed {SEED})."
    )
    errors, shares = losses()
    alt = "Relative error of reconstruction and share of collapsed points, both falling with n."
    yield Picture("fig-1-loss", _curves(errors, shares), alt)
    yield Text(
        f"How much is lost, over {DRAWS} random T for each n. Left: the relative error of the way "
        "back after the best scale; line: mean, band: the middle 80 %. Right: the share of points "
        "with fewer than two positive coordinates, which by Lemma 2 no map can bring back; the "
        "line is its exact expectation, (n + 1) / 2ⁿ."
    )
    rows = []
    for n, error, share in zip(CURVE, errors, shares, strict=True):
        low, high = np.percentile(error, (10, 90))
        collapsed = (f"{share.mean():.2%}", f"{expected_collapse(n):.2%}")
        row = (n, f"{error.mean():.3f}", f"{low:.3f} to {high:.3f}", *collapsed)
        rows += [row] * (n in DIMENSIONS)
    header = ("n", "relative error", "middle 80 %", "points collapsed", "expected")
    yield Table(header, rows, "-hhhh")
    yield Note(
        "The paper shows pictures only. What ReLU leaves of T x is not x but about x / 2, so the "
        "error is taken after the best single scale."
    )


def expected_collapse(n: Any) -> Any:
    """Returns (n + 1) / 2ⁿ, the chance that fewer than two of n signs are positive.

    >>> expected_collapse(3)
    0.5
    """
    return (n + 1) / 2**n


def _spirals(x: np.ndarray, shown: Sequence[np.ndarray]) -> object:
    from matplotlib import colormaps

    fig, axes = figure(10.2, 2.15, columns=1 + len(shown), box=True)
    colors = colormaps["turbo"](np.linspace(0.08, 0.92, 50))
    titles = ("input", *(f"n = {n}" for n in DIMENSIONS))
    for ax, points, title in zip(axes.flat, (x, *shown), titles, strict=True):
        for piece, color in zip(np.array_split(np.arange(len(x) - 1), 50), colors, strict=True):
            run = points[piece[0] : piece[-1] + 2]
            ax.plot(*run.T, color=color, linewidth=1.8, solid_capstyle="round")
        ax.set(title=title, xticks=[], yticks=[])
        ax.set_aspect("equal", "datalim")
    return fig


def _curves(errors: np.ndarray, shares: np.ndarray) -> object:
    fig, axes = figure(10.2, 3.1, columns=2)
    (left, right), n = axes.flat, np.array(CURVE)
    low, high = np.percentile(errors, (10, 90), axis=1)
    left.fill_between(n, low, high, color=COLORS[0], alpha=0.2, linewidth=0)
    left.plot(n, errors.mean(axis=1), "o-", color=COLORS[0], markersize=3.5)
    left.set(ylabel="relative error", ylim=(0, None))
    # Beyond, a collapse is rarer than one in all the matrices that are drawn.
    common = expected_collapse(n) > 1 / (10 * DRAWS)
    few, found = n[common], shares.mean(axis=1)[common]
    right.plot(few, expected_collapse(few), color=COLORS[1], label="expected")
    right.plot(few, found, "o", color=COLORS[0], markersize=4.5, label="found")
    right.set(yscale="log", ylabel="share of points collapsed")
    right.legend(frameon=False)
    for ax, ticks in ((left, [2, 5, 10, 15, 20, 25, 30]), (right, [2, 3, 5, 8, 10, 12, 15])):
        ax.set(xlabel="dimensions n", xticks=ticks)
    return fig
