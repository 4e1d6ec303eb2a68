"""Writes this project's variables as another ecosystem's weights, under its names."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from mnv2_jax.errors import UsageError
from mnv2_jax.files import writable_place, write_file
from mnv2_jax.models.block import STANDARD, between_bottlenecks
from mnv2_jax.models.build import look_up
from mnv2_jax.models.deeplab import HEAD, DeepLabV3
from mnv2_jax.models.layers import linear, relu6
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import IMAGENET, unroll
from mnv2_jax.weights.names import ECOSYSTEMS, TORCH, Ecosystem
from mnv2_jax.weights.readers.hdf5 import write_hdf5
from mnv2_jax.weights.tensors import tensors, their_shape, to_theirs, unused

FORMATS = (".safetensors", ".npz", ".h5")
SEGMENTER_CHANNELS = 256  # of the head; the publishers' code allows no other number


def export_weights(
    model: MobileNetV2 | DeepLabV3, variables: Mapping[str, Any], ecosystem: str, path: str | Path
) -> None:
    """Writes weights that the named ecosystem loads into its own MobileNetV2 or DeepLabv3.

    Args:
      model: has to compute what the ecosystem's network does: the padding and epsilon of its
        dialect, linear bottlenecks, shortcuts between them, Table 2's strides; for a segmenter, the
        head that the paper recommends, whose output stride weights do not hold.
      variables: its `params` and `batch_stats`.
      ecosystem: one of `ECOSYSTEMS`.
      path: `.safetensors` or `.npz`; `.h5` or `.weights.h5` for Keras. An older file is replaced
        only once the new one is complete.

    Raises:
      UsageError: the ecosystem cannot express this model, or not in this format or place.
    """
    target = look_up("ecosystem", ecosystem, ECOSYSTEMS)
    path = writable_place(path, "file to write")
    if path.suffix not in FORMATS or (path.suffix == ".h5" and ecosystem != "keras"):
        raise UsageError(
            f"{str(path)!r} has no format of {ecosystem}: write .safetensors or .npz, or .h5 or "
            ".weights.h5 for keras."
        )
    check_expressible(model, target)
    write_file(path, _encode(_renamed(model, variables, target), path.name))


def _renamed(
    model: MobileNetV2 | DeepLabV3, variables: Mapping[str, Any], target: Ecosystem
) -> dict[str, np.ndarray]:
    """Returns the variables under the ecosystem's names and in its order of axes."""
    head = model.channels if isinstance(model, DeepLabV3) else None
    backbone = model.backbone if isinstance(model, DeepLabV3) else model
    flat = flatten_dict(jax.device_get(variables), sep="/")
    expected = tensors(
        target, backbone.spec, backbone.width, backbone.in_channels, model.num_classes, head
    )
    shapes = {name: np.shape(leaf) for name, leaf in flat.items()}
    if shapes != {tensor.ours: tensor.shape for tensor in expected}:
        raise UsageError(
            "the variables do not belong to the model: pass all of its params and batch_stats, and "
            "nothing else."
        )
    theirs: dict[str, np.ndarray] = {
        tensor.theirs: np.ascontiguousarray(
            to_theirs(target.framework, tensor.kind, np.asarray(flat[tensor.ours])), np.float32
        )
        for tensor in expected
    }
    idle = [] if head is None else unused(target, backbone.spec, backbone.width)
    for tensor in idle:  # which nothing is computed from: no weights, and statistics of no effect
        value = np.float32(tensor.ours.endswith(("/scale", "/var")))
        theirs[tensor.theirs] = np.full(their_shape(target.framework, tensor), value)
    if target.framework == TORCH:
        norms = [t.theirs for t in (*expected, *idle) if t.ours.endswith("/norm/var")]
        counts = (f"{name.removesuffix('running_var')}num_batches_tracked" for name in norms)
        theirs |= {name: np.zeros((), np.int64) for name in counts}
    return theirs


def check_expressible(model: MobileNetV2 | DeepLabV3, ecosystem: Ecosystem) -> None:
    """Raises a `UsageError` with all that the ecosystem's network computes differently."""
    segments = isinstance(model, DeepLabV3)
    backbone = model.backbone if segments else model
    differences = _head_differences(model, ecosystem) if segments else []
    for field in ("padding", "bn_epsilon"):
        ours, theirs = getattr(backbone.dialect, field), getattr(ecosystem.dialect, field)
        if ours != theirs:
            differences.append(f"its {field} is {ours}, not {theirs}")
    rows, table, last = backbone.spec.rows, IMAGENET.rows, backbone.spec.last
    like = backbone.spec._replace(dilates_first=ecosystem.spec.dilates_first)
    staged = "{stage}" in ecosystem.wide["project"][0]
    strides = [backbone.spec.stem_stride, *(row.s for row in rows)]
    checks = {
        f"the maps of its blocks are not {ecosystem.name}'s": (ecosystem.expand, *STANDARD[1:])
        == (backbone.expand, backbone.filter, backbone.project),
        "it lacks linear bottlenecks and ReLU6": backbone.bottleneck is linear
        and backbone.activation is relu6,
        "it lacks shortcuts between bottlenecks": backbone.shortcut is between_bottlenecks,
        "its rows are not Table 2's": strides == [2, *(row.s for row in table)]
        and [row.t == 1 for row in rows] == [row.t == 1 for row in table]
        and (staged or [row.n for row in rows] == [row.n for row in table])
        and (last is None) == (segments or ecosystem.spec.last is None),
        "it dilates other blocks": backbone.layout.blocks
        == unroll(backbone.width, backbone.output_stride, like).blocks,
        "it has a classifier": segments or bool(ecosystem.head) or backbone.num_classes is None,
    }
    differences += [what for what, holds in checks.items() if not holds]
    if differences:
        raise UsageError(
            f"{ecosystem.name} cannot hold this model: {'; '.join(differences)}. Export it to an "
            "ecosystem of its own dialect."
        )


def _head_differences(model: DeepLabV3, ecosystem: Ecosystem) -> list[str]:
    """Lists the differences between a segmenter's head and the published one."""
    if ecosystem.segmenter is None:
        able = ", ".join(e.name for e in ECOSYSTEMS.values() if e.segmenter is not None)
        return [f"it is a segmenter, which only {able} publish"]
    epsilon = model.dialect.bn_epsilon
    checks = {
        "it has a pyramid or a decoder": not model.rates and model.decoder_tap is None,
        f"its head has {model.channels} channels, not {SEGMENTER_CHANNELS}": model.channels
        == SEGMENTER_CHANNELS,
        f"its head's bn_epsilon is {epsilon}, not {HEAD.bn_epsilon}": epsilon == HEAD.bn_epsilon,
    }
    return [what for what, holds in checks.items() if not holds]


def _encode(arrays: dict[str, np.ndarray], name: str) -> bytes:
    stream = io.BytesIO()
    if name.endswith(".npz"):
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                # np.savez stores the time; a fixed one keeps equal weights equal bytes
                archive.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue())
    elif name.endswith(".h5"):
        write_hdf5(stream, arrays, numbered=name.endswith(".weights.h5"))
    else:
        return safetensors.numpy.save(arrays, metadata={"format": "pt"})
    return stream.getvalue()
