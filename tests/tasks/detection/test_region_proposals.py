import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from localmix.tasks.detection.region_proposals import Anchors, RegionProposals


def test_anchors_have_one_scale_and_three_ratios():
    maps = [torch.zeros(2, 1, 3, 5, dtype=torch.bfloat16), torch.zeros(2, 1, 2, 3, dtype=torch.bfloat16)]
    images = ImageList(torch.zeros(2, 3, 12, 20), [(12, 20), (10, 20)])
    boxes, again = Anchors((4, 8))(images, maps)
    assert torch.equal(boxes, again)
    assert boxes.dtype == torch.float32
    expected = []
    for stride, (rows, columns) in ((4, (3, 5)), (8, (2, 3))):
        for row in range(rows):
            for column in range(columns):
                for ratio in (0.5, 1.0, 2.0):
                    height, width = 8 * stride * ratio**0.5, 8 * stride / ratio**0.5
                    x, y = stride * column, stride * row
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    np.testing.assert_allclose(boxes, expected, rtol=1e-5, atol=1e-4)


@pytest.fixture
def proposals():
    return RegionProposals(4, (4, 8))


def test_anchors_beyond_the_image_are_not_trained_on(proposals):
    anchors = torch.tensor([[0.0, 0, 20, 20], [-1, 0, 20, 20], [10, 10, 40, 31], [10, 10, 39, 29], [50, 50, 60, 60]])
    target = {"boxes": torch.tensor([[0.0, 0, 20, 21]]), "size": torch.tensor([30, 40])}
    (labels,), (boxes,) = proposals.assign_targets_to_anchors([anchors], [target])
    assert labels.tolist() == [1, -1, -1, 0, -1]
    assert boxes[0].tolist() == [0, 0, 20, 21]


def test_an_object_has_its_best_anchor_from_three_tenths_on(proposals):
    """IoUs of 0.4, 0.44 and 0 with the object: the best counts though it is below 0.7."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [60, 60, 70, 70]])
    size = torch.tensor([100, 100])
    labels, _ = proposals.assign_targets_to_anchors(
        [anchors], [{"boxes": torch.tensor([[0.0, 0, 10, 4]]), "size": size}]
    )
    assert labels[0].tolist() == [-1, 1, 0]


def test_where_every_anchor_reaches_beyond_the_image_all_count(proposals):
    anchors = torch.tensor([[-9.0, -9, 25, 25], [-40, -40, 5, 5]])
    target = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "size": torch.tensor([21, 21])}
    (labels,), _ = proposals.assign_targets_to_anchors([anchors], [target])
    assert labels.tolist() == [1, 0]


def test_an_object_that_no_anchor_fits_takes_none(proposals):
    """IoUs of 0.25 and 0 with one object, of 0 with the other: torchvision makes all of them objects."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [60, 60, 70, 70]])
    size = torch.tensor([100, 100])
    for box in ([0.0, 0, 5, 5], [90.0, 90, 95, 95]):
        (labels,), _ = proposals.assign_targets_to_anchors([anchors], [{"boxes": torch.tensor([box]), "size": size}])
        assert labels.tolist() == [0, 0, 0]


def test_the_best_anchor_of_an_object_is_that_object(proposals):
    """The anchor overlaps the first object by 0.8 and the second, which has no better one, by 0.4."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8.5], [60, 60, 70, 70]])
    truth = torch.tensor([[0.0, 0, 10, 8], [0, 6, 10, 10]])
    (labels,), (boxes,) = proposals.assign_targets_to_anchors(
        [anchors], [{"boxes": truth, "size": torch.tensor([100, 100])}]
    )
    assert labels.tolist() == [1, 1, 0]
    assert boxes[:2].tolist() == [truth[1].tolist(), truth[0].tolist()]


def test_anchors_of_another_scale():
    """An object of 13 pixels a side has no anchor among those of 32, and one among those of 16."""
    target = {"boxes": torch.tensor([[25.0, 25, 38, 38]]), "size": torch.tensor([64, 64])}
    counts = []
    for scale in (8, 4):
        proposals = RegionProposals(4, (4, 8), anchor_scale=scale)
        images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
        anchors = proposals.anchor_generator(images, [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8)])
        (labels,), _ = proposals.assign_targets_to_anchors(anchors, [target])
        counts.append(int((labels == 1).sum()))
    assert counts[0] == 0 < counts[1]
    with pytest.raises(ValueError, match="anchor_scale: expected a number above 0, got 0"):
        RegionProposals(4, (4, 8), anchor_scale=0)
