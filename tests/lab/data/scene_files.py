"""Scenes written to files as COCO and Pascal VOC have them, for readers to read back."""

import json
import xml.etree.ElementTree as xml

import numpy as np
from PIL import Image

from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.data.scenes import Scenes

JPEG_QUALITY = 95


def some_scenes(length=5):
    """Small scenes to write."""
    return Scenes(open_source("fashion_mnist_small", "test"), length, (40, 56), max_objects=3)


def write_coco(scenes, folder):
    """Writes `images/*.png` and `annotations.json`, with masks as run lengths.

    Category ids count from 1; boxes are [left, top, width, height] in pixels.
    """
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(len(scenes)):
        scene, name = scenes.scene(i), f"{i:012}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        h, w = scene.instances.shape
        images.append({"id": i, "file_name": name, "height": h, "width": w})
        for k, (top, left, bottom, right) in enumerate(scene.corners.tolist()):
            mask = scene.instances == k + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(scene.classes[k]) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [h, w], "counts": run_lengths(mask)},
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(scenes.classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), "utf-8")


def run_lengths(mask):
    """Encodes a mask as COCO does: lengths of runs down the columns, the first of zeros."""
    flat = np.concatenate([[0], mask.ravel("F").astype(np.int8), [-1]])
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()


def write_voc(scenes, folder, split="train"):
    """Writes `JPEGImages`, `Annotations`, `SegmentationClass`, `ImageSets` and `classes.txt`.

    Corners in the XML count from 1 and are inclusive.
    """
    parts = ("JPEGImages", "Annotations", "SegmentationClass")
    for part in (*parts, "ImageSets/Main", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(len(scenes)):
        scene, name = scenes.scene(i), f"{i:06}"
        names.append(name)
        picture = Image.fromarray(scene.image)
        picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
        labels = Image.fromarray(scene.labels, "P")
        labels.putpalette((np.arange(768) * 37 % 256).tolist())  # only the indices count
        labels.save(folder / "SegmentationClass" / f"{name}.png")
        root = xml.Element("annotation")
        xml.SubElement(root, "filename").text = f"{name}.jpg"
        size = xml.SubElement(root, "size")
        for tag, n in zip(("height", "width", "depth"), scene.image.shape, strict=True):
            xml.SubElement(size, tag).text = str(n)
        for c, (top, left, bottom, right) in zip(scene.classes, scene.corners, strict=True):
            entry = xml.SubElement(root, "object")
            xml.SubElement(entry, "name").text = scenes.classes[c]
            xml.SubElement(entry, "difficult").text = "0"
            box = xml.SubElement(entry, "bndbox")
            corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            for tag, n in corners.items():
                xml.SubElement(box, tag).text = str(n)
        xml.ElementTree(root).write(folder / "Annotations" / f"{name}.xml", "utf-8")
    for task in ("Main", "Segmentation"):
        (folder / "ImageSets" / task / f"{split}.txt").write_text("\n".join(names) + "\n", "utf-8")
    (folder / "classes.txt").write_text("\n".join(scenes.classes) + "\n", "utf-8")
