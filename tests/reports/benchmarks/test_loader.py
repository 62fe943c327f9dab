import json
from functools import partial

import pytest
from PIL import Image
from timm.data import create_dataset

from localmix import cli
from localmix.reports.benchmarks import loader as bench_loader
from localmix.tasks import fashion_mnist
from localmix.tasks.classification.views import ImageNetViews

FILTER = "ignore:This process .* is multi-threaded:DeprecationWarning"


@pytest.fixture
def folder(tmp_path):
    images, _ = fashion_mnist.load("test")
    for index in range(24):
        path = tmp_path / "images" / "train" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).resize((40, 36)).save(path)
    return tmp_path / "images/train"


@pytest.mark.filterwarnings(FILTER)
@pytest.mark.parametrize("plain", [False, True])
def test_command(folder, tmp_path, capsys, plain):
    arguments = [
        "--img-size",
        "32",
        "--batch-size",
        "8",
        "--images",
        "16",
        "--rounds",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.main(["bench", "loader", str(folder), *arguments, *["--plain"] * plain]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["localmix", "timm"]
    assert all(len(row["seconds"]) == 2 and row["images_per_second"] > 0 for row in results["rows"])
    assert results["settings"]["images"] == 16 and results["settings"]["plain"] == plain
    assert f"localmix is {results['times_as_fast_as_timm']:.2f} times as fast" in capsys.readouterr().out


def test_other_images_are_not_timed(folder, monkeypatch):
    """timm's own order of files, and with those that are held out."""

    def timm_loader(images, data, chosen, *options):
        batches = theirs(images, data, chosen, *options)
        batches.dataset.dataset.reader = create_dataset("", root=data).reader
        return batches

    theirs = bench_loader._timm_loader
    monkeypatch.setattr(bench_loader, "_timm_loader", timm_loader)
    with pytest.raises(ArithmeticError, match=r"image \d: the pixels are not those of timm; nothing was timed"):
        bench_loader.bench_loader(str(folder), img_size=32, batch_size=8, plain=True)


def test_other_pixels_are_not_timed(folder, monkeypatch):
    monkeypatch.setattr(bench_loader, "ImageNetViews", partial(ImageNetViews, scale=0.9))
    with pytest.raises(ArithmeticError, match="image 0: the pixels are not those of timm; nothing was timed"):
        bench_loader.bench_loader(str(folder), img_size=32, batch_size=8, plain=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an int"),
        ({"batch_size": 100}, r"batch_size: expected at most the \d+ images"),
        ({"output": __file__}, "output: expected a folder, got .*test_loader.py, a file"),
    ],
)
def test_wrong_arguments_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        bench_loader.bench_loader(str(folder), img_size=32, **options)


def test_what_timm_does_not_read_is_refused():
    with pytest.raises(ValueError, match="data: expected a folder of image files"):
        bench_loader.bench_loader("fashion_mnist")
