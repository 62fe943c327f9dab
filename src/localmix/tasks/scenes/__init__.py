"""Scenes composed of the embedded garments: images for every task, without a download."""

from typing import Literal

from localmix.tasks import fashion_mnist

GROUND = "ground"
"""The class of what is no garment, in label maps."""
CLASSES = (GROUND, *fashion_mnist.CLASSES)
"""Classes of the label maps by their stored value; that of a garment is also the id of its category in COCO's json."""
SPLITS: dict[str, Literal["train", "test"]] = {"train": "train", "val": "test"}
"""The split of the embedded images that the garments of a split are from."""
