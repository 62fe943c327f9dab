import pickle

import numpy as np
import pytest
from PIL import Image

from localmix.tasks.classification import folders
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.folders import ImageFiles

WHOLE = {"train/cat": 3, "train/dog": 4, "val/cat": 1, "val/dog": 2}
SYNSETS = ["n01440764", "n02012849"]


def labels(dataset):
    return [int(label) for _, label in dataset.images]


def test_class_index_gives_labels_and_names(tmp_path, photographs):
    (photographs(tmp_path, WHOLE) / "classes.txt").write_text("dog Canis familiaris\ncat Felis catus\n")
    images = load_images(str(tmp_path))
    assert images.classes == ["Canis familiaris", "Felis catus"]
    assert labels(images.train) == [0, 0, 0, 0, 1, 1, 1]
    assert [path.parent.name for path in images.validation.images.paths] == ["dog", "dog", "cat"]


def test_class_index_with_other_folders_is_refused(tmp_path, photographs):
    (photographs(tmp_path, WHOLE) / "classes.txt").write_text("dog\ncow\n")
    with pytest.raises(ValueError, match=r"data: .*classes\.txt and .*train; .*former: \['cow'\], .*latter: \['cat'\]"):
        load_images(str(tmp_path))


@pytest.fixture
def kaggle(tmp_path, photographs):
    """ImageNet as Kaggle's archive unpacks, with 2 classes, 5 training and 3 validation images."""
    images = tmp_path / "ILSVRC/Data/CLS-LOC"
    photographs(images, {f"train/{SYNSETS[0]}": 2, f"train/{SYNSETS[1]}": 3, "val": 3, "test": 2})
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{SYNSETS[1]} crane\n{SYNSETS[0]} tench, Tinca tinca\n")
    (tmp_path / "LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\n002,{SYNSETS[0]} 1 2 30 40 \n000,{SYNSETS[1]} 0 0 9 9 {SYNSETS[1]} 1 1 5 5 \n"
        f"001,{SYNSETS[0]} 3 3 20 20 \n"
    )
    return tmp_path


@pytest.mark.parametrize("root", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_of_kaggle(kaggle, root):
    images = load_images(str(kaggle / root), announce=lambda text: None)
    assert images.classes == ["crane", "tench, Tinca tinca"]
    assert labels(images.train) == [0, 0, 0, 1, 1]
    assert [
        (path.name, label)
        for path, label in zip(images.validation.images.paths, labels(images.validation), strict=True)
    ] == [
        ("000.png", 0),
        ("001.png", 1),
        ("002.png", 1),
    ]


def test_what_is_missing_of_imagenet_is_reported(kaggle, monkeypatch):
    notices = []
    load_images(str(kaggle), announce=notices.append)
    assert notices == [
        f"data: {kaggle} is not the whole of ImageNet-1k: 2 classes (expected 1,000), "
        "5 training images (expected 1,281,167), 3 validation images (expected 50,000)"
    ]
    monkeypatch.setattr(folders, "IMAGENET_COUNTS", {"classes": 2, "training images": 5, "validation images": 4})
    load_images(str(kaggle), announce=notices.append)
    assert notices[1:] == [f"data: {kaggle} is not the whole of ImageNet-1k: 3 validation images (expected 4)"]
    monkeypatch.setitem(folders.IMAGENET_COUNTS, "validation images", 3)
    load_images(str(kaggle), announce=notices.append)
    assert len(notices) == 2


def test_a_tree_of_most_classes_of_imagenet_is_counted_too(tmp_path, photographs, monkeypatch):
    photographs(tmp_path, {f"{split}/{synset}": 2 for split in ("train", "val") for synset in SYNSETS})
    notices = []
    load_images(str(tmp_path), announce=notices.append)
    assert not notices
    monkeypatch.setattr(folders, "IMAGENET_COUNTS", {"classes": 3, "training images": 4, "validation images": 4})
    load_images(str(tmp_path), announce=notices.append)
    assert notices == [f"data: {tmp_path} is not the whole of ImageNet-1k: 2 classes (expected 3)"]


def test_validation_image_without_a_class_is_refused(kaggle, photographs):
    photographs(kaggle / "ILSVRC/Data/CLS-LOC", {"val": 4})
    with pytest.raises(ValueError, match=r"data: expected a class in .*LOC_val_solution\.csv .* \['003\.png'\]"):
        load_images(str(kaggle))


def test_another_file_of_labels_is_refused(kaggle):
    (kaggle / "LOC_val_solution.csv").write_text("image,label\n000,1\n")
    with pytest.raises(
        ValueError, match=r"data: expected the columns ImageId,PredictionString .* \['image', 'label'\]"
    ):
        load_images(str(kaggle))


def test_validation_folder_without_classes_and_labels_is_refused(kaggle):
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(ValueError, match=r"data: expected class folders .*val, or LOC_val_solution\.csv beside it"):
        load_images(str(kaggle))


def test_image_files_survive_pickling_and_any_name(tmp_path):
    names = ["ä b/1.png", "2\udcff.png"]
    for place, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 2), 100 * place, np.uint8)).save(tmp_path / name)
    files = pickle.loads(pickle.dumps(ImageFiles(tmp_path, names, [1, 0])))
    assert files.paths == [tmp_path / name for name in names]
    assert [(image.getpixel((0, 0))[0], label) for image, label in files] == [(0, 1), (100, 0)]


def test_draft_decodes_large_jpegs_for_training_smaller(tmp_path):
    noise = Image.effect_noise((256, 400), 50).convert("RGB")
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        noise.save(tmp_path / folder / "0.jpg")
    sizes = {}
    for draft in (False, True):
        images = load_images(str(tmp_path), img_size=32, draft=draft)
        sizes[draft] = images.train.images[0][0].size, images.validation.images[0][0].size
    assert sizes == {False: ((256, 400), (256, 400)), True: ((64, 100), (256, 400))}


def test_hidden_folders_are_passed_over_and_links_count_a_folder_once(tmp_path, photographs):
    photographs(tmp_path, {**WHOLE, "train/cat/.ipynb_checkpoints": 2, "train/cat/black": 2, "train/dog/__MACOSX": 1})
    (tmp_path / "train/cat/self").symlink_to(".")
    (tmp_path / "train/cat/black/up").symlink_to("..")
    (tmp_path / "train/cat/also").symlink_to("black")
    (tmp_path / "train/cat/more").symlink_to("../dog")
    files = folders.read_tree(tmp_path).train
    names = {label: sorted(name.removeprefix(f"train/{label}/") for name in files[label]) for label in files}
    assert names["dog"] == ["000.png", "001.png", "002.png", "003.png"]
    own, linked = ["000.png", "001.png", "002.png"], [f"more/00{number}.png" for number in range(4)]
    assert names["cat"] == [*own, "black/000.png", "black/001.png", *linked]
