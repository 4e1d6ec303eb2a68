"""Fig. 7: how many channels are positive after each expansion, before and after training.

Lemma 2 of the appendix: ReLU(Bx), with B of m·n × n, determines x where at least n of its values
are positive (and their rows independent). After an expansion by t that is a share of 1/t of the
channels, 1/6 in the paper's network.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import eval_transform, open_source
from mnv2_jax.lab.model_folder import DESCRIPTION, Saved, load_model
from mnv2_jax.lab.paper.content import (
    HERE,
    PLAIN,
    Missing,
    Note,
    Part,
    Picture,
    Sources,
    Table,
    Text,
)
from mnv2_jax.lab.paper.drawing import COLOURS, INK, figure, plain_axes
from mnv2_jax.lab.paper.runs import sweep_config
from mnv2_jax.models.build import build
from mnv2_jax.models.dialect import normalize
from mnv2_jax.models.spec import IMAGENET, unroll

# Models of the ablation on digits that are used when none is given, in a folder of results.
DEFAULTS = ("ablate_linear/linear/seed_0", "ablate_shortcut/between_bottlenecks/seed_0")
TRAIN = "python main.py --config experiments/ablate_linear.py"
EMBEDDED = "fashion_mnist_small"  # images for a model whose own are not known
IMAGES = 256
FEW, SMALL = 16, 96  # images and resolution for the paper's network, which is only initialized


class Positive(NamedTuple):
    """The positive channels of one layer, over all images and positions.

    Attributes:
      block: its index.
      channels: in all.
      expansion: t of its block; the threshold is channels / t.
      low, mean, high: the least, the mean and the most positive channels at a position.
      std: standard deviation over positions.
      above: share of positions with at least channels / t positive ones.
    """

    block: int
    channels: int
    expansion: int
    low: float
    mean: float
    high: float
    std: float
    above: float


class Column(NamedTuple):
    """A network in the figure: what it is, and the counts of its layers."""

    title: str
    layers: list[Positive]


def count_positive(x: Float[Array, "b h w c"], expansion: int) -> dict[str, Float[Array, ""]]:
    """Counts the positive channels at each position of each image.

    >>> x = jnp.array([1.0, 2.0, 0.0, 3.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0])
    >>> found = count_positive(x.reshape(1, 1, 2, 6), 6)  # 3 and 1 of 6 positive; 1 is enough
    >>> float(found["low"]), float(found["high"]), float(found["above"])
    (1.0, 3.0, 1.0)
    """
    count = (x > 0).sum(axis=-1).astype(jnp.float32)
    return {
        "low": count.min(),
        "mean": count.mean(),
        "high": count.max(),
        "std": count.std(),
        "above": (count * expansion >= x.shape[-1]).mean(),
    }


def positive_channels(
    model: Any, variables: Any, images: Float[Array, "b h w c"], train: bool = False
) -> list[Positive]:
    """Counts the positive channels of what enters each depthwise convolution.

    Args:
      model: a `MobileNetV2`.
      variables: `params` and `batch_stats`.
      images: in the dialect's range.
      train: normalize by the statistics of these images, as the first step of training does;
        the running ones of an untrained network mean nothing.
    """
    model = model.clone(split=1)
    blocks = unroll(model.width, model.output_stride, model.spec).blocks

    @jax.jit
    def count(variables: Any, images: Array) -> dict[str, dict[str, Array]]:
        call = partial(model.apply, variables, images, train, method="endpoints")
        found: Any = call(mutable=["batch_stats"])[0] if train else call()
        return {
            str(i): count_positive(found[f"block_{i}/expansion"], block.expansion)
            for i, block in enumerate(blocks)
        }

    counts = jax.device_get(count(variables, images))
    return [
        Positive(
            i, block.expanded, block.expansion, **{k: float(v) for k, v in counts[str(i)].items()}
        )
        for i, block in enumerate(blocks)
    ]


def figure_7(sources: Sources) -> Iterator[Part]:
    """Fig. 7: the paper's network at step 0, and a trained model before and after its training."""
    folder = find_model(sources)
    columns, texts = [], []
    saved = None
    if folder is not None:
        saved = _backbone(load_model(folder), folder)
    if saved is None or saved.model.spec != IMAGENET:
        columns.append(_paper_network())
        texts.append(
            f"(a) The paper's network at step 0, on {FEW} images of {EMBEDDED} at {SMALL}×{SMALL}"
        )
    if saved is not None and folder is not None:
        images, what = _images(saved, folder)
        fresh = jax.jit(saved.model.init)(jax.random.key(0), images[:2])
        columns.append(Column("at step 0", positive_channels(saved.model, fresh, images, True)))
        columns.append(Column("trained", positive_channels(saved.model, saved.variables, images)))
        first = "b" if len(columns) == 3 else "a"
        last = "c" if first == "b" else "b"
        texts.append(
            f"({first}, {last}) `{folder}` at step 0 and trained, on {len(images)} images of {what}"
        )
    columns = [
        column._replace(title=f"({letter}) {column.title}")
        for letter, column in zip("abc", columns, strict=False)
    ]
    yield Picture(
        "fig-7",
        _draw(columns),
        "Least, mean and most positive channels of each layer, absolute and as a share, with the "
        "threshold of 1/6.",
    )
    yield Text(
        f"{'; '.join(texts)}. Positive channels of what enters each block's depthwise convolution, "
        "over all positions of all images. At step 0 batch norm takes the statistics of these "
        "images, later the running ones."
    )
    last_column = columns[-1]
    yield Table(
        ("block", "channels", "least", "mean", "most", "std", "positions above the threshold"),
        tuple(
            (
                layer.block,
                layer.channels,
                f"{layer.low:.0f}",
                f"{layer.mean:.1f}",
                f"{layer.high:.0f}",
                f"{layer.std:.1f}",
                f"{layer.above:.2%}" if layer.expansion > 1 else "no expansion",
            )
            for layer in last_column.layers
        ),
        (PLAIN, HERE, HERE, HERE, HERE, HERE, HERE),
        last_column.title,
    )
    if saved is None:
        yield Missing("the same network after training on digits", TRAIN)
    yield Missing("the counts of any other checkpoint", "python main.py paper fig-7 --model FOLDER")
    yield Note(
        "Lemma 2 asks for n positive values *and* independent rows; the figure, like the paper's, "
        "counts values. The first block does not expand: there it is the stem's output."
    )


