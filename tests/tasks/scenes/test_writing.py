import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from localmix.cli import main
from localmix.tasks.detection.coco import CocoImages, decode_mask
from localmix.tasks.scenes import CLASSES, writing
from localmix.tasks.scenes.writing import write_scenes
from localmix.tasks.segmentation import pairs
from localmix.tasks.segmentation.labels import Labelling

FEW = {"num_train": 10, "num_val": 6, "size": (64, 80), "max_objects": 8, "seed": 3, "workers": 1}
SILENT = {"announce": lambda line: None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(folder, **FEW, **SILENT)
    return folder


def content(folder):
    """Digest of each file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def detection(folder, split):
    return CocoImages(folder / "annotations" / f"instances_{split}.json", folder / "images" / split)


def test_both_readers_agree_pixel_by_pixel(folder):
    found = pairs.splits(folder, Labelling(CLASSES))
    assert set(found) == {"train", "validation"}
    objects = 0
    for split, name in (("train", "train"), ("val", "validation")):
        images = detection(folder, split)
        assert images.classes == list(CLASSES[1:]) and images.category_ids == list(range(1, 11))
        assert len(images) == len(found[name]) == FEW[f"num_{split}"]
        for index in range(len(images)):
            image, labels = found[name][index]
            assert image.size == (80, 64)
            drawn = np.zeros((64, 80), int)
            for item in images.objects[index]:
                mask = decode_mask(item["segmentation"], 64, 80).astype(bool)
                assert not drawn[mask].any()
                drawn[mask] = item["category_id"]
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
                assert (item["area"], item["bbox"]) == (mask.sum(), box)
                objects += 1
            assert (drawn == labels).all()
    assert objects > 16


def test_settings_count_what_is_there(folder):
    settings = json.loads((folder / "scenes.json").read_text())
    for split in ("train", "val"):
        assert settings["objects"][split] == detection(folder, split).counts()
        assert settings["scenes"][split] == FEW[f"num_{split}"]
    assert not [path for path in folder.rglob(".*")] and not folder.with_name("set.unfinished").exists()


def test_same_bytes_with_several_processes(folder, tmp_path):
    write_scenes(tmp_path / "again", **{**FEW, "workers": 2}, **SILENT)
    assert content(tmp_path / "again") == content(folder)


def test_another_seed_makes_other_scenes(folder, tmp_path):
    write_scenes(tmp_path / "other", **{**FEW, "seed": 4}, **SILENT)
    one, other = content(folder), content(tmp_path / "other")
    assert set(one) == set(other) and all(one[name] != other[name] for name in one if name.startswith("images/"))


def test_more_scenes_begin_with_the_same(folder, tmp_path):
    write_scenes(tmp_path / "more", **{**FEW, "num_train": 12}, **SILENT)
    more = content(tmp_path / "more")
    assert all(more[name] == digest for name, digest in content(folder).items() if "train/" in name)


def test_whole_set_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    lines = []
    write_scenes(folder, **FEW, announce=lines.append)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [line.split(": ", 1)[1].split(" with")[0] for line in lines] == ["train: 10 scenes", "val: 6 scenes"]


def test_interrupted_set_has_no_name_and_goes_on(folder, tmp_path, monkeypatch):
    output, whole = tmp_path / "set", writing.encode
    composed = []

    def encode(scene):
        if len(composed) == 7:
            raise KeyboardInterrupt
        composed.append(scene)
        return whole(scene)

    monkeypatch.setattr(writing, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(output, **FEW, **SILENT)
    assert not output.exists()
    # what a power failure may leave
    (tmp_path / "set.unfinished/images/train/000002.jpg").write_bytes(b"")
    monkeypatch.setattr(writing, "encode", lambda scene: composed.append(scene) or whole(scene))
    with pytest.raises(ValueError, match=r"set.unfinished was begun with seed = 3 and not 5; name another folder"):
        write_scenes(output, **{**FEW, "seed": 5}, **SILENT)
    write_scenes(output, **FEW, **SILENT)
    assert len(composed) == 16 + 1
    assert content(output) == content(folder)


def test_a_full_disk_is_told_with_the_name_of_the_file_and_leaves_none_half(folder, tmp_path, full_disk):
    with full_disk(700), pytest.raises(OSError, match=r"File too large while writing: '.*images/train/\d+\.jpg'"):
        write_scenes(tmp_path / "set", **FEW, **SILENT)
    assert not list(tmp_path.rglob(".0*"))
    write_scenes(tmp_path / "set", **FEW, **SILENT)
    assert content(tmp_path / "set") == content(folder)


def test_one_that_was_killed_in_its_first_moment_is_no_obstacle(folder, tmp_path):
    (tmp_path / "set.unfinished").mkdir()
    (tmp_path / "set.unfinished/.scenes.json.0123abcd.partial").write_bytes(b"half")
    write_scenes(tmp_path / "set", **FEW, **SILENT)
    assert content(tmp_path / "set") == content(folder)


@pytest.mark.parametrize(
    ("number", "status", "scenes"), [("SIGINT", 130, 0), ("SIGINT", 130, 10), ("SIGTERM", 143, 10)]
)
def test_a_signal_ends_all_processes_with_a_line(tmp_path, number, status, scenes):
    """Also while they begin, when there is no scene yet."""
    output, unfinished = tmp_path / "set", tmp_path / "set.unfinished"
    command = [sys.executable, "-m", "localmix", "scenes", str(output), "--num-train", "100000", "--workers", "2"]

    def heed_interrupts():
        # a shell lets what it starts in the background ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts
    )
    _wait(lambda: (unfinished / "scenes.json").exists() and len(list(unfinished.rglob("*.png"))) >= scenes)
    time.sleep(0.3)
    # Ctrl-C goes to all processes of a terminal, a scheduler's signal to one
    (os.killpg if number == "SIGINT" else os.kill)(process.pid, getattr(signal, number))
    error = process.communicate(timeout=30)[1]
    assert process.returncode == status
    assert error == f"interrupted; the same command goes on with what is in {unfinished}\n"
    assert not output.exists() and "scenes" not in json.loads((unfinished / "scenes.json").read_text())


def test_killed_set_has_no_name_and_its_processes_end(tmp_path):
    output, unfinished = tmp_path / "set", tmp_path / "set.unfinished"
    command = [sys.executable, "-m", "localmix", "scenes", str(output), "--num-train", "100000", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: len(list(unfinished.rglob("*.png"))) >= 10)
        children = _children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists() and children
    _wait(lambda: not any(_alive(child) for child in children))


def _wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(pid):
    """Processes below one."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {pid}, set()
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found |= below
    return found


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_other_folders_are_refused(folder, tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/cat.jpg").write_bytes(b"cat")
    with pytest.raises(ValueError, match=r"output: .*photographs holds something else than scenes"):
        write_scenes(tmp_path / "photographs", **FEW, **SILENT)
    with pytest.raises(ValueError, match=r"output: .*set was made with max_objects = 8 and not 9"):
        write_scenes(folder, **{**FEW, "max_objects": 9}, **SILENT)
    assert os.listdir(tmp_path / "photographs") == ["cat.jpg"]


def test_plain_scenes_are_another_set(folder, tmp_path):
    """Other images of the same label maps; a set from before there were plain ones is whole, and is not plain."""
    few = {**FEW, "num_train": 3, "num_val": 2}
    write_scenes(tmp_path / "set", **few, plain=True, **SILENT)
    assert "--seed 3 --plain\n" in (tmp_path / "set/README.md").read_text()
    whole, plain = content(folder), content(tmp_path / "set")
    names = [name for name in plain if "0000" in name]
    assert len(names) == 10
    assert all((plain[name] == whole[name]) == name.startswith("annotations") for name in names)
    with pytest.raises(ValueError, match="set was made with plain = true and not false"):
        write_scenes(tmp_path / "set", **few, **SILENT)

    old = shutil.copytree(folder, tmp_path / "old")
    facts = json.loads((old / "scenes.json").read_text())
    del facts["settings"]["plain"]
    (old / "scenes.json").write_text(json.dumps(facts))
    write_scenes(old, **FEW, **SILENT)
    with pytest.raises(ValueError, match="old was made with plain = false and not true"):
        write_scenes(old, **FEW, plain=True, **SILENT)


def test_damaged_set_is_named(tmp_path):
    write_scenes(tmp_path / "set", **FEW, **SILENT)
    (tmp_path / "set/annotations/val/000001.png").unlink()
    with pytest.raises(ValueError, match=r"output: .*annotations/val had 6 files when it was made, and has 5"):
        write_scenes(tmp_path / "set", **FEW, **SILENT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_train": 0}, "num_train: expected an int of at least 1, got 0"),
        ({"size": (31, 64)}, "size: expected at least 32, got"),
        ({"max_objects": 201}, "max_objects: expected 1 to 200, got 201"),
        ({"seed": -1}, r"seed: expected an int of at least 0 and below 2\*\*63, got -1"),
        ({"workers": 0}, "workers: expected an int of at least 1, got 0"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "set", **{**FEW, **wrong}, **SILENT)
    assert not any(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    command = ["scenes", str(tmp_path / "set"), "--num-train", "2", "--num-val", "1", "--size", "48", "64"]
    assert main([*command, "--plain", "--workers", "1"]) == 0
    assert "val: 1 scenes with" in capsys.readouterr().err
    assert "--size 48 64 --max-objects 12 --seed 0 --plain" in (tmp_path / "set/README.md").read_text()
