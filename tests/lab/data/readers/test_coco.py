"""COCO's annotations: what was written comes back, and bad files are refused in one line."""

import json
import logging

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
        for box in ([0, 0, 0, 5], [5, 5, -3, 4], [900, 900, 5, 5], [float("nan"), 0, 4, 4]):
            content["annotations"].append({**of_first[0], "id": 99, "bbox": box})
        content["annotations"].append({**of_first[0], "id": 98, "iscrowd": 1})

    before = open_source("coco", "val", str(coco))[0]["classes"].tolist()
    change(coco, edit)
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        source = open_source("coco", "val", str(coco))
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("mnv2_jax")]
    for part in ("2 no area", "1 outside", "1 not finite"):
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
