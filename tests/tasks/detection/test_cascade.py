"""The cascade against definitions written anew, in numpy and one box at a time."""

import numpy as np
import pytest
import torch
import torchvision

from localmix.tasks.detection.cascade import STAGES, Cascade

SIZE = (90, 120)


@pytest.fixture
def cascade():
    return Cascade(4, (4, 8, 16, 32), 5, num_samples=64)


def random_boxes(count, seed=0):
    random = np.random.default_rng(seed)
    centres, sizes = random.uniform((15, 15), (105, 75), (count, 2)), random.uniform(8, 30, (count, 2))
    return torch.tensor(np.concatenate([centres - sizes / 2, centres + sizes / 2], 1), dtype=torch.float32)


def proposals_around(truth, seed=1):
    """Boxes from close to the objects to far off, so that every threshold has some on both sides."""
    random = np.random.default_rng(seed)
    moved = truth.repeat(40, 1)
    return (
        moved
        + torch.tensor(
            random.normal(0, 1, moved.shape) * np.repeat(random.uniform(0, 6, len(moved))[:, None], 4, 1)
        ).float()
    )


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def giou(a, b):
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union - (hull - union) / hull


def decode(box, offset, deviations):
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = np.asarray(offset) * np.asarray(deviations)
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width, height = width * np.exp(dw), height * np.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.iou))
def test_a_box_is_the_object_it_overlaps_enough(cascade, stage):
    truth = random_boxes(6)
    labels = torch.tensor([1, 2, 3, 4, 5, 1])
    proposals = proposals_around(truth)
    sample = cascade.sample(stage, proposals, {"boxes": truth, "labels": labels})
    assert len(sample.boxes) == 64
    assert 6 < (sample.labels > 0).sum() <= 16
    known = {tuple(box): index >= len(proposals) for index, box in enumerate(torch.cat([proposals, truth]).tolist())}
    for box, label, matched, added in zip(
        sample.boxes.tolist(), sample.labels.tolist(), sample.matched.tolist(), sample.added.tolist(), strict=True
    ):
        overlaps = [iou(box, other) for other in truth.tolist()]
        best = int(np.argmax(overlaps))
        assert added == known[tuple(box)]
        assert label == (labels[best] if overlaps[best] >= stage.iou else 0)
        if label:
            assert matched == best


def test_stages_ask_for_more_and_more(cascade):
    truth = random_boxes(6)
    target = {"boxes": truth, "labels": torch.ones(6, dtype=torch.long)}
    cascade.sampler.batch_size_per_image = 10_000
    counts = [int((cascade.sample(stage, proposals_around(truth), target).labels > 0).sum()) for stage in STAGES]
    assert counts[0] > counts[1] > counts[2] > 6


def test_an_image_without_objects_gives_ground(cascade):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    sample = cascade.sample(STAGES[0], random_boxes(9), empty)
    assert sample.labels.tolist() == [0] * 9
    assert not sample.added.any()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.iou))
def test_offsets_are_normalised_by_the_deviations_of_the_stage(cascade, stage):
    boxes, offsets = random_boxes(20), torch.randn(20, 5, 4)
    classes = torch.arange(20) % 5
    (moved,) = cascade.refine(stage, offsets, [boxes], classes, [(1000, 1000)])
    for box, offset, cls, found in zip(boxes.tolist(), offsets, classes, moved.tolist(), strict=True):
        expected = np.clip(decode(box, offset[cls].numpy(), stage.deviations), 0, 1000)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    (cut,) = cascade.refine(stage, offsets, [boxes], classes, [(40, 50)])
    torch.testing.assert_close(cut, moved.clamp(max=torch.tensor([50.0, 40, 50, 40])))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.iou))
def test_box_loss_is_ten_times_giou_of_the_decoded_boxes(cascade, stage):
    boxes, truth, offsets = random_boxes(12), random_boxes(12, seed=2), torch.randn(12, 5, 4)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    loss = cascade.box_loss(stage, offsets, [boxes[:7], boxes[7:]], labels, truth[labels > 0])
    decoded = [
        decode(box, offsets[i, max(0, labels[i] - 1)].numpy(), stage.deviations) for i, box in enumerate(boxes.tolist())
    ]
    terms = [1 - giou(decoded[i], truth[i].tolist()) for i in range(12) if labels[i]]
    assert loss.item() == pytest.approx(10 * sum(terms) / 12, rel=1e-4)
    theirs = torchvision.ops.generalized_box_iou(torch.tensor(decoded)[labels > 0], truth[labels > 0]).diag()
    assert loss.item() == pytest.approx(10 * (1 - theirs).sum().item() / 12, rel=1e-4)


