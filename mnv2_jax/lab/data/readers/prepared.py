"""Sets that TensorFlow Datasets has prepared, read without TensorFlow.

Images have labels, boxes or label maps. There is no agreed name for a label map, and only some
sets say what its values mean: `MASKS` lists the names that the stock sets use, `VALUES` the meaning
where a stock set leaves it to its documentation; for any other set a file states it.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import read_json, user_path
from mnv2_jax.lab.data import image
from mnv2_jax.lab.data.annotations import clean_objects
from mnv2_jax.lab.data.readers.annotated import label_table, labelled_record
from mnv2_jax.lab.data.readers.cityscapes import CITYSCAPES
from mnv2_jax.lab.data.readers.files import read_classes
from mnv2_jax.lab.data.source import BadRecord, LazySource, chosen_split

DEFAULT_ROOT = "~/tensorflow_datasets"
FORMAT = "array_record"
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # in features.json
IMAGES = ("image", "image_left")
MASKS = ("segmentation_mask", "segmentation_label", "segmentation", "mask", "annotation", "label")
CLASSES_FILE, INFO = "pixel_classes.txt", "dataset_info.json"
# What values in the maps of stock sets stand for; all others are ignored.
PETS = {"pet": 1, "background": 2, "border": 3}
VALUES: Mapping[str, Mapping[str, int]] = {"cityscapes": CITYSCAPES, "oxford_iiit_pet": PETS}
Record = Mapping[str, Any]


class Content(NamedTuple):
    """What the records of a set are read as."""

    classes: tuple[str, ...]
    fields: tuple[str, str]  # the features that are used: the image, what is learned from it
    encoded: tuple[str, ...]  # those of them that tfds leaves encoded
    # (image, the other field, name of the record, number of classes) -> record
    build: Callable[[np.ndarray, Any, str, int], Record]


def open_prepared(name: str, split: str, root: str | None, masks: bool = False) -> LazySource:
    """Opens a prepared set by its TensorFlow Datasets name, such as `cifar10` or `cmaterdb/bangla`.

    The name may have a `:version`, the split be sliced as in `train[:90%]`; the root is
    `~/tensorflow_datasets` by default. In a set that has several, the labels of images come before
    objects, and these before label maps, unless `masks` asks for the latter.
    """
    import tensorflow_datasets as tfds

    folder = _find_prepared(name, user_path(root or DEFAULT_ROOT))
    builder = _open_builder(folder)
    features, splits = dict(builder.info.features.items()), builder.info.splits
    content = _labels_or_objects(features) if not masks else None
    content = content or _label_maps(name, folder, features)
    if content is None:
        needs = "a label map" if masks else "a label, objects with bbox and label, or a label map"
        raise UsageError(f"{name} has features {sorted(features)}, and needs an image and {needs}.")
    base, bracket, rest = split.partition("[")
    known = chosen_split(base, tuple(splits))
    if builder.info.file_format.value != FORMAT:
        kind = f"{builder.info.file_format.value} files, which only TensorFlow reads"
        remedy = f"Prepare it as {FORMAT} in another folder: mnv2 prepare {name}"
        raise UsageError(f"{folder} holds {kind}. {remedy}")
    files = [str(path) for path in splits[known].filepaths]
    missing = [os.path.basename(path) for path in files if not os.path.isfile(path)]
    if missing:
        raise UsageError(f"{folder} cannot be read: {missing[0]} is missing. Prepare it again.")
    try:
        skip = dict.fromkeys(content.encoded, tfds.decode.SkipDecoding())
        records = builder.as_data_source(split=known + bracket + rest, decoders=skip)
        length = len(records)
    except Exception as error:
        remedy = "Write the split as in 'train[:90%]', or prepare the set again"
        raise UsageError(f"{folder} cannot be read: {first_line(error)}. {remedy}.") from error
    channels = min(features[content.encoded[0]].shape[-1] or 3, 3)
    read = partial(_read, records, f"{folder} {split}", content, channels)
    return LazySource(length, read, content.classes, files=("", files))


def _read(records: Any, source: str, content: Content, channels: int, index: int) -> Record:
    """Reads one record; the image is decoded here, not by tfds."""
    name = f"{source} record {index}"
    try:
        record = records[int(index)]
        encoded, target = (record[field] for field in content.fields)
        pixels = image.decode(encoded, name, channels, orient=False)
        return content.build(pixels, target, name, len(content.classes))
    except BadRecord:
        raise
    except Exception as error:  # array_record and the parser raise anything on damage
        raise BadRecord(name, f"cannot be read ({first_line(error)})") from error


def _with_label(pixels: np.ndarray, label: Any, name: str, num_classes: int) -> Record:
    if not 0 <= label < num_classes:
        raise BadRecord(name, f"label {label} where the classes are 0 to {num_classes - 1}")
    return {"image": pixels, "label": int(label)}


def _with_objects(pixels: np.ndarray, objects: Any, name: str, num_classes: int) -> Record:
    """Leaves out VOC's difficult objects and boxes that are none, and marks COCO's crowds."""
    boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    labels = np.array(objects["label"], int)
    marks, none = ("is_crowd", "is_difficult"), [False] * len(labels)
    crowd, difficult = (np.array(objects.get(mark, none), bool) for mark in marks)
    boxes, labels, crowd = (values[~difficult] for values in (boxes, labels, crowd))
    kept = clean_objects(boxes, labels, num_classes, None, name, crowd)
    return {"image": pixels, "boxes": kept.boxes, "classes": kept.classes}


def _labels_or_objects(features: dict[str, Any]) -> Content | None:
    """Describes a set of images with labels, or with objects that have a box and a label."""
    import tensorflow_datasets as tfds

    if type(features.get("image")) is not tfds.features.Image:
        return None
    objects = getattr(features.get("objects"), "feature", None)
    inner = dict(objects.items()) if isinstance(objects, tfds.features.FeaturesDict) else {}
    boxed = type(inner.get("bbox")) is tfds.features.BBoxFeature
    choices = ("label", features, _with_label), ("objects", inner if boxed else {}, _with_objects)
    for field, holder, build in choices:
        label: Any = holder.get("label")
        if type(label) is tfds.features.ClassLabel:
            return Content(tuple(map(str, label.names)), ("image", field), ("image",), build)
    return None


def _label_maps(name: str, folder: Path, features: dict[str, Any]) -> Content | None:
    """Describes a set of images with label maps; `pixel_classes.txt` may name the classes."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.LabeledImage)
    picture = next((key for key in IMAGES if type(features.get(key)) is kinds[0]), None)
    mask = next((key for key in MASKS if type(features.get(key)) in kinds), None)
    if picture is None or mask is None:
        return None
    own, table = folder / CLASSES_FILE, None
    names: Any = getattr(features[mask], "names", None)
    if os.path.lexists(own):
        names = read_classes(own)
    elif values := VALUES.get(re.split("[:/]", name)[0]):
        names, table = values, label_table(values.values())
    if not names:
        remedy = f"write the names of the classes to {own}, one a line, that of value 0 first"
        raise UsageError(f"{name} does not say what the values in {mask!r} mean: {remedy}.")
    both = (picture, mask)
    return Content(tuple(map(str, names)), both, both, partial(labelled_record, table=table))


