import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from localmix.tasks.segmentation.inference import evaluate, predict, probabilities, sliding
from localmix.tasks.segmentation.labels import CAMVID
from localmix.tasks.segmentation.pairs import LabelledScenes, splits
from localmix.tasks.segmentation.upernet import upernet


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = upernet("dwnet_nano", num_classes=11, channels=16, auxiliary_channels=8, depths=(1, 1, 1, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


class Pointwise(nn.Module):
    """Looks at each pixel alone, so windows cannot matter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return self.conv(images).tanh()


@pytest.mark.parametrize(("size", "flip"), [((360, 480), False), ((97, 61), True)])
def test_a_window_that_covers_the_image_is_the_whole_image(net, size, flip):
    images = torch.randn(1, 3, *size)
    whole = probabilities(net, images, flip=flip)
    assert whole.shape == (1, 11, *size)
    torch.testing.assert_close(whole.sum(1), torch.ones(1, *size))
    assert whole.std() > 0.01
    for window in (size, (512, 512)):
        assert torch.equal(probabilities(net, images, window=window, flip=flip), whole)


@pytest.mark.parametrize(("window", "stride"), [(32, 21), ((32, 50), (32, 7)), (33, None), (1, 1)])
def test_windows_cover_every_pixel(window, stride):
    images, net = torch.randn(2, 3, 47, 61), Pointwise()
    torch.testing.assert_close(sliding(net, images, window=window, stride=stride), net(images))


def test_windows_have_one_size_and_end_with_the_image():
    seen = []

    def net(images):
        seen.append((tuple(images.shape[2:]), images[0, 0, 0, 0].item()))
        return images

    images = torch.arange(10 * 13.0).view(1, 1, 10, 13)
    assert torch.equal(sliding(net, images, window=6, stride=4), images)
    assert {size for size, _ in seen} == {(6, 6)}
    assert sorted(corner for _, corner in seen) == [13 * top + left for top in (0, 4) for left in (0, 4, 7)]


@pytest.mark.parametrize("size", [(31, 20), (31, 70), (50, 64)])
def test_a_stride_may_be_longer_than_a_small_image(size):
    """Images of a set have many sizes; what the window allows is allowed for all."""
    images, net = torch.randn(1, 3, *size), Pointwise()
    torch.testing.assert_close(sliding(net, images, window=64, stride=40), net(images))


def test_overlapping_windows_are_averaged():
    """A net that answers with the mean of its window: where two windows overlap, the mean of both."""
    images = torch.tensor([0.0, 1.0, 5.0, 9.0]).view(1, 1, 1, 4)

    def net(window):
        return window.mean().expand_as(window)

    assert sliding(net, images, window=(1, 3), stride=(1, 1)).flatten().tolist() == [2.0, 3.5, 3.5, 5.0]


def test_mirror_images_and_sizes_are_averaged(net):
    images = torch.randn(1, 3, 40, 56)
    parts = []
    for size in ((40, 56), (60, 84)):
        view = nn.functional.interpolate(images, size, mode="bilinear", antialias=True) if size[0] != 40 else images
        for turn in (lambda x: x, lambda x: x.flip(3)):
            logits = nn.functional.interpolate(turn(net(turn(view))), (40, 56), mode="bilinear")
            parts.append(logits.softmax(1))
    found = probabilities(net, images, sizes=[(40, 56), (60, 84)], flip=True)
    torch.testing.assert_close(found, torch.stack(parts).mean(0))
    torch.testing.assert_close(
        probabilities(net, images.flip(3), flip=True).flip(3), probabilities(net, images, flip=True)
    )


@pytest.mark.parametrize("options", [{}, {"short_side": 48}, {"scales": (0.5, 1.0, 1.5), "flip": True}, {"window": 40}])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_prediction_has_the_size_of_the_image(net, options, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)).convert(mode)
    classes = predict(net, image, **options)
    assert classes.shape == (97, 61)
    assert classes.dtype == torch.int64
    assert 0 <= classes.min() <= classes.max() < 11


class KnowsTheAnswer(nn.Module):
    """Reads the class off the red channel of an image that was painted so."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        red = (images[:, 0] * 0.229 + 0.485) * 255
        return -(red[:, None] - 20 * torch.arange(11.0)[:, None, None]).square()


def test_evaluation_counts_every_labelled_pixel_once(camvid, tmp_path):
    """A net that is right everywhere but in one class scores so, at the original size; each process has its share."""
    whole = LabelledScenes([pair for split in splits(camvid, CAMVID).values() for pair in split.pairs], CAMVID)
    pairs = []
    for index in range(3):
        labels = whole[index][1]
        painted = np.where(labels == 3, 4, labels).clip(0)  # road is painted as pavement
        path = tmp_path / f"{index}.png"
        Image.fromarray((20 * painted[..., None] * [1, 0, 0]).astype(np.uint8)).save(path)
        pairs.append((path, whole.pairs[index][1]))
    scenes, net = LabelledScenes(pairs, CAMVID), KnowsTheAnswer().eval()
    metric = evaluate(net, scenes)
    assert metric.confusion.sum() == sum((scenes[i][1] >= 0).sum() for i in range(3))
    scores = metric.compute()
    assert scores.iou[3] == 0
    others = [i for i in range(11) if i not in (3, 4) and scores.present[i]]
    assert len(others) > 4
    assert (scores.iou[others] == 1).all()
    shares = [evaluate(net, scenes, indices=range(rank, 3, 2)).confusion for rank in range(2)]
    assert torch.equal(sum(shares), metric.confusion)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda net: probabilities(net, torch.zeros(3, 8, 8)), "images: expected"),
        (lambda net: probabilities(net, torch.zeros(1, 3, 8, 8), stride=4), "stride: expected a window with it"),
        (lambda net: probabilities(net, torch.zeros(1, 3, 8, 8), sizes=[]), "sizes: expected at least one"),
        (lambda net: probabilities(net, torch.zeros(1, 3, 8, 8), window=4, stride=5), "stride: expected at most the 4"),
        (lambda net: probabilities(net, torch.zeros(1, 3, 8, 8), window=0), "window: expected at least 1"),
        (lambda net: predict(net, Image.new("RGB", (8, 8)), scales=()), "scales: expected"),
        (lambda net: predict(net, Image.new("RGB", (8, 8)), short_side=0), "short_side: expected"),
        (lambda net: predict(Pointwise().train(), Image.new("RGB", (8, 8))), "net: expected one in evaluation mode"),
    ],
)
def test_arguments_are_checked(net, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(net)
