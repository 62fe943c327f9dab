import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
import torch

from localmix.tasks.segmentation.scores import IGNORED, Scores, SegmentationScores, confusion_matrix

VOID = 11


@pytest.fixture(scope="module")
def maps(label_maps):
    """Real label maps (predictions, labels): a map against its neighbour in the sequence; void only in the labels."""
    labels = label_maps.astype(np.int64)
    predictions = np.roll(labels, 1, axis=0)
    return torch.from_numpy(np.where(predictions == VOID, 0, predictions)), torch.from_numpy(labels)


def by_definition(predictions, labels, num_classes):
    """Confusion matrix, pixel accuracy, accuracies and IoUs, pixel sets counted one class at a time."""
    predictions, labels = predictions.numpy(), labels.numpy()
    counted = labels != VOID
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    accuracy, iou = [], []
    for c in range(num_classes):
        mine, taken = (labels == c) & counted, (predictions == c) & counted
        confusion[c] = [np.count_nonzero(mine & (predictions == other)) for other in range(num_classes)]
        both, either = np.count_nonzero(mine & taken), np.count_nonzero(mine | taken)
        accuracy.append(both / mine.sum() if mine.any() else np.nan)
        iou.append(both / either if mine.any() else np.nan)
    return confusion, (predictions == labels)[counted].mean(), accuracy, iou


def test_scores_of_real_label_maps(maps):
    predictions, labels = maps
    assert len(labels) >= 4
    assert (labels == VOID).any()
    confusion, pixel_accuracy, accuracy, iou = by_definition(predictions, labels, VOID)
    metric = SegmentationScores(VOID, ignored=VOID)
    for image, truth in zip(predictions, labels, strict=True):
        metric.update(image, truth)
    np.testing.assert_array_equal(metric.confusion.numpy(), confusion)
    scores = metric.compute()
    assert scores.pixel_accuracy.item() == pytest.approx(pixel_accuracy, rel=1e-12)
    np.testing.assert_allclose(scores.accuracy.numpy(), accuracy, rtol=1e-12)
    np.testing.assert_allclose(scores.iou.numpy(), iou, rtol=1e-12)
    assert scores.mean_iou.item() == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert scores.mean_accuracy.item() == pytest.approx(np.nanmean(accuracy), rel=1e-12)


def test_scikit_learn_counts_the_same(maps):
    predictions, labels = (tensor.flatten().numpy() for tensor in maps)
    counted = labels != VOID
    classes = [c for c in range(VOID) if (labels[counted] == c).any()]
    assert len(classes) >= 9
    confusion = confusion_matrix(*maps, VOID, ignored=VOID)
    np.testing.assert_array_equal(
        confusion.numpy(), sklearn.metrics.confusion_matrix(labels[counted], predictions[counted], labels=range(VOID))
    )
    scores = Scores.of(confusion)
    shown = {"y_true": labels[counted], "y_pred": predictions[counted]}
    iou = sklearn.metrics.jaccard_score(**shown, labels=classes, average=None, zero_division=0)
    accuracy = sklearn.metrics.recall_score(**shown, labels=classes, average=None)
    np.testing.assert_allclose(scores.iou[classes].numpy(), iou, rtol=1e-12)
    np.testing.assert_allclose(scores.accuracy[classes].numpy(), accuracy, rtol=1e-12)
    assert scores.mean_iou.item() == pytest.approx(iou.mean(), rel=1e-12)
    assert scores.pixel_accuracy.item() == pytest.approx(sklearn.metrics.accuracy_score(**shown), rel=1e-12)


def test_void_changes_nothing(maps):
    predictions, labels = maps
    changed = torch.where(labels == VOID, (predictions + 1) % VOID, predictions)
    assert (changed != predictions).any()
    expected = confusion_matrix(predictions, labels, VOID, ignored=VOID)
    assert torch.equal(confusion_matrix(changed, labels, VOID, ignored=VOID), expected)
    assert expected.sum() == (labels != VOID).sum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [IGNORED, 255, -100, 0])
