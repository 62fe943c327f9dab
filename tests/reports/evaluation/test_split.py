import json

import pytest
from PIL import Image

from localmix.reports.evaluation.split import Split, load_split, matched, readable


@pytest.fixture
def tree(tmp_path):
    """tree("val/n1/a.png", ...): a folder with these images, each of another colour."""

    def write(*names):
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        return tmp_path

    return write


def contents(split):
    """(red value, class) of each image."""
    return [(split.pairs[i][0].getpixel((0, 0))[0], split.classes[split.pairs[i][1]]) for i in range(len(split.pairs))]


def split_of(classes, folders=None):
    return Split("data", classes, folders or classes, [], "")


def test_validation_images_of_a_folder_with_and_without_training_images(tree):
    root = tree("val/b/0.png", "val/a/1.png", "val/a/2.png")
    assert contents(load_split(str(root), "validation")) == [(1, "a"), (2, "a"), (0, "b")]
    tree("val/b/0.png", "val/a/1.png", "train/a/2.png", "train/b/3.png")
    (root / "val/a/2.png").unlink()
    assert contents(load_split(str(root), "validation")) == [(1, "a"), (0, "b")]


def test_held_out_images_are_those_of_the_training(tree):
    from localmix.tasks.classification.data import load_images

    root = tree(*(f"{name}/{number}.png" for name in "ab" for number in range(10)))
    notices = []
    held_out = load_split(str(root), "validation", announce=notices.append)
    images = load_images(str(root), announce=lambda text: None).validation.images
    assert held_out.pairs.paths == images.paths and len(held_out.pairs) == 4
    assert "held out" in notices[0]
    assert len(load_split(str(root), "test").pairs) == 20


def test_class_index_gives_names_and_order(tree):
    root = tree("test/n2/0.png", "test/n1/1.png")
    (root / "class_index.json").write_text(json.dumps({"0": ["n3", "owl"], "1": ["n2", "cat"], "2": ["n1", "dog"]}))
    split = load_split(str(root), "test")
    assert (split.classes, split.folders) == (["cat", "dog"], ["n2", "n1"])
    assert contents(split) == [(0, "cat"), (1, "dog")]
    outputs = [matched(split, known, 3, print)[0] for known in (["owl", "cat", "dog"], ["n1", "n2", "n3"])]
    assert outputs == [[1, 2], [1, 0]]
    tree("test/n4/0.png")
    with pytest.raises(ValueError, match=r"expected class folders that .*class_index.json lists .*, got \['n4'\] too"):
        load_split(str(root), "test")


def test_labels_of_kaggle(tree):
    root = tree("val/ILSVRC2012_val_1.png", "val/ILSVRC2012_val_2.png")
    solution = "ImageId,PredictionString\nILSVRC2012_val_1,n2 1 1 2 2\nILSVRC2012_val_2,n1 1 1 2 2 n1 3 3 4 4\n"
    (root / "LOC_val_solution.csv").write_text(solution)
    assert contents(load_split(str(root), "validation")) == [(1, "n1"), (0, "n2")]


def test_embedded_images_are_both_splits(few_images):
    notices = []
    validation, test = (load_split("fashion_mnist", name, announce=notices.append) for name in ("validation", "test"))
    assert len(validation.pairs) == len(test.pairs) == 8
    assert notices == [
        "data: fashion_mnist has no test images of its own; these are the ones that training validates on"
    ]
    assert validation.pairs[0][0].size == (28, 28)


def test_unnamed_classes_are_taken_in_order_and_said():
    notices = []
    assert matched(split_of(["a", "b"]), None, 2, notices.append) == ([0, 1], ["a", "b"])
    assert "the network does not name its 2 classes; they are taken in the order of the data" in notices[0]


def test_names_that_are_no_wordnet_ids_stay():
    assert readable(["n01440764", "n99999999"]) == ["tench (n01440764)", "n99999999"]
    assert readable(["n01440764", "shoe"]) == ["n01440764", "shoe"]
