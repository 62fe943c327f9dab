import numpy as np
import pytest
from PIL import Image

from localmix.tasks.segmentation.labels import CAMVID, Labelling, ade20k
from localmix.tasks.segmentation.pairs import scenes, splits

THREE = Labelling(classes=("a", "b", "c"))


def write(folder, name, *, image="images", labels="annotations", size=(6, 4), labels_size=None, value=0):
    """An image, width x height, and its label map."""
    for kind, content in (
        (image, Image.new("RGB", size)),
        (labels, Image.fromarray(np.full((labels_size or size)[::-1], value, dtype=np.uint8))),
    ):
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path.with_suffix(".png"))


def test_names_pair_in_folders_below_too(tmp_path):
    for name in ("b", "sub/a", "a"):
        write(tmp_path, name, value=len(name) % 3)
    hidden = tmp_path / "images/.ipynb_checkpoints"
    hidden.mkdir()
    (tmp_path / "images/a.png").rename(hidden / "a-checkpoint.png")
    write(tmp_path, "a", value=1)
    found = scenes(tmp_path / "images", tmp_path / "annotations", THREE)
    assert [image.relative_to(tmp_path).as_posix() for image, _ in found.pairs] == [
        "images/a.png",
        "images/b.png",
        "images/sub/a.png",
    ]
    image, labels = found[2]
    assert image.size == (6, 4)
    assert labels.shape == (4, 6)
    assert (labels == 2).all()


def test_all_problems_are_listed_at_once(tmp_path):
    write(tmp_path, "good")
    write(tmp_path, "small", labels_size=(5, 4))
    write(tmp_path, "high", value=7)
    write(tmp_path, "only_image")
    (tmp_path / "annotations/only_image.png").unlink()
    write(tmp_path, "only_labels")
    (tmp_path / "images/only_labels.png").unlink()
    write(tmp_path, "broken")
    whole = (tmp_path / "images/broken.png").read_bytes()
    (tmp_path / "images/broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "annotations/broken.png").write_bytes(b"nothing")
    write(tmp_path, "twice")
    Image.new("RGB", (6, 4)).save(tmp_path / "images/twice.jpg")
    with pytest.raises(ValueError, match=r"^data: expected images with label maps") as caught:
        scenes(tmp_path / "images", tmp_path / "annotations", THREE)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("found 7 problems:")
    for name, reason in {
        "images/only_image.png": "no label map",
        "annotations/only_labels.png": "no image",
        "annotations/small.png": "expected the size of its image, 6x4, got 5x4",
        "annotations/high.png": "expected values 0 to 2, or void: 255; got 7",
        "images/broken.png": "cannot be decoded",
        "annotations/broken.png": "cannot be decoded",
        "images/twice.png": "twice.jpg has the same name",
    }.items():
        assert [line for line in lines if f"{name}: " in line and reason in line], (name, lines)
    assert "good" not in str(caught.value)


def test_without_a_check_names_are_still_paired(tmp_path):
    write(tmp_path, "high", value=7)
    found = scenes(tmp_path / "images", tmp_path / "annotations", THREE, check=False)
    with pytest.raises(ValueError, match="got 7"):
        found[0]
    write(tmp_path, "lonely")
    (tmp_path / "annotations/lonely.png").unlink()
    with pytest.raises(ValueError, match="no label map"):
        scenes(tmp_path / "images", tmp_path / "annotations", THREE, check=False)


@pytest.mark.parametrize("empty", [True, False])
def test_folders_without_images_are_refused(tmp_path, empty):
    if empty:
        (tmp_path / "images").mkdir()
        (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="no images" if empty else "no such folder"):
        scenes(tmp_path / "images", tmp_path / "annotations", THREE)


def test_a_folder_of_void_alone_is_refused(tmp_path):
    """One labelled pixel in all of it is enough."""
    for name in ("first", "second"):
        write(tmp_path, name, value=255)
    with pytest.raises(ValueError, match=r"found 1 problem:\n  .*annotations: all pixels are void"):
        scenes(tmp_path / "images", tmp_path / "annotations", THREE)
    labels = np.full((4, 6), 255, np.uint8)
    labels[3, 5] = 0
    Image.fromarray(labels).save(tmp_path / "annotations/second.png")
    assert len(scenes(tmp_path / "images", tmp_path / "annotations", THREE)) == 2


def test_splits_of_camvid(camvid):
    found = splits(camvid, CAMVID)
    assert list(found) == ["train", "validation", "test"]
    assert sum(map(len, found.values())) == len(list(camvid.glob("images/*/*.jpg"))) >= 4
    image, labels = found["train"][0]
    assert image.size == labels.shape[::-1] == (480, 360)


def test_splits_of_ade20k_in_both_layouts(ade20k_sample, tmp_path):
    names = ["ADE_val_00000001", "ADE_val_00000002"]
    for image, labels in (("images/training", "annotations/training"), ("train/image", "train/label")):
        root = tmp_path / image.replace("/", "-")
        for kind, source, suffix in ((image, "images", ".jpg"), (labels, "annotations", ".png")):
            (root / kind).mkdir(parents=True)
            for name in names:
                content = (ade20k_sample / source / name).with_suffix(suffix).read_bytes()
                (root / kind / name).with_suffix(suffix).write_bytes(content)
        found = splits(root, ade20k())
        assert list(found) == ["train"]
        assert [path.stem for path, _ in found["train"].pairs] == names


def test_problems_of_all_splits_are_listed_at_once(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"{split}/high", value=7)
    with pytest.raises(ValueError) as caught:
        splits(tmp_path, THREE)
    assert "train/high.png" in str(caught.value)
    assert "val/high.png" in str(caught.value)
    with pytest.raises(ValueError, match="found neither"):
        splits(tmp_path / "images", THREE)


def test_no_file_is_read_of_a_split_that_is_not_wanted(tmp_path):
    write(tmp_path, "train/high", value=7)
    write(tmp_path, "val/good")
    assert list(splits(tmp_path, THREE, wanted=["validation"])) == ["validation"]
    with pytest.raises(ValueError, match=r"expected test images in .*, found train, validation only"):
        splits(tmp_path, THREE, wanted=["validation", "test"])
