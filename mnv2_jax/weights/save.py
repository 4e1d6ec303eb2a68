"""Writes this project's variables as another ecosystem's weights, under its names."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.files import write_file
from mnv2_jax.models.block import between_bottlenecks
from mnv2_jax.models.deeplab import HEAD, DeepLabV3
from mnv2_jax.models.layers import linear, relu6
from mnv2_jax.models.mobilenet import MobileNetV2
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights.names import ECOSYSTEMS, TORCH, Ecosystem
from mnv2_jax.weights.readers.hdf5 import write_hdf5
from mnv2_jax.weights.tensors import Tensor, tensors, their_shape, to_theirs, unused

FORMATS = (".safetensors", ".npz", ".h5")
SEGMENTER_CHANNELS = 256  # of the head; the publishers' code has no other


def export_weights(
    model: MobileNetV2 | DeepLabV3, variables: Mapping[str, Any], ecosystem: str, path: str | Path
) -> None:
    """Writes weights that the named ecosystem loads into its own MobileNetV2 or DeepLabv3.

    Args:
      model: the network; it has to compute what theirs does: their dialect's padding and epsilon,
        linear bottlenecks, shortcuts between them, Table 2's strides; of a segmenter, the head
        that the paper recommends. Its output stride is no part of the weights: Hugging Face's
        configuration has to be given it.
      variables: its `params` and `batch_stats`.
      ecosystem: one of `ECOSYSTEMS`.
      path: `.safetensors` or `.npz`; `.h5` or `.weights.h5` for Keras. An older file is replaced
        only once the new one is complete.

    Raises:
      UsageError: the ecosystem cannot express this model, or not in this format.
    """
    if ecosystem not in ECOSYSTEMS:
        raise unknown("ecosystem", ecosystem, ECOSYSTEMS)
    target, path = ECOSYSTEMS[ecosystem], Path(path)
    if path.suffix not in FORMATS or (path.suffix == ".h5" and ecosystem != "keras"):
        raise UsageError(
            f"{str(path)!r} is in no format for {ecosystem}: write .safetensors or .npz, or .h5 or "
            ".weights.h5 for keras."
        )
    check_expressible(model, target)
    head = model.channels if isinstance(model, DeepLabV3) else None
    backbone = model.backbone if isinstance(model, DeepLabV3) else model
    flat = {
        name: np.asarray(leaf)
        for name, leaf in flatten_dict(jax.device_get(variables), sep="/").items()
    }
    expected = tensors(
        target, backbone.spec, backbone.width, backbone.in_channels, model.num_classes, head
    )
    given = {name: leaf.shape for name, leaf in flat.items()}
    if given != {tensor.ours: tensor.shape for tensor in expected}:
        raise UsageError(
            "the variables are not those of the model: pass its params and batch_stats, all of "
            "them and nothing else."
        )
    theirs: dict[str, np.ndarray] = {
        tensor.theirs: np.ascontiguousarray(
            to_theirs(target.framework, tensor.kind, flat[tensor.ours]), np.float32
        )
        for tensor in expected
    }
    if head is not None:
        idle = unused(target, backbone.spec, backbone.width)
        theirs |= {tensor.theirs: _identity(target, tensor) for tensor in idle}
        expected += idle
    if target.framework == TORCH:
        for name in (tensor.theirs for tensor in expected if tensor.ours.endswith("/norm/var")):
            count = f"{name.removesuffix('running_var')}num_batches_tracked"
            theirs[count] = np.zeros((), np.int64)
    try:
        write_file(path, _encode(theirs, path.name))
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {first_line(error)}.") from error


def _identity(ecosystem: Ecosystem, tensor: Tensor) -> np.ndarray:
    """Fills a tensor from which nothing is computed: no weights, and statistics of no effect."""
    value = 1.0 if tensor.ours.endswith(("/scale", "/var")) else 0.0
    return np.full(their_shape(ecosystem.framework, tensor.kind, tensor.shape), value, np.float32)


def check_expressible(model: MobileNetV2 | DeepLabV3, ecosystem: Ecosystem) -> None:
    """Refuses a model that would compute something else over there.

    Raises:
      UsageError: with all that differs.
    """
    wrong, segmenter, last = [], None, True
    if isinstance(model, DeepLabV3):
        segmenter, model, last = model, model.backbone, False
        wrong += _wrong_head(segmenter, ecosystem)
    for field in ("padding", "bn_epsilon"):
        mine, theirs = getattr(model.dialect, field), getattr(ecosystem.dialect, field)
        if mine != theirs:
            wrong.append(f"its {field} is {mine} and theirs {theirs}")
    if model.bottleneck is not linear or model.activation is not relu6:
        wrong.append("theirs has linear bottlenecks and ReLU6")
    if model.shortcut is not between_bottlenecks:
        wrong.append("theirs has shortcuts between bottlenecks")
    staged = "{stage}" in ecosystem.wide["project"][0]
    rows, table = model.spec.rows, IMAGENET.rows
    if (
        (model.spec.stem_stride, [row.s for row in rows]) != (2, [row.s for row in table])
        or [row.t == 1 for row in rows] != [row.t == 1 for row in table]
        or (not staged and [row.n for row in rows] != [row.n for row in table])
        or (model.spec.last is not None) != last
    ):
        wrong.append("its rows are not Table 2's")
    if wrong:
        raise UsageError(
            f"{ecosystem.name} cannot hold this model: {'; '.join(wrong)}. Export it to an "
            "ecosystem of its own dialect."
        )


def _wrong_head(model: DeepLabV3, ecosystem: Ecosystem) -> list[str]:
    """Says what of a segmenter's head is not as it is published."""
    if ecosystem.segmenter is None:
        able = ", ".join(e.name for e in ECOSYSTEMS.values() if e.segmenter is not None)
        return [f"it has no segmenter of MobileNetV2, and only {able} have"]
    wrong = []
    if model.rates or model.decoder_tap is not None:
        wrong.append("theirs has neither pyramid nor decoder")
    if model.channels != SEGMENTER_CHANNELS:
        wrong.append(f"its head has {model.channels} channels and theirs {SEGMENTER_CHANNELS}")
    if model.dialect.bn_epsilon != HEAD.bn_epsilon:
        wrong.append(
            f"its head's bn_epsilon is {model.dialect.bn_epsilon} and theirs {HEAD.bn_epsilon}"
        )
    return wrong


def _encode(theirs: dict[str, np.ndarray], name: str) -> bytes:
    stream = io.BytesIO()
    if name.endswith(".npz"):
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for key, array in theirs.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                # names may hold slashes and a fixed time keeps equal weights equal bytes
                archive.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue())
        return stream.getvalue()
    if name.endswith(".h5"):
        write_hdf5(stream, theirs, numbered=name.endswith(".weights.h5"))
        return stream.getvalue()
    from safetensors.numpy import save

    return save(theirs, metadata={"format": "pt"})
