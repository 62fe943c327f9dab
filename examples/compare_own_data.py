"""Compares mixers on your own images, then classifies one of them with the best net.

    python examples/compare_own_data.py DIR [OUTPUT]

DIR has a folder of images for each class, or train/CLASS/* and val/CLASS/*. Without DIR a small such folder is made of
images that the package ships.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from localmix.reports.compare import compare
from localmix.reports.predict import Classifier
from localmix.tasks import fashion_mnist


def small_folder(root: Path, per_class: int = 40) -> Path:
    """Bags, sandals and trousers as PNG files, a folder for each."""
    images, labels = fashion_mnist.load("train")
    for name in ("Bag", "Sandal", "Trouser"):
        (root / name).mkdir(parents=True)
        for index in (labels == fashion_mnist.CLASSES.index(name)).nonzero()[0][:per_class]:
            Image.fromarray(images[index]).save(root / name / f"{index}.png")
    return root


def main() -> None:
    """Trains and reports."""
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else small_folder(Path(mkdtemp()) / "images")
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(mkdtemp()) / "runs"
    results = compare(
        data=str(data),
        img_size=32,
        mixers=["depthwise_convolution", "local_mlp"],
        epochs=4,
        batch_size=16,
        output=output,
    )
    best = max(results["rows"], key=lambda row: row["top1_mean"])
    classify = Classifier(output / best["runs"][0]["folder"] / "checkpoint.ckpt")
    image = next(path for path in sorted(data.rglob("*.*")) if path.is_file())
    print(image)
    for name, probability in classify(image, top=3):
        print(f"  {name}: {probability:.1%}")


# Each net trains in a process of its own, which imports this file.
if __name__ == "__main__":
    main()
