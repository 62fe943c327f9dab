import csv
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from localmix.cli import main
from localmix.reports.evaluation.detector import load_detector
from localmix.reports.evaluation.tasks import task_of
from localmix.reports.publishing.publish import publish

write_rectangles = runpy.run_path(str(Path(__file__).parents[2] / "tasks/detection/conftest.py"))["write_rectangles"]

HELD = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("data") / "boxes", train=6, val=3)


@pytest.fixture(scope="module")
def run(data, fit_detector, tmp_path_factory):
    return fit_detector(tmp_path_factory.mktemp("run"), data)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_same_net_is_loaded(run, data, tmp_path, capsys, weights):
    assert main(["publish", str(run), "--to", str(tmp_path / "net"), "--weights", weights]) == 0
    assert f"CascadeMaskRCNN on dwnet_nano, {weights} weights" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert len({path.stat().st_mode for path in (tmp_path / "net").iterdir()}) == 1
    expected = load_detector(run, weights)
    for model in (tmp_path / "net", tmp_path / "net/model.safetensors"):
        assert task_of(model) == "detection"
        found = load_detector(model)
        assert (found.name, found.classes, found.masks) == (expected.name, ["red", "green", "blue"], True)
        for name, value in expected.net.state_dict().items():
            assert torch.equal(found.net.state_dict()[name], value), name
        image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
        for name, value in expected(image).items():
            assert torch.equal(found(image)[name], value), name
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert (config["task"], config["detector"], config["backbone"]) == ("detection", "cascade_mask_rcnn", "dwnet_nano")


def test_commands_take_the_folder(run, data, tmp_path, capsys):
    assert main(["validate", str(run), "--workers", "0", "--output", str(tmp_path / "out")]) == 0
    file = tmp_path / "out/results.json"
    assert main(["publish", str(run), "--to", str(tmp_path / "net"), "--results", str(file)]) == 0
    again = ["validate", str(tmp_path / "net"), "--workers", "0", "--output", str(tmp_path / "again")]
    assert main(again) == 2
    assert "data: expected a folder in COCO's format, got none" in capsys.readouterr().err
    assert main([*again, "--data", str(data)]) == 0
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "again"))
    assert first["box"] == second["box"] and first["mask"] == second["mask"]
    image = str(next((data / "images/val").glob("*.png")))
    assert main(["predict", str(tmp_path / "net"), image, "--output", str(tmp_path / "drawn"), "--min-score", "0"]) == 0
    assert main(["explain", "--model", str(tmp_path / "net"), "--image", image]) == 2
    assert "model: expected a classifier, got a network for detection" in capsys.readouterr().err
    other = write_rectangles(tmp_path / "other", train=1, val=1)
    names = other / "annotations/instances_val.json"
    names.write_text(names.read_text().replace('"red"', '"violet"'))
    assert main([*again, "--data", str(other)]) == 2
    assert "data: expected the 3 categories of the detector, red, green, blue, got" in capsys.readouterr().err


def test_card_says_what_it_is_and_its_program_runs(run, data, tmp_path, monkeypatch, capsys):
    results = tmp_path / "out/results.json"
    assert main(["validate", str(run), "--workers", "0", "--output", str(tmp_path / "out")]) == 0
    publish(run, tmp_path / "net", results=[results], license="cc-by-4.0")
    text = (tmp_path / "net/README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("localmix", "object-detection")
    parameters = sum(p.numel() for p in load_detector(run).net.parameters()) / 1e6
    assert "Cascade Mask R-CNN on `dwnet_nano` (depth-wise convolution)" in text
    assert f"{parameters:.2f} M parameters and 3 classes, trained on boxes" in text
    found = json.loads(results.read_text())["box"]["AP50"]
    last = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))[-1]
    assert text.count(f"| box AP50 | {100 * found:.1f} |") == 2
    assert found == pytest.approx(float(last["val_ema_box_ap50"]), abs=1e-6)
    assert "Local Attention" in text
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(next((data / "images/val").glob("*.png")).read_bytes())
    capsys.readouterr()
    exec(program[1].replace("0.5", "0.0"), {})
    assert any(name in capsys.readouterr().out for name in ("red", "green", "blue"))


def test_training_begins_with_it(fit_detector, run, data, tmp_path, capsys):
    publish(run, tmp_path / "net")
    fit_detector(tmp_path / "again", data, weights=tmp_path / "net/model.safetensors")
    assert "weights: begins with those in" in capsys.readouterr().err


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
def test_other_detectors(fit_detector, data, tmp_path, detector):
    options = {"model.detector": detector, "model.detector_kwargs": "{}", "model.ema_decay": "null"}
    run = fit_detector(tmp_path / "run", data, **options)
    publish(run, tmp_path / "net")
    found, expected = load_detector(tmp_path / "net"), load_detector(run)
    assert found.masks == expected.masks == (detector == "mask_rcnn")
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    for name, value in expected(image).items():
        assert torch.equal(found(image)[name], value)


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    publish(run, tmp_path / "net")
    assert main(["publish", str(tmp_path / "net/model.safetensors"), "--to", str(tmp_path / "other")]) == 2
    assert "source: expected a run or a checkpoint of one" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"kind": "evaluation", "model": {}}')
    with pytest.raises(ValueError, match="results: expected an evaluation of detection, got evaluation"):
        publish(run, tmp_path / "other", results=[tmp_path / "results.json"])
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="weights: expected nothing, since"):
        load_detector(tmp_path / "net", "ema")
