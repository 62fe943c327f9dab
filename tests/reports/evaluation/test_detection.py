import csv
import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from localmix.cli import main
from localmix.reports.evaluation import detection
from localmix.reports.evaluation.detector import load_detector

write_rectangles = runpy.run_path(str(Path(__file__).parents[2] / "tasks" / "detection" / "conftest.py"))[
    "write_rectangles"
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, fit_detector, tmp_path_factory):
    return fit_detector(tmp_path_factory.mktemp("run"), data)


def test_files_are_written_where_nobody_reads_the_table(run, tmp_path, monkeypatch):
    def cut(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(detection, "print", cut, raising=False)
    with pytest.raises(BrokenPipeError):
        detection.evaluate(run, output=tmp_path)
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_scores_are_those_of_the_run(run, tmp_path, capsys, weights):
    assert main(["validate", str(run), "--output", str(tmp_path), "--workers", "0", "--weights", weights]) == 0
    told = capsys.readouterr().out
    assert "CascadeMaskRCNN on dwnet_nano" in told and "| red |" in told
    results = json.loads((tmp_path / "results.json").read_text())
    last = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))[-1]
    prefix = "val_ema" if weights == "ema" else "val"
    for kind in ("box", "mask"):
        assert results[kind]["AP"] == pytest.approx(float(last[f"{prefix}_{kind}_ap"]), abs=1e-6)
    found = json.loads((tmp_path / "detections.json").read_text())
    assert len(found) == results["detections"] > 0
    assert found[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert {item["category_id"] for item in found} <= {5, 6, 7}
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    with Image.open(tmp_path / "pictures.png") as picture:
        assert picture.height > 480


def test_predict_draws(run, data, tmp_path, capsys):
    images = sorted(map(str, (data / "images" / "val").glob("*.png")))[:2]
    command = ["predict", str(run), *images, str(tmp_path / "none.png"), "--output", str(tmp_path / "out")]
    assert main([*command, "--min-score", "0.0"]) == 1
    captured = capsys.readouterr()
    assert "none.png: no such file" in captured.err
    assert any(name in captured.out for name in ("red", "green", "blue"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.json", "000.png", "001.json", "001.png"]
    (first, *_) = json.loads((tmp_path / "out" / "000.json").read_text())["objects"]
    assert first.keys() == {"class", "score", "box"}
    assert main([*command[:4], "--min-score", "1.0", "--output", str(tmp_path / "out")]) == 0
    assert "nothing of a score of 1 or more" in capsys.readouterr().out


def test_what_cannot_be_done_is_refused(run, data, tmp_path, capsys):
    image = str(next((data / "images" / "val").glob("*.png")))
    for command, complaint in (
        (["predict", str(run), image], "output: expected a folder for the pictures, got none"),
        (["predict", str(run), image, image, "--output", str(tmp_path)], "images: expected names that differ"),
        (["predict", str(run), image, "--output", str(tmp_path), "--min-score", "2"], "min_score: expected 0 to 1"),
        (["validate", str(run), "--tta", "flip"], "tta: expected nothing, since the network is one of detection"),
        (["validate", str(run), "--data", str(tmp_path)], "data.root: expected one"),
        (["test", str(run)], r"instances_test*.json"),
        (["validate", str(run), "--workers", "-1"], "workers: expected at least 0, got -1"),
        (["validate", str(run), "--output", image], "output: expected a folder, got"),
        (["predict", str(run), image, "--output", image], "output: expected a folder, got"),
    ):
        assert main(command) == 2
        assert complaint in capsys.readouterr().err
    with pytest.raises(ValueError, match="categories of the detector, red, green, blue, got"):
        other = write_rectangles(tmp_path / "other")
        file = other / "annotations" / "instances_val.json"
        file.write_text(file.read_text().replace('"red"', '"violet"'))
        main(["--traceback", "validate", str(run), "--data", str(other)])
    assert load_detector(run).classes == ["red", "green", "blue"]
