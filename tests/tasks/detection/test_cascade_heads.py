import pytest
import torch

from localmix.tasks.detection.cascade_heads import BoxHead, MaskHead, PyramidAlign

STRIDES = (4, 8, 16, 32)


def test_regions_are_taken_from_the_level_that_suits_their_size():
    maps = [torch.full((1, 1, 2048 // stride, 2048 // stride), float(stride)) for stride in STRIDES]
    sides = [3.0, 111, 113, 223, 225, 447, 449, 1800]
    boxes = torch.tensor([[100, 100, 100 + side, 100 + side] for side in sides])
    found = PyramidAlign(7, STRIDES)(maps, [boxes])
    expected = torch.tensor([4.0, 4, 8, 8, 16, 16, 32, 32])
    torch.testing.assert_close(found, expected[:, None, None, None].expand(8, 1, 7, 7))


def test_a_region_of_a_ramp_is_the_ramp_at_the_centres_of_its_cells():
    """A map at stride s holds at column j the pixel (j + 0.5) s: half a pixel off would show."""
    maps = []
    for stride in STRIDES:
        columns = (torch.arange(640 // stride) + 0.5) * stride
        maps.append(torch.stack([columns.expand(640 // stride, -1), columns[:, None].expand(-1, 640 // stride)])[None])
    maps = [torch.cat([m, m + 1000]) for m in maps]
    boxes = [torch.tensor([[50.0, 60, 90, 130], [40, 50, 400, 300]]), torch.tensor([[101.5, 70.25, 171, 200]])]
    found = PyramidAlign(7, STRIDES)(maps, boxes)
    cells = (torch.arange(7) + 0.5) / 7
    for region, box, offset in zip(found, torch.cat(boxes), (0, 0, 1000), strict=True):
        x, y = box[0] + cells * (box[2] - box[0]), box[1] + cells * (box[3] - box[1])
        torch.testing.assert_close(region[0], offset + x.expand(7, 7), rtol=1e-4, atol=0.05)
        torch.testing.assert_close(region[1], offset + y[:, None].expand(7, 7), rtol=1e-4, atol=0.05)


def test_gradients_reach_every_level_that_is_looked_at():
    maps = [torch.randn(1, 2, 512 // stride, 512 // stride, requires_grad=True) for stride in STRIDES]
    boxes = torch.tensor([[10.0, 10, 40, 40], [10, 10, 150, 150], [10, 10, 500, 500]])
    PyramidAlign(7, STRIDES)(maps, [boxes]).sum().backward()
    assert [bool(m.grad.any()) for m in maps] == [True, True, False, True]


@pytest.mark.parametrize("count", [0, 3])
def test_heads_answer_for_each_class(count):
    logits, offsets = BoxHead(8, 5)(torch.randn(count, 8, 7, 7))
    assert logits.shape == (count, 6)
    assert offsets.shape == (count, 5, 4)
    assert MaskHead(8, 5)(torch.randn(count, 8, 14, 14)).shape == (count, 5, 28, 28)
