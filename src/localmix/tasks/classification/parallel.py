"""Several training runs at a time, each in a process of its own with its share of the cores.

On a CPU a small net trains faster so than with all cores on one run, and far more steadily: threads of one run wait for
each other in every operation, so that one busy core stalls them all.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmix.tasks.classification.data import Images


@dataclass(frozen=True)
class Job:
    """The arguments of `train`, and the number of threads."""

    recipe: dict[str, Any]
    folder: Path
    epochs: int
    batch_size: int
    seed: int
    augment: bool
    device: str
    workers: int
    threads: int
    steps: int | None = None


class Events:
    """What happens to the jobs, by their place in the list; to be overridden."""

    def start(self, job: int) -> None:
        """A process takes up the job."""

    def step(self, job: int, done: int, total: int) -> None:
        """So many steps of the job are done."""

    def epoch(self, job: int, row: dict[str, float], seconds: float) -> None:
        """An epoch is over: its number, mean loss, val_loss and val_top1, and the seconds of the run up to here."""

    def end(self, job: int, result: dict[str, Any]) -> None:
        """The job is done; the result of `train`."""


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Those that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def prepare() -> None:
    """Begin to load, on another core, what the processes will need; this process can do the same meanwhile."""
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running

        with _ignored_interrupt():
            ensure_running()


def train_all(jobs: Sequence[Job], images: Images, *, processes: int, events: Events) -> None:
    """Train all jobs, up to `processes` at a time; one at a time runs in this process.

    Where there are several GPUs, each process has one of them.

    The processes import the script that calls this, so it needs the usual `if __name__ == "__main__":`.

    Raises:
        ChildProcessError: a process died.
        Exception: what a process raised; the others are ended, each can go on from its last checkpoint.
    """
    if processes == 1 or len(jobs) < 2:
        for index, job in enumerate(jobs):
            events.start(index)
            result = _train(
                job, images, lambda *a, i=index: events.step(i, *a), lambda *a, i=index: events.epoch(i, *a)
            )
            events.end(index, result)
        return
    waiting = list(enumerate(jobs))
    devices = gpus() if jobs[0].device == "cuda" else []
    with _pool(min(processes, len(jobs)), images, devices) as connections:
        busy = {}
        for connection in connections:
            busy[connection] = _give(connection, waiting, events)
        while busy:
            ready = wait(list(busy))
            for connection in [c for c in busy if c in ready]:
                index = busy[connection]
                try:
                    kind, values = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise ChildProcessError(f"the process that trained {jobs[index].folder} died") from None
                if kind == "error":
                    error, where = values
                    raise error from RuntimeError(where)
                getattr(events, kind)(index, *values)
                if kind == "end":
                    del busy[connection]
                    if waiting:
                        busy[connection] = _give(connection, waiting, events)


def _give(connection: Connection, waiting: list[tuple[int, Job]], events: Events) -> int:
    index, job = waiting.pop(0)
    connection.send(job)
    events.start(index)
    return index


@contextmanager
def _pool(processes: int, images: Images, devices: list[str]) -> Generator[list[Connection]]:
    """Connections to processes that train; they end with the context, or with this process."""
    context, pool, connections = _context(), [], []
    try:
        for number in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, images, _share(devices, number)))
            with _ignored_interrupt():
                process.start()
            there.close()
            pool.append(process)
            connections.append(here)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in pool:
            process.terminate()
            process.join()


def _share(devices: list[str], number: int) -> str | None:
    """The GPU of a process; None where there is no choice."""
    return devices[number % len(devices)] if len(devices) > 1 else None


def _context() -> Any:
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    # One import for all processes.
    context.set_forkserver_preload(["localmix.tasks.classification.training"])
    return context


@contextmanager
def _ignored_interrupt() -> Generator[None]:
    """Processes started here ignore Ctrl-C, which reaches them too: their parent ends them, silently."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _serve(connection: Connection, images: Images, gpu: str | None) -> None:
    """Train the jobs that come, and report. A parent that was killed is noticed at the next step, as a broken pipe."""
    if gpu is not None:
        # before CUDA is initialised, which reads it once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        while True:
            job = connection.recv()
            try:
                result = _train(
                    job,
                    images,
                    lambda *values: connection.send(("step", values)),
                    lambda *values: connection.send(("epoch", values)),
                )
            except (BrokenPipeError, EOFError):
                raise
            except Exception as error:
                connection.send(("error", (error, traceback.format_exc())))
            else:
                connection.send(("end", (result,)))
    except (BrokenPipeError, EOFError):
        # Nobody listens any more. Not exit(): its clean-up may wait for the workers that load images.
        os._exit(1)


def _train(job: Job, images: Images, on_step: Callable[..., Any], on_epoch: Callable[..., Any]) -> dict[str, Any]:
    import torch

    from localmix.tasks.classification.training import train

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        arguments = {name: value for name, value in vars(job).items() if name != "threads"}
        return train(images=images, on_step=on_step, on_epoch=on_epoch, **arguments)
    finally:
        torch.set_num_threads(before)
        # Trainer and net refer to each other. Python looks for such so seldom that nets and optimisers of dozens of
        # runs were there at a time, in the memory of a GPU too.
        gc.collect()
