"""Sets prepared by TensorFlow Datasets, read, and partly prepared, without TensorFlow.

`open_prepared` reads the array_record files of any prepared set for classification, with the boxes
of `objects`, or with label maps, by random access.
`prepare` makes them: Fashion-MNIST from its IDX files with this package alone, every other stock
set through its own builder, which needs TensorFlow.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import PADDING_CLASS, clean_objects
from mnv2_jax.lab.data.readers.prepared_masks import PreparedMasks, find_maps
from mnv2_jax.lab.data.record import BadRecord, Record

DEFAULT_ROOT = "~/tensorflow_datasets"
FORMAT = "array_record"
CROWD, LEFT_OUT = "is_crowd", "is_difficult"  # marks of objects
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # in features.json
SPLITS = {
    "test": ("test", "validation", "val"),
    "validation": ("validation", "val", "test"),
    "val": ("val", "validation", "test"),
}

log = logging.getLogger(__name__)


class PreparedSource:
    """A prepared set with an `image` and a `label`; the image is decoded here, not by tfds."""

    def __init__(self, name: str, records, classes: tuple[str, ...], channels: int):
        self.classes = classes
        self._name = name
        self._records = records
        self._channels = channels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._name} record {index}"
        try:
            record = self._records[int(index)]
            encoded, label = record["image"], int(record["label"])
        except Exception as error:  # array_record and the parser raise anything on damage
            raise BadRecord(name, f"cannot be read ({first_line(error)})") from error
        if not 0 <= label < len(self.classes):
            raise BadRecord(name, f"has label {label}, of {len(self.classes)} classes")
        pixels = image.decode(encoded, name, self._channels, orient=False)
        return {"image": pixels, "label": label}

    def arrays(self) -> None:
        return None


class PreparedObjects:
    """A prepared set with an `image` and `objects`, which have a `bbox` and a `label` each.

    Difficult objects (VOC) are left out, and so are boxes that are none. Crowds (COCO) are marked,
    see `objects.crowd_of`.
    """

    def __init__(self, name: str, records, classes: tuple[str, ...], channels: int):
        self.classes = classes
        self._name = name
        self._records = records
        self._channels = channels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = f"{self._name} record {index}"
        try:
            record = self._records[int(index)]
            encoded, objects = record["image"], record["objects"]
            boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
            labels = np.array(objects["label"], int)
            crowd, out = (
                np.array(objects[mark] if mark in objects else [False] * len(labels), bool)
                for mark in (CROWD, LEFT_OUT)
            )
        except Exception as error:  # array_record and the parser raise anything on damage
            raise BadRecord(name, f"cannot be read ({first_line(error)})") from error
        found = clean_objects(
            boxes[~out], labels[~out], len(self.classes), len(boxes), name, crowd[~out]
        )
        kept = found.classes != PADDING_CLASS
        pixels = image.decode(encoded, name, self._channels, orient=False)
        return {"image": pixels, "boxes": found.boxes[kept], "classes": found.classes[kept]}

    def arrays(self) -> None:
        return None


def open_prepared(
    name: str, split: str, root: str | None, masks: bool = False
) -> PreparedSource | PreparedObjects | PreparedMasks:
    """Opens a prepared set by its TensorFlow Datasets name, such as `cifar10` or `cmaterdb/bangla`.

    Of a set that has several, the labels of images come before objects, and these before label maps
    (`prepared_masks` says which features are such).

    Args:
        name: name, optionally with `/config` and `:version`; the newest version by default.
        split: a split of the set, also sliced as in `train[:90%]`; "test" and "validation" stand
            for each other where a set has only one of them.
        root: the folder of prepared sets, `~/tensorflow_datasets` by default.
        masks: read the label maps, whatever else there is.

    Raises:
        UsageError: there is no such set or split, it cannot be read, or holds nothing to learn.
    """
    import tensorflow_datasets as tfds

    folder = _find_prepared(name, Path(root or DEFAULT_ROOT).expanduser())
    builder = _open_builder(folder)
    features, splits = builder.info.features, builder.info.splits
    features = dict(features.items())
    content = _content(name, folder, features, masks)
    if content is None:
        raise UsageError(
            f"{name} has features {sorted(features)}, and needs an image and "
            + ("a map of labels." if masks else "a label, objects with bbox and label, or a map.")
        )
    base, bracket, rest = split.partition("[")
    known = next((key for key in SPLITS.get(base, (base,)) if key in splits), None)
    if known is None:
        raise unknown("split", base, splits)
    if builder.info.file_format.value != FORMAT:
        raise UsageError(
            f"{folder} holds {builder.info.file_format.value} files, which only TensorFlow reads. "
            f"Prepare it as {FORMAT} in another folder: mnv2 prepare {name}"
        )
    missing = [path.name for path in splits[known].filepaths if not path.exists()]
    if missing:
        raise UsageError(f"{folder} cannot be read: {missing[0]} is missing. Prepare it again.")
    try:
        skip = {key: tfds.decode.SkipDecoding() for key in content.encoded}
        records = builder.as_data_source(split=known + bracket + rest, decoders=skip)
        len(records)
    except Exception as error:
        raise UsageError(
            f"{folder} cannot be read: {first_line(error)}. "
            f"Write the split as in 'train[:90%]', or prepare the set again."
        ) from error
    channels = features[content.encoded[0]].shape[-1] or 3
    return content.build(f"{folder} {split}", records, content.meaning, min(channels, 3))


class _Content(NamedTuple):
    """What a set is read as: the features that tfds leaves encoded, the image first."""

    build: Callable[..., Any]
    meaning: Any  # names of classes, or what the maps of labels are
    encoded: tuple[str, ...]


def _content(name: str, folder: Path, features: dict[str, Any], masks: bool) -> _Content | None:
    import tensorflow_datasets as tfds

    if not masks and type(features.get("image")) is tfds.features.Image:
        for inner, build in (
            (features, PreparedSource),
            (_object_features(features), PreparedObjects),
        ):
            label = _label_feature(inner)
            if label is not None:
                return _Content(build, tuple(str(item) for item in label.names), ("image",))
    maps = find_maps(name, folder, features)
    return None if maps is None else _Content(PreparedMasks, maps, (maps.image, maps.mask))


def _label_feature(features: dict[str, Any]) -> Any:
    """Gives the feature `label` if it is one of classes."""
    import tensorflow_datasets as tfds

    label = features.get("label")
    return label if type(label) is tfds.features.ClassLabel else None


def _object_features(features: dict[str, Any]) -> dict[str, Any]:
    """Gives the features of each object, if they have a box; else none."""
    import tensorflow_datasets as tfds

    inner = getattr(features.get("objects"), "feature", None)
    if not isinstance(inner, tfds.features.FeaturesDict):
        return {}
    inner = dict(inner.items())
    return inner if type(inner.get("bbox")) is tfds.features.BBoxFeature else {}


def _open_builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    _check_features(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        complete = bool(builder.info.features and builder.info.splits)
    except Exception as error:  # tfds raises anything on damaged metadata
        raise UsageError(
            f"{folder} cannot be opened: {first_line(error)}. Prepare it again."
        ) from error
    if not complete:
        raise UsageError(f"{folder} has no features or no splits. Prepare it again.")
    return builder


def _find_prepared(name: str, root: Path) -> Path:
    """Finds the newest version folder of `name[/config][:version]` below `root`."""
    if not re.fullmatch(r"[A-Za-z]\w*(/\w[\w.-]*)?(:\d+\.\d+\.\d+)?", name):
        raise UsageError(f"{name!r} is no data set name: write NAME, NAME/CONFIG or NAME:1.0.0.")
    path, _, version = name.partition(":")
    pattern = f"{version or '*'}/dataset_info.json"
    found = [file.parent for file in (root / path).glob(pattern)]
    found = found or [file.parent for file in (root / path).glob(f"*/{pattern}")]
    configs = {folder.parent for folder in found}
    if not found:
        raise UsageError(
            f"{name} is not prepared in {root}: {root / path} has no {pattern}. "
            f"Get it with: mnv2 prepare {path}, or give the folder of prepared sets as the root."
        )
    if len(configs) > 1:
        choices = sorted(f"{path}/{config.name}" for config in configs)
        raise UsageError(f"{name} has several configs: name one of {', '.join(choices)}.")
    return max(found, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)])


def _check_features(folder: Path) -> None:
    """Refuses metadata that names classes outside of tfds, which tfds would import."""
    path = folder / "features.json"
    try:
        remaining = [json.loads(path.read_text())]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}. Prepare it again.") from error
    while remaining:
        node = remaining.pop()
        if isinstance(node, dict):
            for name in (node.get(key) for key in CLASS_KEYS):
                if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                    raise UsageError(f"{path} names {name!r}, which is no feature: it is refused.")
            remaining += node.values()
        elif isinstance(node, list):
            remaining += node


def prepare(name: str, root: str | None = None, idx_root: str | None = None) -> Path:
    """Prepares a set for `tfds:NAME` and returns its folder.

    Args:
        name: `fashion_mnist`, which needs no TensorFlow, or any stock set of TensorFlow Datasets.
        root: where prepared sets go, `~/tensorflow_datasets` by default.
        idx_root: where Fashion-MNIST's IDX files are; Debian's folder by default.
    """
    import tensorflow_datasets as tfds

    folder = Path(root or DEFAULT_ROOT).expanduser()
    try:
        if name == "fashion_mnist":
            builder = _fashion_mnist_builder(folder, idx_root)
        else:
            builder = tfds.builder(name, data_dir=folder, file_format=FORMAT)
            import_module("tensorflow")  # before the download rather than after it
        builder.download_and_prepare()
    except ImportError as error:
        raise UsageError(
            f"preparing {name} needs TensorFlow ({error}): pip install 'mnv2_jax[tf]'. "
            "fashion_mnist needs none."
        ) from error
    except tfds.core.DatasetNotFoundError as error:
        raise UsageError(
            f"TensorFlow Datasets has no set {name!r}: see https://www.tensorflow.org/datasets."
        ) from error
    except OSError as error:
        raise UsageError(f"cannot prepare {name} in {folder}: {error}.") from error
    return Path(builder.data_path)


def _fashion_mnist_builder(folder: Path, idx_root: str | None):
    """Makes a builder with the name and version of the stock one, from IDX files, without TF."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered

    from mnv2_jax.lab.data.sources import FASHION_CLASSES, open_source

    sources = {split: open_source("fashion_mnist", split, idx_root) for split in ("train", "test")}

    def examples(source) -> Iterator[tuple[int, dict]]:
        for index in range(len(source)):
            record, file = source[index], io.BytesIO()
            Image.fromarray(np.squeeze(record["image"], -1)).save(file, "PNG")
            file.seek(0)  # tfds encodes arrays with TensorFlow, and takes encoded files as they are
            yield index, {"image": file, "label": record["label"]}

    with registered.skip_registration():

        class FashionMnist(tfds.core.GeneratorBasedBuilder):
            """Fashion-MNIST (Xiao et al., 2017)."""

            name = "fashion_mnist"
            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=FASHION_CLASSES),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="70,000 images of Zalando's articles; MIT licence.",
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    homepage="https://github.com/zalandoresearch/fashion-mnist",
                )

            def _split_generators(self, dl_manager):
                return {split: examples(source) for split, source in sources.items()}

            def _generate_examples(self):
                raise NotImplementedError("the splits bring their own generators")

    return FashionMnist(data_dir=folder, file_format=FORMAT)
