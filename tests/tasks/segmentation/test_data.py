import hashlib
import shutil

import pytest

from localmix.tasks.scenes import CLASSES
from localmix.tasks.segmentation.data import fingerprint, load_scenes
from localmix.tasks.segmentation.labels import CAMVID, ade20k, find_labelling
from localmix.tasks.segmentation.pairs import splits


def test_scenes_of_camvid(camvid):
    scenes = load_scenes(camvid, CAMVID, size=64, short_side=90)
    images, labels = scenes.train[0, 0, [0, 1]]
    assert images.shape == (2, 3, 64, 64)
    assert labels.shape == (2, 64, 64)
    images, labels = scenes.validation[None, 0, [0]]
    assert images.shape == (1, 3, 90, 120)
    assert labels.shape == (1, 360, 480)
    assert scenes.arguments()["classes"] == list(CAMVID.classes)
    assert scenes.arguments()["short_side"] == 90
    assert str(scenes) == f"{camvid}, 11 classes, crops of 64 px"


def test_the_fingerprint_changes_with_the_files(camvid, tmp_path):
    shutil.copytree(camvid, tmp_path / "copy")
    expected = load_scenes(camvid, CAMVID).fingerprint
    assert load_scenes(tmp_path / "copy", CAMVID).fingerprint == expected
    image = next((tmp_path / "copy/images/val").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    assert load_scenes(tmp_path / "copy", CAMVID).fingerprint != expected
    found = splits(camvid, CAMVID, check=False)
    of_each = {fingerprint({split: found[split]}, camvid) for split in ("train", "validation", "test")}
    assert len(of_each) == 3 and hashlib.sha256().hexdigest() not in of_each


def test_a_missing_split_is_named(camvid, tmp_path):
    shutil.copytree(camvid, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/images/val")
    with pytest.raises(ValueError, match=r"data: expected validation images in .*copy, found train, test only"):
        load_scenes(tmp_path / "copy", CAMVID)


def test_labellings_are_found_by_name_and_in_the_folder(tmp_path):
    assert find_labelling("camvid", tmp_path) is CAMVID
    assert find_labelling("ade20k", tmp_path) is ade20k()
    assert find_labelling("scenes", tmp_path).classes == CLASSES
    with pytest.raises(ValueError, match=r"data: expected .*classes.txt, a line for each class"):
        find_labelling(None, tmp_path)
    # as some editors write it, with a mark in front
    (tmp_path / "classes.txt").write_text("\ufeffsky\n\ntall tree\n", encoding="utf-8")
    labelling = find_labelling(None, tmp_path, first=1, void=(0,))
    assert (labelling.classes, labelling.first, labelling.void) == (("sky", "tall tree"), 1, (0,))
    (tmp_path / "classes.txt").write_text("sky\ntree\nsky\n")
    with pytest.raises(ValueError, match=r"expected each class once in .*, got sky more than once"):
        find_labelling(None, tmp_path)
    with pytest.raises(ValueError, match="classes: expected one of"):
        find_labelling("cityscapes", tmp_path)
