"""Converts a published checkpoint, then uses it as a classifier and as the backbone of another network.

    python examples/convert_checkpoint.py CHECKPOINT NAME FOLDER

CHECKPOINT is a file of the authors of the paper or of Swin, NAME the network it belongs to, such as dwnet_tiny.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch

from localmix.models.convert import convert_file


def main(checkpoint: Path, name: str, folder: Path) -> None:
    """Converts, then loads the folder twice."""
    print(convert_file(checkpoint, model=name, output=folder / "model.safetensors", config=True))

    image = torch.rand(1, 3, 200, 250)  # any size
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    print("logits", tuple(classifier(image).shape))

    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    for feature, reduction in zip(backbone(image), backbone.feature_info.reduction(), strict=True):
        print("map at 1 /", reduction, tuple(feature.shape))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