def find_model(sources: Sources) -> Path | None:
    """Returns the folder of the model that Fig. 7 counts: the given one, or an ablation's."""
    if sources.model is not None:
        return sources.model
    places = (run / name for run in sources.runs for name in DEFAULTS)
    return next((place for place in places if (place / DESCRIPTION).is_file()), None)


def summary(columns: Sequence[Column]) -> dict[str, list[dict[str, Any]]]:
    """Returns the counts as plain values."""
    return {column.title: [layer._asdict() for layer in column.layers] for column in columns}


def _backbone(saved: Saved, folder: Path) -> Saved:
    """Takes the MobileNetV2 out of a detector or segmenter."""
    if saved.backbone is saved.model:
        return saved
    variables = {
        kind: tree["backbone"] for kind, tree in saved.variables.items() if "backbone" in tree
    }
    if "params" not in variables:
        raise UsageError(f"the model in {str(folder)!r} holds no MobileNetV2: give a classifier.")
    return saved._replace(model=saved.backbone, variables=variables)


def _paper_network() -> Column:
    model = build(num_classes=None)
    images = _read_images(EMBEDDED, "test", None, FEW, SMALL, 3, {"crop": "none"})
    inputs = normalize(images, model.dialect)
    variables = jax.jit(model.init)(jax.random.key(0), inputs[:1])
    return Column("width 1.0 at step 0", positive_channels(model, variables, inputs, train=True))


def _images(saved: Saved, folder: Path) -> tuple[Array, str]:
    """Returns images for a model, in its range, and what they are: its own test split if known."""
    config = sweep_config(folder)
    classify = saved.description.get("task", "classify") == "classify"
    name, split, root = EMBEDDED, "test", None
    if config and classify:
        name, split, root = (config[f"data.{key}"] for key in ("name", "eval_split", "root"))
    options = saved.description.get("eval", {}) if classify else {"crop": "none"}
    channels = saved.model.in_channels
    pixels = _read_images(name, split, root, IMAGES, saved.resolution, channels, options)
    return normalize(pixels, saved.model.dialect), f"{name}, split {split}"


def _read_images(
    name: str,
    split: str,
    root: str | None,
    number: int,
    size: int,
    channels: int,
    options: dict[str, Any],
) -> Array:
    source = open_source(name, split, root)
    transform = eval_transform(size, channels=channels, **options)
    chosen = np.linspace(0, len(source) - 1, min(number, len(source))).round().astype(int)
    rng = np.random.default_rng(0)  # which evaluation transforms do not draw from
    return jnp.asarray(np.stack([transform(dict(source[int(i)]), rng)["image"] for i in chosen]))


def _draw(columns: Sequence[Column]) -> Any:
    fig, axes = figure(3.4 * len(columns) + 0.2, 5.0, rows=2, columns=len(columns))
    for i, column in enumerate(columns):
        x = [layer.block for layer in column.layers]
        total = np.array([layer.channels for layer in column.layers], float)
        for row, scale in enumerate((np.ones_like(total), total)):
            ax = axes[row, i]
            low, mean, high, std = (
                np.array([getattr(layer, name) for layer in column.layers]) / scale
                for name in ("low", "mean", "high", "std")
            )
            ax.fill_between(x, mean - std, mean + std, color=COLOURS[0], alpha=0.2, linewidth=0)
            ax.plot(x, mean, "o-", color=COLOURS[0], markersize=3, label="mean ± std")
            ax.plot(x, low, "v-", color=COLOURS[1], markersize=3, linewidth=1, label="least")
            ax.plot(x, high, "^-", color=COLOURS[2], markersize=3, linewidth=1, label="most")
            if not row:
                ax.plot(x, total, color=INK, linewidth=0.9, alpha=0.6, label="all channels")
                ax.set_title(column.title)
            share = np.array([1 / max(layer.expansion, 1) for layer in column.layers])
            share[share == 1] = share[share < 1].max(
                initial=1 / 6
            )  # drawn through, as in the paper
            ax.plot(
                x, share * total / scale, "--", color=COLOURS[3], linewidth=1.2, label="threshold"
            )
            ax.set_ylim(0, None if not row else 1.02)
            ax.set_xticks(x[:: 2 if len(x) > 9 else 1])
            plain_axes(ax)
        axes[1, i].set_xlabel("block")
    axes[0, 0].set_ylabel("positive channels")
    axes[1, 0].set_ylabel("share of channels")
    axes[0, 0].legend(frameon=False, loc="upper left")
    return fig
