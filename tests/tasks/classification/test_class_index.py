import json

import pytest

from localmix.tasks.classification.class_index import read_class_index

FOLDERS = ["n1", "n2", "golden retriever"]


def index(tmp_path, content, name="classes.txt"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_class_index(path, FOLDERS)


def test_lines_give_labels_and_names(tmp_path):
    text = "n2 tench, Tinca tinca\n\ngolden retriever\nn1\tgreat white shark\n"
    found = index(tmp_path, text)
    assert list(found.items()) == [
        ("n2", "tench, Tinca tinca"),
        ("golden retriever", "golden retriever"),
        ("n1", "great white shark"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"1": ["n1", "shark"], "0": ["n2", "tench"]}, [("n2", "tench"), ("n1", "shark")]),
        ({"0": "n2", "1": "n1"}, [("n2", "n2"), ("n1", "n1")]),
        ({"n1": 1, "n2": 0}, [("n2", "n2"), ("n1", "n1")]),
    ],
)
def test_json_gives_labels_and_names(tmp_path, content, expected):
    assert list(index(tmp_path, content, "class_index.json").items()) == expected


def test_equal_names_are_told_apart(tmp_path):
    found = index(tmp_path, "n1 crane\nn2 crane\nn3 tench\n")
    assert list(found.values()) == ["crane (n1)", "crane (n2)", "tench"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": "n1", "2": "n2"}, "expected the labels 0 to 1"),
        ({"n1": 0, "n2": 0}, "label 0 is given twice"),
        ({"0": ["n1", "shark"], "1": ["n1", "shark"]}, r"lists \['n1'\] more than once"),
        ({"0": ["n1", 5]}, "are no strings"),
        ({"0": ["n1"]}, "not enough values"),
        ([1], "expected an object"),
        ("{", "Expecting"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"data: .*class_index\.json is no class index: .*{message}"):
        index(tmp_path, content, "class_index.json")
