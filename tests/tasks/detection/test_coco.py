import copy
import gc
import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from localmix.tasks.detection.coco import CocoImages, decode_mask, encode_mask
from localmix.tasks.images import CorruptImage


@pytest.fixture
def dataset(tmp_path):
    """dataset(change): two images of 40 x 30 pixels with categories of one's own; `change` edits the json."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (255, 0, 51)).save(tmp_path / name)
    square = [[5, 5, 15, 5, 15, 25, 5, 25]]
    runs = {"size": [30, 40], "counts": [0, 60, 1140]}
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 90, "name": "pear"}, {"id": 12, "name": "fig"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [5, 5, 10, 20], "segmentation": square, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 12, "bbox": [0, 0, 2, 30], "segmentation": runs, "iscrowd": 0},
            {"id": 5, "image_id": 7, "category_id": 12, "bbox": [0, 0, 2, 30], "segmentation": runs, "iscrowd": 1},
        ],
    }

    def build(change=lambda content: None):
        changed = copy.deepcopy(content)
        change(changed)
        (tmp_path / "objects.json").write_text(json.dumps(changed))
        return CocoImages(tmp_path / "objects.json", tmp_path)

    return build


def test_polygons_run_lengths_crowds_and_empty_images(dataset):
    images = dataset()
    assert images.classes == ["fig", "pear"]
    assert images.with_objects() == [0]
    assert images.counts() == {"fig": 1, "pear": 1}
    pixels, target = images[0]
    assert pixels.shape == (3, 30, 40)
    assert pixels[:, 3, 4].tolist() == pytest.approx([1, 0, 0.2])
    assert target["boxes"].tolist() == [[5, 5, 15, 25], [0, 0, 2, 30]]
    assert target["labels"].tolist() == [2, 1]
    expected = torch.zeros(2, 30, 40, dtype=torch.uint8)
    expected[0, 5:25, 5:15] = 1
    expected[1, :, :2] = 1
    assert torch.equal(target["masks"], expected)
    _, empty = images[1]
    assert {name: tuple(value.shape) for name, value in empty.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 30, 40),
    }


def test_a_box_is_cut_at_the_border_and_one_without_a_pixel_is_left_out(dataset):
    def change(content):
        content["annotations"][0]["bbox"] = [-0.5, 5, 41, 25.4]
        content["annotations"][1]["bbox"] = [3, 3, 0.4, 9]

    assert dataset(change)[0][1]["boxes"].tolist() == [[0, 5, 40, 30]]


def test_of_the_entry_of_an_image_no_more_is_kept_than_is_used(dataset):
    def change(content):
        content["images"][0] |= {"license": 3, "flickr_url": "http://farm", "date_captured": "2013-11-14 11:18:45"}

    assert dataset(change).images[0] == {"id": 7, "file_name": "a.png", "width": 40, "height": 30}


def test_objects_come_back_as_the_file_has_them(dataset):
    def change(content):
        content["annotations"][0]["segmentation"] = [[5.07, 5, 1 / 3, 5.5, 15, 25, 5, 1e-17]]
        content["annotations"][1] |= {"note": "ü", "more": [None, True, {"a": []}]}

    content = {}
    images = dataset(lambda c: (change(c), content.update(copy.deepcopy(c))))
    assert images.objects[0] == content["annotations"]
    assert images.objects[-1] == []


def test_polygons_take_no_more_memory_than_their_text(dataset, tmp_path):
    """As floats of Python all of them together would take four times as much, gigabytes of COCO's."""
    polygon = [round(0.01 * k, 2) for k in range(1000)]

    def change(content):
        item = content["annotations"][0]
        content["annotations"] = [{**item, "id": k, "segmentation": [polygon]} for k in range(200)]

    dataset(change)
    size = (tmp_path / "objects.json").stat().st_size
    tracemalloc.start()
    try:
        images = CocoImages(tmp_path / "objects.json", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # the text as it is read and as it is decoded, then the second and the packed entries, as they are and in one block
    assert peak < 4 * size
    assert len(images.objects[0]) == 200


def test_an_entry_of_an_image_may_name_the_image_itself(dataset):
    assert len(dataset(lambda content: content["images"][0].update(image_id=7)).objects[0]) == 3


@pytest.mark.parametrize("wrong", [True, None, "5", float("nan"), float("inf")])
def test_a_corner_that_is_no_number_is_an_error(dataset, wrong):
    def change(content):
        content["annotations"][0]["segmentation"] = [[5, 5, 15, 5, 15, 25, 5, wrong]]

    with pytest.raises(ValueError, match="annotation 1: expected a polygon of x, y of three corners or more"):
        dataset(change)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_python_searches_for_cycles_afterwards_as_it_did_before(dataset, was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        dataset()
        assert gc.isenabled() == was_enabled
        with pytest.raises(ValueError, match="no name"):
            dataset(lambda content: content["categories"][0].pop("name"))
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


def test_all_errors_are_listed_at_once(dataset):
    def change(content):
        content["images"].append({"id": 7, "file_name": "c.png", "width": 0, "height": 30})
        content["images"].append({"id": 8, "file_name": "b.png", "width": 40, "height": 30})
        content["categories"] += [{"id": 12}, {"id": 30, "name": content["categories"][0]["name"]}]
        new = {**content["annotations"][0], "id": 20, "image_id": 8}
        content["annotations"] += [
            {**new, "bbox": [30, 5, 12, 20]},
            {**new, "category_id": 13},
            {**new, "id": "x", "image_id": 99},
            {**new, "id": 21, "segmentation": [[1, 2, 3, 4]]},
            {**new, "id": 22, "segmentation": {"size": [40, 30], "counts": [1200]}},
            {**new, "id": 23, "segmentation": {"size": [30, 40], "counts": [1201]}},
            {**new, "id": 24, "bbox": [0, 0, float("inf"), 3]},
            {key: value for key, value in {**new, "id": 25, "iscrowd": 2}.items() if key != "segmentation"},
        ]

    with pytest.raises(ValueError, match="annotations: ") as caught:
        dataset(change)
    lines = str(caught.value).splitlines()
    expected = [
        "image 7: 2 entries have this id",
        "category 12: 2 entries have this id",
        "annotation 20: 2 entries have this id",
        "annotation without a whole number as id",
        "category 12: no name",
        ": 2 categories have it",
        "c.png",
        "image 7: expected width and height in pixels, got 0 and 30",
        "annotation 20: bbox [30, 5, 12, 20] lies outside image 8 of 40 x 30 pixels",
        "annotation 20: there is no category 13",
        "annotation 'x': there is no image 99",
        "annotation 21: expected a polygon",
        "annotation 22: expected run lengths of a mask of size [30, 40], got [40, 30]",
        "annotation 23: expected run lengths that add up to the 1200 pixels",
        "annotation 24: expected bbox to be x, y, width, height",
        "annotation 25: expected iscrowd to be 0 or 1, got 2",
        "annotation 25: expected segmentation to be polygons or run lengths",
    ]
    for error in expected:
        assert sum(error in line for line in lines) == 1, (error, lines)
    assert f"{len(lines) - 1} errors" in lines[0]
    assert len(lines) - 1 == len(expected)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "expected a json file, there is none"),
        ("{", "is not json"),
        ("[]", "expected an object with images, annotations and categories, got list"),
        ('{"images": []}', "2 errors:\n  annotations: expected a list of objects\n  categories: expected"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        CocoImages(tmp_path / "x.json", tmp_path)


def test_an_image_of_another_size_is_refused(dataset, tmp_path):
    images = dataset()
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png")
    with pytest.raises(CorruptImage, match=r"a\.png: expected 40 x 30 pixels, got 30 x 40"):
        images[0]


def test_masks_survive_their_encoding():
    mask = (np.random.default_rng(0).random((23, 31)) > 0.6).astype(np.uint8)
    encoded = encode_mask(mask, 23, 31)
    assert (decode_mask(encoded, 23, 31) == mask).all()
    assert (decode_mask({"size": [23, 31], "counts": encoded["counts"].decode()}, 23, 31) == mask).all()


def test_real_annotations_are_without_errors(coco_subset):
    images = CocoImages(*coco_subset(60))
    assert len(images) == 60
    assert len(images.classes) == 80
    image, target = images[0]
    assert len(target["boxes"]) > 5
    for (x0, y0, x1, y1), mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        rows, columns = np.nonzero(mask.numpy())
        # a tip of less than a pixel belongs to the box only
        assert x0 - 1 <= columns.min() < columns.max() < x1 + 1
        assert y0 - 1 <= rows.min() < rows.max() < y1 + 1
        assert len(rows) > 0.2 * (x1 - x0) * (y1 - y0)
    assert image.shape[1:] == target["masks"].shape[1:]
