import numpy as np
import pytest
import torch
from PIL import Image

from localmix.cli import main
from localmix.tasks import fashion_mnist
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.scenes import layout

# a program for torchrun, which pytest would run to look for examples in it
collect_ignore = ["training/two_processes.py"]


@pytest.fixture(scope="module")
def few_images():
    """Cuts the embedded set to 24 images for training and 8 for validation."""
    numbers = {"train": 24, "test": 8}
    whole = {split: fashion_mnist.load(split) for split in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "load", lambda split: tuple(array[: numbers[split]] for array in whole[split]))
        yield whole
        layout._embedded.cache_clear()  # scenes that other tests compose are of all garments


@pytest.fixture(scope="module")
def image_folder(few_images, tmp_path_factory):
    """A folder of 48 images for training and 12 for validation, of two classes."""
    root = tmp_path_factory.mktemp("images")
    images, labels = few_images["test"]
    for index, (image, label) in enumerate(zip(images[:60], labels[:60], strict=True)):
        path = root / ("train" if index < 48 else "val") / ("shoe" if label in (5, 7, 9) else "other") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


FIT = {
    "data.img_size": 16,
    "data.batch_size": 4,
    "data.workers": 0,
    "trainer.accelerator": "cpu",
    "log.tensorboard": "false",
}


@pytest.fixture(scope="session")
def fit():
    """Runs `localmix fit` in this process, on small images: fit(output, setting=value, ...)."""

    def run(output, **settings):
        return main(["fit", *(f"--{name}={value}" for name, value in {**FIT, **settings, "output": output}.items())])

    return run


@pytest.fixture(scope="session")
def small_scenes(tmp_path_factory):
    """A folder of small scenes of odd sizes whose classes are told by their colours; one of them is in no label map."""
    root = tmp_path_factory.mktemp("small") / "scenes"
    random = np.random.default_rng(0)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    for split, number in (("train", 9), ("val", 3), ("test", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            labels = random.integers(0, 3, (4, 5)).repeat(9, 0).repeat(11, 1)[: 33 + index]
            pixels = (colours[labels] + random.normal(0, 25, (*labels.shape, 3))).clip(0, 255).astype(np.uint8)
            labels[:2] = 255
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / split / f"{index}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\nnever\n")
    return root


SEGMENTER = {
    "task": "segmentation",
    "data.size": 24,
    "data.short_side": 32,
    "data.batch_size": 4,
    "data.workers": 0,
    "data.steps_per_epoch": 3,
    "model.model_kwargs": "{depths: [1, 1, 1, 1]}",
    "model.channels": 8,
    "model.auxiliary_channels": 4,
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "log.tensorboard": "false",
}


@pytest.fixture(scope="session")
def fit_segmenter(small_scenes):
    """Runs `localmix fit` of a small segmenter in this process: fit_segmenter(output, setting=value, ...)."""

    def run(output, **settings):
        settings = {**SEGMENTER, "data.root": small_scenes, **settings, "output": output}
        return main(["fit", *(f"--{name}={value}" for name, value in settings.items())])

    return run


@pytest.fixture(scope="session")
def segmenter(fit_segmenter, tmp_path_factory):
    """The folder of a run of a small segmenter, which has learned its colours."""
    output = tmp_path_factory.mktemp("segmenter")
    settings = {"model.lr": 1e-2, "model.ema_decay": 0.5, "data.steps_per_epoch": 20, "data.distort": "false"}
    assert fit_segmenter(output, **settings) == 0
    return output


def _assert_same(a, b):
    """Equal to the last bit, through all levels."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert a == b


@pytest.fixture(scope="session")
def assert_same():
    """Two nested values are equal to the last bit."""
    return _assert_same


@pytest.fixture(scope="session")
def assert_same_runs():
    """Two run folders have the same losses and the same last checkpoint, to the last bit."""

    def check(a, b):
        assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
        first, second = (load_checkpoint(folder / "checkpoint.ckpt") for folder in (a, b))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            _assert_same(first[part], second[part])

    return check


@pytest.fixture(scope="session")
def fit_detector():
    """Runs `localmix fit` in this process for a detector that learns in seconds: fit_detector(output, data, ...)."""
    settings = {
        "task": "detection",
        "model.name": "dwnet_nano",
        "model.channels": 16,
        "model.model_kwargs": '{"depths": [1, 1, 1, 1]}',
        "model.detector_kwargs": '{"num_samples": 16, "min_score": 0.0}',
        "model.ema_decay": 0.5,
        "data.sizes": "[48]",
        "data.max_size": 64,
        "data.workers": 0,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "log.tensorboard": "false",
    }

    def run(output, data, **options):
        words = {**settings, **options, "data.root": data, "output": output}
        assert main(["fit", *(f"--{name}={value}" for name, value in words.items())]) == 0
        return output

    return run
