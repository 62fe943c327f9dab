import pytest
import torch

from localmix.cli import main
from localmix.tasks import fashion_mnist
from localmix.tasks.engine.checkpoint import load_checkpoint

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
