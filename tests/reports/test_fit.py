import shutil

import pytest
import torch

from localmix.cli import main
from localmix.tasks.checkpoint import load_checkpoint

SMALL = {
    "data.img_size": 16,
    "data.batch_size": 4,
    "data.workers": 0,
    "trainer.accelerator": "cpu",
    "log.tensorboard": "false",
}
RICH = {
    "model.drop_path_rate": 0.3,
    "model.mixup": 0.8,
    "model.cutmix": 1.0,
    "model.ema_decay": 0.9,
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_epochs": 3,
    "save.every": 1,
    "save.keep": 100,
}


def fit(output, *arguments, **settings):
    """Runs `localmix fit` in this process."""
    words = [f"--{name}={value}" for name, value in {**SMALL, **settings, "output": output}.items()]
    return main(["fit", *words, *arguments])


def assert_same(a, b):
    """Equal to the last bit, through all levels."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_runs(a, b):
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
    first, second = (load_checkpoint(folder / "checkpoint.ckpt") for folder in (a, b))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(first[part], second[part])


@pytest.fixture(scope="module")
def whole(few_images, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert fit(output, **RICH) == 0
    return output


@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_run_goes_on_from_any_step(whole, tmp_path, step):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    assert fit(tmp_path / "run", **RICH) == 0
    assert_same_runs(whole, tmp_path / "run")
