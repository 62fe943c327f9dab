import pytest
import torch

from localmix.tasks.engine.schedule import ByFactor, steps_down


def test_rates_follow_the_factor_and_keep_their_proportions():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 0.2, 0.4), strict=True)]
    groups[2]["lr_scale"] = 0.5
    schedule = ByFactor(torch.optim.AdamW(groups), lambda step: 1 / (1 + step))
    for step in (0, 1, 4):
        if step:
            schedule.step_update(step)
        rates = [group["lr"] for group in schedule.optimizer.param_groups]
        assert rates == pytest.approx([lr / (1 + step) for lr in (0.1, 0.2, 0.2)])


def test_the_step_is_all_the_state():
    schedule = ByFactor(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), lambda step: step + 1.0)
    assert schedule.state_dict() == {}


def test_drops_within_the_warmup_count_too():
    assert steps_down(1, drops=(1,), warmup_steps=2, start=0.0) == pytest.approx(0.05)