def test_boxes_of_a_stage_come_from_the_one_in_front_and_objects_are_added_once(cascade, monkeypatch):
    """A stage gets the refined boxes without the objects that were put among them, which it adds itself."""
    truth = random_boxes(3)
    target = {"boxes": truth, "labels": torch.tensor([1, 2, 3]), "masks": torch.ones(3, *SIZE, dtype=torch.uint8)}
    seen, whole = [], cascade.sample
    cascade.sampler.batch_size_per_image = 10_000
    monkeypatch.setattr(cascade, "sample", lambda stage, boxes, t: seen.append(boxes) or whole(stage, boxes, t))
    maps = [torch.randn(1, 4, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    losses = cascade.losses(maps, [proposals_around(truth)[:30]], [SIZE], [target])
    assert len(losses) == 9
    # all of 30 proposals and 3 objects are drawn; 3 are dropped again
    assert [len(boxes) for boxes in seen] == [30, 30, 30]
    assert not torch.equal(seen[0], seen[1])
    assert all(not box.requires_grad for box in seen)


def test_an_object_moves_by_its_own_class_and_ground_by_the_best_one(cascade, monkeypatch):
    for head in cascade.box_heads:
        torch.nn.init.zeros_(head.classifier.weight)
        head.classifier.bias.data.copy_(torch.tensor([9.0, 0, 0, 0, 3, 0]))
    truth = random_boxes(3)
    target = {"boxes": truth, "labels": torch.tensor([1, 2, 3]), "masks": torch.ones(3, *SIZE, dtype=torch.uint8)}
    drawn, used, sample, refine = [], [], cascade.sample, cascade.refine
    monkeypatch.setattr(cascade, "sample", lambda *args: drawn.append(sample(*args)) or drawn[-1])
    monkeypatch.setattr(cascade, "refine", lambda *args: used.append(args[3]) or refine(*args))
    maps = [torch.randn(1, 4, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    cascade.losses(maps, [proposals_around(truth)], [SIZE], [target])
    for one, classes in zip(drawn, used, strict=True):
        assert {0, 1, 2, 3} == set(one.labels.tolist())
        # classes count from 0: the best one is the fourth, whatever the ground has
        assert torch.equal(classes, torch.where(one.labels > 0, one.labels - 1, 3))


def test_losses_are_weighted_by_stage(cascade):
    """With heads that know nothing the loss of classes is the logarithm of their number, times the weight."""
    for head in cascade.box_heads:
        torch.nn.init.zeros_(head.classifier.weight)
    for head in cascade.mask_heads:
        torch.nn.init.zeros_(head.predictor.weight)
    truth = random_boxes(3)
    target = {"boxes": truth, "labels": torch.tensor([1, 2, 3]), "masks": torch.ones(3, *SIZE, dtype=torch.uint8)}
    maps = [torch.randn(1, 4, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    losses = cascade.losses(maps, [proposals_around(truth)], [SIZE], [target])
    for index, weight in enumerate((1, 0.5, 0.25)):
        assert losses[f"loss_classifier_{index}"].item() == pytest.approx(weight * np.log(6), rel=1e-5)
        assert losses[f"loss_mask_{index}"].item() == pytest.approx(weight * np.log(2), rel=1e-5)


def test_detections_are_those_above_the_score_without_overlap_in_a_class(cascade):
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [70, 70, 80, 80]])
    scores = torch.tensor([[0.9, 0.6], [0.8, 0.1], [0.3, 0.0], [0.04, 0.05]])
    found = cascade.select(scores, boxes[:, None].expand(4, 2, 4), SIZE)
    # the second box of class 1 gives way to the first; classes do not; 0.05 itself is too low
    np.testing.assert_allclose(found["scores"], [0.9, 0.6, 0.3])
    assert found["labels"].tolist() == [1, 2, 1]
    assert found["boxes"].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]


def test_the_classifiers_vote(cascade):
    """The three heads give logits a, b, c: scores are softmax((a + b + c) / 3)."""
    logits = torch.randn(3, 6)
    for index, head in enumerate(cascade.box_heads):
        torch.nn.init.zeros_(head.classifier.weight)
        head.classifier.bias.data.copy_(logits[index])
    cascade.eval()
    cascade.min_score = 0.0
    maps = [torch.randn(1, 4, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    with torch.no_grad():
        (found,) = cascade.detections(maps, [random_boxes(1)], [SIZE])
    expected = logits.mean(0).softmax(0)
    torch.testing.assert_close(found["scores"], expected[found["labels"]])
    assert sorted(found["labels"].tolist()) == [1, 2, 3, 4, 5]
