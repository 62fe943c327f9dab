import json

import numpy as np
import pytest
from PIL import Image

# it is run by torchrun
collect_ignore = ["two_processes.py"]
CLASSES = ("red", "green", "blue")


def _write(root, split, number, seed):
    """Noise with bright rectangles of each class's colour, wide and high images, some without objects."""
    random = np.random.default_rng(seed)
    (root / "images" / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(number):
        width, height = (64, 48) if index % 3 else (40, 64)
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(0 if index % 5 == 4 else 1 + index % 2):
            kind, across, down = int(random.integers(3)), int(random.integers(14, 30)), int(random.integers(14, 30))
            x, y = int(random.integers(width - across)), int(random.integers(height - down))
            pixels[y : y + down, x : x + across, kind] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + index,
                    "category_id": 5 + kind,
                    "bbox": [x, y, across, down],
                    "area": across * down,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + across, y, x + across, y + down, x, y + down]],
                }
            )
        name = f"{index:03}.png"
        Image.fromarray(pixels).save(root / "images" / split / name)
        images.append({"id": 10 + index, "file_name": name, "width": width, "height": height})
    categories = [{"id": 5 + index, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_rectangles(root, train=10, val=5):
    """A small data set in COCO's format."""
    _write(root, "train", train, 0)
    _write(root, "val", val, 1)
    return root


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory):
    """The folder of a small data set in COCO's format: 10 images for training, 5 for validation."""
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))
