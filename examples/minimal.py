"""MobileNetV2 in one file, to be read from top to bottom: network, training, ablations.

    python examples/minimal.py                       # two minutes on two CPU cores
    python examples/minimal.py --seeds 8 --steps 600

The paper is "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (Sandler et al., CVPR 2018,
arXiv 1801.04381). Its two ideas are in the two names:

- *Inverted residuals.* A residual block of ResNet is wide, narrow, wide: it squeezes, convolves
  and expands, and its shortcut joins the wide ends. Here it is narrow, wide, narrow. A block
  expands its input by a 1×1 convolution, filters every channel by itself (a *depthwise* 3×3
  convolution, so that the width is cheap), and projects back; the shortcut joins the narrow ends.
- *Linear bottlenecks.* ReLU sets what is negative to zero. Where there are many channels, the
  others still hold what was lost. Where there are few it is gone, so the narrow end has no ReLU.

Figure 6 of the paper tests both, by training networks that differ in nothing else. This file does
so on 8×8 handwritten digits. It needs jax, flax, optax and numpy, and no network connection. The
parameters have the names and shapes of the package's, so that the weights fit either.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

DIGITS = pathlib.Path(__file__).parents[1] / "mnv2_jax/lab/data/embedded/digits.npz"

# ------------------------------------------------------------------ 1. The architecture (Table 2)


class Row(NamedTuple):
    """One line of Table 2: a sequence of n blocks."""

    t: int  # expansion factor
    c: int  # output channels
    n: int  # blocks
    s: int  # stride of the first of them; the others have 1


class Architecture(NamedTuple):
    """What a network looks like at width 1."""

    stem: int  # channels of the first convolution
    stem_stride: int
    rows: tuple[Row, ...]
    last: int  # channels of the last convolution
    divisor: int = 8  # channels are multiples of it


# The text of the paper counts 19 blocks. Its table, and the network that everybody uses, have 17.
TABLE_2 = Architecture(
    stem=32,
    stem_stride=2,
    rows=(
        Row(t=1, c=16, n=1, s=1),
        Row(t=6, c=24, n=2, s=2),
        Row(t=6, c=32, n=3, s=2),
        Row(t=6, c=64, n=4, s=2),
        Row(t=6, c=96, n=3, s=1),
        Row(t=6, c=160, n=3, s=2),
        Row(t=6, c=320, n=1, s=1),
    ),
    last=1280,
)

# For digits of 8×8 pixels: fewer blocks, and bottlenecks so thin that it shows what they lose.
TINY = Architecture(
    stem=8,
    stem_stride=1,
    rows=(Row(1, 4, 1, 1), Row(6, 4, 2, 1), Row(6, 6, 3, 2), Row(6, 8, 2, 2)),
    last=64,
    divisor=2,
)


class Block(NamedTuple):
    """One inverted residual: its input and output channels, its expansion factor, its stride."""

    inputs: int
    outputs: int
    t: int
    stride: int


def divisible(channels: float, divisor: int = 8) -> int:
    """Rounds channels to a multiple of `divisor`, but never loses more than a tenth of them."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def blocks_of(architecture: Architecture, width: float = 1.0) -> list[Block]:
    """Unrolls the rows into blocks; `width` is the multiplier of Sec. 4, from 0.35 to 1.4."""
    inputs = divisible(architecture.stem * width, architecture.divisor)
    blocks = []
    for row in architecture.rows:
        outputs = divisible(row.c * width, architecture.divisor)
        for i in range(row.n):
            blocks.append(Block(inputs, outputs, row.t, row.s if i == 0 else 1))
            inputs = outputs
    return blocks


def last_channels(architecture: Architecture, width: float = 1.0) -> int:
    """The last convolution grows with the width, but a narrow network keeps all of it."""
    return divisible(architecture.last * max(1.0, width), architecture.divisor)


