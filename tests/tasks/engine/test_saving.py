from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from localmix.tasks.engine.saving import Saving


@pytest.fixture
def best_after(tmp_path):
    """best_after(metrics): the epoch whose checkpoint is the best one after epochs that ended with these."""

    def run(metrics):
        record = SimpleNamespace(folder=tmp_path, epoch_ended=True, flush=lambda trainer: None)
        saving = Saving(record, keep=1, monitor="top1")
        (tmp_path / "checkpoints").mkdir()
        for epoch, metric in enumerate(metrics):
            trainer = SimpleNamespace(
                callback_metrics={"top1": torch.tensor(metric)},
                global_step=epoch,
                is_global_zero=True,
                save_checkpoint=lambda path, epoch=epoch: Path(path).write_text(str(epoch)),
            )
            saving.on_train_epoch_end(trainer, None)
        assert saving.best_step == int((tmp_path / "best.ckpt").read_text())
        return saving.best_step

    return run


@pytest.mark.parametrize(
    ("metrics", "best"),
    [
        ([0.1, 0.3, 0.2], 1),
        ([0.3, 0.3], 0),
        ([nan], 0),
        ([nan, 0.2, 0.1], 1),
        ([nan, nan, -inf, nan], 2),
        ([0.1, nan, 0.2], 2),
    ],
)
def test_the_highest_metric_makes_the_best_checkpoint_and_any_number_is_above_nan(best_after, metrics, best):
    assert best_after(metrics) == best
