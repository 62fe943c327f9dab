import os
import resource
from contextlib import contextmanager

# Where a test names impl="triton" its kernels run on the CPU, in Triton's interpreter. Before Triton is loaded.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

# Workers of the test run share the cores, and sums are taken in one order.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """A test draws the same numbers whichever ran before it, in whichever process."""
    torch.manual_seed(0)


@pytest.fixture
def full_disk():
    """full_disk(size): a block in which no file gets more bytes than that, as where the disk is full."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Memory that nothing has written holds NaN, as it may on any other day."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.set_deterministic_debug_mode("error")
    assert torch.empty(3).isnan().all()
    yield
    torch.set_deterministic_debug_mode("default")
