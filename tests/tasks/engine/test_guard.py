"""The guard where float16 is scaled; without: on whole runs, in tests/reports/training/test_fit.py."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from localmix.tasks.classification.task import Classification
from localmix.tasks.engine.guard import Guard, NonFinite
from localmix.tasks.engine.record import Record
from localmix.tasks.engine.training import fit, loaders, new_task, new_trainer


def run(folder, images, scale, monkeypatch, poison=lambda step: False):
    """Six steps in float16; gives the guard, the scaler and the task."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = new_trainer(
        folder, accelerator="cpu", devices=1, max_epochs=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    task = new_task(Classification, {"model": "dwnet_nano", "ema_decay": 0.9}, images, seed=0)
    step = task.training_step

    def training_step(batch, batch_idx):
        images, labels = batch
        return step((images / 0 if poison(task.global_step) else images, labels), batch_idx)

    monkeypatch.setattr(task, "training_step", training_step)
    training, validation = loaders(images, 8, trainer=trainer, seed=0, augment=False, workers=0)
    record, guard = Record(folder, training.sampler, seed=0), Guard(folder, limit=2)
    trainer.callbacks += [record, guard]
    fit(trainer, task, training, validation, None, contexts=[record])
    return guard, scaler, task


def test_the_search_for_a_scale_is_no_failure(few_images, tmp_path, monkeypatch):
    before = new_task(Classification, {"model": "dwnet_nano", "ema_decay": 0.9}, few_images, seed=0).state_dict()
    guard, scaler, task = run(tmp_path, few_images, 2.0**40, monkeypatch)
    assert guard.skipped == 6 and guard.failures == 0
    assert scaler.get_scale() == 2.0**34
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_steps_are_taken_at_the_right_scale(few_images, tmp_path, monkeypatch):
    before = new_task(Classification, {"model": "dwnet_nano", "ema_decay": 0.9}, few_images, seed=0).state_dict()
    guard, scaler, task = run(tmp_path, few_images, 2.0**8, monkeypatch)
    assert guard.skipped == 0 and scaler.get_scale() == 2.0**8
    assert not torch.equal(task.net.head.fc.weight, before["net.head.fc.weight"])


def test_a_loss_that_is_not_finite_is_a_failure_at_any_scale(few_images, tmp_path, monkeypatch):
    with pytest.raises(NonFinite, match="2 times in a row, up to step 3"):
        run(tmp_path, few_images, 2.0**8, monkeypatch, poison=lambda step: step >= 1)
