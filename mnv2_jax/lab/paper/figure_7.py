"""Fig. 7: channels that are positive after each expansion by t; Lemma 2 asks for 1/t of them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import eval_transform, open_source
from mnv2_jax.lab.model_folder import DESCRIPTION, EARLIEST, TrainedModel, load_model
from mnv2_jax.lab.paper.content import TRAIN, Missing, Note, Part, Picture, Sources, Table, Text
from mnv2_jax.lab.paper.drawing import COLORS, INK, figure
from mnv2_jax.lab.paper.results import sweep_config
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.models.build import build
from mnv2_jax.models.dialect import normalize
from mnv2_jax.models.spec import IMAGENET, unroll

# Models of the ablations on digits that are used when none is given, in a folder of results.
DEFAULTS = ("ablate_linear/linear/seed_0", "ablate_shortcut/between_bottlenecks/seed_0")
EMBEDDED = "fashion_mnist_small"  # images for a model whose own are not known
IMAGES = 256
FEW, SMALL = 16, 96  # images and resolution for the paper's network, which is only initialized


class Layer(NamedTuple):
    """A layer's channels, its expansion t, and how many channels are positive at each position."""

    channels: int
    expansion: int
    counts: np.ndarray

    @property
    def above(self) -> float:
        """Share of positions with at least channels / t positive channels."""
        return float((self.counts * self.expansion >= self.channels).mean())


def positive_channels(
    model: Any, variables: Any, images: Float[Array, "b h w c"], train: bool = False
) -> list[Layer]:
    """Counts the positive channels of the input of each depthwise convolution of a MobileNetV2.

    The images are in the dialect's range; with `train` their own statistics normalize them.
    """
    model = model.clone(split=1)
    blocks = unroll(model.width, model.output_stride, model.spec).blocks

    @jax.jit
    def count(variables: Any, images: Array) -> list[Array]:
        call = partial(model.apply, variables, images, train, method="endpoints")
        tensors: Any = call(mutable=["batch_stats"])[0] if train else call()
        return [(tensors[f"block_{i}/expansion"] > 0).sum(axis=-1) for i in range(len(blocks))]

    counts = jax.device_get(count(variables, images))
    return [Layer(b.expanded, b.expansion, n.ravel()) for b, n in zip(blocks, counts, strict=True)]


def figure_7(sources: Sources) -> Iterator[Part]:
    """Fig. 7: the paper's network at step 0, and a trained model before and after its training."""
    folder = find_model(sources)
    saved = None if folder is None else _backbone(load_model(folder), folder)
    columns: dict[str, list[Layer]] = {}
    texts = []
    if saved is None or saved.model.spec != IMAGENET:
        model = build(num_classes=None)
        images = _read_images((EMBEDDED, "test", None), FEW, SMALL, model, {"crop": "none"})
        fresh = jax.jit(model.init)(jax.random.key(0), images[:1])
        columns["(a) width 1.0 at step 0"] = positive_channels(model, fresh, images, True)
        what = f"{FEW} images of {EMBEDDED} at {SMALL}×{SMALL}"
        texts.append(f"(a) The paper's network at step 0, on {what}")
    if saved is not None and folder is not None:
        images, data = _images(saved, folder)
        fresh = jax.jit(saved.model.init)(jax.random.key(0), images[:2])
        first, last = "bc" if columns else "ab"
        columns[f"({first}) at step 0"] = positive_channels(saved.model, fresh, images, True)
        columns[f"({last}) trained"] = positive_channels(saved.model, saved.variables, images)
        what = f"{len(images)} images of {data}"
        texts.append(f"({first}, {last}) `{folder}` at step 0 and trained, on {what}")
    alt = "Least, mean and most positive channels of each layer, and their share; 1/6 is marked."
    yield Picture("fig-7", _draw(columns), alt)
    yield Text(
        f"{'; '.join(texts)}. Positive channels of what enters each block's depthwise convolution, "
        "over all positions of all images. At step 0 batch norm takes the statistics of these "
        "images, later the running ones."
    )
    title, layers = list(columns.items())[-1]
    header = ("block", "channels", "least", "mean", "most", "std", "positions above the threshold")
    rows = []
    for i, (channels, expansion, n) in enumerate(layers):
        above = f"{layers[i].above:.2%}" if expansion > 1 else "no expansion"
        rows.append((i, channels, n.min(), f"{n.mean():.1f}", n.max(), f"{n.std():.1f}", above))
    yield Table(header, rows, "-hhhhhh", title)
    if saved is None:
        yield Missing("The same network after training on digits", TRAIN + "ablate_linear.py")
    yield Missing("The counts of any other checkpoint", "python main.py paper fig-7 --model FOLDER")
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


