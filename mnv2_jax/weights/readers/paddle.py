"""Reads PaddlePaddle's `.pdparams`, a pickle of arrays by name, without unpickling it.

`pickle` calls whatever a file names. Here the opcodes are listed by `pickletools` and followed on a
stack of plain values; what a file calls is noted by its name, which has to be one that arrays need.
"""

import math
import pickletools
from typing import Any

import numpy as np

from mnv2_jax.weights.limits import DamagedError, check_claim, shown

MAX_OPCODES = 100_000  # of a file; MobileNetV2's has some 10,000
MAX_AXES = 9
# Opcodes from protocol 1 on; Paddle writes 2 to 4.
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
TUPLES = ("builtins tuple", "__builtin__ tuple")
BYTES, DTYPE, ORDERED = "_codecs encode", "numpy dtype", "collections OrderedDict"
NAMES = {*ARRAYS, *TUPLES, BYTES, DTYPE, ORDERED, "numpy ndarray"}
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}


class Call:
    """What a file calls, by name, with its arguments, and the state that it gives the result."""

    def __init__(self, name: str, arguments: tuple):
        self.name, self.arguments = name, arguments
        self.state: Any = None


def read_paddle(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a state dict, as `paddle.save` writes it in every protocol."""
    loaded = follow(data)
    if not isinstance(loaded, dict):
        raise DamagedError(f"it holds a {type(loaded).__name__} where a state dict is needed")
    found, left = {}, len(data)
    for name, value in loaded.items():
        if isinstance(value, tuple) and len(value) == 2:  # Paddle's own name, and the array
            value = value[1]
        if isinstance(value, Call) and isinstance(name, str):
            found[name] = _array(name, value, left)
            left -= found[name].nbytes  # a pickle may give one array many names
    return found


def follow(data: bytes) -> Any:
    """Returns what a pickle of arrays makes, with a `Call` for every array."""
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count > MAX_OPCODES:
            raise DamagedError("its pickle is larger than that of weights")
        if name in LITERALS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name == "TUPLE":
            values, stack = stack, marked.pop()
            stack.append(tuple(values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("APPEND", "SETITEM"):
            values = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
            _add(stack[-1], values[::-1])
        elif name in ("APPENDS", "SETITEMS"):
            values, stack = stack, marked.pop()
            _add(stack[-1], values)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                argument = " ".join((stack.pop(-2), stack.pop()))
            if argument not in NAMES:
                what = f"it names {shown(str(argument))}, which no weights need and could run code"
                raise DamagedError(f"{what}; take another file, or save its arrays as .npz")
            stack.append(argument)
        elif name == "REDUCE":
            stack.append(_call(stack.pop(-2), stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise DamagedError(f"its pickle has the opcode {name}, which arrays by name do not")


def _add(container: Any, values: list[Any]) -> None:
    """Adds values to a list, or keys and values to a dictionary."""
    if isinstance(container, list):
        container += values
    elif all(isinstance(key, str | int) for key in values[::2]):
        container.update(zip(values[::2], values[1::2], strict=True))
    else:  # the hash of what is nested deeply takes forever
        raise DamagedError("it has an entry without a name")


def _call(name: Any, arguments: Any) -> Any:
    if name in TUPLES and isinstance(arguments[0], tuple):
        return arguments[0]
    return {} if name == ORDERED and arguments == () else Call(name, arguments)


def _array(name: str, call: Call, available: int) -> np.ndarray:
    """Makes an array of its state in numpy's pickles, of bytes that are there."""
    try:
        _, shape, dtype, fortran, content = call.state
        code, order = dtype.arguments[0], dtype.state[1]
        plain = call.name in ARRAYS and isinstance(code, str) and order in ("<", ">", "|")
        sizes = len(shape) < MAX_AXES and all(type(size) is int and size < 2**63 for size in shape)
        if not plain or not sizes or code not in NUMBERS:
            raise TypeError  # without the values, which may take forever to print
        if isinstance(content, Call):  # Python 3 writes bytes in Python 2's protocol
            content, _ = content.arguments
        kind = np.dtype(code).newbyteorder(order)
        check_claim(name, shape, kind.itemsize, min(available, len(content)))
        content = content.encode("latin1") if isinstance(content, str) else content
        flat = np.frombuffer(content, kind, math.prod(shape))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise DamagedError(f"{shown(name)} is not a plain array of numbers") from error
    return flat.reshape(shape, order="F" if fortran else "C")