def multiply_adds(
    architecture: Architecture, size: int, classes: int, width: float = 1.0, image_channels: int = 3
) -> int:
    """Counts multiply-adds of one image, h · w · d' · t · (d' + k² + d'') a block (Sec. 3.3).

    The formula is for stride 1. With stride 2 the expansion still works at the full resolution, and
    filter and projection at half of it.
    """
    size = -(-size // architecture.stem_stride)  # rounded up, as SAME padding does
    stem = divisible(architecture.stem * width, architecture.divisor)
    total = size**2 * 9 * image_channels * stem
    for block in blocks_of(architecture, width):
        expanded = block.inputs * block.t
        if block.t > 1:
            total += size**2 * block.inputs * expanded
        size = -(-size // block.stride)
        total += size**2 * expanded * (9 + block.outputs)
    last = last_channels(architecture, width)
    return total + size**2 * block.outputs * last + last * classes


# ------------------------------------------------------------------------------ 2. One convolution


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6): the activation of everything wide. Its bound helps at low precision."""
    return jnp.clip(x, 0, 6)


def linear(x: jax.Array) -> jax.Array:
    """No activation at all: what the paper wants in a bottleneck."""
    return x


def depthwise(x, kernel, strides, padding, **_):
    """A depthwise convolution as a sum of nine shifted images, each times one weight a channel.

    It computes what `jax.lax.conv_general_dilated` does, which takes many times as long on CPUs.
    """
    h, w = x.shape[1:3]
    sides = [((-(-n // s) - 1) * s + 3 - n, s) for n, s in zip((h, w), strides, strict=True)]
    pads = [(max(p, 0) // 2, max(p, 0) - max(p, 0) // 2) for p, _ in sides]  # SAME: the far side
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    out_h, out_w = -(-h // strides[0]), -(-w // strides[1])
    total = 0.0
    for i in range(3):
        for j in range(3):
            rows = slice(i, i + (out_h - 1) * strides[0] + 1, strides[0])
            columns = slice(j, j + (out_w - 1) * strides[1] + 1, strides[1])
            total += x[:, rows, columns] * kernel[i, j].reshape(1, 1, 1, -1)
    return total


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalization, an activation."""

    features: int
    kernel: int = 1
    stride: int = 1
    is_depthwise: bool = False
    activation: Callable = relu6
    decay: float = 0.9  # of the running statistics

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding="SAME",
            feature_group_count=self.features if self.is_depthwise else 1,
            use_bias=False,  # batch norm has one
            kernel_init=nn.initializers.truncated_normal(stddev=0.09),
            conv_general_dilated=depthwise if self.is_depthwise else jax.lax.conv_general_dilated,
            name="conv",
        )(x)
        norm = nn.BatchNorm(not train, momentum=self.decay, epsilon=1e-3, name="norm")
        return self.activation(norm(x))


# ------------------------------------------------ 3. The shortcut, a function of three maps (6b)
#
# A block is three maps: expand, filter, project. A wiring says how they are joined. `thin` is the
# bottleneck that comes in; `wide` is the expanded tensor of the block before, where it gives one.


def between_bottlenecks(expand, filter_, project, thin, wide, stride):
    """The paper's: the thin input is added to the thin output, wherever the shapes agree."""
    out = project(filter_(expand(thin)))
    return (thin + out if stride == 1 and thin.shape == out.shape else out), None


def between_expansions(expand, filter_, project, thin, wide, stride):
    """The rival: the wide tensor of one block is added to that of the next."""
    expanded = expand(thin)
    if wide is not None and wide.shape == expanded.shape:
        expanded = wide + expanded
    return project(filter_(expanded)), expanded if stride == 1 else None


def no_shortcut(expand, filter_, project, thin, wide, stride):
    """None at all."""
    return project(filter_(expand(thin))), None


# --------------------------------------------------------------------------------- 4. The network


class InvertedResidual(nn.Module):
    """Table 1: 1×1 to t times the channels, 3×3 depthwise, 1×1 back without an activation."""

    block: Block
    bottleneck: Callable = linear
    shortcut: Callable = between_bottlenecks

    @nn.compact
    def __call__(self, thin, wide=None, train: bool = False):
        block = self.block
        channels = block.inputs * block.t

        def expand(x):
            return x if block.t == 1 else ConvNorm(channels, name="expand")(x, train)

        def filter_(x):
            layer = ConvNorm(channels, 3, block.stride, is_depthwise=True, name="filter")
            return layer(x, train)

        def project(x):
            layer = ConvNorm(block.outputs, activation=self.bottleneck, name="project")
            return layer(x, train)

        return self.shortcut(expand, filter_, project, thin, wide, block.stride)


class MobileNetV2(nn.Module):
    """Images (b, h, w, c) to logits (b, classes)."""

    classes: int = 1000
    width: float = 1.0
    architecture: Architecture = TABLE_2
    bottleneck: Callable = linear  # Fig. 6a: linear or relu6
    shortcut: Callable = between_bottlenecks  # Fig. 6b: one of the three above

    @nn.compact
    def __call__(self, images, train: bool = False):
        a = self.architecture
        stem = divisible(a.stem * self.width, a.divisor)
        x = ConvNorm(stem, kernel=3, stride=a.stem_stride, name="stem")(images, train)
        wide = None
        for i, block in enumerate(blocks_of(a, self.width)):
            residual = InvertedResidual(block, self.bottleneck, self.shortcut, name=f"block_{i}")
            x, wide = residual(x, wide, train)
        x = ConvNorm(last_channels(a, self.width), name="last")(x, train)
        x = x.mean(axis=(1, 2))  # one number a channel, whatever the size of the image
        init = nn.initializers.normal(stddev=0.01)
        return nn.Dense(self.classes, kernel_init=init, name="classifier")(x)


# -------------------------------------------------------------------------------- 5. The training


class State(NamedTuple):
    """All that changes while a network is trained."""

    params: Any
    batch_stats: Any  # running means and variances of batch norm
    optimizer: Any