def _backbone(saved: TrainedModel, folder: Path) -> TrainedModel:
    if saved.backbone is saved.model:
        return saved
    trees = saved.variables.items()
    variables = {kind: tree["backbone"] for kind, tree in trees if "backbone" in tree}
    if "params" not in variables:
        raise UsageError(f"the model in {str(folder)!r} holds no MobileNetV2: give a classifier.")
    return saved._replace(model=saved.backbone, variables=variables)


def _images(saved: TrainedModel, folder: Path) -> tuple[Array, str]:
    config, place = sweep_config(folder.parent.parent), (EMBEDDED, "test", None)
    classifies = TASKS[saved.description.get("task", EARLIEST)].full_recipe
    if config and classifies:
        place = tuple(config.get(f"data.{key}") for key in ("name", "eval_split", "root"))
    options = saved.description.get("eval", {}) if classifies else {"crop": "none"}
    images = _read_images(place, IMAGES, saved.resolution, saved.model, options)
    return images, f"{place[0]}, split {place[1]}"


def _read_images(place: Any, number: int, size: int, model: Any, options: Any) -> Array:
    source = open_source(*place)
    transform = eval_transform(size, channels=model.in_channels, **options)
    chosen = np.linspace(0, len(source) - 1, min(number, len(source))).round().astype(int)
    rng = np.random.default_rng(0)  # which evaluation transforms do not draw from
    images = [transform(dict(source[int(i)]), rng)["image"] for i in chosen]
    return normalize(jnp.asarray(np.stack(images)), model.dialect)


def _draw(columns: dict[str, list[Layer]]) -> Any:
    fig, axes = figure(3.4 * len(columns) + 0.2, 5.0, rows=2, columns=len(columns))
    for (top, bottom), (title, layers) in zip(axes.T, columns.items(), strict=True):
        x = range(len(layers))
        total = np.array([layer.channels for layer in layers])
        share = np.array([1 / max(layer.expansion, 1) for layer in layers])
        # Without an expansion there is no threshold; the line is drawn through, as in the paper.
        share[share == 1] = share[share < 1].max(initial=1 / 6)
        top.set_title(title)
        for ax, scale, limit in ((top, 1, None), (bottom, total, 1.02)):
            statistics = [(n.min(), n.mean(), n.max(), n.std()) for _, _, n in layers]
            low, mean, high, std = np.array(statistics).T / scale
            ax.fill_between(x, mean - std, mean + std, color=COLORS[0], alpha=0.2, linewidth=0)
            ax.plot(x, mean, "o-", color=COLORS[0], markersize=3, label="mean ± std")
            ax.plot(x, low, "v-", color=COLORS[1], markersize=3, linewidth=1, label="least")
            ax.plot(x, high, "^-", color=COLORS[2], markersize=3, linewidth=1, label="most")
            if ax is top:
                ax.plot(x, total, color=INK, linewidth=0.9, alpha=0.6, label="all channels")
            threshold = share * total / scale
            ax.plot(x, threshold, "--", color=COLORS[3], linewidth=1.2, label="threshold")
            ax.set(ylim=(0, limit), xticks=x[:: 2 if len(x) > 9 else 1])
        bottom.set_xlabel("block")
    axes[0, 0].set_ylabel("positive channels")
    axes[1, 0].set_ylabel("share of channels")
    axes[0, 0].legend(frameon=False, loc="upper left")
    return fig
