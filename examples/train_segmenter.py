"""Trains a segmenter on a folder of images and label maps, evaluates it and draws what it finds.

    python examples/train_segmenter.py [OUTPUT]

The folder stands for yours: images/train and images/val, annotations/train and annotations/val with the same names, and
classes.txt with a line for each class. Here it holds a few scenes that the package composes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from localmix.cli import main as localmix
from localmix.tasks.scenes import CLASSES
from localmix.tasks.scenes.writing import write_scenes


def main(output: Path) -> None:
    """Writes scenes, a run, results and a picture into OUTPUT."""
    data, run = output / "scenes", output / "run"

    # your images and label maps
    write_scenes(data, num_train=40, num_val=6, size=(64, 96), max_objects=4, workers=1)
    (data / "classes.txt").write_text("\n".join(CLASSES))

    # a short run, which may be interrupted and called again
    settings = {
        "task": "segmentation",
        "output": run,
        "data.root": data,
        "data.size": 64,
        "data.batch_size": 8,
        "model.name": "dwnet_nano",
        "model.channels": 32,
        "model.auxiliary_channels": 16,
        "model.lr": 2e-3,
        "trainer.max_epochs": 2,
        "log.tensorboard": "false",
    }
    localmix(["fit", *(f"--{name}={value}" for name, value in settings.items())])

    # mIoU, per class, with results.json and pictures
    localmix(["validate", str(run), "--output", str(output / "results")])

    # the label map over an image, with a legend
    localmix(["predict", str(run), str(data / "images/val/000000.jpg"), "--output", str(output / "drawn")])


# Images are loaded in processes of their own, which may import this file.
if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "segmenter"))
