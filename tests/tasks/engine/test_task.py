import copy

import pytest
import torch

from localmix.tasks.classification.task import Classification
from localmix.tasks.engine.record import Record
from localmix.tasks.engine.training import fit, loaders, new_task, new_trainer


def test_average_of_the_weights_follows_short_runs_and_is_the_definition(few_images, tmp_path, monkeypatch):
    """m_n = d m_(n-1) + (1 - d) w_n, d the decay or, where that is less, n / (n + 10), n the steps in front."""
    task = new_task(Classification, {"model": "dwnet_nano", "lr": 1e-2, "ema_decay": 0.2}, few_images, seed=0)
    start, after = copy.deepcopy(task.net.state_dict()), []
    step = task.optimizer_step

    def optimizer_step(*args, **kwargs):
        step(*args, **kwargs)
        after.append(copy.deepcopy(task.net.state_dict()))

    monkeypatch.setattr(task, "optimizer_step", optimizer_step)
    trainer = new_trainer(tmp_path, accelerator="cpu", devices=1, max_epochs=2)
    training, validation = loaders(few_images, 8, trainer=trainer, seed=0, workers=0)
    record = Record(tmp_path, training.sampler, seed=0)
    trainer.callbacks += [record]
    fit(trainer, task, training, validation, None, contexts=[record])
    assert len(after) == 6
    decays = [min(0.2, n / (n + 10)) for n in range(6)]
    assert decays == pytest.approx([0, 1 / 11, 1 / 6, 0.2, 0.2, 0.2])
    average = start
    for weights, decay in zip(after, decays, strict=True):
        average = {
            name: decay * value + (1 - decay) * weights[name] if value.is_floating_point() else weights[name]
            for name, value in average.items()
        }
    for name, value in task.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name], msg=name)
