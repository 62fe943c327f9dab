import numpy as np
import pytest
import torch
from PIL import Image

from localmix.tasks.detection.drawing import PALETTE, SHORTER, draw, sheet


@pytest.fixture
def found():
    masks = torch.zeros(2, 1, 480, 640)
    masks[0, :, 100:300, 100:300], masks[1, :, 200:400, 400:600] = 1, 1
    return {
        "boxes": torch.tensor([[100.0, 100, 300, 300], [400, 200, 600, 400]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.4]),
        "masks": masks,
    }


def test_masks_and_boxes_have_the_colour_of_their_class(found):
    image = Image.new("RGB", (640, 480), (90, 90, 90))
    picture = np.asarray(draw(image, found, ["shoe", "bag"], min_score=0.3)).astype(int)
    assert picture.shape == (480, 640, 3)
    for index, (y, x) in enumerate(((250, 200), (350, 500))):
        expected = 0.55 * 90 + 0.45 * np.array(PALETTE[index])
        assert np.abs(picture[y, x] - expected).max() <= 1
    assert (picture[200, 100] == PALETTE[0]).all()
    assert (picture[450, 320] == 90).all()
    # above its box the name, on its colour
    name = picture[82:98, 102:150].reshape(-1, 3)
    assert (name == PALETTE[0]).all(1).any() and (name == 0).all(1).any()


def test_what_scores_little_is_not_drawn(found):
    picture = np.asarray(draw(Image.new("RGB", (640, 480)), found, ["shoe", "bag"], min_score=0.5))
    assert not picture[350, 500].any() and picture[250, 200].any()
    without = {name: value for name, value in found.items() if name != "masks"}
    picture = np.asarray(draw(Image.new("RGB", (640, 480)), without, ["shoe", "bag"], min_score=0.5))
    assert not picture[250, 200].any() and (picture[200, 100] == PALETTE[0]).all()
    nothing = {name: value[:0] for name, value in found.items()}
    assert not np.asarray(draw(Image.new("RGB", (640, 480)), nothing, ["shoe", "bag"])).any()


def test_small_images_are_enlarged_so_that_names_are_read(found):
    small = {**found, "boxes": found["boxes"] / 10, "masks": found["masks"][..., ::10, ::10]}
    picture = draw(Image.new("RGB", (64, 48)), small, ["shoe", "bag"])
    assert picture.size == (640, SHORTER)
    assert (np.asarray(picture)[200, 100] == PALETTE[0]).all()


def test_many_classes_and_names_at_the_border(found):
    crowded = {
        "boxes": torch.tensor([[0.0, 0, 5, 5], [630, 470, 640, 480], [0, 0, 640, 480]]).repeat(4, 1),
        "labels": torch.arange(1, 13),
        "scores": torch.linspace(1, 0.6, 12),
    }
    assert draw(Image.new("RGB", (640, 480)), crowded, [f"a long name {i}" for i in range(12)]).size == (640, 480)


def test_pictures_side_by_side():
    whole = sheet([Image.new("RGB", (64, 48)), Image.new("RGB", (48, 64)), Image.new("RGB", (10, 10))], columns=2)
    assert whole.size == (640 + 8 + 360, 2 * 480 + 8)
