"""What a network answers to each image of a split, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from localmix.reports.evaluation.view import View
from localmix.tasks.classification.loading import Pairs
from localmix.tasks.images import CorruptImage

TTA = ("none", "flip")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
"""And what autocast computes in."""
Batch = tuple[Tensor, Tensor, list[str]]
"""Pixels, uint8 [n, C, H, W]; labels, int64 [n]; why images that are left out cannot be decoded."""


class Batches(Dataset):
    """Answers a list of indices with a batch; images that cannot be decoded are left out of it, and named."""

    def __init__(self, pairs: Pairs, view: View, labels: Sequence[int] | None) -> None:
        self.pairs, self.view, self.labels = pairs, view, labels

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        views, labels, corrupt = [], [], []
        for index in indices:
            try:
                image, label = self.pairs[index]
            except CorruptImage as error:
                corrupt.append(str(error))
                continue
            views.append(self.view(image))
            labels.append(int(label) if self.labels is None else self.labels[int(label)])
        pixels = torch.stack(views) if views else torch.empty(0, self.view.channels, *self.view.size, dtype=torch.uint8)
        return pixels, torch.tensor(labels, dtype=torch.int64), corrupt


def batches(
    pairs: Pairs,
    view: View,
    batch_size: int,
    *,
    labels: Sequence[int] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """All pairs once and in order, the last batch holds what is left; `labels` says what becomes of each label."""
    indices = [range(start, min(start + batch_size, len(pairs))) for start in range(0, len(pairs), batch_size)]
    return DataLoader(
        Batches(pairs, view, labels), batch_size=None, sampler=indices, num_workers=workers, pin_memory=pin_memory
    )


@dataclass(frozen=True)
class Outcome:
    """What a network has answered: one value for each image, in order.

    Args:
        labels: int64 [N].
        predictions: the most probable class, int64 [N]; -1 where the answer is not finite, which counts as wrong.
        in_top5: whether the label is among the five most probable classes, bool [N]. Of fewer classes it always is.
        losses: cross entropy, float64 [N].
        corrupt: why images that do not count could not be decoded.
    """

    labels: np.ndarray
    predictions: np.ndarray
    in_top5: np.ndarray
    losses: np.ndarray
    corrupt: list[str]

    def figures(self) -> dict[str, Any]:
        """Over all images; the mean accuracy over classes is over those that have images."""
        hits = self.predictions == self.labels
        numbers, right = np.bincount(self.labels), np.bincount(self.labels, weights=hits)
        present = numbers > 0
        return {
            "top1": float(hits.mean()),
            "top5": float(self.in_top5.mean()),
            "loss": float(self.losses.mean()),
            "mean_class_accuracy": float((right[present] / numbers[present]).mean()),
            "images": len(hits),
            "not_finite": int((self.predictions < 0).sum()),
        }

    def confusion(self) -> list[tuple[int, int, int]]:
        """How often a label got a prediction, (label, prediction, images), where that happened; by label."""
        pairs, numbers = np.unique(np.stack([self.labels, self.predictions]), axis=1, return_counts=True)
        return [(int(label), int(guess), int(n)) for (label, guess), n in zip(pairs.T, numbers, strict=True)]

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each class; of a class without images nothing is known, and the figures are None."""
        rows = [
            {"class": name, "output": output, "images": 0, "top1": None, "top5": None, "most_often_taken_for": None}
            for output, name in enumerate(names)
        ]
        for label in np.unique(self.labels):
            chosen = self.labels == label
            rows[label] |= {
                "images": int(chosen.sum()),
                "top1": float((self.predictions[chosen] == label).mean()),
                "top5": float(self.in_top5[chosen].mean()),
            }
        worst: dict[int, int] = {}
        for label, guess, number in self.confusion():
            if guess not in (label, -1) and number > worst.get(label, 0):
                worst[label] = number
                rows[label]["most_often_taken_for"] = names[guess]
        return rows


@torch.inference_mode()
def answer(
    net: nn.Module,
    loader: Iterable[Batch],
    view: View,
    *,
    outputs: Sequence[int] | None = None,
    tta: str = "none",
    precision: str = "float32",
    device: str = "cpu",
    skip_corrupt: bool = False,
) -> Outcome:
    """Run a network over batches.

    Args:
        net: in evaluation mode, on `device`.
        loader: what `batches` gives, with labels that count the classes among which the network chooses.
        outputs: the outputs that take part, in the order of the labels; None for all.
        tta: "flip" takes the mean of the probabilities of an image and its mirror image; "none" does not.
        precision: "float32" (on a GPU without TF32), or "bfloat16" by autocast; probabilities are float32 in both.
        skip_corrupt: leave images out that cannot be decoded, instead of raising.

    Raises:
        CorruptImage: an image cannot be decoded; names it.
        ValueError: no image is left.
    """
    chosen = None if outputs is None else torch.tensor(outputs, device=device)

    def log_probabilities(images: Tensor) -> Tensor:
        logits = net(images).float()
        return F.log_softmax(logits if chosen is None else logits[:, chosen], dim=1)

    parts, corrupt = [], []
    with computed_in(precision, device):
        for pixels, labels, defects in loader:
            corrupt += defects
            if defects and not skip_corrupt:
                raise CorruptImage(f"data: {defects[0]}; remove it or pass on_corrupt='skip'")
            if not len(labels):
                continue
            images, labels = view.normalise(pixels.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
            scores = log_probabilities(images)
            if tta == "flip":
                scores = torch.logaddexp(scores, log_probabilities(images.flip(3))) - log(2)
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices
            finite = scores.isfinite().all(dim=1)
            parts.append(
                (
                    labels,
                    best[:, 0].where(finite, -1),
                    (best == labels[:, None]).any(dim=1) & finite,
                    F.nll_loss(scores, labels, reduction="none").double(),
                )
            )
    if not parts:
        raise ValueError(f"data: expected images, found none but {len(corrupt)} that cannot be decoded")
    return Outcome(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)), corrupt)


@contextmanager
def computed_in(precision: str, device: str) -> Generator[None]:
    """The precision of what is computed within: float32 is float32, also where a GPU would round to TF32."""
    dtype = PRECISIONS[precision]
    autocast = nullcontext() if dtype is None else torch.autocast(device, dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), autocast:
        yield
