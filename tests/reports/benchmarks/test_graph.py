"""Passes as CUDA graphs. There need be no GPU: graph and streams are fakes that note the order of all calls."""

import itertools
from contextlib import contextmanager

import pytest
import torch

from localmix.cli import main
from localmix.reports.benchmarks import contenders, operators
from localmix.reports.benchmarks.graph import WARM_UPS, Replay, stream_of_graphs
from localmix.reports.benchmarks.operators import bench_operators
from localmix.reports.benchmarks.problems import NAMES, problem

LOST = RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What is called, in order. A graph replays the passes that ran while it was captured."""

    class Log(list):
        capturing = None

    log, streams = Log(), []

    class Graph:
        captured = None

        def replay(self):
            log.append("replay")
            for run in self.captured:
                run(None)

    @contextmanager
    def graph(graph, stream):
        log.append(f"capture on {stream.name}")
        graph.captured = log.capturing = []
        try:
            yield
        except Exception as error:
            raise LOST from error
        finally:
            log.append("end")
            log.capturing = None

    @contextmanager
    def on(stream):
        log.append(f"enter {stream.name}")
        streams.append(stream)
        yield
        log.append(f"leave {streams.pop().name}")

    streams.append(Stream("default", log))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", on)
    numbers = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(f"side {next(numbers)}", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    return log


def launched(log, kernels):
    """A pass of some kernels; a replay runs those that a capture has seen."""

    def run():
        log.append("run")
        for kernel in kernels:
            kernel(log.capturing)
            if log.capturing is not None:
                log.capturing.append(kernel)
        return results

    results = (torch.zeros(3), torch.zeros(2, 2))
    return run, results


def test_a_pass_is_warmed_up_captured_where_it_runs_and_replayed(log):
    run, results = launched(log, [lambda _: results[0].fill_(1.0), lambda _: results[1].fill_(2.0)])
    with stream_of_graphs():
        replay = Replay(run)
        replay()
    assert log == [
        *("side 1 waits for default", "enter side 1"),
        *(["run"] * WARM_UPS),
        *("capture on side 1", "run", "end"),
        *("replay", "replay"),
        *("leave side 1", "default waits for side 1"),
    ]
    assert [float(result.sum()) for result in results] == [3.0, 8.0]
    assert replay.run is run
    assert all(a is b for a, b in zip(replay.results, results, strict=True))


def test_a_single_result(log):
    result = torch.zeros(2)
    run, _ = launched(log, [lambda _: result.fill_(1.0)])
    assert Replay(lambda: run() and result).results == (result,)


def test_what_cannot_be_captured_says_why(log):
    """The cause, not the end of the capture, which says only that there was one."""

    def kernel(capturing):
        if capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    run, _ = launched(log, [kernel])
    with pytest.raises(RuntimeError, match="no CUDA graph can be captured: CUDA error: operation not permitted"):
        Replay(run)
    assert "replay" not in log


def test_a_graph_without_all_kernels_is_refused(log):
    """As one whose backward pass ran on another stream: it would be very fast."""
    run, results = launched(log, [lambda _: results[0].fill_(1.0)])
    with pytest.raises(RuntimeError, match="a replay leaves results unwritten"):
        Replay(run)


class Taken:
    """A replay that takes part in turns, or cannot be captured."""

    error = None

    def __init__(self, run):
        self.results = run()
        if self.error:
            raise RuntimeError(self.error)

    def __call__(self):
        pass


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_pass_of_a_row_is_the_replay_of_what_is_timed_otherwise(monkeypatch, direction):
    monkeypatch.setattr(operators, "Replay", Taken)
    this = problem("depthwise_convolution", (5, 4, 32), batch=2)
    contender = next(c for c in contenders.own(this) if c.name == "aten")
    entry, plain = (operators._entry(contender, this, direction, graph) for graph in (True, False))
    assert entry.refused is None
    assert entry.peak_bytes > 0
    assert isinstance(entry.run, Taken) and not isinstance(plain.run, Taken)
    results, expected = entry.run.results, plain.run()
    torch.testing.assert_close(results, expected)
    assert isinstance(results, tuple) == (direction == "backward")


def test_a_contender_that_cannot_be_captured_is_refused_and_not_timed(monkeypatch):
    monkeypatch.setattr(operators, "Replay", type("Broken", (Taken,), {"error": "no CUDA graph can be captured: x\ny"}))
    this = problem("depthwise_convolution", (5, 4, 32), batch=2)
    contender = next(c for c in contenders.own(this) if c.name == "aten")
    entry = operators._entry(contender, this, "forward", True)
    assert entry.refused == "RuntimeError: no CUDA graph can be captured: x"


def test_a_contender_with_wrong_numbers_is_not_captured(monkeypatch):
    monkeypatch.setattr(operators, "Replay", lambda run: pytest.fail("captured"))
    this = problem("depthwise_convolution", (5, 4, 32), batch=2)
    contender = next(c for c in contenders.own(this) if c.name == "aten")
    wrong = contenders.replace(contender, run=lambda **tensors: 1 + contender.run(**tensors))
    assert "is over the budget" in operators._entry(wrong, this, "forward", True).refused


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_cpu_has_no_graphs(monkeypatch, capsys, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = "graph: expected device 'cuda', since only a GPU replays CUDA graphs, got 'cpu'"
    with pytest.raises(ValueError, match=message):
        bench_operators(ops=["local_mlp"], shape=(8, 9, 32), device=device, graph=True)
    assert main(["bench", "ops", "--graph", "--device", device]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("name", NAMES)
def test_our_kernels_are_captured_on_a_gpu(name):
    """And take part beside PyTorch's own, in both directions."""
    results = bench_operators(
        ops=[name], impls=["triton", "aten"], shape=(14, 14, 64), batch_size=2, device="cuda", graph=True, rounds=2
    )
    assert results["settings"]["graph"] is True
    ours = [row for row in results["rows"] if row["label"] == "triton"]
    assert [row["direction"] for row in ours] == ["forward", "backward"]
    assert [row["refused"] for row in ours] == [None, None]
    assert all(row["ms"]["p50"] > 0 for row in ours)
