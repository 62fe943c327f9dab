import numpy as np
import pytest
import torch
from PIL import Image

from localmix.tasks.engine.batches import loader
from localmix.tasks.segmentation.labels import CAMVID, IGNORED
from localmix.tasks.segmentation.pairs import splits
from localmix.tasks.segmentation.views import SceneDataset, SceneViews, distorted, fitted


@pytest.fixture(scope="module")
def scenes(camvid):
    return splits(camvid, CAMVID, check=False)["train"]


def coded(width, height):
    """An image whose pixels say where they are, and labels that say the same."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], 2).astype(np.uint8)
    return Image.fromarray(image), (rows // 20 * 20 + columns // 20).astype(np.int32)


def test_image_and_labels_stay_together():
    """At scale 1 the crop is a piece of the image, mirrored or not, and the labels are those of its pixels."""
    image, labels = coded(200, 120)
    views, seen = SceneViews(64, short_side=120, scale=(1, 1), distort=False), set()
    for seed in range(20):
        pixels, target = views.train(image, labels, np.random.default_rng(seed))
        rows, columns = pixels[0].long(), pixels[1].long()
        assert torch.equal(target, torch.from_numpy(labels).long()[rows, columns])
        mirrored = bool(columns[0, 0] > columns[0, -1])
        seen.add(mirrored)
        assert (columns.diff(dim=1) == (-1 if mirrored else 1)).all()
        assert (rows.diff(dim=0) == 1).all()
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_crop_is_that_of_the_whole_image_resized(scenes, seed):
    """Only the crop is resized: the pixels are those of all resized, then cropped."""
    image, labels = scenes[0]
    views = SceneViews(96, short_side=128, largest_share=1, distort=False)
    pixels, target = views.train(image, labels, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    width, height = fitted(*image.size, 128 * random.uniform(0.5, 2.0))
    top, left = (int(random.integers(max(side - 96, 0) + 1)) for side in (height, width))
    if random.random() < 0.5:
        pixels, target = pixels.flip(2), target.flip(1)
    box = (left, top, min(left + 96, width), min(top + 96, height))
    rows, columns = box[3] - top, box[2] - left
    whole = np.array(image.resize((width, height), Image.Resampling.BILINEAR).crop(box)).astype(int)
    nearest = Image.fromarray(labels.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST).crop(box)
    expected = np.array(nearest).astype(int)
    assert np.abs(pixels.permute(1, 2, 0)[:rows, :columns].numpy() - whole).max() <= 1
    # in the middle between two positions either is nearest
    ties = [(2 * np.arange(new) + 1) * old % (2 * new) == 0 for old, new in ((360, height), (480, width))]
    ties = ties[0][top : box[3], None] | ties[1][left : box[2]]
    assert ties.mean() < 0.2
    expected = np.where(expected == 255, IGNORED, expected)
    np.testing.assert_array_equal(target[:rows, :columns].numpy()[~ties], expected[~ties])
    assert (target[rows:] == IGNORED).all()
    assert (target[:, columns:] == IGNORED).all()


def test_beyond_the_image_is_void_and_of_the_mean_colour():
    image, labels = coded(100, 50)
    pixels, target = SceneViews(128, short_side=100, scale=(0.5, 0.5), distort=False).train(
        image, labels, np.random.default_rng(3)
    )
    inside = target != IGNORED
    assert inside.sum() == 100 * 50
    assert (torch.tensor([124, 116, 104]) == pixels[:, ~inside].T).all()


def test_no_class_takes_too_much(scenes):
    """Half of the image is one class and the other half many: crops without a limit often hold it alone."""
    image, _ = coded(300, 100)
    labels = np.mgrid[:100, :300][1].astype(np.int32)
    labels[:, :200] = 0

    def shares(limit):
        views = SceneViews(40, short_side=100, scale=(1, 1), largest_share=limit, distort=False)
        targets = [views.train(image, labels, np.random.default_rng(seed))[1] for seed in range(60)]
        return np.array([target.flatten().bincount().max() / target.numel() for target in targets])

    assert (shares(1.0) > 0.75).mean() > 0.5
    assert (shares(0.75) > 0.75).mean() < 0.1


def test_view_is_a_function_of_seed_epoch_and_index(scenes):
    dataset = SceneDataset(scenes, SceneViews(64))
    first = dataset[(7, 0, [0, 1])]
    again = dataset[(7, 0, [1])]
    assert first[0].shape == (2, 3, 64, 64)
    assert first[1].shape == (2, 64, 64)
    assert first[1].dtype == torch.int64
    assert torch.equal(first[0][1], again[0][0])
    assert torch.equal(first[1][1], again[1][0])
    for other in ((8, 0, [1]), (7, 1, [1]), (7, 0, [0])):
        assert not torch.equal(dataset[other][0], again[0])


def test_the_loader_of_the_engine_serves_scenes(scenes):
    batches = list(loader(SceneDataset(scenes, SceneViews(32)), 2, seed=1))
    assert len(batches) == len(scenes) // 2
    assert all(pixels.shape == (2, 3, 32, 32) and labels.shape == (2, 32, 32) for pixels, labels in batches)


def test_validation_keeps_labels_as_they_are(scenes):
    dataset = SceneDataset(scenes, SceneViews(64, short_side=90))
    pixels, labels = dataset[(None, 0, [1])]
    assert pixels.shape == (1, 3, 90, 120)
    np.testing.assert_array_equal(labels[0], scenes[1][1])
    with pytest.raises(ValueError, match="batch_size: expected 1 in validation"):
        dataset[(None, 0, [0, 1])]


def test_distortion_moves_each_property_within_its_bounds():
    random = np.random.default_rng(0)
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    colours = np.array([distorted(grey, random).getpixel((0, 0)) for _ in range(2000)])
    assert (np.ptp(colours, axis=1) == 0).all()  # grey has neither saturation nor hue
    assert (colours == 100).all(axis=1).mean() == pytest.approx(1 / 4, abs=0.04)  # neither brightness nor contrast
    assert colours.min() >= (100 - 32) * 0.5 - 1
    assert colours.max() <= (100 + 32) * 1.5 + 1
    orange = Image.new("RGB", (1, 1), (100, 75, 50))  # no channel gets below 0 or above 255
    hues = [distorted(orange, random).convert("HSV").getpixel((0, 0))[0] for _ in range(2000)]
    start = orange.convert("HSV").getpixel((0, 0))[0]
    turns = (np.array(hues) - start + 128) % 256 - 128
    assert 20 < np.abs(turns).max() <= 36 * 256 / 360 + 8
    assert (np.abs(turns) <= 3).mean() > 0.4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 0}, "size: expected"),
        ({"size": 8, "short_side": -1}, "short_side: expected"),
        ({"size": 8, "scale": (2, 1)}, "scale: expected 0 < least <= largest"),
        ({"size": 8, "largest_share": 0}, "largest_share: expected"),
    ],
)
def test_arguments_are_checked(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        SceneViews(**options)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((480, 360), 512, (683, 512)), ((5000, 100), 512, (2048, 41)), ((97, 61), 61, (97, 61))],
)
def test_fitted(size, side, expected):
    assert fitted(*size, side) == expected
