import io

import numpy as np
import pytest
from PIL import Image

from localmix.reports.evaluation.confusion import _shares, draw


def confusion(num_classes, *, others=False):
    """Half of the images of each label are taken for the next label; of the first some for a class without images."""
    pairs = [(label, guess, 4) for label in range(num_classes) for guess in (label, (label + 1) % num_classes)]
    return [*pairs, (0, num_classes, 1), (0, -1, 1)] if others else pairs


def test_shares_are_of_the_images_of_a_label():
    shares = _shares([(0, 0, 6), (0, 2, 2), (2, 2, 5)], [0, 2])
    assert shares.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    # predictions of a class without images and answers that are not finite
    shares = _shares([(0, 0, 6), (0, 1, 1), (0, -1, 1), (2, 0, 5)], [0, 2])
    assert shares.tolist() == [[0.75, 0.0, 0.25], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("num_classes", [2, 20, 40])
def test_picture_shows_the_diagonal(num_classes, others):
    file = io.BytesIO()
    names = [f"class {number} with a long name" for number in range(num_classes + 1)]
    draw(confusion(num_classes, others=others), names, file, title="net on data", note="top-1 50%")
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # the half that is right and the half that is wrong have the same blue; nothing else is so dark
    dark = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 100)
    assert 0.02 < dark.mean() * num_classes < 2
    assert min(pixels.shape[:2]) > 500
