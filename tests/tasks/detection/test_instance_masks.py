import torch
from torch.nn import functional as F

from localmix.tasks.detection.instance_masks import crop_masks, paste_masks


def test_pasting_is_bilinear_sampling_at_pixel_centres():
    masks = torch.rand(3, 28, 28)
    boxes = torch.tensor([[3.2, 4.7, 20.1, 33.3], [-4.0, -3.0, 12.5, 9.5], [10.0, 10, 47, 38]])
    x = (torch.arange(45) + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    y = (torch.arange(40) + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    grid = torch.stack([x[:, None].expand(3, 40, 45), y[:, :, None].expand(3, 40, 45)], 3)
    expected = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    torch.testing.assert_close(paste_masks(masks, boxes, 40, 45), expected, rtol=1e-4, atol=1e-4)


def test_a_mask_over_its_own_pixels_comes_back_exactly():
    masks = (torch.rand(2, 28, 28) > 0.5).float()
    pasted = paste_masks(masks, torch.tensor([[5.0, 7, 33, 35], [0, 0, 28, 28]]), 50, 40)
    torch.testing.assert_close(pasted[0, 7:35, 5:33], masks[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(pasted[1, :28, :28], masks[1], rtol=0, atol=1e-5)
    assert pasted[0, :6].sum() == 0
    assert pasted[0, :, 34:].sum() == 0


def test_no_mask_and_a_box_without_area():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 9, 8).shape == (0, 9, 8)
    assert paste_masks(torch.ones(1, 28, 28), torch.tensor([[3.0, 3, 3, 3]]), 9, 8).isfinite().all()


def test_cropping_asks_which_cells_are_mostly_object():
    masks = torch.zeros(3, 60, 60, dtype=torch.uint8)
    masks[2, 10:38, 14:42] = 1
    masks[1, :, 30:] = 1
    boxes = torch.tensor([[14.0, 10, 42, 38], [0, 0, 28, 28], [2, 4, 58, 60]])
    cells = crop_masks(masks, torch.tensor([2, 2, 1]), boxes, 28)
    assert cells.shape == (3, 28, 28)
    assert cells[0].all()
    expected = torch.zeros(28, 28)
    expected[10:, 14:] = 1
    torch.testing.assert_close(cells[1], expected)
    # two pixels a cell, and the object begins at column 30: with the 15th cell
    expected = torch.zeros(28, 28)
    expected[:, 14:] = 1
    torch.testing.assert_close(cells[2], expected)


def test_what_is_cropped_and_pasted_is_the_object_again():
    masks = torch.zeros(1, 80, 80, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    masks[0] = ((x - 40) ** 2 + (y - 35) ** 2 < 25**2).byte()
    box = torch.tensor([[15.0, 10, 65, 60]])
    again = paste_masks(crop_masks(masks, torch.tensor([0]), box, 28), box, 80, 80)[0] > 0.5
    assert (again & masks[0].bool()).sum() / (again | masks[0].bool()).sum() > 0.95
