import pytest
import torch

from localmix.reports.detector_cost import detector_cost
from localmix.tasks.detection.cascade_mask_rcnn import cascade_mask_rcnn


@pytest.mark.parametrize(
    ("backbone", "millions", "gigamacs"),
    [
        ("localswin_tiny", 86, 745),
        ("dwnet_tiny", 82, 730),
        ("dynamic_dwnet_tiny", 108, 730),
        ("localswin_base", 145, 982),
        ("dwnet_base", 132, 924),
        ("dynamic_dwnet_base", 219, 924),
    ],
)
def test_detectors_cost_what_the_paper_says(backbone, millions, gigamacs):
    with torch.device("meta"):
        net = cascade_mask_rcnn(backbone)
    cost = detector_cost(net)
    assert round(cost.parameters / 1e6) == millions
    assert cost.macs / 1e9 == pytest.approx(gigamacs, rel=0.02)


def test_heads_cost_in_proportion_to_what_they_see():
    with torch.device("meta"):
        net = cascade_mask_rcnn("dwnet_nano", channels=8, num_classes=2)
    # 4 convolutions of 7 x 7 maps, the hidden layer, 3 logits and 8 offsets, in 3 stages
    box = 3 * (4 * 49 * 9 * 8 * 8 + 49 * 8 * 32 + 32 * (3 + 8))
    # 4 convolutions of 14 x 14 maps, then each position to 2 x 2, then 2 masks of 28 x 28
    mask = 3 * (4 * 196 * 9 * 8 * 8 + 196 * 8 * 8 * 4 + 784 * 8 * 2)
    one, other = detector_cost(net, 64, num_boxes=10, num_masks=3), detector_cost(net, 64, num_boxes=12, num_masks=4)
    assert other.macs - one.macs == 2 * box + mask
    assert one.parameters == sum(p.numel() for p in net.parameters())
