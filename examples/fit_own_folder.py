"""Trains a network on your own images by `localmix fit`, then classifies one of them with the best weights.

    python examples/fit_own_folder.py [DIR] [OUTPUT]

DIR has a folder of images for each class, or train/CLASS/* and val/CLASS/*. Without DIR a small such folder is made of
images that the package ships. Interrupted, the same call with the same OUTPUT goes on.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from localmix.reports.predict import Classifier
from localmix.reports.training.fit import main as fit
from localmix.tasks import fashion_mnist


def small_folder(root: Path, per_class: int = 100) -> Path:
    """Bags, sandals and trousers as PNG files, a folder for each."""
    images, labels = fashion_mnist.load("train")
    for name in ("Bag", "Sandal", "Trouser"):
        (root / name).mkdir(parents=True)
        for index in (labels == fashion_mnist.CLASSES.index(name)).nonzero()[0][:per_class]:
            Image.fromarray(images[index]).save(root / name / f"{index}.png")
    return root


def main() -> None:
    """Trains and reports; OUTPUT is the folder of the run."""
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else small_folder(Path(mkdtemp()) / "images")
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(mkdtemp()) / "run"
    # what stands behind `localmix fit` on the command line; `localmix fit --help` explains all settings
    settings = {
        "model.name": "dwnet_nano",
        "data.root": data,
        "data.img_size": 32,
        "data.batch_size": 16,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 4,
        "save.every": 5,
        "output": output,
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    if status := fit(arguments):
        raise SystemExit(status)

    with (output / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["val_top1"]:
                print(
                    f"epoch {int(row['epoch']) + 1}: loss {float(row['loss']):.3f}, top-1 {float(row['val_top1']):.1%}"
                )
    image = next(path for path in sorted(data.rglob("*.*")) if path.is_file())
    print(image)
    for name, probability in Classifier(output / "best.ckpt")(image, top=3):
        print(f"  {name}: {probability:.1%}")


if __name__ == "__main__":
    main()
