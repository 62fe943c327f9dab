"""Tiles are measured once, remembered across processes, and the memory may be broken. No GPU: the clock is a fake."""

import json
import math

import pytest
import torch

from localmix.kernels import triton

if triton.MISSING:
    pytest.skip(triton.MISSING, allow_module_level=True)

from triton.runtime.errors import OutOfResources

from localmix.kernels.triton import tuning

X = torch.ones(2, 3, 5, 7)
PROBLEM = (X.shape, (3, 3), (1, 1))
MILLISECONDS = {(1, 4): 3.0, (2, 4): 1.0, (4, 4): 2.0}
CANDIDATES = list(MILLISECONDS)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What was measured, in order, as if on a GPU."""
    calls, last = [], []

    def clock(call):
        call()
        calls.append(last[-1])
        return MILLISECONDS[last[-1]]

    monkeypatch.setenv("LOCALMIX_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_remembered", {})
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "is_interpreted", lambda: False)
    monkeypatch.setattr(tuning, "_device_name", lambda x: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_milliseconds", clock)
    monkeypatch.setattr(tuning, "run", lambda *tile: last.append(tile), raising=False)
    torch.use_deterministic_algorithms(False)
    return calls


def choose(problem=PROBLEM, candidates=CANDIDATES, x=X):
    return tuning.choose("kernel", problem, candidates, tuning.run, x)


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
    def fails(call, **_):
        raise OutOfResources(2, 1, "shared memory")

    monkeypatch.setattr(tuning.triton.testing, "do_bench", fails)
    assert tuning._milliseconds(lambda: None) == math.inf


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
