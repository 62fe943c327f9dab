"""Tiles are measured once, remembered across processes, and the memory may be broken. No GPU: the clock is a fake."""

import concurrent.futures
import gc
import json
import logging
import math
import subprocess
import sys
import weakref

import pytest
import torch

from localmix.kernels import triton

if triton.MISSING:
    pytest.skip(triton.MISSING, allow_module_level=True)

from triton.runtime.errors import OutOfResources

from localmix.kernels.triton import compilation, tuning

X = torch.ones(2, 3, 5, 7)
PROBLEM = (X.shape, (3, 3), (1, 1))
MILLISECONDS = {(1, 4): 3.0, (2, 4): 1.0, (4, 4): 2.0}
CANDIDATES = list(MILLISECONDS)

ran = []
"""The tiles that ran, in order."""


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What was measured, in order, as if on a GPU."""
    calls = []

    def clock(call):
        call()
        calls.append(ran[-1])
        return MILLISECONDS[ran[-1]]

    monkeypatch.setenv("LOCALMIX_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_remembered", {})
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(
        compilation, "_cores", lambda: 1
    )  # with more, all are run once before, as test_compilation.py has it
    monkeypatch.setattr(tuning, "is_interpreted", lambda: False)
    monkeypatch.setattr(tuning, "_device_name", lambda x: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_milliseconds", clock)
    ran.clear()
    torch.use_deterministic_algorithms(False)
    return calls


def choose(problem=PROBLEM, candidates=CANDIDATES, x=X):
    return tuning.choose("kernel", problem, candidates, lambda *tile: ran.append(tile), x)


def forget():
    """As a new process begins."""
    tuning._remembered.clear()
    tuning._chosen.clear()


def test_takes_the_fastest_and_measures_once(measured, tmp_path):
    assert choose() == (2, 4)
    assert measured == CANDIDATES
    assert choose() == (2, 4)
    forget()
    assert choose() == (2, 4)
    assert measured == CANDIDATES
    (entry,) = json.loads((tmp_path / "tiles.json").read_text()).items()
    assert entry[1] == [2, 4]
    assert all(part in entry[0] for part in ("a GPU", torch.__version__, "float32"))
    assert [file.name for file in tmp_path.iterdir()] == ["tiles.json"]


def test_what_was_measured_is_logged_once(measured, caplog):
    caplog.set_level(logging.DEBUG, "localmix.kernels.triton.tuning")
    choose()
    choose()
    (line,) = caplog.messages
    assert line == (
        "kernel ((2, 3, 5, 7), (3, 3), (1, 1)) torch.float32 takes (2, 4), "
        "of [ms]: (1, 4) 3.0000, (2, 4) 1.0000, (4, 4) 2.0000"
    )


def test_another_problem_dtype_or_device_is_measured_again(measured, monkeypatch):
    choose()
    choose(((2, 4, 8, 7), (3, 3), (1, 1)))  # the same within a factor of two
    assert len(measured) == len(CANDIDATES)
    for number, again in enumerate(
        [
            lambda: choose(((2, 3, 9, 7), (3, 3), (1, 1))),
            lambda: choose(((2, 3, 5, 8), (3, 3), (1, 1))),
            lambda: choose((X.shape, (3, 5), (1, 1))),
            lambda: choose(x=X.half()),
            lambda: (forget(), monkeypatch.setattr(tuning, "_device_name", lambda x: "another"), choose()),
        ],
        start=2,
    ):
        again()
        assert len(measured) == number * len(CANDIDATES)


def test_a_tile_that_is_no_candidate_any_more_is_forgotten(measured):
    choose()
    forget()
    assert choose(candidates=[(1, 4), (4, 4)]) == (4, 4)


def test_a_tile_that_was_no_candidate_yet_is_measured(measured):
    """The file may be of an older version."""
    assert choose(candidates=[(1, 4), (4, 4)]) == (4, 4)
    forget()
    assert choose() == (2, 4)
    forget()
    measured.clear()
    assert choose() == (2, 4)
    assert not measured


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 3', '{"a": 3}', "\x00\xff", '"text"'])
def test_a_broken_file_is_ignored_and_replaced(measured, tmp_path, content):
    (tmp_path / "tiles.json").write_bytes(content.encode("latin-1"))
    assert choose() == (2, 4)
    assert len(json.loads((tmp_path / "tiles.json").read_text())) == 1


def test_a_file_that_cannot_be_written_is_ignored(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCALMIX_CACHE", str(tmp_path / "file" / "below"))
    assert choose() == choose() == (2, 4)
    assert measured == CANDIDATES


def test_a_full_disk_leaves_no_file(measured, tmp_path, full_disk):
    with full_disk(1):
        assert choose() == (2, 4)
    assert not list(tmp_path.iterdir())


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCALMIX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning._file() == tmp_path / "localmix" / "tiles.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning._file() == tmp_path / ".cache" / "localmix" / "tiles.json"


@pytest.mark.parametrize("case", ["interpreter", "deterministic", "captured", "only one"])
def test_not_measured(measured, monkeypatch, tmp_path, case):
    if case == "interpreter":
        monkeypatch.setattr(tuning, "is_interpreted", lambda: True)
    if case == "deterministic":
        torch.use_deterministic_algorithms(True)
    if case == "captured":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(candidates=CANDIDATES[: 1 if case == "only one" else 3]) == (1, 4)
    assert not measured
    assert not list(tmp_path.iterdir())


def test_a_tile_that_does_not_fit_the_gpu_is_never_the_fastest(monkeypatch):
    def fails(call):
        raise OutOfResources(2, 1, "shared memory")

    monkeypatch.setattr(tuning.clock, "milliseconds", fails)
    assert tuning._milliseconds(lambda: None) == math.inf


def test_what_memory_was_too_short_for_is_left_out_by_this_process_alone(measured, monkeypatch, tmp_path):
    def clock(call):
        call()
        if ran[-1] == (2, 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return MILLISECONDS[ran[-1]]

    enough = tuning._milliseconds
    monkeypatch.setattr(tuning, "_milliseconds", clock)
    assert choose() == choose() == (4, 4)
    assert len(ran) == len(CANDIDATES)
    assert not list(tmp_path.iterdir())
    forget()
    monkeypatch.setattr(tuning, "_milliseconds", enough)
    assert choose() == (2, 4)


def test_memory_that_is_short_is_not_taken_for_a_tile_that_does_not_compile(monkeypatch):
    def fails(call):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning.clock, "milliseconds", fails)
    with pytest.raises(torch.OutOfMemoryError):
        tuning._milliseconds(lambda: None)


class Kernel:
    """What Triton's launcher gives: a call compiles and runs, what was compiled runs without Triton's launcher."""

    def __init__(self):
        self.compiled, self.direct = [], []

    def __getitem__(self, grid):
        def launch(*values, **options):
            self.compiled.append((grid, options))
            return {(*grid, 1, 1): lambda *values: self.direct.append((grid, values))}

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(tuning, "_compiled", {})
    monkeypatch.setattr(torch.version, "hip", None)
    return Kernel()


def test_a_kernel_that_was_launched_alike_needs_no_launcher(kernel):
    for scale in (0.5, 0.25):
        other = torch.zeros(4)
        tuning.launch(kernel, 3, (X, other, 7, scale), (2,), (True, "ieee"), 4)
    assert kernel.compiled == [((3,), {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True})]
    ((grid, values),) = kernel.direct
    assert grid == (3,)
    assert values[0] is X
    assert values[1] is other
    assert values[2:] == (7, 0.25, 2, True, "ieee")


def test_whatever_triton_compiles_for_is_told_apart(kernel):
    def launch(x=X, *, programs=3, number=7, stride=2, constant="ieee", warps=4, stages=2, launched=kernel):
        tuning.launch(launched, programs, (x, number), (stride,), (constant,), warps, stages)

    another = Kernel()
    cases = [
        {},
        {"x": X.half()},
        {"x": torch.ones(9)[1:]},  # no longer aligned
        {"programs": 4},
        {"number": 8},
        {"stride": 16},
        {"constant": "tf32"},
        {"warps": 8},
        {"stages": 1},
    ]
    for case in cases:
        launch(**case)
    launch(launched=another)
    assert (len(kernel.compiled), len(another.compiled)) == (len(cases), 1)
    assert not kernel.direct
    for case in cases:
        launch(**case)
    assert len(kernel.direct) == len(kernel.compiled) == len(cases)


def test_launches_of_ever_more_sizes_do_not_pile_up(kernel, monkeypatch):
    monkeypatch.setattr(tuning, "_MOST_KEPT", 8)
    for programs in range(30):
        tuning.launch(kernel, programs, (X,), (), (), 4)
        assert len(tuning._compiled) <= 8


def test_what_the_interpreter_runs_is_not_kept(monkeypatch):
    class Interpreted:
        calls = 0

        def __getitem__(self, grid):
            def launch(*values, **options):
                Interpreted.calls += 1

            return launch

    interpreted = Interpreted()
    for _ in range(2):
        tuning.launch(interpreted, 1, (X,), (), (), 4)
    assert Interpreted.calls == 2


def test_a_choice_is_found_again_without_rounding(measured, monkeypatch):
    assert choose() == (2, 4)
    monkeypatch.setattr(tuning, "_rounded", lambda problem: pytest.fail("looked up again"))
    assert choose() == (2, 4)
    assert measured == CANDIDATES


OUTPUT = ((2, 3), torch.float16)


@pytest.fixture
def plan(kernel, measured, monkeypatch):
    """A plan of a kernel with three tiles, which counts how often it is made."""

    def plan(tensors, *options):
        made.append(options)

        def launch(rows, warps):
            ran.append((rows, warps))
            shape = tensors[0].shape
            return tuning.Launch(kernel, 3 * rows, (*shape, rows), ("ieee",), warps, results=[OUTPUT, OUTPUT])

        return tuning.Plan("kernel", PROBLEM, CANDIDATES, launch)

    made = plan.made = []
    monkeypatch.setattr(tuning, "_ready", {})
    return plan


def test_a_plan_is_made_once_and_runs_with_the_tensors_of_each_call(plan, kernel):
    first = tuning.run(plan, (X, X), (0.5,), (7, 7), True)
    assert plan.made == [((7, 7), True)]
    assert [(result.shape, result.dtype) for result in first] == 2 * [OUTPUT]
    other = torch.zeros_like(X)
    second = tuning.run(plan, (X, other), (0.25,), (7, 7), True)
    assert len(plan.made) == 1
    assert second[0] is not first[0]
    grid, values = kernel.direct[-1]
    # the fastest of three tiles
    assert grid == (6,)
    assert all(a is b for a, b in zip(values, (X, other, *second), strict=False))
    assert values[4:] == (0.25, *X.shape, 2, "ieee")


@pytest.fixture
def settings():
    """Sets what the user may ask of all operators; at the end all is as before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32

    def apply(deterministic, allow_tf32):
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32

    yield apply
    apply(*before)


