import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from localmix.tasks.images import CorruptImage
from localmix.tasks.segmentation.labels import CAMVID, IGNORED, Labelling, ade20k, read_label_map

STORED = np.array([[0, 1, 2, 255], [2, 2, 255, 0]], dtype=np.uint8)
LABELS = np.array([[0, 1, 2, IGNORED], [2, 2, IGNORED, 0]])
THREE = Labelling(classes=("a", "b", "c"))


def deep(path, stored):
    Image.fromarray(stored.astype(np.uint16)).save(path)


def palette(path, stored):
    image = Image.fromarray(stored, "P")
    image.putpalette([value for i in range(256) for value in (255 - i, i // 2, 7)])
    image.save(path)


@pytest.mark.parametrize("write", [deep, palette, lambda path, stored: Image.fromarray(stored).save(path)])
def test_255_is_void(tmp_path, write):
    write(tmp_path / "map.png", STORED)
    labels = read_label_map(tmp_path / "map.png", THREE)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS)


def test_16_bits_hold_more_classes(tmp_path):
    many = Labelling(classes=tuple(map(str, range(1000))), void=(65535,))
    deep(tmp_path / "map.png", np.array([[0, 255, 999, 65535]]))
    assert read_label_map(tmp_path / "map.png", many).tolist() == [[0, 255, 999, IGNORED]]
    deep(tmp_path / "map.png", np.array([[1000]]))
    with pytest.raises(ValueError, match=r"map.png: expected values 0 to 999, or void: 65535; got 1000"):
        read_label_map(tmp_path / "map.png", many)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path, bits):
    """Pillow stretches such values to 255."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    row = bytes([0, 0b11100100 if bits == 2 else 0b0010_0001 if bits == 4 else 0b0110_0001])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "map.png").write_bytes(png)
    expected = {1: [0, 1, 1, 0, 0, 0, 0, 1], 2: [3, 2, 1, 0], 4: [2, 1]}[bits]
    four = Labelling(classes=("a", "b", "c", "d"))
    assert read_label_map(tmp_path / "map.png", four).tolist() == [expected]


def test_what_is_no_label_map_is_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb.png: expected a label map of one channel .* got mode RGB"):
        read_label_map(tmp_path / "rgb.png", THREE)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(CorruptImage, match=r"text.png: cannot be decoded"):
        read_label_map(tmp_path / "text.png", THREE)
    with pytest.raises(CorruptImage, match=r"none.png"):
        read_label_map(tmp_path / "none.png", THREE)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"classes": ()}, "classes: expected at least one"),
        ({"classes": ("a", "b"), "void": (1,)}, r"void: expected values that no class has, got \[1\]"),
        ({"classes": ("a", "b"), "colours": ((0, 0, 0),)}, "colours: expected one for each of 2 classes, got 1"),
    ],
)
def test_a_labelling_is_checked(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Labelling(**options)


def test_ade20k(ade20k_sample):
    labelling = ade20k()
    assert labelling.num_classes == len(set(labelling.classes)) == 150
    assert (labelling.classes[0], labelling.classes[2], labelling.classes[149]) == ("wall", "sky", "flag")
    assert (labelling.colours[0], labelling.colours[149]) == ((120, 120, 120), (92, 0, 255))
    for path in sorted(ade20k_sample.glob("annotations/*.png")):
        labels, stored = read_label_map(path, labelling), np.asarray(Image.open(path)).astype(int)
        np.testing.assert_array_equal(labels[stored > 0], stored[stored > 0] - 1)
        assert (labels[stored == 0] == IGNORED).all()


def test_camvid(camvid):
    """Names stand in the right order: the sky is above, the road below."""
    maps = [read_label_map(path, CAMVID) for path in sorted(camvid.glob("annotations/*/*.png"))]
    heights = {name: np.concatenate([np.nonzero(m == i)[0] for m in maps]) for i, name in enumerate(CAMVID.classes)}
    assert heights["sky"].mean() < 120
    assert heights["road"].mean() > 240
    assert any((m == IGNORED).any() for m in maps)


def test_colours_differ():
    assert len(set(Labelling(classes=tuple(map(str, range(50)))).colours)) == 50
    assert len(set(CAMVID.colours)) == 11


@pytest.mark.parametrize("labelling", [THREE, Labelling(classes=("a", "b", "c"), first=7, void=(3,))])
def test_stored_is_read_back(tmp_path, labelling):
    image = labelling.stored(LABELS)
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "map.png", labelling), LABELS)
    assert image.convert("RGB").getpixel((2, 0)) == labelling.colours[2]


def test_more_than_8_bits_are_stored_too(tmp_path):
    many = Labelling(classes=tuple(map(str, range(1000))), void=(65535,))
    labels = np.array([[0, 255, 999, IGNORED]])
    many.stored(labels).save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "map.png", many), labels)
