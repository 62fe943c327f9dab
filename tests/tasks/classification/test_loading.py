import numpy as np
import torch

from localmix.tasks.classification.loading import StoredImages
from localmix.tasks.engine.batches import EpochBatches, loader


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
    pixels, labels = next(iter(loader(few_images.train, 8, seed=0, augment=False)))
    _, _, indices = next(iter(EpochBatches(24, 8, seed=0)))
    stored = few_images.train.images[indices].float().div(255).sub(few_images.mean[0]).div(few_images.std[0])
    torch.testing.assert_close(pixels, stored)
    assert torch.equal(labels, few_images.train.labels[indices])
