"""What a file of weights is, and what has to agree with it, as data.

The same network is published in dialects that differ in padding, epsilon, input range and classes.
Weights that run under another dialect give no error, only worse answers.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError
from mnv2_jax.models.deeplab import DeepLabV3
from mnv2_jax.models.dialect import Dialect
from mnv2_jax.weights.files import Contents, read_tensors
from mnv2_jax.weights.load import Loaded, class_offset, load_weights, parse_source
from mnv2_jax.weights.merge import infer_ecosystem, whose
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.preprocessing import RELEASES, Preprocessing


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
      topic: what was looked at.
      found: what it is.
      change: what to do about it; empty where all is well.
    """

    topic: str
    found: str
    change: str = ""


def doctor(source: str | Path) -> list[Finding]:
    """Examines a file of weights.

    Args:
      source: `ecosystem:path`, or a path alone, whose ecosystem is then told by its names.

    Returns:
      Findings, the file first. Where the weights cannot be loaded, the last one says why and what
      to do; otherwise the rest say what has to agree with the weights.

    Raises:
      UsageError: the file cannot be read at all.
    """
    named, path = _split(str(source))
    contents = read_tensors(path)
    findings = [_file(path, contents), _ecosystem(path, named, contents)]
    ecosystem = infer_ecosystem(contents.tensors) or named
    if ecosystem is None:
        return findings
    try:
        loaded = _load(ecosystem, path, contents.sha256)
    except UsageError as error:
        return [*findings, Finding("weights", "cannot be loaded", str(error))]
    return [
        *findings,
        _architecture(loaded),
        _averages(contents),
        _classes(loaded),
        *_dialect(loaded.dialect),
        _preprocessing(loaded.preprocessing),
        _statistics(loaded),
    ]


def _split(source: str) -> tuple[str | None, str]:
    name, colon, _ = source.partition(":")
    if colon and (name in ECOSYSTEMS or not Path(source).exists()):
        ecosystem, path = parse_source(source)
        return ecosystem.name, path
    return None, source


def _load(ecosystem: str, path: str, sha256: str) -> Loaded:
    try:
        return load_weights(f"{ecosystem}:{path}", sha256)
    except UsageError as error:
        if "drop_head" not in str(error):
            raise
        return load_weights(f"{ecosystem}:{path}", sha256, drop_head=True)


def _file(path: str, contents: Contents) -> Finding:
    numbers = sum(math.prod(array.shape) for array in contents.tensors.values())
    found = f"{len(contents.tensors)} tensors, {numbers:,} numbers, sha256 {contents.sha256}"
    promised = re.search(r"-([0-9a-f]{8})\.", Path(path).name)
    if promised and not contents.sha256.startswith(promised[1]):
        return Finding(
            "file",
            found,
            f"the name promises a sha256 that starts with {promised[1]}: the file is damaged, "
            "another one, or named after something else; download it again",
        )
    release = RELEASES.get(contents.sha256[:8])
    return Finding("file", f"{found} ({release.title})" if release else found)


def _ecosystem(path: str, named: str | None, contents: Contents) -> Finding:
    found = infer_ecosystem(contents.tensors)
    if found is None:
        return Finding("ecosystem", *whose(path, contents.tensors))
    title = f"{found} ({ECOSYSTEMS[found].title})"
    if named is not None and named != found:
        return Finding("ecosystem", title, f"load it as {found}:, not as {named}:")
    return Finding("ecosystem", title)


def _architecture(loaded: Loaded) -> Finding:
    backbone = loaded.backbone
    blocks = sum(row.n for row in backbone.spec.rows)
    channels = f", {backbone.in_channels} input channels" if backbone.in_channels != 3 else ""
    head = ""
    if isinstance(loaded.model, DeepLabV3):
        stride = backbone.output_stride
        head = f", DeepLabv3 head of {loaded.model.channels} channels, output stride {stride}"
    return Finding("architecture", f"width {backbone.width:g}, {blocks} blocks{channels}{head}")


def _averages(contents: Contents) -> Finding:
    if contents.averages == "absent":
        return Finding("averages", "one set of weights, with no moving averages beside it")
    return Finding(
        "averages",
        "raw weights and their moving averages; the averages are loaded",
        "evaluate the averages (ema=True), which the published accuracy is of; continue a training "
        "from the raw weights (ema=False)",
    )


def _classes(loaded: Loaded) -> Finding:
    if loaded.classes is None:
        return Finding("classes", "no classifier", "load it with drop_head=True, for features")
    if loaded.task == "segment":
        return Finding("classes", f"{loaded.classes} of pixels, background included")
    if class_offset(ECOSYSTEMS[loaded.source.partition(":")[0]], loaded.classes):
        return Finding(
            "classes",
            f"{loaded.classes}, class 0 is background",
            "add 1 to labels that count from 0, or load with drop_background=True",
        )
    return Finding("classes", f"{loaded.classes}, counted from 0")


def _dialect(dialect: Dialect) -> list[Finding]:
    padding = {
        "same": "TensorFlow's SAME, (0, 1) on even inputs",
        "symmetric": "symmetric, (1, 1)",
    }
    mean, std = (", ".join(f"{value:g}" for value in pair) for pair in (dialect.mean, dialect.std))
    return [
        Finding("padding", f"{padding[dialect.padding]}, at stride 2"),
        Finding("batch norm", f"epsilon {dialect.bn_epsilon:g}, decay {dialect.bn_decay:g}"),
        Finding("input", f"(pixel / 255 - [{mean}]) / [{std}]"),
    ]


def _preprocessing(rule: Preprocessing) -> Finding:
    seen = {
        "center": f"shorter side to {rule.resize}, central {rule.size}",
        "stretch": f"central {rule.fraction:.1%} of each side, stretched to {rule.size}",
        "none": f"whole image, stretched to {rule.size}",
        "pad": f"whole image, shrunk to fit {rule.size} or padded to it",
    }[rule.crop]
    return Finding("preprocessing", f"{seen}, {rule.method}")


def _statistics(loaded: Loaded) -> Finding:
    """Looks at the stem's moving averages: a network that was never trained still has 0 and 1."""
    stats = loaded.variables["batch_stats"]
    stats = stats.get("backbone", stats)["stem"]["norm"]
    if np.all(stats["mean"] == 0) and np.all(stats["var"] == 1):
        return Finding(
            "statistics",
            "batch norm's moving averages are still 0 and 1",
            "these weights were never trained, or saved without their statistics: take others",
        )
    return Finding("statistics", "batch norm has moving averages of a training")
