"""Describes a file of weights and everything that has to agree with it, as data.

The same network is published in dialects that differ in padding, epsilon, input range and classes.
Weights that run under another dialect raise no error; their predictions are worse.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, one_line
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.ssdlite import SSDLite
from mnv2_jax.weights.load import Loaded, load_weights, split_source
from mnv2_jax.weights.merge import describe_unknown, infer_ecosystem
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.preprocessing import RELEASES
from mnv2_jax.weights.published import resolve
from mnv2_jax.weights.readers import Contents, read_tensors

PADDING = {"same": "TensorFlow's SAME, (0, 1) on even inputs", "symmetric": "symmetric, (1, 1)"}


class Finding(NamedTuple):
    """One property of a file of weights: what it is, and what to do about it, if anything."""

    topic: str
    found: str
    change: str = ""


def inspect_weights(source: str | Path) -> list[Finding]:
    """Describes a file of weights.

    Args:
      source: `ecosystem:path`, or a path alone, whose ecosystem is inferred from the tensor names;
        or a name of `published.PUBLISHED`.

    Returns:
      Findings, the file first. Where the weights cannot be loaded, the last one says why and what
      to do; otherwise the others say what has to agree with the weights.

    Raises:
      UsageError: the file cannot be read at all.
    """
    named, path = split_source(resolve(str(source)))
    contents = read_tensors(path)
    inferred = infer_ecosystem(contents.tensors)
    findings = [_file(path, contents)]
    if inferred is None:
        findings.append(Finding("ecosystem", *describe_unknown(path, contents.tensors)))
    else:
        change = f"load it as {inferred}:, not as {named}:" if named not in (None, inferred) else ""
        title = f"{inferred} ({ECOSYSTEMS[inferred].title})"
        findings.append(Finding("ecosystem", title, change))
    if inferred is None and named is None:
        return findings
    try:
        loaded = _load(f"{inferred or named}:{path}", contents.sha256)
    except UsageError as error:
        return [*findings, Finding("weights", "cannot be loaded", str(error))]
    return [*findings, _averages(contents), *_model(loaded), check_statistics(loaded)]


def _load(source: str, sha256: str) -> Loaded:
    try:
        return load_weights(source, sha256)
    except UsageError as error:
        if "drop_head" not in str(error):
            raise
        return load_weights(source, sha256, drop_head=True)


def _file(path: str, contents: Contents) -> Finding:
    numbers = sum(math.prod(array.shape) for array in contents.tensors.values())
    described = f"{len(contents.tensors)} tensors, {numbers:,} numbers, sha256 {contents.sha256}"
    promised = re.search(r"-([0-9a-f]{8})\.", Path(path).name)
    if promised and not contents.sha256.startswith(promised[1]):
        change = (
            f"the name promises a sha256 that starts with {promised[1]}: the file is damaged, "
            "another one, or named after something else; download it again"
        )
        return Finding("file", described, change)
    title, _ = RELEASES.get(contents.sha256[:8], ("", None))
    return Finding("file", f"{described} ({title})" if title else described)


def _averages(contents: Contents) -> Finding:
    if contents.averages == "absent":
        return Finding("averages", "one set of weights, without moving averages")
    return Finding(
        "averages",
        "raw weights and their moving averages; the averages are loaded",
        "evaluate with the averages (ema=True), as the published accuracy was; continue a training "
        "from the raw weights (ema=False)",
    )


def _model(loaded: Loaded) -> list[Finding]:
    """Describes the network, its dialect and the images that it expects."""
    backbone, dialect, rule = loaded.backbone, loaded.dialect, loaded.preprocessing
    network = f"width {backbone.width:g}, {sum(row.n for row in backbone.spec.rows)} blocks"
    if backbone.in_channels != 3:
        network += f", {backbone.in_channels} input channels"
    if isinstance(loaded.model, SSDLite):
        network += ", SSDLite's heads"
    if isinstance(loaded.model, DeepLabV3):
        network += f", DeepLabv3 head of {loaded.model.channels} channels"
    if backbone.output_stride is not None:
        network += f", output stride {backbone.output_stride}"
    mean, std = (", ".join(f"{value:g}" for value in pair) for pair in (dialect.mean, dialect.std))
    prepared = {
        "center": f"shorter side to {rule.resize}, central {rule.size}",
        "stretch": f"central {rule.fraction:.1%} of each side, stretched to {rule.size}",
        "none": f"whole image, stretched to {rule.size}",
        "pad": f"whole image, shrunk to fit {rule.size} or padded to it",
    }[rule.crop]
    beside = [Finding("left out", parts(loaded.left_out))] if loaded.left_out else []
    return [
        Finding("architecture", network),
        _classes(loaded),
        Finding("padding", f"{PADDING[dialect.padding]}, at stride 2"),
        Finding("batch norm", f"epsilon {dialect.bn_epsilon:g}, decay {dialect.bn_decay:g}"),
        Finding("input", f"(pixel / 255 - [{mean}]) / [{std}]"),
        Finding("preprocessing", f"{prepared}, {rule.method}"),
        *beside,
    ]


def parts(names: Iterable[str]) -> str:
    """Lists what tensors belong to, with how many of each.

    >>> parts(["head.conv.weight", "head.conv.bias", "dense/kernel"])
    'dense (1), head (2)'
    """
    counts = Counter(re.split(r"[./]", name)[0] for name in names)
    return one_line(", ".join(f"{part} ({n})" for part, n in sorted(counts.items())))


def _classes(loaded: Loaded) -> Finding:
    if loaded.classes is None and not ECOSYSTEMS[loaded.source.partition(":")[0]].head:
        return Finding("classes", "none: features for other tasks")
    if loaded.classes is None:
        what = "no classifier of one layer"
        return Finding("classes", what, "load it with drop_head=True, for features")
    found, change = f"{loaded.classes}, counted from 0", ""
    if isinstance(loaded.model, DeepLabV3):
        found = f"{loaded.classes} for every pixel, background included"
    elif isinstance(loaded.model, SSDLite):
        found = f"{loaded.classes}, background not counted"
        if count := len(loaded.nameless):
            found += f"; if they are the ids of COCO, {count} of them name nothing"
            change = "load with drop_background=True for the 80 classes of COCO under their names"
    elif loaded.model.class_offset:
        found = f"{loaded.classes}, class 0 is background"
        change = "add 1 to labels that count from 0, or load with drop_background=True"
    return Finding("classes", found, change)


def check_statistics(loaded: Loaded) -> Finding:
    """Checks the stem's moving averages, which are 0 and 1 in a network that was never trained."""
    stats = loaded.variables["batch_stats"]
    stats = stats.get("backbone", stats)["stem"]["norm"]
    still = np.all(stats["mean"] == 0)
    if still and np.all(stats["var"] == 1 - np.float32(loaded.dialect.bn_epsilon)):
        return Finding(
            "statistics",
            "batch norm was folded into the convolutions, and its statistics are gone",
            "predict with these weights; to train further, take weights that were not exported",
        )
    if still and np.all(stats["var"] == 1):
        return Finding(
            "statistics",
            "the moving averages of batch norm are still 0 and 1",
            "these weights were never trained, or saved without their statistics: use others",
        )
    return Finding("statistics", "the moving averages of batch norm are trained")
