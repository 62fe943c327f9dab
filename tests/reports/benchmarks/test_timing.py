import time

import pytest
import torch

from localmix.reports.benchmarks.timing import peak_bytes, spread, take_turns, times_as_fast


def test_passes_take_turns():
    calls = []
    ticks = []
    passes = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = take_turns(passes, rounds=4, seconds=0.0, tick=lambda: ticks.append(None))
    # two calls of each to warm up and to count repeats, then rounds
    assert calls == [*"aabbcc", *"abc" * 4]
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(ticks) == 12


def test_a_turn_is_filled_and_gives_the_time_of_one_call():
    calls = []
    times = take_turns({"a": lambda: (calls.append(None), time.sleep(2e-3))}, rounds=3, seconds=0.02)
    assert len(calls) > 3 * 4
    assert all(2e-3 <= value < 2e-2 for value in times["a"])


def test_a_turn_of_several_calls_finds_the_caches_as_its_pass_leaves_them(monkeypatch):
    clock, calls = [0.0], [""]

    def run(name):
        clock[0] += 1.0 if calls[-1] == name else 10.0
        calls.append(name)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    times = take_turns({name: lambda name=name: run(name) for name in "ab"}, rounds=3, seconds=5.0)
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_percentiles():
    assert spread([0.005, 0.001, 0.002, 0.004, 0.003, 0.006]) == pytest.approx((0.002, 0.0035, 0.005))
    assert spread([0.1]) == pytest.approx((0.1, 0.1, 0.1))


def test_a_disturbance_that_meets_both_leaves_the_ratio():
    quiet, disturbed = [1.0, 1.0, 1.0], [2.0, 8.0, 2.0]
    assert times_as_fast(quiet, [2 * t for t in quiet]) == 2
    assert times_as_fast(disturbed, [2 * t for t in disturbed]) == 2


def test_peak_bytes():
    two, three = 2 * 4000, 3 * 4000
    assert two <= peak_bytes(lambda: torch.zeros(1000).neg().neg().neg()) < two + 100
    assert three <= peak_bytes(lambda: [torch.zeros(1000) for _ in range(3)]) < three + 100