def _open_builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    _check_features(folder)
    read_json(folder / INFO)  # which tfds would wait for, were it a pipe
    try:
        builder = tfds.builder_from_directory(folder)
        if builder.info.features and builder.info.splits:
            return builder
        why = "it has no features or no splits"
    except Exception as error:  # tfds raises anything on damaged metadata
        why = first_line(error)
    raise UsageError(f"{folder} cannot be opened: {why}. Prepare it again.")


def _find_prepared(name: str, root: Path) -> Path:
    """Finds the newest version folder of `name[/config][:version]` below `root`."""
    if not re.fullmatch(r"[A-Za-z]\w*(/\w[\w.-]*)?(:\d+\.\d+\.\d+)?", name):
        choices = "NAME, NAME/CONFIG or NAME:1.0.0"
        raise UsageError(f"{name!r} is not the name of a data set: write {choices}.")
    path, _, version = name.partition(":")
    pattern = f"{version or '*'}/{INFO}"
    found = list((root / path).glob(pattern)) or list((root / path).glob(f"*/{pattern}"))
    versions = [file.parent for file in found]
    configs = {folder.parent for folder in versions}
    if not versions:
        remedy = f"mnv2 prepare {path}, or give the folder of prepared sets as the root"
        lacks = f"{root / path} has no {pattern}"
        raise UsageError(f"{name} is not prepared in {root}: {lacks}. Get it with: {remedy}.")
    if len(configs) > 1:
        choices = sorted(f"{path}/{config.name}" for config in configs)
        raise UsageError(f"{name} has several configs: name one of {', '.join(choices)}.")
    return max(versions, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)])


def _check_features(folder: Path) -> None:
    """Refuses metadata that names classes outside of tfds, which tfds would import."""
    path = folder / "features.json"
    nodes = [read_json(path)]
    for node in nodes:  # which grow while they are walked through
        if not isinstance(node, dict):
            nodes += node if isinstance(node, list) else []
            continue
        nodes += node.values()
        for name in map(node.get, CLASS_KEYS):
            if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                raise UsageError(f"{path} names {name!r}, which is not a feature: it is refused.")
