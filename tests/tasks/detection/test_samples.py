import numpy as np
import pytest
import torch

from localmix.tasks.detection.coco import CocoImages
from localmix.tasks.detection.data import load_coco, split_of
from localmix.tasks.detection.samples import ByAspect, TrainingImages, ValidationImages
from localmix.tasks.detection.views import DetectionViews
from localmix.tasks.engine.batches import loader

VIEWS = DetectionViews(sizes=(32, 40, 48), max_size=64, crop_from=(40,), crop_size=(24, 40))


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_are_of_one_kind_and_each_image_comes_once(batch_size):
    wide = np.random.default_rng(0).random(101) < 0.7
    order = ByAspect(wide, batch_size)
    first = order(3, 0)
    assert sorted(first) == list(range(101))
    whole = sum(np.count_nonzero(wide == kind) // batch_size for kind in (False, True))
    kinds = [set(wide[first[i * batch_size : (i + 1) * batch_size]]) for i in range(whole)]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds != sorted(kinds, key=str), "high and wide batches are mixed"
    assert (order(3, 0) == first).all()
    assert (order(3, 1) != first).any() and (order(4, 0) != first).any()


def batches(rectangles, epoch=0, skip=0, **options):
    samples = TrainingImages(CocoImages(*split_of(rectangles, "train")), VIEWS, 2)
    loaded = loader(samples, 2, seed=5, **options)
    loaded.sampler.go_on(epoch, skip)
    return list(loaded)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) and all(torch.equal(s[name], t[name]) for name in s)
        for (images, targets), (others, more) in zip(a, b, strict=True)
        for x, y, s, t in zip(images, others, targets, more, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_batch_depends_on_seed_and_epoch_alone(rectangles):
    first = batches(rectangles)
    assert same(first, batches(rectangles)) and same(first, batches(rectangles, workers=1))
    assert not same(first, batches(rectangles, epoch=1))
    assert same(first[2:], batches(rectangles, skip=2))
    assert same(batches(rectangles, epoch=1)[1:], batches(rectangles, epoch=1, skip=1))


def test_processes_share_the_images(rectangles):
    samples = TrainingImages(CocoImages(*split_of(rectangles, "train")), VIEWS, 2)
    shares = [list(loader(samples, 2, seed=5, process=p, num_processes=2).sampler) for p in range(2)]
    shown = [index for share in shares for _, _, indices in share for index in indices]
    assert len(shares[0]) == len(shares[1]) == 2
    assert len(set(shown)) == len(shown) == 8


def test_images_without_objects_are_left_out_unless_asked_for(rectangles):
    images = CocoImages(*split_of(rectangles, "train"))
    assert len(images) == 10
    assert len(TrainingImages(images, VIEWS, 2)) == 8
    every = TrainingImages(images, VIEWS, 2, empty=True)
    assert len(every) == 10
    _, (target,) = every[None, 0, [4]]
    assert target["boxes"].shape == (0, 4)


def test_validation_shows_images_as_they_are(rectangles):
    images = CocoImages(*split_of(rectangles, "val"))
    (first, second) = list(loader(ValidationImages(images), 3, seed=None))
    assert first[0] == [0, 1, 2] and second[0] == [3, 4]
    assert [tuple(image.shape) for image in first[1]] == [(3, 64, 40), (3, 48, 64), (3, 48, 64)]
    assert first[1][0].dtype == torch.uint8


def test_a_folder_is_found_and_described(rectangles):
    data = load_coco(rectangles, VIEWS, 2)
    assert data.arguments() == {"classes": ["red", "green", "blue"], "min_size": 48, "max_size": 64}
    assert len(data.train) == 8 and len(data.validation) == 5
    assert data.fingerprint == load_coco(rectangles, VIEWS, 4).fingerprint
    assert data.fingerprint != load_coco(rectangles, VIEWS, 2, empty=True).fingerprint
    named = load_coco(rectangles, VIEWS, 2, train="annotations/instances_train.json", train_images="images/train")
    assert named.fingerprint == data.fingerprint


def test_what_is_wrong_in_both_splits_is_said_at_once(tmp_path, rectangles):
    with pytest.raises(ValueError, match=r"data.root: expected a folder .* does not exist"):
        split_of(tmp_path / "none", "train")
    with pytest.raises(ValueError, match=r"instances_train\*\.json, .*got none\ndata.root: .*instances_val\*\.json"):
        load_coco(tmp_path, VIEWS, 2)
    with pytest.raises(ValueError, match=r"expected the images of instances_val\.json in"):
        split_of(rectangles, "val", "elsewhere")