def test_any_integers_and_any_void(dtype, ignored):
    labels = torch.randint(0, 4, (3, 7, 5))
    void = torch.rand(labels.shape) < 0.3
    predictions = torch.randint(0, 4, labels.shape)
    counted = ~void & (labels != ignored)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for label, prediction in zip(labels[counted].tolist(), predictions[counted].tolist(), strict=True):
        expected[label, prediction] += 1
    labels = labels.masked_fill(void, ignored)
    if ignored >= 0:
        labels = labels.to(dtype)
    assert torch.equal(confusion_matrix(predictions.to(dtype), labels, 4, ignored=ignored), expected)


def test_an_absent_class_is_absent():
    """Class 2 has no labelled pixel: no zero, also where pixels are taken for it; class 1 is never found: a zero."""
    labels = torch.tensor([0, 0, 1, 1, IGNORED])
    scores = Scores.of(confusion_matrix(torch.tensor([0, 2, 0, 2, 2]), labels, 4))
    assert scores.present.tolist() == [True, True, False, False]
    assert scores.iou[:2].tolist() == [1 / 3, 0.0]
    assert scores.iou[2:].isnan().all()
    assert scores.mean_iou.item() == pytest.approx(1 / 6)
    assert scores.mean_accuracy.item() == 0.25


def test_without_a_labelled_pixel_there_is_no_score():
    metric = SegmentationScores(3)
    metric.update(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), IGNORED))
    metric.update(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    scores = metric.compute()
    assert not scores.present.any()
    assert scores.mean_iou.isnan()
    assert scores.pixel_accuracy.isnan()


@pytest.mark.parametrize(
    ("predictions", "labels", "complaint"),
    [
        ([0, 3], [0, 1], "predictions: expected classes 0 to 2, got 3 too"),
        ([0, -1], [0, 1], "predictions: expected classes 0 to 2, got -1 too"),
        ([0, 1], [0, 3], "labels: expected classes 0 to 2, got 3 too"),
        ([0, 1, 1], [0, -2, 7], "labels: expected classes 0 to 2, got -2, 7 too"),
        ([0, 1], [0], r"predictions: expected the shape of the labels, \[1\], got \[2\]"),
        ([0.0, 1.0], [0, 1], "predictions: expected integers, got torch.float32"),
    ],
)
def test_what_is_no_class_is_refused(predictions, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        confusion_matrix(torch.tensor(predictions), torch.tensor(labels), 3)


OTHER_PROCESS = """
import sys
import numpy as np, torch
from localmix.tasks.segmentation.scores import SegmentationScores

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meeting", rank=1, world_size=2)
metric = SegmentationScores(11, ignored=11)
for image, truth in np.load(f"{sys.argv[1]}/share.npy"):
    metric.update(torch.from_numpy(image), torch.from_numpy(truth))
scores = metric.compute()
np.save(f"{sys.argv[1]}/scores.npy", [*scores.iou.tolist(), scores.pixel_accuracy.item()])
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_what_one_gives(maps, tmp_path):
    """An odd number of images: this process has two and another one has one, and no image counts twice."""
    predictions, labels = (tensor[:3, ::4, ::4].contiguous() for tensor in maps)
    expected = Scores.of(confusion_matrix(predictions, labels, VOID, ignored=VOID))
    np.save(tmp_path / "share.npy", torch.stack([predictions, labels], dim=1).numpy()[1::2])
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(tmp_path)])
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=2)
    try:
        metric = SegmentationScores(VOID, ignored=VOID)
        for image in (0, 2):
            metric.update(predictions[image], labels[image])
        scores = metric.compute()
    finally:
        torch.distributed.destroy_process_group()
    assert other.wait() == 0
    for found in ([*scores.iou.tolist(), scores.pixel_accuracy.item()], np.load(tmp_path / "scores.npy")):
        np.testing.assert_array_equal(found, [*expected.iou.tolist(), expected.pixel_accuracy.item()])
