"""COCO's annotations: what was written comes back, and bad files are refused in one line."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import BadRecord, open_source
from tests.lab.data.scene_files import run_lengths, some_scenes, write_coco


@pytest.fixture(scope="module")
def scenes():
    return some_scenes()


@pytest.fixture
def coco(scenes, tmp_path):
    write_coco(scenes, tmp_path / "val")
    return tmp_path


def change(root, edit):
    file = root / "val/annotations.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def refused(root):
    with pytest.raises(UsageError) as error:
        open_source("coco", "val", str(root))
    assert "\n" not in str(error.value) and str(root) in str(error.value)
    return str(error.value)


def test_what_was_written_is_read(scenes, coco):
    source = open_source("coco", "test", str(coco))
    assert source.classes == scenes.classes and len(source) == len(scenes)
    assert source.arrays() is None
    for i in range(len(scenes)):
        expected, record = scenes[i], source[i]
        real = expected["classes"] >= 0
        np.testing.assert_allclose(record["boxes"], expected["boxes"][real], atol=1e-6)
        np.testing.assert_array_equal(record["classes"], expected["classes"][real])
        np.testing.assert_array_equal(record["image"], expected["image"])


def test_masks_are_written_as_run_lengths():
    assert run_lengths(np.array([[0, 1], [1, 1]], bool)) == [1, 3]


def test_cocos_own_layout_is_read(scenes, tmp_path):
    write_coco(scenes, tmp_path / "x")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "x/annotations.json").rename(tmp_path / "annotations/instances_val2017.json")
    (tmp_path / "x/images").rename(tmp_path / "val2017")
    assert len(open_source("coco", "val", str(tmp_path))) == len(scenes)


def test_category_ids_with_gaps_are_numbered_in_their_order(coco):
    def edit(content):
        for entry in (*content["categories"],):
            entry["id"] *= 7
        for entry in content["annotations"]:
            entry["category_id"] *= 7
        content["categories"].reverse()

    before = [open_source("coco", "val", str(coco))[i]["classes"] for i in range(5)]
    change(coco, edit)
    after = open_source("coco", "val", str(coco))
    for i in range(5):
        np.testing.assert_array_equal(after[i]["classes"], before[i])


def test_boxes_that_are_none_are_dropped_and_counted(coco, caplog):
    """In one line; the other objects of the image stay, and so does an image without any."""

    def edit(content):
        of_first = [a for a in content["annotations"] if a["image_id"] == 0]
        content["annotations"] = of_first
        boxes = ([0, 0, 0, 5], [5, 5, -3, 4], [900, 900, 5, 5], [float("nan"), 0, 4, 4])
        for i, box in enumerate(boxes):
            content["annotations"].append({**of_first[0], "id": 90 + i, "bbox": box})
        content["annotations"].append({**of_first[0], "id": 98, "iscrowd": 1})

    before = open_source("coco", "val", str(coco))[0]["classes"].tolist()
    change(coco, edit)
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        source = open_source("coco", "val", str(coco))
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("mnv2_jax")]
    for part in ("2 objects (no area)", "1 objects (outside)", "1 objects (not finite)"):
        assert part in message
    assert "crowd" not in message
    after = source[0]["classes"].tolist()
    assert len(source) == 5 and after == [*before, -2 - before[0]]
    assert len(source[0]["boxes"]) == len(after)
    assert source[3]["boxes"].shape == (0, 4) and source[3]["classes"].shape == (0,)


def test_a_box_over_the_border_is_cut_at_it(coco):
    def edit(content):
        content["annotations"][0]["bbox"] = [-10, 20, 30, 900]

    change(coco, edit)
    box = open_source("coco", "val", str(coco))[0]["boxes"][0]
    np.testing.assert_allclose(box, [0.5, 0, 1, 20 / 56])


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda c: c.pop("annotations"), ("the file has no 'annotations'",)),
        (lambda c: c.update(categories=[]), ("no categories",)),
        (lambda c: c["annotations"][2].pop("bbox"), ("annotation 3 has no 'bbox'",)),
        (lambda c: c["annotations"][2].pop("image_id"), ("annotation 3 has no 'image_id'",)),
        (lambda c: c["annotations"][2].pop("category_id"), ("annotation 3 has no 'category_id'",)),
        (lambda c: c["annotations"][2].update(category_id=77), ("annotation 3", "category_id 77")),
        (lambda c: c["annotations"][2].update(image_id=77), ("annotation 3", "image 77")),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), ("annotation 3", "bbox [1, 2, 3]")),
        (lambda c: c["annotations"][2].update(bbox="x"), ("annotation 3", "of type list")),
        (lambda c: c["images"][1].pop("width"), ("image 1 has no 'width'",)),
        (lambda c: c["images"][1].update(width=10**400), ("image 1", "1000000000")),
        (lambda c: c["images"][1].update(file_name="a\0b.png"), ("image 1", "is refused")),
        (lambda c: c["images"][1].update(file_name="\ud800.png"), ("image 1", "is refused")),
        (lambda c: c["annotations"][2].update(bbox=[10**400, 1, 2, 3]), ("annotation 3", "bbox")),
        (lambda c: c["images"][1].update(height=0), ("image 1", "56x0")),
        (lambda c: c["images"][1].update(file_name="../../x"), ("image 1", "is refused")),
        (lambda c: c["categories"][0].pop("id"), ("category has no 'id'",)),
        (lambda c: c.update(images=[], annotations=[]), ("lists no images",)),
        (lambda c: c["annotations"].append(3), ("annotation has no 'image_id'",)),
    ],
)
def test_what_is_wrong_in_the_json_is_named(coco, edit, parts):
    change(coco, edit)
    message = refused(coco)
    assert "annotations.json" in message and all(part in message for part in parts), message


def test_json_that_is_none_and_a_set_that_is_not_there(coco, tmp_path):
    (coco / "val/annotations.json").write_text('{"images": [')
    assert "cannot be read as JSON" in refused(coco)
    assert "The layout is" in refused(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="coco needs a root"):
        open_source("coco", "val")


def test_an_image_of_another_size_or_missing_is_a_bad_record(coco):
    source = open_source("coco", "val", str(coco))
    Image.new("RGB", (20, 10)).save(coco / "val/images/000000000001.png")
    (coco / "val/images/000000000002.png").unlink()
    with pytest.raises(BadRecord, match="20x10 pixels, annotated as 56x40"):
        source[1]
    with pytest.raises(BadRecord, match=r"000000000002.png: cannot be read: No such file"):
        source[2]


def give_twice(key, of=0, to=1, **other):
    def edit(content):
        entries = content[key]
        entries[to] |= {name: entries[of][value or name] for name, value in other.items()}

    return edit


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (
            give_twice("images", id=None),
            "image id 0 is given twice, with file_name '000000000000.png' and '000000000001.png'",
        ),
        (
            give_twice("images", file_name=None),
            "image file_name '000000000000.png' is given twice, with id 0 and 1",
        ),
        (
            give_twice("categories", id=None),
            "category id 1 is given twice, with name 't-shirt' and 'trouser'",
        ),
        (give_twice("categories", name=None), "category name 't-shirt' is given twice"),
        (
            lambda c: c["images"][1].update(file_name=".\\\\000000000000.png"),
            "image file_name '000000000000.png' is given twice, with id 0 and 1",
        ),
        (
            give_twice("annotations", to=2, id=None),
            "annotation id 1 is given twice, with image_id",
        ),
        (lambda c: c["categories"][0].update(name="e\u0301"), None),
        (
            lambda c: [c["categories"][i].update(name=("e\u0301", "\xe9")[i]) for i in (0, 1)],
            "category name 'é' is given twice, with id 1 and 2",
        ),
    ],
)
def test_what_is_given_twice_is_refused_with_both(coco, edit, part):
    change(coco, edit)
    if part is None:
        assert open_source("coco", "val", str(coco)).classes[0] == "\xe9"
    else:
        assert part in refused(coco)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"images"', '"annotations": [], "images"', "an object has 'annotations' twice"),
        ('"id": 3', '"id": 3, "id": 4', "an object has 'id' twice"),
        ('{"images"', "[" * 100_000, "cannot be read as JSON"),
        ('"id": 3', '"id": ' + "9" * 5000, "cannot be read as JSON"),
        ('"category_id": ', '"category_id": [], "x": ', "category_id []: it must be of type int"),
        ('"category_id": ', '"category_id": ' + "9" * 4000, "which is not listed"),
        ('"bbox": [', '"bbox": [' + "[" * 50 + "]" * 50 + ",", "bbox [[[[[[["),
        ('"file_name": "', '"file_name": "../' + "x" * 100_000, "is refused"),
    ],
)
def test_json_that_is_odd_is_refused_in_a_few_words(coco, old, new, part):
    file = coco / "val/annotations.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    message = refused(coco)
    assert part in message and len(message) < 1500, message


def moved(coco, annotations, images):
    """Puts the set's files elsewhere."""
    (coco / "val").rename(coco / ".before")
    shutil.copytree(coco / ".before/images", coco / images)
    (coco / annotations).parent.mkdir(parents=True, exist_ok=True)
    (coco / ".before/annotations.json").rename(coco / annotations)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("valid/_annotations.coco.json", "valid"),  # Roboflow
        ("annotations/instances_Val.json", "images/Val"),  # CVAT
        ("annotations/instances_val.json", "images"),
        ("wrapped/annotations/instances_val2014.json", "wrapped/val2014"),
        ("validation/labels.json", "validation/data"),  # FiftyOne
        ("annotations/val.json", "val"),
        ("val.json", "images/val"),
    ],
)
def test_layouts_as_people_have_them(scenes, coco, annotations, images):
    moved(coco, annotations, images)
    source = open_source("coco", "val", str(coco))
    assert len(source) == len(scenes)
    np.testing.assert_array_equal(source[4]["image"], scenes[4]["image"])


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_default.json", "images"),  # CVAT
        ("result.json", "images"),  # Label Studio
        ("train/_annotations.coco.json", "train"),
        ("annotations.json", "pictures"),
    ],
)
def test_a_set_without_a_split_holds_images_out(scenes, coco, annotations, images):
    if images == "pictures":

        def edit(content):
            for entry in content["images"]:
                entry["file_name"] = "pictures\\" + entry["file_name"]

        change(coco, edit)
    moved(coco, annotations, images)
    parts = [open_source("coco", split, str(coco)) for split in ("train", "val")]
    assert parts[0].classes == parts[1].classes == scenes.classes
    found = [part[i]["image"].tobytes() for part in parts for i in range(len(part))]
    assert sorted(found) == sorted(scenes[i]["image"].tobytes() for i in range(len(scenes)))
    assert min(map(len, parts)) > 0
    assert open_source("coco", "test", str(coco))[0]["image"].tobytes() == found[-len(parts[1])]


def test_the_group_that_roboflow_lists_is_no_class(scenes, coco):
    def edit(content):
        for category in content["categories"]:
            category["supercategory"] = "clothes"
        content["categories"].append({"id": 0, "name": "clothes", "supercategory": "none"})

    change(coco, edit)
    assert open_source("coco", "val", str(coco)).classes == scenes.classes


def test_annotations_that_are_no_file(coco):
    file = coco / "val/annotations.json"
    for make in (os.mkfifo, os.mkdir, lambda f: os.symlink("/dev/zero", f)):
        file.unlink(missing_ok=True)
        make(file)
        assert "has no annotations" in refused(coco)
        if file.is_dir():
            file.rmdir()
