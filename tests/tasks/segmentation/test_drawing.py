import numpy as np
import pytest
from PIL import Image

from localmix.tasks.segmentation.drawing import (
    LEAST_SIDE,
    Entry,
    below,
    beside,
    comparison,
    draw,
    draw_with_legend,
    entries,
    legend,
)
from localmix.tasks.segmentation.labels import CAMVID, IGNORED, Labelling, ade20k, read_label_map

LABELS = np.array([[0, 1, 2, IGNORED], [2, 2, IGNORED, 0]])
THREE = Labelling(classes=("a", "b", "c"))


def test_drawn_in_its_colours():
    drawn = np.asarray(draw(LABELS, THREE))
    np.testing.assert_array_equal(drawn[0, :3], THREE.colours)
    assert not drawn[0, 3].any()
    image = Image.new("RGB", (4, 2), (200, 100, 50))
    over = np.asarray(draw(LABELS, THREE, image, opacity=0.5)).astype(int)
    np.testing.assert_allclose(over[0, 0], (np.array([200, 100, 50]) + THREE.colours[0]) / 2, atol=1)


def test_shares_are_those_of_the_pixels(camvid):
    maps = [read_label_map(path, CAMVID) for path in sorted(camvid.glob("annotations/*/*.png"))]
    for labels in (maps[0], maps):
        pixels = np.concatenate([x.ravel() for x in (maps if labels is maps else [labels])])
        found = entries(labels, CAMVID)
        names = (*CAMVID.classes, "void")  # IGNORED is the last
        assert {entry.name for entry in found} == {names[label] for label in np.unique(pixels)}
        for entry in found:
            label = names.index(entry.name) if entry.name != "void" else IGNORED
            assert entry.share == pytest.approx((pixels == label).mean())
        shares = [entry.share for entry in found if entry.name != "void"]
        assert shares == sorted(shares, reverse=True)
        assert found[-1].name == "void"


def test_absent_classes_are_left_out():
    assert [entry.name for entry in entries(np.array([[2, 2, 1]]), THREE)] == ["c", "b"]
    assert entries(np.zeros((0, 3), dtype=int), THREE) == []


def columns_of(picture, colour):
    """Left ends of the patches of a colour."""
    return np.nonzero((np.asarray(picture) == colour).all(-1).any(0))[0]


def test_a_legend_shows_every_class_and_its_name():
    """Each line has its colour and ink to the right of it; many lines take several columns, none is cut off."""
    labelling = ade20k()
    for count, height in ((1, 20), (3, 360), (150, 320)):
        lines = [Entry(n, c, 1 / count) for n, c in zip(labelling.classes, labelling.colours, strict=True)][:count]
        picture = legend(lines, height)
        assert picture.height == height
        pixels = np.asarray(picture)
        for line in lines:
            assert (pixels == line.colour).all(-1).sum() > 40, line.name
        assert (pixels[:, -2:] == 255).all()
        assert (pixels[-1] == 255).all()
        without_names = np.asarray(legend([line._replace(name="") for line in lines], height))
        assert picture.width > without_names.shape[1]
    assert legend([Entry("one", (9, 99, 199), 1.0)], 200) != legend([Entry("two", (9, 99, 199), 1.0)], 200)
    assert legend([Entry("one", (9, 99, 199), 0.5)], 200) != legend([Entry("one", (9, 99, 199), 0.4)], 200)


def test_the_legend_stands_beside_the_picture():
    """A small image is enlarged by a whole factor, its pixels staying squares."""
    picture = draw_with_legend(LABELS, THREE)
    assert picture.height == LEAST_SIDE
    drawn = np.asarray(picture)[:, : 4 * LEAST_SIDE // 2]
    np.testing.assert_array_equal(drawn[:: LEAST_SIDE // 2, :: LEAST_SIDE // 2], np.asarray(draw(LABELS, THREE)))
    right = picture.crop((drawn.shape[1], 0, *picture.size))
    assert [columns_of(right, colour).size > 0 for colour in THREE.colours] == [True] * 3
    only = draw_with_legend(np.zeros((400, 300), dtype=int), THREE)
    assert only.height == 400
    assert only.width > 300
    assert not columns_of(only.crop((300, 0, *only.size)), THREE.colours[1]).size


def test_beside():
    whole = beside([Image.new("RGB", (2, 3), "red"), Image.new("RGB", (4, 1), "blue")], gap=1)
    assert whole.size == (7, 3)
    assert [whole.getpixel(place) for place in ((1, 2), (2, 0), (3, 0), (3, 1))] == [
        (255, 0, 0),
        (255, 255, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_a_comparison_shows_image_labels_and_prediction():
    """The prediction has a class that the labels have not: it is in the legend, without a share."""
    labels, predicted = np.zeros((20, 30), dtype=int), np.full((20, 30), 1)
    labels[:, 20:] = 2
    picture = comparison(Image.new("RGB", (30, 20), (10, 200, 30)), labels, predicted, THREE, height=200)
    pixels = np.asarray(picture)
    where = [columns_of(picture, colour) for colour in ((10, 200, 30), THREE.colours[0], THREE.colours[1])]
    image, labelled, guessed = (columns.min() for columns in where)
    assert (image, labelled, guessed) == (0, 308, 616)
    for colour in THREE.colours:
        assert (columns_of(picture, colour) > 916).any()
    assert (pixels[:20, :300] != 255).any()
    whole = below([picture, Image.new("RGB", (4, 5))])
    assert whole.size == (picture.width, picture.height + 13)
