import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from localmix.tasks.detection.resizing import Resizing, fitted


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 427), (1199, 800)), ((97, 61), (1272, 800)), ((1, 5000), (1, 1333))],
)
def test_the_ratio_is_kept(size, expected):
    assert fitted(*size, 800, 1333) == expected


def images(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1) / 255


@pytest.mark.parametrize(("height", "width"), [(37, 50), (300, 211)])
def test_resizes_as_pillow_does(height, width):
    """Both ways: training images are resized by Pillow."""
    theirs, ours = images(height, width)
    resizing = Resizing(64, 128, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    found, _ = resizing.resize(ours)
    size = fitted(height, width, 64, 128)
    expected = np.asarray(theirs.resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found.permute(1, 2, 0) * 255, expected, atol=1.01)


def test_enlarges_as_without_averaging():
    _, image = images(37, 50)
    found, _ = Resizing(64, 128, (0.0,) * 3, (1.0,) * 3).eval().resize(image)
    torch.testing.assert_close(found, F.interpolate(image[None], found.shape[1:], mode="bilinear")[0])


def test_targets_follow_their_image():
    mask = torch.zeros(1, 40, 60, dtype=torch.uint8)
    mask[:, 10:30, 20:50] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 50, 30]]), "labels": torch.tensor([1]), "masks": mask}
    resizing = Resizing(20, 100, (0.0,) * 3, (1.0,) * 3)
    image, resized = resizing.resize(torch.rand(3, 40, 60), target)
    assert image.shape == (3, 20, 30)
    assert resized["boxes"].tolist() == [[10, 5, 25, 15]]
    assert resized["masks"].nonzero()[:, 1:].aminmax(dim=0).min.tolist() == [5, 10]
    assert resized["masks"].nonzero()[:, 1:].aminmax(dim=0).max.tolist() == [14, 24]
    assert target["masks"] is mask


def test_leaves_views_for_training_as_they_are():
    resizing = Resizing(20, 100, (0.0,) * 3, (1.0,) * 3, in_training=False)
    image = torch.rand(3, 40, 60)
    assert resizing.resize(image)[0] is image
    assert resizing.eval().resize(image)[0].shape == (3, 20, 30)
