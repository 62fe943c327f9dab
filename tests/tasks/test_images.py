import numpy as np
import pytest
import torch
from PIL import Image

from localmix.tasks.images import CorruptImage, centre_square, normalise, random_square, read_image, to_tensor

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_grey_becomes_three_equal_channels(tmp_path):
    pixels = to_tensor(read_image(saved(tmp_path, Image.fromarray(GREY)), 3))
    assert pixels.shape == (3, 4, 6)
    assert torch.equal(pixels, torch.from_numpy(GREY).expand(3, 4, 6))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))
    assert torch.equal(to_tensor(read_image(path, 1)), torch.from_numpy(GREY)[None])


def test_32_bit_tiff_is_scaled(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.int32) * 257), "image.tif")
    assert torch.equal(to_tensor(read_image(path, 1)), torch.from_numpy(GREY)[None])


def test_float_is_stretched_to_its_range(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32) / 230), "image.tif")
    pixels = to_tensor(read_image(path, 1))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_transparency_shows_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert to_tensor(read_image(saved(tmp_path, image), 3))[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_transparent_palette_shows_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, image, transparency=1)
    assert to_tensor(read_image(path, 3))[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(GREY), exif=exif)
    assert read_image(path, 1).size == (4, 6)


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_corrupt_image_is_named(tmp_path, damage):
    whole = saved(tmp_path, Image.effect_noise((64, 64), 50), "noise.png").read_bytes()
    path = tmp_path / f"{damage}.png"
    path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(CorruptImage, match=rf"{damage}\.png: cannot be decoded"):
        read_image(path, 3)


def test_missing_image_is_named(tmp_path):
    with pytest.raises(CorruptImage, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png", 3)


def test_centre_square_takes_the_middle():
    image = Image.fromarray(np.repeat(np.arange(0, 90, 10, dtype=np.uint8)[None], 3, axis=0))
    assert to_tensor(centre_square(image, 3))[0].tolist() == [[30, 40, 50]] * 3


def test_random_square_keeps_inside_and_flips():
    """Of a ramp that grows to the right: the views are ramps, some rising and some falling, of different extent."""
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (30, 1)))
    views = [to_tensor(random_square(ramp, 16, np.random.default_rng(i)))[0, 8].int() for i in range(40)]
    rising = [bool((view.diff() >= 0).all()) for view in views]
    falling = [bool((view.diff() <= 0).all()) for view in views]
    assert all(r != f for r, f in zip(rising, falling, strict=True))
    assert 5 < sum(rising) < 35
    assert len({int(view.max() - view.min()) for view in views}) > 20


def test_normalise():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)
    result = normalise(pixels, [0.0, 0.5, 0.25], [1.0, 0.5, 0.25])
    torch.testing.assert_close(result[:, 0], torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-1.0, 3.0]]))
