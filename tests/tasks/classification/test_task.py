import types

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from torch.nn import functional as F

from localmix.tasks.classification.task import Classification
from localmix.tasks.engine.seeding import seed_generators

FACTS = {"model": "dwnet_nano", "classes": ["a", "b", "c"], "img_size": 16, "in_chans": 1, "mean": [0.0], "std": [1.0]}


def optimiser(steps=100, epochs=10, images=None, **options):
    task = Classification(**FACTS, **options)
    task.images_per_step = images
    task.trainer = types.SimpleNamespace(
        estimated_stepping_batches=steps, max_epochs=epochs, precision_plugin=None, world_size=1
    )
    (optimizer,), (schedule,) = task.configure_optimizers()
    return task, optimizer, schedule["scheduler"]


def test_rates_of_the_paper():
    """5e-4 x images/512 behind 20 of 300 epochs, from a thousandth of it, down to a hundredth of it."""
    _, optimizer, schedule = optimiser(
        steps=3000, epochs=300, images=1024, lr=5e-4, lr_batch_size=512, min_lr=5e-6, warmup_epochs=20
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 3001):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-6)
    assert rates[200] == max(rates) == pytest.approx(1e-3)
    assert rates[100] == pytest.approx((1e-6 + 1e-3) / 2)
    assert rates[1600] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] == min(rates[200:]) == pytest.approx(1e-5)


def test_scaled_rate_needs_the_images_of_a_step():
    with pytest.raises(ValueError, match="lr_batch_size: expected images_per_step"):
        optimiser(lr_batch_size=512)


def test_a_run_that_ends_in_its_warm_up_says_so(caplog):
    optimiser(steps=100, epochs=10, warmup_epochs=9)
    assert caplog.text == ""
    optimiser(steps=100, epochs=10, warmup_epochs=20)
    assert "the run of 100 steps ends in its warm-up of 200" in caplog.text


def test_nets_without_stochastic_depth_train_without_a_rate_of_it():
    facts = {**FACTS, "model": "densenet121", "in_chans": 3}
    assert Classification(**facts).net.num_classes == 3
    with pytest.raises(ValueError, match="model: densenet121 has no argument 'drop_path_rate'"):
        Classification(**facts, drop_path_rate=0.1)


def test_layers_in_front_learn_more_slowly():
    task, optimizer, _ = optimiser(layer_decay=0.5, warmup=0.0)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    net = task.net
    first, middle, last = net.patch_embed.proj.weight, net.stages[2].blocks[0].conv1.weight, net.head.fc.weight
    assert scale[id(last)] == 1.0
    assert scale[id(first)] < scale[id(middle)] < 1.0
    for group in optimizer.param_groups:
        assert all(group["weight_decay"] == 0 for p in group["params"] if p.ndim == 1)


def test_mixed_targets_are_those_of_timm():
    task = Classification(**FACTS, mixup=0.8)
    images, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    seed_generators(3)
    np.random.rand()
    share = np.random.beta(0.8, 0.8)
    mixed = images * share + images.flip(0) * (1 - share)
    targets = mixup_target(labels, 3, share, smoothing=0.1)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    expected = (-targets * F.log_softmax(task(mixed), 1)).sum(1).mean()
    seed_generators(3)
    torch.testing.assert_close(task.training_step((images.clone(), labels), 0), expected)


def test_loss_that_is_not_finite_reaches_the_gradient(monkeypatch):
    task = Classification(**FACTS)
    batch = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    loss = task.training_step(batch, 0)
    assert torch.equal(loss, task.loss(batch))
    monkeypatch.setattr(task.cross_entropy, "forward", lambda *given: F.cross_entropy(*given) + torch.inf)
    task.training_step(batch, 0).backward()
    assert torch.nn.utils.get_total_norm([p.grad for p in task.net.parameters()]).isnan()


def test_average_of_the_weights_lies_in_the_checkpoint_and_has_no_gradient():
    task = Classification(**FACTS, ema_decay=0.9)
    keys = task.state_dict().keys()
    assert {key.removeprefix("net.") for key in keys if key.startswith("net.")} == {
        key.removeprefix("ema.module.") for key in keys if key.startswith("ema.module.")
    }
    assert not any(p.requires_grad for p in task.ema.parameters())
    assert not task.ema.module.training
