import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_day(poisoned_memory):
    torch.manual_seed(0)
