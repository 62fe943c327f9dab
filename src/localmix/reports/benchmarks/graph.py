"""A pass as a CUDA graph: its kernels without the time that the processor takes to start them.

That is what a network gets from `torch.compile(mode="reduce-overhead")`, or from a CUDA graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3
"""Calls before the capture, in which all is set up that is set up once; as in `torch.cuda.make_graphed_callables`."""


@contextmanager
def stream_of_graphs() -> Generator[None]:
    """Within it all runs on a stream of its own, as a capture asks: the default one cannot be captured.

    A backward pass runs on the stream of its forward pass. So one that is captured alone was run forward on the stream
    of the capture too, and with leaves that no other stream has used. That holds if all of a benchmark is within.
    """
    outside, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


class Replay:
    """What runs the kernels of `run` again, captured on the current stream; `run` gives a tensor or several.

    It keeps `run` and its results, whose memory the kernels read and write.

    Raises:
        RuntimeError: `run` cannot be captured, or the graph does not write its results; says why.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.graph, stream = run, torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for _ in range(WARM_UPS):
            run()
        try:
            with torch.cuda.graph(self.graph, stream=stream):
                results = run()
        except Exception as error:
            # the end of a capture tells that it is broken, and what came before it why
            raise RuntimeError(f"no CUDA graph can be captured: {error.__context__ or error}") from error
        self.results = (results,) if isinstance(results, Tensor) else tuple(results)
        for result in self.results:
            result.fill_(torch.nan)
        self()
        if not all(bool(result.isfinite().all()) for result in self.results):
            raise RuntimeError("the CUDA graph does not hold all of its kernels: a replay leaves results unwritten")

    def __call__(self) -> None:
        self.graph.replay()
