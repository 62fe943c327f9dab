import gzip
import shutil
import struct

import numpy as np
import pytest

from localmix.tasks import fashion_mnist
from localmix.tasks.classification.data import load_images
from localmix.tasks.images import CorruptImage

WHOLE = {"train/cat": 3, "train/dog": 4, "val/cat": 1, "val/dog": 2}


def labels(dataset):
    return [int(label) for _, label in dataset.images]


def test_embedded_set():
    images = load_images()
    assert (images.size, images.channels, images.classes) == (28, 1, list(fashion_mnist.CLASSES))
    assert (len(images.train), len(images.validation)) == (10_000, 2_000)
    pixels, _ = images.train[None, 0, range(10_000)]
    assert pixels.mean().abs() < 0.02
    assert abs(pixels.std() - 1) < 0.02


def test_embedded_set_at_another_size(few_images):
    assert few_images.train[None, 0, [0, 1]][0].shape == (2, 1, 16, 16)
    assert few_images.fingerprint != load_images().fingerprint


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_folder(tmp_path, photographs, validation):
    folders = {name.replace("val", validation): number for name, number in WHOLE.items()}
    images = load_images(str(photographs(tmp_path, folders)))
    assert images.classes == ["cat", "dog"]
    assert labels(images.train) == [0, 0, 0, 1, 1, 1, 1]
    assert labels(images.validation) == [0, 1, 1]
    assert images.validation[None, 0, [0, 2]][0].shape == (2, 3, 64, 64)


def test_files_that_are_no_images_by_name_are_passed_over(tmp_path, photographs):
    photographs(tmp_path, WHOLE)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/cat/._000.png").write_text("left by a Mac")
    assert len(load_images(str(tmp_path)).train) == 7


def test_validation_is_held_out_where_there_is_none(tmp_path, photographs):
    photographs(tmp_path, {"cat": 10, "dog": 5})
    notices = []
    first, second = (load_images(str(tmp_path), announce=notices.append) for _ in range(2))
    paths = first.train.images.paths, first.validation.images.paths
    assert [len(p) for p in paths] == [12, 3]
    assert sorted(labels(first.validation)) == [0, 0, 1]
    assert not set(paths[0]) & set(paths[1])
    assert second.validation.images.paths == paths[1]
    assert "20% of each class is held out (3 of 15 images)" in notices[0]


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data: expected .* got '.*nowhere', which does not exist"):
        load_images(str(tmp_path / "nowhere"))


def test_file_is_refused(tmp_path):
    (tmp_path / "images.zip").touch()
    with pytest.raises(ValueError, match=r"data: .*images\.zip', which is a file"):
        load_images(str(tmp_path / "images.zip"))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, r"data: expected class folders .* found none"),
        ({"train/cat": 2, "train/dog": 0, "val/cat": 1, "val/dog": 1}, r"data: .*train, found none in \['dog'\]"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 0}, r"data: .*val, found none in \['dog'\]"),
        ({"train/cat": 2, "val/cat": 2}, r"data: expected at least 2 class folders .* got \['cat'\]"),
        (
            {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/cow": 1},
            r"data: expected the same class folders .* former: \['dog'\], .* latter: \['cow'\]",
        ),
        ({"val/cat": 1, "val/dog": 1}, r"data: expected a folder 'train' beside .*val"),
        ({"inner/train/cat": 1, "inner/val/cat": 1}, r"data: .* did you mean .*inner\?"),
        ({"cat": 5, "dog": 1}, r"data: .* found none in \['dog'\]"),
    ],
)
def test_folder_that_is_not_as_expected_is_refused(tmp_path, photographs, folders, message):
    with pytest.raises(ValueError, match=message):
        load_images(str(photographs(tmp_path, folders)), announce=lambda text: None)


@pytest.fixture
def damaged(tmp_path, photographs):
    photographs(tmp_path, WHOLE)
    (tmp_path / "train/dog/001.png").write_bytes((tmp_path / "train/dog/001.png").read_bytes()[:200])
    (tmp_path / "val/dog/000.png").write_bytes(b"")
    return tmp_path


def test_corrupt_images_are_refused_by_name(damaged):
    with pytest.raises(CorruptImage, match=r"data: 2 corrupt image\(s\).*train/dog/001\.png.*val/dog/000\.png"):
        load_images(str(damaged))


def test_corrupt_images_are_left_out_on_request(damaged):
    notices = []
    images = load_images(str(damaged), on_corrupt="skip", announce=notices.append)
    assert (len(images.train), len(images.validation)) == (6, 2)
    assert images.skipped == ["train/dog/001.png", "val/dog/000.png"]
    assert "left out 2 corrupt image(s)" in notices[0]
    assert "train/dog/001.png" in notices[0] and "val/dog/000.png" in notices[0]
    images.train[0, 0, range(6)]


def test_class_with_corrupt_images_only_is_refused(tmp_path, photographs):
    photographs(tmp_path, WHOLE)
    (tmp_path / "val/cat/000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data: .*val, found none in \['cat'\]"):
        load_images(str(tmp_path), on_corrupt="skip", announce=lambda text: None)


def test_unknown_value_of_on_corrupt_is_refused():
    with pytest.raises(ValueError, match=r"on_corrupt: expected .*'skip', got 'ignore'"):
        load_images(on_corrupt="ignore")


def test_fingerprint_sees_another_file(tmp_path, photographs):
    photographs(tmp_path, WHOLE)
    before = load_images(str(tmp_path)).fingerprint
    assert load_images(str(tmp_path)).fingerprint == before
    shutil.copy(tmp_path / "train/dog/000.png", tmp_path / "train/dog/new.png")
    assert load_images(str(tmp_path)).fingerprint != before


def test_named_data_set(tmp_path):
    """timm's torchvision/fashion_mnist, from files in the format that torchvision reads."""
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    images, numbers = fashion_mnist.load("test")
    for name, array in {"train": (images[:20], numbers[:20]), "t10k": (images[20:30], numbers[20:30])}.items():
        for kind, content in zip(("images-idx3", "labels-idx1"), array, strict=True):
            header = struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + content.astype(np.uint8).tobytes())
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(b""))
    loaded = load_images("torchvision/fashion_mnist", data_root=str(tmp_path))
    assert (loaded.size, loaded.channels, len(loaded.classes)) == (28, 1, 10)
    assert (len(loaded.train), len(loaded.validation)) == (20, 10)
    pixels, read = loaded.validation[None, 0, [3]]
    assert read.item() == numbers[23]
    np.testing.assert_allclose(pixels[0, 0] * 255 * loaded.std[0] + 255 * loaded.mean[0], images[23], atol=1e-3)


@pytest.mark.parametrize("name", ["torchvision/cifar10", "torchvision/no_such_set"])
def test_named_data_set_that_cannot_be_opened_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"data: cannot open the train images of '{name}' with data_root="):
        load_images(name, data_root=str(tmp_path))
