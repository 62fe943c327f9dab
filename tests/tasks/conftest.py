import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from localmix.tasks import fashion_mnist
from localmix.tasks.classification.data import load_images
from localmix.tasks.scenes import layout


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
    yield load_images(img_size=16)
    layout._embedded.cache_clear()  # scenes that other tests compose are of all garments


@pytest.fixture(scope="session")
def coco_subset(tmp_path_factory):
    """Real images of COCO and their annotations: coco_subset(number) -> json file, folder; of `shared/data`."""
    archive = Path(__file__).parents[3] / "shared" / "data" / "coco_subset_q80.zip"
    if not archive.exists():
        pytest.skip(f"needs the images in {archive.name}, which are no part of the repository")
    root = tmp_path_factory.mktemp("coco")

    def extract(number):
        file, folder = root / f"{number}.json", root / "coco_subset" / "val2017"
        if not file.exists():
            with zipfile.ZipFile(archive) as content:
                whole = json.loads(content.read("coco_subset/annotations/instances_val2017.json"))
                images = whole["images"][:number]
                content.extractall(root, [f"coco_subset/val2017/{image['file_name']}" for image in images])
            ids = {image["id"] for image in images}
            annotations = [item for item in whole["annotations"] if item["image_id"] in ids]
            file.write_text(json.dumps({**whole, "images": images, "annotations": annotations}))
        return file, folder

    return extract
