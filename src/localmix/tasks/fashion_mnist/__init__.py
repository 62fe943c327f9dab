"""The first 10,000 training and 2,000 test images of Fashion-MNIST, shipped with the package."""

from pathlib import Path
from typing import Literal

import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FILE = Path(__file__).with_name("fashion_mnist.npz")


def load(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [N, 28, 28] with 0 for the background, and labels, int64 [N], of one split.

    >>> images, labels = load("test")
    >>> images.shape, CLASSES[labels[0]]
    ((2000, 28, 28), 'Ankle boot')
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    with np.load(_FILE, allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)