class Digits(NamedTuple):
    """Images (n, 8, 8, 1) between -1 and 1, and their labels (n,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """Loads 1,437 images to train on and 360 to test on, of ten classes."""
    with np.load(DIGITS) as file:
        train, test = (file[f"{part}_image"].astype(np.float32) for part in ("train", "test"))
        labels = [file[f"{part}_label"].astype(np.int32) for part in ("train", "test")]
    return Digits(train / 127.5 - 1, labels[0], test / 127.5 - 1, labels[1])


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """SGD with momentum, a short warm-up and a cosine; decay for kernels of 1×1 and classifier.

    The paper takes RMSProp for ImageNet; for three hundred steps this is as good, and better known.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, steps // 15, steps)

    def decays(params):
        return jax.tree.map(lambda p: p.ndim > 1 and p.shape[:2] != (3, 3), params)

    return optax.chain(optax.add_decayed_weights(4e-5, decays), optax.sgd(rate, momentum=0.9))


def shifted(key, images):
    """Moves every image by up to a pixel each way: the only augmentation that digits need."""
    size = images.shape[1]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (size, size, image.shape[-1]))

    return jax.vmap(crop)(padded, jax.random.randint(key, (len(images), 2), 0, 3))


def make_step(model: MobileNetV2, optimizer: optax.GradientTransformation) -> Callable:
    """Returns (state, images, labels, key) -> (state, loss): one step of training."""

    def step(state: State, images, labels, key):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(
                variables, shifted(key, images), train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, inner = optimizer.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), stats, inner), value

    return step


def train(model: MobileNetV2, data: Digits, seeds: list[int], steps: int, batch: int = 64):
    """Trains one network for each seed, all of them at once; returns their accuracies.

    A seed decides the first weights, the order of the images and how they are shifted.
    """
    optimizer = make_optimizer(steps)

    def fresh(key):
        variables = model.init(key, jnp.zeros((1, *data.train_images.shape[1:])))
        params = variables["params"]
        return State(params, variables["batch_stats"], optimizer.init(params))

    # `vmap` adds an axis for the seeds to every array, so that one program trains all of them.
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    state = jax.jit(jax.vmap(fresh))(keys)
    step = jax.jit(jax.vmap(make_step(model, optimizer)))
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    orders = [np.random.default_rng(seed) for seed in seeds]
    waiting: list[list[int]] = [[] for _ in seeds]
    for i in range(steps):
        for order, left in zip(orders, waiting, strict=True):
            if len(left) < batch:  # the next epoch: every image once, in a new order
                left.extend(order.permutation(len(labels)).tolist())
        rows = np.array([[left.pop(0) for _ in range(batch)] for left in waiting])
        step_keys = jax.vmap(functools.partial(jax.random.fold_in, data=i))(keys)
        state, loss = step(state, images[rows], labels[rows], step_keys)
        if i % 50 == 0 or i == steps - 1:
            print(f"\r  step {i + 1}/{steps}, loss {float(loss.mean()):.3f} ", end="", flush=True)
    print("\r" + " " * 40, end="\r")

    def accuracy(state: State):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return (model.apply(variables, data.test_images).argmax(-1) == data.test_labels).mean()

    return np.asarray(jax.jit(jax.vmap(accuracy))(state)) * 100


# ------------------------------------------------------------------------ 6. The ablations (Fig. 6)

VARIANTS: dict[str, dict[str, Any]] = {
    "the paper's block": {},
    "ReLU6 in the bottleneck (6a)": {"bottleneck": relu6},
    "shortcut between expansions (6b)": {"shortcut": between_expansions},
    "no shortcut (6b)": {"shortcut": no_shortcut},
}


def main() -> None:
    """Trains every variant and prints what each costs against the paper's block."""
    parser = argparse.ArgumentParser(description="The ablations of MobileNetV2's Fig. 6 on digits.")
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each variant (4)")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training (300)")
    given = parser.parse_args()
    if given.seeds < 1 or given.steps < 1:
        parser.error("--seeds and --steps have to be at least 1")

    variables = jax.eval_shape(MobileNetV2().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"The network of Table 2: {count:,} parameters (the paper: 3.4 M),")
    madds = multiply_adds(TABLE_2, 224, 1000)
    print(f"{madds:,} multiply-adds at 224 pixels (the paper: 300 M).\n")

    data, seeds = load_digits(), list(range(given.seeds))
    print(f"Accuracy on {len(data.test_labels)} digits, {given.seeds} seeds, {given.steps} steps:")
    reference = None
    for name, options in VARIANTS.items():
        began = time.monotonic()
        model = MobileNetV2(classes=10, architecture=TINY, **options)
        accuracy = train(model, data, seeds, given.steps)
        reference = accuracy if reference is None else reference
        spread = accuracy.std(ddof=1) if len(seeds) > 1 else 0.0
        line = f"{name:<34}{accuracy.mean():5.1f} ± {spread:3.1f} %"
        if options:  # seeds begin alike in all variants, so their differences say more than means
            line += f"   {(accuracy - reference).mean():+5.1f} points"
        print(f"{line}   ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
