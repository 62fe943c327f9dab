"""Classify image files with a net that `localmix compare` has trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from localmix.arguments import positive
from localmix.models import create_model
from localmix.tasks.checkpoint import load_checkpoint
from localmix.tasks.images import CorruptImage, centre_square, normalise, read_image, to_tensor


class Classifier:
    """A trained net together with what it expects of an image and the names of its classes.

    Raises:
        OSError: there is no such file.
        ValueError: the file is truncated, foreign, or not of a net that is known here; says why.
    """

    def __init__(self, checkpoint: Path) -> None:
        content = load_checkpoint(checkpoint)
        self.facts: dict[str, Any] = content["hyper_parameters"]
        try:
            self.classes = [str(name) for name in self.facts["classes"]]
            self.net: nn.Module = create_model(
                self.facts["model"], num_classes=len(self.classes), in_chans=self.facts["in_chans"]
            )
            weights = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
            self.net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"checkpoint: {checkpoint} does not fit a net of localmix: {str(error)[:300]}") from error
        self.net.eval()

    @torch.inference_mode()
    def __call__(self, image: Path, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of an image file, with their probabilities.

        Raises:
            CorruptImage: the file cannot be decoded.
        """
        view = centre_square(read_image(image, self.facts["in_chans"]), self.facts["img_size"])
        pixels = normalise(to_tensor(view), self.facts["mean"], self.facts["std"])
        probabilities, labels = self.net(pixels[None])[0].softmax(0).topk(min(top, len(self.classes)))
        return [(self.classes[label], p) for label, p in zip(labels.tolist(), probabilities.tolist(), strict=True)]


def predict(checkpoint: Path, images: Sequence[Path], *, top: int = 5) -> int:
    """Print the top classes of each image; gives the exit status: 1 if an image could not be read, else 0."""
    positive("top", top)
    classify = Classifier(checkpoint)
    status = 0
    for image in images:
        try:
            ranking = classify(image, top)
        except CorruptImage as error:
            print(f"localmix: error: {error}", file=sys.stderr)
            status = 1
            continue
        print(image)
        width = max(len(name) for name, _ in ranking)
        for name, probability in ranking:
            print(f"  {name:<{width}}  {probability:7.2%}")
    return status