def test_plans_are_made_for_all_that_they_are_made_of(plan, settings):
    def another(tensors, *options):
        return plan(tensors, *options)

    cases = [
        {},
        {"plan": another},
        {"options": (8,)},
        {"x": X.half()},
        {"x": X[:1]},
        {"x": X.transpose(1, 2).contiguous().transpose(1, 2)},
        {"x": torch.zeros(X.numel() + 1)[1:].view(X.shape)},  # no longer aligned
        {"y": X.half()},
        {"x": X.to("meta")},  # of all devices the one that is everywhere
        {"deterministic": True},
        {"allow_tf32": True},
    ]

    def call(plan=plan, x=X, y=X, options=(7,), deterministic=False, allow_tf32=False):
        settings(deterministic, allow_tf32)
        return tuning.run(plan, (x, y), (), *options)

    for number, case in enumerate(cases, start=1):
        call(**case)
        assert len(plan.made) == number, case
    for case in cases:
        call(**case)
    assert len(plan.made) == len(cases)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("torch.backends.cuda.matmul.allow_tf32 = True", "tf32"),
        ('torch.set_float32_matmul_precision("high")', "tf32"),
        ('torch.backends.cuda.matmul.fp32_precision = "tf32"', "tf32"),
        ('torch.backends.fp32_precision = "tf32"', "tf32"),
        ('torch.backends.cuda.matmul.fp32_precision = "ieee"', "ieee"),
        ("pass", "ieee"),
    ],
)
def test_float32_is_rounded_as_it_is_asked_for_in_any_way(setting, expected):
    """In a process of its own: one way raises what another has set."""
    script = f"""
import torch
from localmix.kernels.triton import tuning
{setting}
x = torch.ones(1)
assert (tuning.dot_precision(x), tuning.dot_precision(x.half())) == ("{expected}", "ieee")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_the_tile_of_a_captured_graph_is_not_kept(plan, kernel, monkeypatch):
    """It is the first, since nothing can be measured in a capture."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tuning.run(plan, (X,), ())
    assert ran == [(1, 4)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuning.run(plan, (X,), ())
    assert ran[1:] == [*CANDIDATES, (2, 4)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tuning.run(plan, (X,), ())
    assert kernel.direct[-1][0] == (6,)
    assert len(plan.made) == 2


def test_plans_of_ever_more_sizes_do_not_pile_up(plan, monkeypatch):
    monkeypatch.setattr(tuning, "_MOST_KEPT", 8)
    for size in range(30):
        tuning.run(plan, (X,), (), size)
        assert len(tuning._ready) <= 8


def test_what_was_made_ready_keeps_no_tensor_alive(plan, kernel):
    x = torch.ones(4)
    tuning.run(plan, (x,), ())
    kernel.direct.clear()
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_threads_that_meet_at_a_new_plan_get_their_own_results(plan):
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda number: tuning.run(plan, (X,), (), number // 20), range(200)))
    assert len({result[0].data_ptr() for result in results}) == len(results)
    assert len(tuning._ready) == 10
