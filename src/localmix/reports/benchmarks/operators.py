"""`localmix bench ops`: each operator at the sizes of the networks, beside every other way to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch

from localmix import kernels
from localmix.arguments import choice, positive
from localmix.reports.benchmarks.contenders import Contender, own
from localmix.reports.benchmarks.gate import Call, reason, refusal
from localmix.reports.benchmarks.graph import Replay, stream_of_graphs
from localmix.reports.benchmarks.limits import measure
from localmix.reports.benchmarks.peers import PEERS, peers
from localmix.reports.benchmarks.problems import (
    DIRECTIONS,
    HEAD_DIM,
    KERNEL,
    NAMES,
    STAGES,
    Problem,
    Shape,
    cases,
    problem,
)
from localmix.reports.benchmarks.report import Report
from localmix.reports.benchmarks.rows import (
    DTYPES,
    Entry,
    best_of_cudnn,
    known,
    known_device,
    threads_of_cpu,
    timed_rows,
    turns,
)
from localmix.reports.benchmarks.timing import peak_bytes
from localmix.tasks.engine.output import output_folder

BATCH = {"cpu": 4, "cuda": 128}
"""Images of a call."""


def bench_operators(
    *,
    ops: Sequence[str] | None = None,
    stages: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    direction: Sequence[str] = DIRECTIONS,
    impls: Sequence[str] | None = None,
    kernel_size: int = KERNEL,
    bias: bool = True,
    graph: bool = False,
    rounds: int = 7,
    seconds: float = 0.01,
    threads: int | None = None,
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Time operators and their peers in turns, each only after its numbers were found right in this run.

    Args:
        ops: names in `localmix.reports.benchmarks.problems.NAMES`; by default all.
        stages: of the tiny networks at 224 pixels, 1 to 4; by default all.
        shape: H, W, C of one map, instead of `stages`; C is a multiple of 32.
        batch_size: images of a call; by default 4 on a CPU, 128 on a GPU.
        dtype: "float32", "bfloat16" or "float16".
        device: "auto", "cpu" or "cuda".
        direction: "forward", "backward" or both.
        impls: implementations of `localmix.kernels` and names in `localmix.reports.benchmarks.peers.PEERS`; by
            default all but the definition.
        kernel_size: taps along each axis of a kernel, and the side of a window; odd, as many peers know no other.
        bias: whether attention adds its bias. FlashAttention and NATTEN have none, and take part only without.
        graph: on a GPU, whether each pass is captured in a CUDA graph, whose replay is timed: the kernels without the
            time of starting them from Python. A contender that cannot be captured is refused.
        rounds: timed turns of each.
        seconds: least duration of a turn [s].
        threads: of the CPU; by default those of PyTorch.
        output: folder for results.json, table.md and figure.png. After Ctrl-C, SIGTERM or an error it has what was
            measured before; a process that is killed leaves results.json.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    names = [known("ops", name, NAMES) for name in dict.fromkeys(NAMES if ops is None else ops)]
    shapes = _shapes(stages, shape)
    directions = [choice("direction", name, DIRECTIONS) for name in dict.fromkeys(direction)]
    chosen = _implementations(impls)
    if positive("kernel_size", kernel_size) < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd int of at least 3, got {kernel_size}")
    device, kind = known_device(device), DTYPES[choice("dtype", dtype, tuple(DTYPES))]
    if graph and device != "cuda":
        raise ValueError(f"graph: expected device 'cuda', since only a GPU replays CUDA graphs, got {device!r}")
    batch_size = positive("batch_size", BATCH[device] if batch_size is None else batch_size)
    timing = turns(rounds, seconds)
    if output is not None:
        output_folder(output)
    # a graph that was kept has no buffers to give away
    with threads_of_cpu(threads), best_of_cudnn(), functorch.patch(donated_buffer=False):
        limits = measure(device, kind)
        settings = {
            "batch": batch_size,
            "kernel_size": kernel_size,
            "dtype": dtype,
            "bias": bias,
            "graph": graph,
            **timing,
        }
        stream = stream_of_graphs() if graph else nullcontext()
        with Report("operators", settings, device, limits, output) as report, stream:
            for name, size in report.track(cases(names, shapes, kernel_size)):
                this = problem(
                    name, size, batch=batch_size, kernel_size=kernel_size, dtype=kind, device=device, bias=bias
                )
                contenders = [c for c in (*own(this), *peers(this)) if c.name in chosen]
                report.leave_out({f"{c.name} of {name}": c.missing for c in contenders if c.missing})
                for way in directions:
                    entries = [_entry(c, this, way, graph) for c in contenders if not c.missing]
                    report.add(timed_rows(entries, limits, batch=batch_size, **timing))
                # what was compiled for this problem serves no other, and PyTorch keeps a few only
                torch.compiler.reset()
    return report.results


def _entry(contender: Contender, this: Problem, direction: str, graph: bool) -> Entry:
    call = Call(contender, this)
    dtype = str(this.dtype).removeprefix("torch.")
    size = "" if this.kernel_size == KERNEL else f", {this.kernel_size} x {this.kernel_size}"
    facts = {
        "group": f"{this.name} {' x '.join(map(str, this.shape))} {dtype}{size}, {direction}",
        "name": this.name,
        "shape": list(this.shape),
        "dtype": dtype,
        "direction": direction,
        "implementation": contender.name,
        "is_ours": contender.is_ours,
        "is_auto": contender.is_ours and contender.name == kernels.choose(this.operator, x=this.first),
    }
    entry = Entry(contender.name, facts, this.work(direction), call.forward, refusal(call, direction))

    def weigh() -> None:
        whole: Callable[[], Any] = call.forward
        if direction == "backward":
            gradient = call.gradient(this.gradient)
            entry.run, whole = partial(call.backward, gradient), partial(call.training, gradient)
        entry.peak_bytes = peak_bytes(whole, this.device)
        if graph:
            entry.run = Replay(entry.run)

    if entry.refused is None:
        # the last calls that may fail: with a graph of every other one kept, memory may be short
        entry.refused = reason(weigh)
    return entry


def _shapes(stages: Sequence[int] | None, shape: Sequence[int] | None) -> list[Shape]:
    if shape is None:
        numbers = tuple(STAGES) if stages is None else tuple(dict.fromkeys(stages))
        for number in numbers:
            if number not in STAGES:
                raise ValueError(f"stages: expected numbers among {', '.join(map(str, STAGES))}, got {number}")
        return [STAGES[number] for number in numbers]
    if stages is not None:
        raise ValueError("shape: expected either stages or shape, got both")
    if len(shape) != 3:
        raise ValueError(f"shape: expected H, W, C, got {list(shape)}")
    height, width, channels = (positive("shape", size) for size in shape)
    if channels % HEAD_DIM:
        raise ValueError(f"shape: expected C to be a multiple of {HEAD_DIM}, got {channels}")
    return [(height, width, channels)]


def _implementations(impls: Sequence[str] | None) -> list[str]:
    others = [name for group in PEERS.values() for name in group]
    if impls is None:
        return [*(name for name in kernels.IMPLEMENTATIONS if name != "reference"), *others]
    return [known("impls", name, dict.fromkeys((*kernels.IMPLEMENTATIONS, *others))) for name in impls]
