"""Runs of `localmix fit` are evaluated as they validate themselves."""

import csv

import numpy as np
import pytest
import yaml
from PIL import Image

from localmix.cli import main
from localmix.reports.evaluation.classification import evaluate
from localmix.reports.evaluation.trained import load_trained
from localmix.reports.predict import Classifier
from localmix.tasks import fashion_mnist
from localmix.tasks.fashion_mnist import load as load_all  # as it is now, whatever a fixture cuts later


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    root = tmp_path_factory.mktemp("garments")
    images, labels = load_all("test")
    for name in ("Trouser", "Sneaker", "Ankle boot", "Bag", "Coat", "Shirt"):
        for number, index in enumerate((labels == fashion_mnist.CLASSES.index(name)).nonzero()[0][:7]):
            path = root / ("train" if number < 4 else "val") / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([images[index]] * 3, axis=-1)).resize((44, 36)).save(path)
    return root


@pytest.fixture(scope="module", params=["square", "imagenet"])
def run(request, garments, tmp_path_factory):
    """A run with a moving average of the weights."""
    output = tmp_path_factory.mktemp("fit")
    settings = {
        "model": {"name": "localmlp_nano", "ema_decay": 0.5, "lr": 0.01, "model_kwargs": {"window_size": 4}},
        "data": {"root": str(garments), "views": request.param, "crop_pct": 0.8, "img_size": 16, "batch_size": 8},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "log": {"tensorboard": False},
    }
    settings["data"]["workers"] = 0
    (output / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(output / "config.yaml"), "--output", str(output / "run")]) == 0
    return output / "run", garments


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_figures_are_those_of_the_run(run, weights):
    folder, root = run
    row = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))[-1]
    prefix = "val_ema_" if weights == "ema" else "val_"
    # a checkpoint knows the images of its run
    newest = max((folder / "checkpoints").iterdir())
    for model in (folder, folder / "best.ckpt", newest):
        assert load_trained(model).data == (str(root), None)
    results = evaluate(folder, weights=weights, batch_size=5, workers=0, device="cpu")
    assert results["data"]["name"] == str(root)
    for name in ("top1", "top5", "loss"):
        assert results[name] == pytest.approx(float(row[f"{prefix}{name}"]), abs=1e-5)


def test_moving_average_is_what_a_run_stands_for(run):
    folder, root = run
    trained = load_trained(folder)
    assert trained.source["weights"] == "ema"
    assert trained.source["step"] == load_trained(folder / "checkpoint.ckpt").source["step"]
    assert trained.options == {"window_size": 4}
    image = next(root.glob("val/Bag/*"))
    ranking = Classifier(folder)(image, top=99)
    assert [name for name, _ in ranking] == [name for name, _ in Classifier(folder / "checkpoint.ckpt")(image, top=99)]
