"""The clock by which tiles are chosen, on a GPU that is a queue: what Python starts too late leaves it idle."""

import itertools
import time

import pytest
import torch

from localmix.kernels import triton

if triton.MISSING:
    pytest.skip(triton.MISSING, allow_module_level=True)

from localmix.kernels.triton import clock

CLEARING = 9e-5


class Queue:
    """Of a GPU: `python` is the time now, `gpu` that at which it has done all that was started [s]."""

    def __init__(self):
        self.python = self.gpu = 0.0
        self.cleared = 0

    def start(self, seconds, starting):
        self.python += starting
        self.gpu = max(self.gpu, self.python) + seconds

    def zero_(self):
        self.cleared += 1
        self.start(CLEARING, 5e-6)

    def wait(self):
        self.python = max(self.python, self.gpu)


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = max(queue.python, queue.gpu)

        def synchronize(self):
            queue.wait()

        def elapsed_time(self, other):
            return 1e3 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", queue.wait)
    monkeypatch.setattr(clock, "_piece_bytes", lambda: 2**20)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: queue)
    monkeypatch.setattr(time, "perf_counter", lambda: queue.python)
    return queue


@pytest.mark.parametrize("launches", [1, 10, 200])
@pytest.mark.parametrize("seconds", [2e-6, 1e-3])
def test_what_python_takes_to_start_a_call_does_not_count(queue, launches, seconds):
    def call():
        for _ in range(launches):
            queue.start(seconds, 4e-5)

    assert clock.milliseconds(call) == pytest.approx(1e3 * launches * seconds)


def test_every_call_comes_after_the_cache_was_cleared_and_not_too_often(queue):
    cleared = []

    def call():
        cleared.append(queue.cleared)
        queue.start(1e-6, 1e-5)

    clock.milliseconds(call)
    # after the first, which may compile, and the one whose start is timed
    counts = [after - before for before, after in itertools.pairwise(cleared[2:])]
    assert len(counts) <= 50
    assert min(counts) >= 1
    assert queue.gpu < 0.1


def test_the_median_leaves_out_a_disturbance(queue):
    durations = iter([1e-3] * 5 + [1.0] + [1e-3] * 100)

    def call():
        queue.start(next(durations), 1e-5)

    assert clock.milliseconds(call) == pytest.approx(1.0)
