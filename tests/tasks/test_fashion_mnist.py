import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from localmix.tasks import fashion_mnist

ROOT = Path(__file__).parents[2]
SHIPPED = Path(fashion_mnist.__file__).with_name("fashion_mnist.npz")


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("make_fashion_mnist", ROOT / "tools/make_fashion_mnist.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_shipped_file_is_the_one_that_was_made():
    digest = "49f271a146289af5ab452732e8183b3771fc22d65d148745c2bf97d089f09b4c"
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("split", "count"), [("train", 10_000), ("test", 2_000)])
def test_load(split, count):
    images, labels = fashion_mnist.load(split)
    assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    assert images.flags.writeable
    # Clothes in grey on a black background, every class about equally often.
    assert images[:, 0, 0].max() < 64 < images.max()
    assert len(fashion_mnist.CLASSES) == 10
    assert (np.abs(np.bincount(labels, minlength=10) / count - 0.1) < 0.015).all()


def test_splits_share_no_image():
    train, test = ({image.tobytes() for image in fashion_mnist.load(split)[0]} for split in ("train", "test"))
    assert not train & test


def test_load_names_the_splits():
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'validation'"):
        fashion_mnist.load("validation")


def test_tool_writes_the_shipped_bytes_again(tool, tmp_path):
    """From IDX files made of the shipped arrays: the part that was kept is all that the tool reads."""
    for split, (prefix, _) in tool.SPLITS.items():
        for content, array in zip(("images", "labels"), fashion_mnist.load(split), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            file = tmp_path / f"{prefix}-{content}-idx{array.ndim}-ubyte.gz"
            file.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), 1))
    tool.write(tmp_path, tmp_path / "made.npz")
    assert (tmp_path / "made.npz").read_bytes() == SHIPPED.read_bytes()


def test_tool_refuses_another_format(tool, tmp_path):
    file = tmp_path / "labels.gz"
    file.write_bytes(gzip.compress(b"\0\0\x0d\1" + bytes(8)))
    with pytest.raises(ValueError, match="expected an IDX file of unsigned bytes, got the magic number 00000d01"):
        tool.read_idx(file)
