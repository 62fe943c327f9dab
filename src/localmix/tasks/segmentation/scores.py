"""How good label maps are: one confusion matrix for the whole set, and what follows from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from localmix.arguments import positive
from localmix.tasks.segmentation.labels import IGNORED


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int, *, ignored: int = IGNORED) -> Tensor:
    """Number of pixels by label (row) and prediction (column), int64 [num_classes, num_classes].

    Args:
        predictions: classes, integers of any shape.
        labels: classes of the same shape; pixels labelled `ignored` are left out.

    Raises:
        ValueError: the shapes differ, or a prediction or a label is no class.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, IGNORED]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    positive("num_classes", num_classes)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions: expected the shape of the labels, {list(labels.shape)}, got {list(predictions.shape)}"
        )
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.is_floating_point() or values.is_complex():
            raise ValueError(f"{name}: expected integers, got {values.dtype}")
    if labels.numel() == 0:
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=labels.device)
    # one row more, the first, for what is left out: to select pixels takes longer than to count them
    rows = labels.long().masked_fill(labels == ignored, -1).add_(1)
    _refuse_others("predictions", predictions, 0, num_classes - 1)
    _refuse_others("labels", rows, 0, num_classes, shift=-1)
    cells = rows.mul_(num_classes).add_(predictions)
    counts = torch.bincount(cells.flatten(), minlength=(num_classes + 1) * num_classes)
    return counts.view(num_classes + 1, num_classes)[1:]


def _refuse_others(name: str, values: Tensor, low: int, high: int, *, shift: int = 0) -> None:
    least, most = (int(value) for value in values.aminmax())
    if least < low or most > high:
        wrong = values[(values < low) | (values > high)].unique().add(shift).tolist()
        raise ValueError(f"{name}: expected classes 0 to {high + shift}, got {', '.join(map(str, wrong[:10]))} too")


class Scores(NamedTuple):
    """What a confusion matrix says; a class without a labelled pixel is absent: NaN, and left out of every mean.

    All shares are in 0..1, float64.
    """

    pixel_accuracy: Tensor
    """Share of the pixels that are right."""
    accuracy: Tensor
    """Of each class: share of its pixels that are right."""
    iou: Tensor
    """Of each class: pixels that are right / (its pixels + those taken for it - pixels that are right)."""

    @property
    def mean_accuracy(self) -> Tensor:
        """Mean over the classes that are there."""
        return self.accuracy.nanmean()

    @property
    def mean_iou(self) -> Tensor:
        """Mean over the classes that are there."""
        return self.iou.nanmean()

    @property
    def present(self) -> Tensor:
        """Of each class: whether any pixel is labelled so."""
        return ~self.iou.isnan()

    @classmethod
    def of(cls, confusion: Tensor) -> Scores:
        """Of a confusion matrix, labels in rows."""
        confusion = confusion.double()
        right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        absent = labelled == 0
        accuracy = (right / labelled).masked_fill(absent, torch.nan)
        iou = (right / (labelled + predicted - right)).masked_fill(absent, torch.nan)
        return cls(right.sum() / labelled.sum(), accuracy, iou)


class SegmentationScores(Metric):
    """Adds up the confusion matrix of all batches and processes: integers, so the result depends on no order.

    An image that one process alone evaluates counts once; where a sampler has padded the set, do not update with the
    padding.

    Args:
        num_classes: of predictions and labels.
        ignored: label of pixels that are left out.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, *, ignored: int = IGNORED) -> None:
        super().__init__()
        self.num_classes, self.ignored = positive("num_classes", num_classes), ignored
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count the pixels of some label maps, integers of one shape."""
        self.confusion += confusion_matrix(predictions, labels, self.num_classes, ignored=self.ignored)

    def compute(self) -> Scores:
        """The scores of all that was counted."""
        return Scores.of(self.confusion)
