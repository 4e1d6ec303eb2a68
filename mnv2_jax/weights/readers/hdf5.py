"""Reads and writes Keras' HDF5 files data set by data set, without Keras and without its code.

Keras has two layouts. The older one (`.h5`) names layer and variable: `Conv1/Conv1/kernel:0`. The
newer one (`.weights.h5`, and inside `.keras`) numbers the variables of layers that are named by
their class, `layers/conv2d_1/vars/0`; the layer's own name is an attribute of `vars`.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.weights.limits import DamagedError, check_claim, max_unpacked, shown

NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
VARIABLES = {
    "conv2d": ("kernel",),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": NORM_VARIABLES,
    "dense": ("kernel", "bias"),
}
"""The variables that the newer layout numbers, by the layer's class."""

ALIASES = (
    (r"^depthwise_kernel$", "kernel"),
    (r"^mobl0_conv_0_(depthwise|project)$", r"expanded_conv_\1"),
    (r"^bn0_conv_0_bn_(depthwise|project)$", r"expanded_conv_\1_BN"),
    (r"^mobl(\d+)_conv_\1_(expand|depthwise|project)$", r"block_\1_\2"),
    (r"^bn(\d+)_conv_\1_bn_(expand|depthwise|project)$", r"block_\1_\2_BN"),
    (r"^Logits$", "predictions"),
)
"""Names of Keras 2 and what Keras 3 calls the same thing."""


def read_hdf5(data: bytes) -> dict[str, np.ndarray]:
    """Reads every variable of the model as `layer/variable`, such as `Conv1/kernel`.

    Links to other files are not followed, and data that lies in other files is rejected.
    """
    h5py = _import_h5py()
    arrays: dict[str, np.ndarray] = {}
    paths: list[str] = []
    with h5py.File(io.BytesIO(data), "r") as file:
        left = max_unpacked(len(data))
        file.visit(paths.append)  # hard links alone
        for path, dataset in ((path, file[path]) for path in paths):
            if not isinstance(dataset, h5py.Dataset):
                continue
            name = _name(path, dataset)
            if name is None:
                continue
            if dataset.external or dataset.is_virtual:
                raise DamagedError(f"{shown(path)} keeps its data in other files")
            if dataset.dtype.kind not in "fiu" or dataset.shape is None:
                raise DamagedError(f"{shown(path)} holds no numbers")
            check_claim(path, dataset.shape, dataset.dtype.itemsize, left)
            if dataset.chunks is None:  # only chunks can be compressed
                check_claim(path, dataset.shape, dataset.dtype.itemsize, len(data))
            left -= dataset.size * dataset.dtype.itemsize
            if name in arrays:
                raise DamagedError(f"it holds {shown(name)} twice")
            arrays[name] = dataset[()]
    return arrays


def read_graph(data: bytes) -> str:
    """Reads the JSON in which a model that was saved whole describes its layers; empty without."""
    with _import_h5py().File(io.BytesIO(data), "r") as file:
        graph = file.attrs.get("model_config", "")
        return graph.decode() if isinstance(graph, bytes) else str(graph)


def _name(path: str, dataset: Any) -> str | None:
    """Returns the layer and variable of a data set; None where it is not part of the network."""
    *groups, leaf = path.split("/")
    if not groups or groups[0].startswith("optimizer"):
        return None
    layer = groups[-1]
    if layer == "vars" and leaf.isdigit():
        layer = groups[-2] if len(groups) > 1 else "vars"
        variables = VARIABLES.get(re.sub(r"_\d+$", "", layer), ())
        name = dataset.parent.attrs.get("name")
        layer = name if isinstance(name, str) else layer
        leaf = variables[int(leaf)] if int(leaf) < len(variables) else leaf
    return layer_variable(f"{layer}/{leaf}")


def layer_variable(path: str) -> str:
    """Returns the last two names of a path, the layer's and the variable's, as Keras 3 has them.

    >>> layer_variable("model/expanded_conv_depthwise/depthwise_kernel:0")
    'expanded_conv_depthwise/kernel'
    """
    return "/".join(_current(name) for name in path.removesuffix(":0").split("/")[-2:])


def _current(name: str) -> str:
    for old, new in ALIASES:
        name = re.sub(old, new, name)
    return name


def write_hdf5(
    stream: io.BytesIO, tensors: Mapping[str, np.ndarray], numbered: bool = False
) -> None:
    """Writes variables named `layer/variable` so that Keras' `model.load_weights` reads them.

    They are in the order of the network's layers, which the `numbered` layout, the newer one, names
    by their class and number.
    """
    h5py = _import_h5py()
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        layer, variable = name.split("/")
        layers.setdefault(layer, {})[variable] = array
    counts: dict[str, int] = {}
    with h5py.File(stream, "w") as file:
        if not numbered:
            file.attrs["layer_names"] = [name.encode() for name in layers]
            file.attrs["backend"], file.attrs["keras_version"] = "jax", "3.0.0"
        for layer, variables in layers.items():
            if numbered:
                kind = _kind(variables)
                number = counts[kind] = counts.get(kind, -1) + 1
                suffix = f"_{number}" if number else ""
                group = file.create_group(f"layers/{kind}{suffix}/vars")
                group.attrs["name"] = layer
                names = {str(i): name for i, name in enumerate(VARIABLES[kind])}
            else:
                group = file.create_group(layer)
                names = {f"{layer}/{name}": name for name in variables}
                group.attrs["weight_names"] = [name.encode() for name in names]
            for path, name in names.items():
                group.create_dataset(path, data=variables[name])


def _kind(variables: Mapping[str, np.ndarray]) -> str:
    if "gamma" in variables:
        return "batch_normalization"
    if variables["kernel"].ndim == 2:
        return "dense"
    one_input = variables["kernel"].shape[2:] == (variables["kernel"].shape[2], 1)
    return "depthwise_conv2d" if one_input and variables["kernel"].shape[0] == 3 else "conv2d"


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            "h5py is not installed, which reads and writes Keras' .h5 and .keras: install h5py, or "
            "use .safetensors or .npz."
        ) from error
    return h5py
