import logging
from argparse import Namespace

import pytest
import torch

from localmix import cli
from localmix.tasks.classification.corrupt import ReplacedImages
from localmix.tasks.classification.data import load_images
from localmix.tasks.engine.batches import loader
from localmix.tasks.images import CorruptImage

DAMAGED = ("train/b/000.png", "train/b/001.png", "train/c/003.png")


@pytest.fixture
def folder(tmp_path, photographs):
    """12 training images of 3 classes; those at 4, 5 and 11 are damaged."""
    photographs(tmp_path, {f"{split}/{name}": number for split, number in (("train", 4), ("val", 1)) for name in "abc"})
    for name in DAMAGED:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    return tmp_path


def load(folder, **options):
    return load_images(str(folder), img_size=16, check=False, **options)


def test_corrupt_image_is_replaced_by_the_next_whole_one(folder, caplog):
    images = load(folder).train
    pixels, labels = images[None, 0, [3, 4, 5, 6, 11, 0]]
    assert labels.tolist() == [0, 1, 1, 1, 0, 0]
    assert torch.equal(pixels[1], pixels[3]) and torch.equal(pixels[2], pixels[3])
    assert torch.equal(pixels[4], pixels[5])
    # Its augmentation is the place's own.
    assert not torch.equal(*images[7, 0, [4, 6]][0])
    images[None, 1, [4, 11]]
    assert [record.getMessage()[:27] for record in caplog.records] == [
        f"corrupt image {number} of at most 10"[:27] for number in (1, 2, 3)
    ]
    assert all(name in record.getMessage() for name, record in zip(DAMAGED, caplog.records, strict=True))
    assert images.images.corrupt == [str(folder / name) for name in DAMAGED]


def test_too_many_corrupt_images_are_refused_by_name(folder):
    images = load(folder, max_corrupt=2).train
    images[None, 0, [4, 5]]
    expected = rf"data: more than max_corrupt = 2 corrupt images: .*{DAMAGED[0]}, .*{DAMAGED[1]}, .*{DAMAGED[2]}; "
    with pytest.raises(CorruptImage, match=expected):
        images[None, 0, [11]]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_count_together(folder, caplog):
    alone = list(loader(load(folder).train, 2, seed=1))
    images = load(folder).train
    batches = loader(images, 2, seed=1, workers=2)
    helped = list(batches)
    assert all(torch.equal(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x, y, strict=True))
    assert len(images.images.corrupt) == 3
    batches = iter(loader(load(folder, max_corrupt=2).train, 2, seed=1, workers=2))
    with pytest.raises(CorruptImage, match="more than max_corrupt = 2") as error:
        list(batches)
    batches._shutdown_workers()
    # What a worker raises comes with its traceback; the user of a command sees the message.
    assert "Traceback" in str(error.value)
    assert cli._message(error.value, Namespace()).startswith("data: more than max_corrupt = 2 corrupt images: ")


def test_corrupt_validation_image_is_refused(folder):
    (folder / "val/b/000.png").write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"val/b/000\.png: cannot be decoded"):
        load(folder).validation[None, 0, [1]]


def test_no_image_left(caplog):
    class Nothing:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise CorruptImage(f"{index}: no")

    caplog.set_level(logging.ERROR)
    with pytest.raises(CorruptImage, match="none of the 3 images can be decoded"):
        ReplacedImages(Nothing(), 3, str)[1]


@pytest.mark.parametrize("limit", [-1, 0.5])
def test_wrong_limit_is_refused(limit):
    with pytest.raises(ValueError, match="max_corrupt: expected an int of at least 0"):
        load_images(max_corrupt=limit)
