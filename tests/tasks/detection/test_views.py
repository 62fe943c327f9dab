import numpy as np
import pytest
import torch
from PIL import Image

from localmix.tasks.detection.resizing import fitted
from localmix.tasks.detection.views import CROP_FROM, SIZES, DetectionViews, mirrored, view


def scene(height, width, *boxes):
    """Each object in a channel of its own on black, and its target."""
    pixels, masks = np.zeros((height, width, 3), np.uint8), torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1, index] = 200
        masks[index, y0:y1, x0:x1] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.arange(1, 1 + len(boxes)),
        "masks": masks,
    }
    return Image.fromarray(pixels), target


def draws(number=60, **options):
    image, target = scene(480, 640, (30, 40, 250, 300), (400, 200, 600, 460))
    views = DetectionViews(**options)
    return [views.train(image, target, np.random.default_rng([0, 0, index])) for index in range(number)]


def test_sizes_are_those_of_the_paper():
    assert SIZES == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert CROP_FROM == (400, 500, 600)
    found = draws()
    whole = {fitted(480, 640, size, 1333) for size in SIZES}
    shorter = [min(pixels.shape[1:]) for pixels, _ in found]
    longer = [max(pixels.shape[1:]) for pixels, _ in found]
    assert max(longer) <= 1333 and set(shorter) <= set(SIZES) | {min(s) for s in shorter if max(longer) == 1333}
    assert len(set(shorter)) > 6
    cropped = [tuple(pixels.shape[1:]) not in whole for pixels, _ in found]
    assert 15 < sum(cropped) < 45
    assert not any(tuple(pixels.shape[1:]) not in whole for pixels, _ in draws(20, crop_from=()))


def test_boxes_masks_and_pixels_stay_together():
    """Where the pixels show an object, its mask and box are, whatever was drawn."""
    flips = 0
    for pixels, target in draws():
        flips += bool(len(target["boxes"]) == 2 and target["boxes"][0, 0] > target["boxes"][1, 0])
        assert target["boxes"].shape[1:] == (4,) and target["masks"].shape[1:] == pixels.shape[1:]
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            shown = pixels[int(label) - 1] >= 199
            rows, columns = shown.nonzero().unbind(1)
            # averages at the edge are of neither
            assert (mask.bool() & ~shown).sum() <= 3 * (mask.shape[0] + mask.shape[1])
            assert not (shown & ~mask.bool()).any()
            edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (box - edges).abs().max() <= 2
            assert (box[:2] >= 0).all() and box[2] <= pixels.shape[2] and box[3] <= pixels.shape[1]
    assert 10 < flips < 50


def test_draws_depend_on_the_generator_alone():
    for (a, target), (b, other) in zip(draws(6), draws(6), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(target[name], other[name]) for name in target)
    sizes = {tuple(pixels.shape) for pixels, _ in draws(6)}
    assert len(sizes) > 3


def test_a_long_image_is_cropped_at_the_sizes_of_the_paper():
    """Its shorter side has 600 pixels in front of the crop however long it is, so that a crop of 400 is a square."""
    image, target = scene(60, 300, (0, 0, 300, 60))
    views, shapes = DetectionViews(crop_from=(600,), crop_size=(400, 400)), []
    for index in range(20):
        pixels, _ = views.train(image, target, np.random.default_rng(index))
        shapes.append(pixels.shape[2] / pixels.shape[1])
    assert {round(shape) for shape in shapes} == {1, 5}
    assert all(shape == 1 or shape > 4.9 for shape in shapes)


def test_an_object_outside_the_region_or_of_a_sliver_is_gone():
    image, target = scene(50, 80, (0, 0, 10, 10), (30, 10, 60, 40), (19, 0, 21, 50))
    pixels, left = view(image, target, (20.7, 0.0, 80.0, 50.0), (100, 119))
    assert left["labels"].tolist() == [2]
    torch.testing.assert_close(left["boxes"], torch.tensor([[9.3, 10, 39.3, 40]]) * torch.tensor([119 / 59.3, 2] * 2))
    assert pixels.shape == (3, 100, 119)
    assert left["masks"][0].nonzero().aminmax(dim=0).min.tolist() == [20, 19]
    empty = {name: value[:0] for name, value in target.items()}
    assert view(image, empty, (0.0, 0.0, 80.0, 50.0), (25, 40))[1]["masks"].shape == (0, 25, 40)


def test_a_crop_is_the_part_of_the_resized_image():
    """Pixels are computed once, yet are those of the resized image where that only grows."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    _, target = scene(40, 60)
    pixels, _ = view(image, target, (15.0, 10.0, 45.0, 30.0), (60, 90))
    whole, _ = view(image, target, (0.0, 0.0, 60.0, 40.0), (120, 180))
    # Pillow reads nothing beyond the region: only the rim differs
    torch.testing.assert_close(pixels[:, 3:-3, 3:-3].int(), whole[:, 33:87, 48:132].int(), atol=1, rtol=0)


def test_mirrored_twice_is_the_same():
    image, target = scene(50, 80, (3, 5, 10, 40))
    pixels, _ = view(image, target, (0.0, 0.0, 80.0, 50.0), (50, 80))
    once, other = mirrored(pixels, target)
    assert other["boxes"].tolist() == [[70, 5, 77, 40]]
    again, back = mirrored(once, other)
    assert torch.equal(again, pixels) and torch.equal(back["boxes"], target["boxes"])


def test_without_chance_the_whole_image_at_the_last_size():
    image, target = scene(97, 61, (3, 5, 10, 40))
    pixels, found = DetectionViews(sizes=(32, 64), max_size=96).plain(image, target)
    assert pixels.shape == (3, 96, 60)
    assert len(found["labels"]) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sizes": ()}, "sizes: expected one or more"),
        ({"max_size": 700}, "max_size: expected at least the largest of the sizes, 800, got 700"),
        ({"crop_from": (0,)}, "crop_from: expected sizes of at least 1 pixel"),
        ({"crop_size": (600, 384)}, "crop_size: expected 0 < least <= largest"),
    ],
)
def test_wrong_arguments_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        DetectionViews(**options)
