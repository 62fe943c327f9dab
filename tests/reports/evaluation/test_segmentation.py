import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from localmix.cli import main
from localmix.reports.evaluation import segmentation
from localmix.reports.evaluation.segmentation import absent_but_predicted, evaluate, majority, per_class, show
from localmix.reports.evaluation.segmenter import load_segmenter
from localmix.reports.evaluation.tasks import task_of
from localmix.tasks.segmentation.checkpoints import convert_file, load_converted
from localmix.tasks.segmentation.labels import Labelling, read_label_map
from localmix.tasks.segmentation.scores import Scores
from localmix.tasks.segmentation.upernet import upernet


def size(path):
    with Image.open(path) as image:
        return image.size


def test_what_the_run_has_validated_is_found_again(segmenter, small_scenes, tmp_path, capsys):
    assert main(["validate", str(segmenter), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown and "never" in shown and "absent" in shown
    results = json.loads((tmp_path / "out/results.json").read_text())
    with (segmenter / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        # the images are resized by Pillow there and by PyTorch here
        assert results[name] == pytest.approx(float(last[f"val_ema_{name}"]), abs=0.03)
    assert results["absent"] == ["never"]
    assert [row["iou"] is None for row in results["per_class"]] == [False, False, False, True]
    maps = [
        read_label_map(p, Labelling(("red", "green", "blue"))) for p in (small_scenes / "annotations/val").glob("*")
    ]
    pixels = sum(int((labels >= 0).sum()) for labels in maps)
    assert results["pixels"] == pixels == sum(row["pixels"] for row in results["per_class"])
    assert results["model"]["weights"] == "ema"
    assert results["pixel_accuracy"] > results["majority"]["pixel_accuracy"] + 0.2
    with (tmp_path / "out/confusion.csv").open(newline="") as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == pixels
    assert size(tmp_path / "out/pictures.png")[1] > 900


def test_files_are_written_where_nobody_reads_the_table(segmenter, tmp_path, monkeypatch):
    def cut(*_):
        raise SystemExit(1)

    monkeypatch.setattr(segmentation, "show", cut)
    with pytest.raises(SystemExit):
        evaluate(segmenter, device="cpu", output=tmp_path)
    assert (tmp_path / "results.json").is_file()


def test_a_class_that_is_absent_and_yet_predicted_is_told(capsys):
    """Beside our mIoU stands that of mmsegmentation, where a class counts if it is labelled or predicted."""
    confusion = torch.tensor([[6, 2, 1, 0], [1, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    classes, scores = ("red", "green", "never", "nowhere"), Scores.of(confusion)
    results = {
        "model": {"name": "a net"},
        "data": {"name": "scenes"},
        "split": "validation",
        "images": 1,
        "pixels": 15,
        **{name: getattr(scores, name).item() for name in ("pixel_accuracy", "mean_accuracy")},
        "miou": scores.mean_iou.item(),
        "majority": majority(confusion, classes),
        "absent": ["never", "nowhere"],
        "absent_but_predicted": absent_but_predicted(confusion, classes),
        "per_class": per_class(scores, confusion, classes),
    }
    assert results["absent_but_predicted"] == ["never"]
    show(results)
    shown = capsys.readouterr().out
    assert f"mIoU {(6 / 10 + 5 / 8) / 2:.2%}, pixel" in shown
    assert "absent, and left out of the means: never, nowhere" in shown
    assert f"taken for never; with an IoU of 0 for that, as in mmsegmentation, mIoU {(6 / 10 + 5 / 8) / 3:.2%}" in shown


@pytest.mark.parametrize(
    "options",
    [
        {"split": "test"},
        {"weights": "raw", "scales": (0.75, 1.25), "tta": "flip"},
        {"short_side": 0, "window": 24, "stride": 13},
    ],
)
def test_other_ways_to_look(segmenter, options):
    results = evaluate(segmenter, device="cpu", **options)
    assert results["images"] == (2 if options.get("split") == "test" else 3)
    assert results["miou"] > 0.4
    assert results["view"]["short_side"] == (None if options.get("short_side") == 0 else 32)


def test_one_window_is_the_whole_image(segmenter):
    whole, one = (evaluate(segmenter, device="cpu", window=window) for window in (None, 4000))
    assert whole["per_class"] == one["per_class"]


def test_figures_of_a_confusion_matrix():
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert majority(confusion, "abc") == {"class": "a", "pixel_accuracy": 8 / 12, "miou": pytest.approx(8 / 12 / 2)}
    rows = per_class(Scores.of(confusion), confusion, "abc")
    assert rows[0] == {"class": "a", "iou": pytest.approx(6 / 9), "accuracy": 0.75, "pixels": 8}
    assert rows[2] == {"class": "c", "iou": None, "accuracy": None, "pixels": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop-pct", "0.5"], "crop_pct: expected nothing, since the network is one of segmentation"),
        (["--data", "nowhere"], "nowhere"),
        (["--stride", "4"], "stride: expected a window with it"),
        (["--scales", "0"], "scales: expected factors above 0"),
        (["--scales", "1", "nan"], "scales: expected factors above 0, got (1.0, nan)"),
        (["--scales", "inf"], "scales: expected factors above 0, got (inf,)"),
    ],
)
def test_wrong_requests_are_refused(segmenter, arguments, message, capsys):
    assert main(["validate", str(segmenter), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_views_of_segmenters_are_refused_for_classifiers(capsys):
    assert main(["validate", "dwnet_nano", "--window", "3"]) == 2
    assert "window: expected nothing, since the network is one of classification" in capsys.readouterr().err


def test_prediction_is_drawn_and_stored(segmenter, small_scenes, tmp_path, capsys):
    images = sorted((small_scenes / "images/test").glob("*"))
    (tmp_path / "broken.png").write_text("no image")
    words = [
        "predict",
        str(segmenter),
        *map(str, images),
        str(tmp_path / "broken.png"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--top", "2", "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert "broken.png: cannot be decoded" in told.err
    found = load_segmenter(segmenter)
    right = []
    for path in images:
        labels = read_label_map(tmp_path / "o" / f"{path.stem}.labels.png", found.labelling)
        truth = read_label_map(small_scenes / "annotations/test" / path.name, found.labelling)
        assert labels.shape == truth.shape
        right.append((labels == truth)[truth >= 0].mean())
        assert size(tmp_path / "o" / f"{path.stem}.png")[1] >= 320
        assert f"{path} -> " in told.out
        assert f"{(labels == 0).mean():7.2%}" in told.out or (labels == 0).mean() < (labels == 1).mean()
    assert np.mean(right) > 0.7
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["0.labels.png", "0.png", "1.labels.png", "1.png"]


def test_predictions_need_a_folder_and_names_that_differ(segmenter, small_scenes, tmp_path, capsys):
    image = str(small_scenes / "images/test/0.png")
    assert main(["predict", str(segmenter), image]) == 2
    assert "output: expected a folder" in capsys.readouterr().err
    assert main(["predict", str(segmenter), image, image, "--output", str(tmp_path)]) == 2
    assert "images: expected names that differ" in capsys.readouterr().err
    for command in (["predict", str(segmenter), image], ["validate", str(segmenter)]):
        assert main([*command, "--output", image]) == 2
        assert "output: expected a folder, got" in capsys.readouterr().err


def test_the_task_of_a_model(segmenter, tmp_path):
    assert task_of(segmenter) == task_of(segmenter / "best.ckpt") == "segmentation"
    assert task_of("dwnet_nano") == task_of(tmp_path) == "classification"
    (tmp_path / "net.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"net.safetensors is truncated"):
        task_of(tmp_path / "net.safetensors")


def test_what_is_no_segmenter_is_refused(segmenter, tmp_path):
    with pytest.raises(ValueError, match=r"weights: expected .ema. or .raw. for"):
        load_segmenter(segmenter, "best")
    content = torch.load(segmenter / "checkpoint.ckpt", weights_only=True)
    del content["task"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"model: expected a segmenter in .*, got classification"):
        load_segmenter(tmp_path / "other.ckpt")
    content["task"] = "segmentation"
    content["state_dict"].popitem()
    del content["hyper_parameters"]["colours"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not fit a segmenter"):
        load_segmenter(tmp_path / "other.ckpt")


def test_a_converted_checkpoint_is_validated(tmp_path):
    """Its classes are those of ADE20K; the scenes are laid out as that data set."""
    helper = runpy.run_path(str(Path(__file__).parents[2] / "tasks/segmentation/test_checkpoints.py"))
    net = upernet("dwnet_nano", num_classes=150, channels=8, auxiliary_channels=4)
    torch.save({"state_dict": helper["official_checkpoint"]("dwnet", net)}, tmp_path / "official.pth")
    converted = tmp_path / "net.safetensors"
    convert_file(tmp_path / "official.pth", model="dwnet_nano", output=converted)
    assert task_of(converted) == "segmentation"
    assert load_converted(converted)[0].num_classes == 150
    random = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / "ade" / kind / split).mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"ade/images/{split}/a.jpg")
        Image.fromarray(random.integers(0, 151, (40, 50), np.uint8)).save(tmp_path / f"ade/annotations/{split}/a.png")
    results = evaluate(converted, data=str(tmp_path / "ade"), short_side=32, device="cpu")
    assert results["model"]["classes"] == 150
    assert 0 <= results["miou"] < 0.1
    with pytest.raises(ValueError, match="data: expected a folder of images and label maps, got none"):
        evaluate(converted, device="cpu")
