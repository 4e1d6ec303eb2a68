"""Finds MobileNetV2 in an exported graph, whose names say nothing, by how its layers are wired.

Exported files hold batch norm folded into convolutions. A kernel and a bias come back as they are,
with a batch norm that does nothing but add the bias: scale 1, mean 0, and the variance 1 - epsilon.
The tensors get the names of the library that pads as the file does, Keras or torchvision, or slim
where there are 1001 classes.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.models.layers import pad_same
from mnv2_jax.models.spec import IMAGENET, unroll
from mnv2_jax.weights.limits import MAX_MEMBERS, DamagedError, shown
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.tensors import classifier_names, convolutions, to_theirs

Value = tuple[str, int]  # what an operation makes of the image, as `Trace` counts it
Pads = str | tuple[tuple[int, int], ...]  # "same", or (before, after) of height and width
IMAGE, POOLED, LOGITS, ANSWER = ("image", 0), ("pooled", 0), ("logits", 0), ("softmax", 0)
NO_PADS = ((0, 0), (0, 0))
LARGEST = 32.0  # no network takes larger numbers; scaled pixels that are larger were 0..1 before
BACKGROUND = 1001
ARITHMETIC = {"add": (1, 1), "sub": (1, -1), "mul": (1, 0), "div": (-1, 0)}
"""The power in which a number scales, and its factor where it is added."""


class Conv(NamedTuple):
    """A convolution as it is in the file, and where its input comes from."""

    source: Value
    kernel: np.ndarray  # (h, w, in, out), of a depthwise one (h, w, 1, out)
    bias: np.ndarray
    stride: int
    pads: Pads
    depthwise: bool


def load_package(module: str) -> Any:
    """Imports what reads a format; `UsageError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module.partition('.')[0]} is not installed, which reads this file: "
            "pip install 'mnv2_jax[export]'."
        ) from error


def count(what: str, number: int) -> int:
    """Returns how many of something a file claims to have, if a network can have as many."""
    if not 0 <= number <= MAX_MEMBERS:
        raise DamagedError(f"it claims {number} {what}, more than a network has")
    return number


def differs(what: str) -> DamagedError:
    """Builds the error for a graph that computes something else than a MobileNetV2."""
    return DamagedError(f"it is no float MobileNetV2 with batch norm folded: {what}")


class Trace:
    """Follows the image through a graph; each method is an operation, and returns its value."""

    def __init__(self, axis: int) -> None:
        self.axis = axis  # of the channels of maps, counted from the end
        self.convs: list[Conv | None] = []  # None where another one took its place
        self.adds: dict[frozenset[Value], Value] = {}
        self.padded: list[tuple[Value, tuple[tuple[int, int], ...]]] = []
        self.head: tuple[np.ndarray, np.ndarray] | None = None
        self.pooled: Value | None = None
        self.scale, self.shift = np.ones(1), np.zeros(1)  # of the pixels, before the first layer
        self.scaled = False

    def conv(
        self, x: Value, kernel: np.ndarray, bias: Any, stride: int, pads: Pads, depthwise: bool
    ) -> Value:
        kernel = np.asarray(kernel, np.float32)
        if x == POOLED and kernel.shape[:2] == (1, 1):
            return self.dense(x, kernel[0, 0], bias)
        if x[0] == "padded":
            x, before = self.padded[x[1]]
            if pads != NO_PADS:
                raise differs("an image is padded twice")
            pads = before
        bias = np.zeros(kernel.shape[3]) if bias is None else bias
        self.convs.append(Conv(x, kernel, np.asarray(bias, np.float32), stride, pads, depthwise))
        return ("conv", len(self.convs) - 1)

    def dense(self, x: Value, kernel: np.ndarray, bias: Any) -> Value:
        if x != POOLED or self.head is not None:
            raise differs("a linear layer stands elsewhere than after the pooling")
        kernel = np.asarray(kernel, np.float32)
        bias = np.zeros(kernel.shape[1]) if bias is None else bias
        self.head = kernel, np.asarray(bias, np.float32)
        return LOGITS

    def relu6(self, x: Value, low: float, high: float) -> Value:
        if x[0] != "conv" or (low, high) != (0, 6):
            raise differs(f"values are clipped to {low:g}..{high:g} where ReLU6 is needed")
        return ("active", x[1])

    def arithmetic(self, op: str, a: Any, b: Any) -> Value:
        """Adds, subtracts, multiplies or divides two values, or a value and a constant."""
        power, added = ARITHMETIC[op]
        if isinstance(a, np.ndarray) and op in ("add", "mul"):
            a, b = b, a
        if isinstance(b, np.ndarray):
            axis = self.axis if a[0] == "conv" else -1
            if a[0] != "image" and b.size > 1 and b.shape[axis:] != (b.size, *[1] * (-axis - 1)):
                raise differs(f"there is {op} of other numbers than one a channel")
            number = weight(op, b).astype(np.float64)
            return self.affine(a, *((1.0, added * number) if added else (number**power, 0.0)))
        if op != "add" or isinstance(a, np.ndarray):
            raise differs(f"there is {op} of values that it has not")
        return self.adds.setdefault(frozenset((a, b)), ("add", len(self.adds)))

    def affine(self, x: Any, scale: Any, shift: Any) -> Value:
        """Scales and shifts the pixels, or every channel of a layer's linear output."""
        scale, shift = (np.reshape(v, -1) for v in (scale, shift))
        if x == IMAGE:
            self.scale, self.shift, self.scaled = self.scale * scale, self.shift * scale, True
            self.shift = self.shift + shift
        elif x[0] == "conv":
            conv, self.convs[x[1]] = self.convs[x[1]], None
            if conv is None:
                raise differs("a convolution is scaled in two ways")
            kernel, bias = (v.astype(np.float64) * scale for v in (conv.kernel, conv.bias))
            folded = kernel.astype(np.float32), (bias + shift).astype(np.float32)
            self.convs.append(conv._replace(kernel=folded[0], bias=folded[1]))
            return ("conv", len(self.convs) - 1)
        elif x == LOGITS and self.head is not None:
            kernel, bias = self.head
            self.head = (kernel * scale).astype(np.float32), bias * scale + shift
        else:
            raise differs("numbers are added or multiplied between its layers")
        return x

    def pad(self, x: Value, pads: Any) -> Value:
        self.padded.append((x, tuple((int(low), int(high)) for low, high in pads)))
        return ("padded", len(self.padded) - 1)

    def pool(self, x: Value, whole: bool = True) -> Value:
        if self.pooled is not None or not whole:
            raise differs("its pooling is not one over the whole map")
        self.pooled = x
        return POOLED

    def softmax(self, x: Value) -> Value:
        if x != LOGITS:
            raise differs("a softmax stands elsewhere than after the classifier")
        return ANSWER

    def sigmoid(self, x: Value) -> Value:
        if self.head is None or self.head[0].shape[1] != 1:
            raise differs("a sigmoid stands elsewhere than after a single output")
        return self.softmax(x)

    def reshape(self, x: Value) -> Value:
        if x not in (POOLED, LOGITS, ANSWER):
            raise differs("a map is reshaped before the pooling")
        return x


def named(
    trace: Trace, output: Value, size: Sequence[int], pixels: bool, names: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns a graph's tensors under a library's names, and what it says of its images.

    Args:
      trace: what the graph does, and to which `output`.
      size: height and width of its images, not positive where any will do.
      pixels: it takes bytes, 0..255.
      names: of the classes, or none.

    Raises:
      DamagedError: it is no MobileNetV2 with the depths and strides of Table 2.
    """
    layers = _layers(trace)
    if output not in (LOGITS, ANSWER, POOLED, trace.pooled):
        raise differs("its output is not the classifier's")
    padding = _padding(layers, size)
    classes = None if trace.head is None else trace.head[0].shape[1]
    same = "slim" if classes == BACKGROUND else "keras"
    ecosystem = ECOSYSTEMS[same if padding == "same" else "torchvision"]
    framework, arrays = ecosystem.framework, {}
    for ours, conv, norm in convolutions(ecosystem, IMAGENET):
        layer = layers[ours]
        kind = "depthwise" if layer.depthwise else "conv"
        arrays[conv + framework.leaves[kind]] = to_theirs(framework, kind, layer.kernel)
        ones, zeros = np.ones_like(layer.bias), np.zeros_like(layer.bias)
        variance = ones - np.float32(ecosystem.dialect.bn_epsilon)
        values = {"scale": ones, "bias": layer.bias, "mean": zeros, "var": variance}
        arrays |= {norm + framework.leaves[leaf]: value for leaf, value in values.items()}
    if trace.head is not None:
        kernel = to_theirs(framework, "head", trace.head[0])
        arrays |= dict(zip(classifier_names(ecosystem), (kernel, trace.head[1]), strict=True))
    facts: dict[str, Any] = {"padding": padding, "names": [], "scale": None}
    if min(size) > 0:
        facts["size"] = [int(side) for side in size]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        missing = (classes or 0) - len(names)
        facts["names"] = names if not missing else ["background", *names] if missing == 1 else []
    if trace.scaled:
        scale = trace.scale + 0 * trace.shift
        if not pixels and np.abs(scale * 255 + trace.shift).max() > LARGEST:
            scale = scale / 255
        facts |= {"scale": scale.tolist(), "shift": (trace.shift + 0 * scale).tolist()}
    return arrays, facts


def _layers(trace: Trace) -> dict[str, Conv]:
    """Names the convolutions by following them from the image, and compares with Table 2."""
    uses: dict[Value, list[tuple[int, Conv]]] = {}
    for k, conv in enumerate(trace.convs):
        if conv is not None:
            uses.setdefault(conv.source, []).append((k, conv))
    found: dict[str, Conv] = {}
    x, last = IMAGE, "its image"

    def take(ours: str, side: int, depthwise: bool, stride: int, kind: str = "active") -> None:
        nonlocal x, last
        following = uses.get(x, [])
        if len(following) != 1:
            raise differs(f"{len(following)} convolutions follow {last}, where {ours} does alone")
        number, conv = following[0]
        shape = (conv.kernel.shape[:2], conv.stride, conv.depthwise)
        wanted = ((side, side), stride, depthwise)
        if shape != wanted:
            what = "its kernel, stride and whether it is depthwise are"
            raise differs(f"{ours} is another layer: {what} {shape}, and {wanted} is needed")
        found[ours], x, last = conv, (kind, number), ours

    take("stem", 3, False, IMAGENET.stem_stride)
    for i, block in enumerate(unroll(1.0, None, IMAGENET).blocks):
        entering, place = x, f"block_{i}"
        if block.expansion > 1:
            take(f"{place}/expand", 1, False, 1)
        take(f"{place}/filter", 3, True, block.stride)
        take(f"{place}/project", 1, False, 1, "conv")
        added = trace.adds.get(frozenset((entering, x)))
        entered = found["stem" if i == 0 else f"block_{i - 1}/project"].kernel.shape[3]
        shortcut = block.stride == 1 and entered == found[last].kernel.shape[3]
        if shortcut != (added is not None):
            raise differs(f"{place} has {'no' if shortcut else 'a'} shortcut")
        x = added or x
    take("last", 1, False, 1)
    if trace.pooled != x or len(found) != sum(map(len, uses.values())):
        raise differs(f"it has more layers than {len(found)} convolutions and a classifier")
    return found


def _padding(layers: Mapping[str, Conv], size: Sequence[int]) -> str:
    """Returns how all 3x3 convolutions pad: "same" or "symmetric"."""
    sides = [side if side > 0 else 1 << 10 for side in size]
    possible = ["symmetric", "same"]
    for ours, conv in layers.items():
        side = conv.kernel.shape[0]
        same = tuple(pad_same(n, side, conv.stride, 1) for n in sides)
        pads = same if conv.stride == 1 and conv.pads == "same" else conv.pads
        fits = {"same": pads in ("same", same), "symmetric": pads == ((1, 1),) * 2}
        if side == 1:
            fits = dict.fromkeys(fits, pads == NO_PADS)
        possible = [name for name in possible if fits[name]]
        if not possible:
            raise differs(f"{ours} pads by {conv.pads}, neither as TensorFlow nor as PyTorch does")
        sides = [-(-n // conv.stride) for n in sides]
    return possible[0]


def optional_weight(name: str, values: Sequence[Any]) -> np.ndarray | None:
    """Returns the first of some constants, which has to be floats, if it is there."""
    return None if not len(values) or values[0] is None else weight(name, values[0])


def weight(name: str, value: Any) -> np.ndarray:
    """Returns a constant that has to be floats."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        kind = value.dtype if isinstance(value, np.ndarray) else "computed"
        raise DamagedError(f"{shown(name)} is {kind}: give the float model, not a quantized one")
    return value
