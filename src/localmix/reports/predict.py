"""Classify image files with a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from localmix.arguments import positive
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.evaluation.trained import load_trained
from localmix.tasks.images import CorruptImage, read_image


class Classifier:
    """A trained net together with what it expects of an image and the names of its classes.

    Args:
        model: a checkpoint, the folder of a run, or a published folder; see
            `localmix.reports.evaluation.trained.load_trained`.
        weights: "ema" or "raw"; by default the moving average where there is one.
        device: "auto", "cpu" or "cuda".

    Raises:
        OSError: there is no such file.
        ValueError: the file is truncated, foreign, or not of a net that is known here; says why.
    """

    def __init__(self, model: Path, *, weights: str | None = None, device: str = "auto") -> None:
        self.device = known_device(device)
        if not Path(model).exists() and ":" not in str(model):  # a name alone has no weights
            expected = "model: expected a checkpoint, the folder of a run or a published folder, found nothing"
            raise FileNotFoundError(2, expected, str(model))
        trained = load_trained(model, weights=weights)
        self.net, self.view = trained.net.to(self.device), trained.view
        self.classes = trained.classes or [str(output) for output in range(trained.num_classes)]

    @torch.inference_mode()
    def __call__(self, image: Path, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of an image file, with their probabilities.

        Raises:
            CorruptImage: the file cannot be decoded.
        """
        pixels = self.view.normalise(self.view(read_image(image, self.view.channels)))
        probabilities, labels = self.net(pixels[None].to(self.device))[0].softmax(0).topk(min(top, len(self.classes)))
        return [(self.classes[label], p) for label, p in zip(labels.tolist(), probabilities.tolist(), strict=True)]


def predict(
    model: Path, images: Sequence[Path], *, top: int = 5, weights: str | None = None, device: str = "auto"
) -> int:
    """Print the top classes of each image; gives the exit status: 1 if an image could not be read, else 0."""
    positive("top", top)
    classify = Classifier(model, weights=weights, device=device)
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
