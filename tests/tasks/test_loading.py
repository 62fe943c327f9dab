import numpy as np
import pytest
import torch

from localmix.tasks.data import load_images
from localmix.tasks.loading import EpochBatches, StoredImages, loader


def epochs(data, number, **options):
    result = []
    batches = loader(data, 8, **options)
    for epoch in range(number):
        batches.sampler.set_epoch(epoch)
        result.append(list(batches))
    return result


def same(a, b):
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def test_order_depends_on_seed_and_epoch_alone(few_images):
    torch.manual_seed(0)
    first = epochs(few_images.train, 2, seed=3)
    torch.manual_seed(1)
    second = epochs(few_images.train, 2, seed=3)
    assert same(first[0], second[0]) and same(first[1], second[1])
    assert not same(first[0], first[1])
    assert not same(first[0], epochs(few_images.train, 1, seed=4)[0])


def test_loader_draws_nothing_from_the_global_generator(few_images):
    before = torch.get_rng_state()
    epochs(few_images.train, 2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(tmp_path, photographs):
    folder = photographs(tmp_path, {"train/a": 9, "train/b": 9, "val/a": 1, "val/b": 1})
    images = load_images(str(folder), img_size=16)
    alone, helped = (epochs(images.train, 2, seed=0, workers=workers) for workers in (0, 2))
    assert same(alone[0], helped[0]) and same(alone[1], helped[1])
    assert not same(alone[0], alone[1])


def test_each_epoch_shows_each_image_once():
    batches = EpochBatches(10, 3, seed=5)
    for epoch in range(3):
        batches.set_epoch(epoch)
        shown = [index for _, _, indices in batches for index in indices]
        assert len(batches) == 3
        assert len(set(shown)) == len(shown) == 9


def test_validation_is_whole_and_in_order():
    assert list(EpochBatches(5, 2, seed=None)) == [(None, 0, [0, 1]), (None, 0, [2, 3]), (None, 0, [4])]


def test_batch_is_never_larger_than_the_set():
    (request,) = EpochBatches(5, 64, seed=0)
    assert sorted(request[2]) == [0, 1, 2, 3, 4]


def test_augmentation_of_stored_images_is_a_shift_and_a_flip():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 10:15, 3:20] = torch.arange(1, 86, dtype=torch.uint8).reshape(5, 17)
    data = StoredImages(image, torch.zeros(1, dtype=torch.int64), mean=[0.0], std=[1 / 255])
    possible = {
        np.roll(side, shift, axis=(0, 1)).tobytes(): (down, right, mirrored)
        for mirrored, side in enumerate((image[0, 0].numpy(), image[0, 0].flip(1).numpy()))
        for down in range(-2, 3)
        for right in range(-2, 3)
        for shift in [(down, right)]
    }
    seen = {possible[data[0, epoch, [0]][0][0, 0].byte().numpy().tobytes()] for epoch in range(400)}
    assert seen == set(possible.values())


def test_without_augmentation_pixels_are_unchanged(few_images):
    (pixels, labels), *_ = epochs(few_images.train, 1, seed=0, augment=False)[0]
    _, _, indices = next(iter(EpochBatches(24, 8, seed=0)))
    stored = few_images.train.images[indices].float().div(255).sub(few_images.mean[0]).div(few_images.std[0])
    torch.testing.assert_close(pixels, stored)
    assert torch.equal(labels, few_images.train.labels[indices])
