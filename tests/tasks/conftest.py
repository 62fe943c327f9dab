import pytest
from PIL import Image

from localmix.tasks import fashion_mnist
from localmix.tasks.data import load_images


@pytest.fixture
def photographs():
    """Writes real images as a folder: photographs(root, {"train/shirt": 5, ...})."""
    images, _ = fashion_mnist.load("test")

    def write(root, folders):
        start = 0
        for folder, number in folders.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(images[start + index]).resize((40, 36)).save(root / folder / f"{index:03}.png")
            start += number
        return root

    return write


@pytest.fixture
def few_images(monkeypatch):
    """The embedded set, cut to 24 images for training and 8 for validation, at 16 px to be fast."""
    numbers = {"train": 24, "test": 8}
    whole = {split: fashion_mnist.load(split) for split in numbers}
    monkeypatch.setattr(fashion_mnist, "load", lambda split: tuple(array[: numbers[split]] for array in whole[split]))
    return load_images(img_size=16)
