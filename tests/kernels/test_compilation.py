"""The candidates of a problem are compiled by several threads before they are timed. No GPU: nothing is launched."""

import functools
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

from localmix.kernels import triton

if triton.MISSING:
    pytest.skip(triton.MISSING, allow_module_level=True)

from triton.runtime.errors import OutOfResources, PTXASError

from localmix.kernels.triton import compilation, tuning

X = torch.ones(2, 3, 5, 7)
PROBLEM = (X.shape, (3, 3), (1, 1))
TILES = [(1, 4), (2, 4), (4, 4)]
PATIENCE = 60
"""Seconds that threads wait for each other, at most."""


class Kernel:
    """As one of Triton's: `warmup` compiles, and so does a launch of what was not compiled. Keeps what happened."""

    def __init__(self):
        self.compiled, self.launched = [], []
        self.fails = {}
        self.meet = None

    def warmup(self, *values, grid, **options):
        if self.meet:
            self.meet(*values)
        self.compile(grid, values, options)

    def compile(self, grid, values, options):
        self.compiled.append((threading.current_thread().name, grid, values, options))
        if grid[0] in self.fails:
            raise self.fails[grid[0]]

    def __getitem__(self, grid):
        def launch(*values, **options):
            if (grid, options) not in [(grid, options) for _, grid, _, options in self.compiled]:
                self.compile(grid, values, options)
            if grid[0] in self.fails:
                raise self.fails[grid[0]]
            self.launched.append((grid, values, options))
            return {(*grid, 1, 1): lambda *values: self.launched.append((grid, values, options))}

        return launch

    def programs(self):
        return sorted(grid[0] for _, grid, _, _ in self.compiled)


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """On a machine of four cores with a GPU, whose clock is a fake: the tile (2, 4) is the fastest."""
    monkeypatch.setenv("LOCALMIX_CACHE", str(tmp_path))
    for memory in ("_remembered", "_chosen", "_compiled", "_ready"):
        monkeypatch.setattr(tuning, memory, {})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(compilation, "_cores", lambda: 4)
    monkeypatch.setattr(tuning, "is_interpreted", lambda: False)
    monkeypatch.setattr(tuning, "_device_name", lambda x: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    torch.use_deterministic_algorithms(False)
    kernel = Kernel()

    def clock(call):
        call()
        rows = kernel.launched[-1][0][0]
        return abs(rows - 2.0)

    monkeypatch.setattr(tuning.clock, "milliseconds", clock)
    return kernel


def run_tile(kernel, rows, warps, x=X):
    y = x.new_empty(x.shape)
    tuning.launch(kernel, rows, (x, y, 0.5), (7, 1), (rows, "ieee"), warps)
    return y


def choose(kernel, tiles=TILES, run=run_tile):
    return tuning.choose("kernel", PROBLEM, tiles, functools.partial(run, kernel), X)


def test_all_are_compiled_at_the_same_time_and_then_timed(kernel):
    barrier = threading.Barrier(len(TILES), timeout=PATIENCE)

    def meet(*_):
        assert not kernel.launched
        barrier.wait()

    kernel.meet = meet
    assert choose(kernel) == (2, 4)
    assert kernel.programs() == [1, 2, 4]
    assert all(name.startswith("localmix-compile") for name, *_ in kernel.compiled)
    assert [grid for grid, *_ in kernel.launched] == [(1,), (2,), (4,)]


def test_they_are_compiled_for_the_very_launch_that_follows(kernel):
    misaligned = torch.ones(X.numel() + 1)[1:].view(X.shape)
    choose(kernel, run=functools.partial(run_tile, x=misaligned))
    for _, grid, (x, y, *others), options in kernel.compiled:
        ((launched, launched_options),) = [(v, o) for g, v, o in kernel.launched if g == grid]
        assert (x.dtype, x.data_ptr()) == (torch.float32, misaligned.data_ptr())
        assert y.data_ptr() % 16 == launched[1].data_ptr() % 16 == 0
        assert tuple(others) == launched[2:]
        assert options == launched_options


@pytest.mark.parametrize("cores", [2, 100])
def test_as_many_threads_as_cores_but_no_more_than_the_most(kernel, monkeypatch, cores):
    monkeypatch.setattr(compilation, "_cores", lambda: cores)
    expected = min(cores, compilation._MOST_THREADS)
    barrier, arrivals = threading.Barrier(expected, timeout=PATIENCE), itertools.count()
    kernel.meet = lambda *_: barrier.wait() if next(arrivals) < expected else None
    tiles = [(rows, 4) for rows in range(1, 21)]
    assert choose(kernel, tiles) == (2, 4)
    assert kernel.programs() == list(range(1, 21))
    assert len({name for name, *_ in kernel.compiled}) == expected


def test_no_thread_is_left(kernel):
    before = threading.active_count()
    choose(kernel)
    assert threading.active_count() == before


def test_outputs_of_the_candidates_are_not_kept_while_they_are_compiled(kernel):
    outputs = []
    alive = []

    def run(kernel, rows, warps):
        outputs.append(weakref.ref(run_tile(kernel, rows, warps)))

    kernel.meet = lambda *_: alive.append([output() is not None for output in outputs])
    choose(kernel, run=run)
    assert alive == 3 * [[False, False, False]]


@pytest.mark.parametrize("case", ["one core", "AMD", "one kernel", "deterministic", "interpreter", "captured"])
def test_where_it_is_of_no_use_nothing_is_compiled_before_its_launch(kernel, monkeypatch, case):
    if case == "one core":
        monkeypatch.setattr(compilation, "_cores", lambda: 1)
    if case == "AMD":
        monkeypatch.setattr(torch.version, "hip", "6.4")
    if case == "one kernel":
        for tile in TILES[1:]:
            run_tile(kernel, *tile)
    if case == "deterministic":
        torch.use_deterministic_algorithms(True)
    if case == "interpreter":
        monkeypatch.setattr(tuning, "is_interpreted", lambda: True)
    if case == "captured":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernel.meet = lambda *_: pytest.fail("compiled before its launch")
    is_timed = case in ("one core", "AMD", "one kernel")
    assert choose(kernel) == ((2, 4) if is_timed else (1, 4))
    assert kernel.programs() == ([1, 2, 4] if is_timed else [])


def test_a_candidate_that_does_not_fit_the_gpu_is_left_out(kernel):
    kernel.fails = {2: OutOfResources(2, 1, "shared memory")}
    assert choose(kernel) == (1, 4)
    assert [grid for grid, *_ in kernel.launched] == [(1,), (4,)]


@pytest.mark.parametrize("error", [PTXASError("register allocation failed"), RuntimeError("PassManager::run failed")])
def test_a_candidate_that_does_not_compile_is_left_out(kernel, caplog, error):
    kernel.fails = {2: error}
    assert choose(kernel) == (1, 4)
    assert [grid for grid, *_ in kernel.launched] == [(1,), (4,)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"a candidate for a tile is left out: {type(error).__name__}: {error}"]


def test_where_no_candidate_compiles_the_launch_says_why_and_none_is_remembered(kernel, tmp_path):
    kernel.fails = dict.fromkeys((1, 2, 4), ValueError("no such layout"))
    tile = choose(kernel)
    assert tile == (1, 4)
    with pytest.raises(ValueError, match="no such layout"):
        run_tile(kernel, *tile)
    assert not list(tmp_path.iterdir())
    # what was short for a moment is there again
    kernel.fails = {}
    for memory in (tuning._chosen, tuning._remembered):
        assert not memory
    assert choose(kernel) == (2, 4)


def test_an_error_of_a_candidate_itself_leaves_no_launch_out(kernel):
    def run(kernel, rows, warps):
        run_tile(kernel, rows, warps)
        if rows == 2:
            raise MemoryError

    assert choose(kernel, run=run) == (1, 4)
    assert kernel.programs() == [1, 2, 4]
    # the next launch is one again
    run_tile(kernel, 8, 4)
    assert kernel.launched[-1][0] == (8,)


def test_launches_of_another_thread_are_not_left_out(kernel):
    def run(kernel, rows, warps):
        other = threading.Thread(target=run_tile, args=(kernel, 16 * rows, warps))
        other.start()
        other.join(PATIENCE)
        return run_tile(kernel, rows, warps)

    choose(kernel, TILES[:2], run)
    # each once more where a candidate is timed
    assert sorted(grid[0] for grid, *_ in kernel.launched) == [1, 2, 16, 16, 32, 32]


def compile_all():
    """Prints a line of JSON for each kernel that Triton compiles, and the thread that did it, and for each launch.

    In a process of its own, with a driver that says that there is an H100.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime import driver

    from localmix.kernels.triton import shared_weight, window_weight  # noqa: F401

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    found = []  # several threads print into each other's lines

    def load(kernel):
        kernel._run, kernel.function = lambda *_: found.append({"launched": kernel.hash}), None

    def listen(*, cache_hit, metadata, **_):
        if not cache_hit:
            found.append({"compiled": metadata["hash"], "by": threading.current_thread().name})

    driver.set_active(Driver())
    CompiledKernel._init_handles = load
    triton.knobs.compilation.listener = listen
    compilation._cores = lambda: 2
    tuning._milliseconds = lambda call: call() and 1.0
    tuning._device_name = lambda x: "an H100 that is none"
    torch.cuda.is_current_stream_capturing = lambda: False
    numbers = torch.empty(2 * 14 * 14 * 32 + 1, dtype=torch.float16)
    aligned, misaligned = numbers[:-1].view(2, 14, 14, 32), numbers[1:].view(2, 14, 14, 32)
    weight = aligned.new_empty(1, 4, 4)
    for x in (aligned, misaligned):
        tuning._remembered.clear()
        tuning._chosen.clear()
        torch.ops.localmix.triton_window_weight(x, weight, None, (2, 2), (0, 0))
        torch.ops.localmix.triton_shared_weight(x, x.new_empty(1, 32, 3, 3), None, (1, 1))
    for line in found:
        print(json.dumps(line))


def test_triton_finds_what_was_compiled_and_compiles_nothing_twice(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment["LOCALMIX_CACHE"] = os.devnull
    command = [sys.executable, str(Path(__file__))]
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    found = list(map(json.loads, lines))
    compiled = [line["compiled"] for line in found if "compiled" in line]
    assert len(compiled) == len(set(compiled)) >= 4
    assert all(line["by"].startswith("localmix-compile") for line in found if "by" in line), found
    assert {line["launched"] for line in found if "launched" in line} == set(compiled)


if __name__ == "__main__":
    compile_all()
