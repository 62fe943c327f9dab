"""How kernels are launched, and which tile sizes they take: measured once per shape, and remembered across processes.

The file is `tiles.json` in `LOCALMIX_CACHE`, or in `localmix` under the user's cache directory. It may be deleted at
any time, and where it cannot be read or written the tiles are measured once per process. What was measured is logged at
level DEBUG.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from localmix.kernels.triton import clock
from localmix.kernels.triton.compilation import compile_together, is_noted
from localmix.writing import write_atomically

Tile = tuple[int, ...]

_log = logging.getLogger(__name__)

_remembered: dict[tuple[Any, ...], Tile] = {}
_chosen: dict[tuple[Any, ...], Tile] = {}
_compiled: dict[tuple[Any, ...], Callable[..., None]] = {}
_ready: dict[tuple[Any, ...], _Ready] = {}

_MOST_KEPT = 4096
"""Launches and choices that are kept at most, of so many sizes of maps: a few hundred bytes each."""


class Launch(NamedTuple):
    """All that a kernel is launched with but its tensors and floats.

    Its arguments are tensors, results, floats, `integers` and `constants`, in that order.

    Args:
        kernel: a function that Triton compiles.
        programs: their number.
        integers: sizes and strides.
        constants: what the kernel is compiled for.
        warps: of a program.
        stages: how many steps of a loop with a matrix product have their data in shared memory at a time.
        registers: that a thread has at most, or None, as in `launch`.
        results: shapes and dtypes of the tensors that it writes.
        prepare: makes of the tensors those that the kernel takes, if they are not the same.
    """

    kernel: Any
    programs: int
    integers: Sequence[int]
    constants: Sequence[Any]
    warps: int
    stages: int = 2
    registers: int | None = None
    results: Sequence[tuple[Sequence[int], torch.dtype]] = ()
    prepare: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None


class Plan(NamedTuple):
    """A problem, the tiles that may solve it, and how each does: name, problem and tiles as in `choose`."""

    name: str
    problem: tuple[Any, ...]
    tiles: Sequence[Tile]
    launch: Callable[..., Launch]


class _Ready(NamedTuple):
    """A launch that was compiled."""

    run: Callable[..., None]
    results: Sequence[tuple[Sequence[int], torch.dtype]]
    numbers: tuple[Any, ...]
    prepare: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None


def run(plan: Callable[..., Plan], tensors: Sequence[Tensor], floats: Sequence[float], *options: Any) -> list[Tensor]:
    """Runs the kernel that `plan(tensors, *options)` describes; gives the results that it writes.

    A plan is made once for all calls that are alike, as it may take longer than a small map. So it is a function of the
    options, which can be hashed, and of the shapes, strides and dtypes of the tensors and whether they lie at multiples
    of 16 bytes; numbers that may differ at every call are floats.
    """
    x = tensors[0]
    key = (
        *(plan, options, x.device, dot_precision(x), torch.are_deterministic_algorithms_enabled()),
        *[(t.dtype, t.shape, t.stride(), t.data_ptr() % 16 == 0) for t in tensors],
    )
    ready = _ready.get(key)
    if ready is None:
        return _run_first(key, plan(tensors, *options), tensors, floats)
    results = _empty(x, ready.results)
    if ready.prepare is not None:
        tensors = ready.prepare(tensors)
    with torch.cuda.device_of(x):
        ready.run(*tensors, *results, *floats, *ready.numbers)
    return results


def _run_first(key: tuple[Any, ...], plan: Plan, tensors: Sequence[Tensor], floats: Sequence[float]) -> list[Tensor]:
    x = tensors[0]

    def run_tile(*tile: int) -> tuple[Launch, list[Tensor], Callable[..., None] | None]:
        it = plan.launch(*tile)
        results = _empty(x, it.results)
        inputs = (*(tensors if it.prepare is None else it.prepare(tensors)), *results, *floats)
        options = (it.integers, it.constants, it.warps, it.stages, it.registers)
        return it, results, launch(it.kernel, it.programs, inputs, *options)

    it, results, compiled = run_tile(*choose(plan.name, plan.problem, plan.tiles, run_tile, x))
    # while a graph is captured the tile is not the measured one
    if compiled is not None and not torch.cuda.is_current_stream_capturing():
        shapes = [(tuple(shape), dtype) for shape, dtype in it.results]
        _keep(_ready, key, _Ready(compiled, shapes, (*it.integers, *it.constants), it.prepare))
    return results


def _empty(x: Tensor, results: Sequence[tuple[Sequence[int], torch.dtype]]) -> list[Tensor]:
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in results]


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, as `TRITON_INTERPRET` asks when the kernels are loaded."""
    return not isinstance(_probe, triton.runtime.JITFunction)


def launch(
    kernel: Any,
    programs: int,
    inputs: Sequence[Any],
    strides: Sequence[Any],
    constants: Sequence[Any],
    warps: int,
    stages: int = 2,
    registers: int | None = None,
) -> Callable[..., None] | None:
    """Runs `programs` programs of a kernel on the device of its first input.

    Gives what runs it again with inputs, strides and constants, on the current device and without a check; None where
    there is no such thing, as in the interpreter.

    Args:
        kernel: a function of inputs, strides and constants, in that order.
        programs: their number.
        inputs: tensors and numbers, the first one a tensor.
        strides: numbers too.
        constants: what the kernel is compiled for.
        warps: of a program.
        stages: how many steps of a loop with a matrix product have their data in shared memory at a time.
        registers: that a thread has at most, for more threads at a time. Only NVIDIA's compiler is told.
    """
    # Triton finds the compiled kernel of a launch in 0.02 ms; here it is found by all that Triton makes constants of:
    # dtype and alignment of a tensor, an integer itself, of a float nothing
    kinds = [
        (v.dtype, v.data_ptr() % 16 == 0) if isinstance(v, Tensor) else float if isinstance(v, float) else v
        for v in inputs
    ]
    key = (id(kernel), programs, warps, stages, registers, inputs[0].device, *kinds, *strides, *constants)
    run = _compiled.get(key)
    with torch.cuda.device_of(inputs[0]):
        if run is not None:
            run(*inputs, *strides, *constants)
            return run
        options = options_of(warps, stages, registers)
        arguments = (*inputs, *strides, *constants)
        if is_noted(key, kernel, programs, arguments, options):
            return None
        compiled = kernel[(programs,)](*arguments, **options)
    if compiled is None or torch.version.hip:  # an AMD kernel depends on the size of the memory too
        return None
    run = compiled[(programs, 1, 1)]
    _keep(_compiled, key, run)
    return run


def options_of(warps: int, stages: int = 2, registers: int | None = None) -> dict[str, Any]:
    """All that Triton's compiler is asked for beside the arguments of a kernel."""
    # fused multiply-adds are named because Triton is about to change its default
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if registers is not None and not torch.version.hip:
        options["maxnreg"] = registers
    return options


def choose(name: str, problem: tuple[Any, ...], candidates: Sequence[Tile], run: Callable[..., Any], x: Tensor) -> Tile:
    """The fastest of some tiles for a kernel and a problem on the device of x.

    Not measured, so the first one: in the interpreter, while a CUDA graph is captured, and where deterministic
    algorithms are asked for, since another tile sums in another order.
    """
    if is_interpreted() or len(candidates) == 1 or torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    exactly = (name, *_plain(problem), x.dtype, x.device)
    tile = _chosen.get(exactly)
    if tile is None or tile not in candidates:
        tile = _fastest(name, problem, candidates, run, x)
        if tile is None:
            return candidates[0]
        _keep(_chosen, exactly, tile)
    return tile


def _fastest(
    name: str, problem: tuple[Any, ...], candidates: Sequence[Tile], run: Callable[..., Any], x: Tensor
) -> Tile | None:
    """None while a CUDA graph is captured, and where no candidate runs: the launch of the first one will say why."""
    key = (name, *_rounded(problem), x.dtype, x.device)
    if key not in _remembered:
        # in the file, what tells GPUs and compilers apart too, and what a version of this package could choose from
        versions = (torch.__version__, triton.__version__)
        entry = json.dumps([str(part) for part in (*key[:-1], _device_name(x), *versions, candidates)])
        tile = _read().get(entry)
        if tile not in candidates:
            if torch.cuda.is_current_stream_capturing():
                return None
            with torch.cuda.device_of(x):
                milliseconds, is_short = _measure(candidates, run)
            tile = min(milliseconds, key=milliseconds.__getitem__)
            times = ", ".join(f"{tile} {ms:.4f}" for tile, ms in milliseconds.items())
            _log.debug("%s %s %s takes %s, of [ms]: %s", name, _plain(problem), x.dtype, tile, times)
            if math.isinf(milliseconds[tile]):
                return None
            if not is_short:  # of memory: another process may have enough for what could not be measured
                _write(entry, tile)
        _remembered[key] = tile
    return _remembered[key]


def _measure(candidates: Sequence[Tile], run: Callable[..., Any]) -> tuple[dict[Tile, float], bool]:
    """Milliseconds of each, forever if it fails, and whether one lacked memory."""
    calls = {candidate: functools.partial(run, *candidate) for candidate in candidates}
    compile_together(list(calls.values()))
    milliseconds, is_short = {}, False
    for candidate, call in calls.items():
        try:
            milliseconds[candidate] = _milliseconds(call)
        except torch.OutOfMemoryError as error:
            _log.warning("a candidate for a tile is left out for want of memory: %s", error)
            milliseconds[candidate], is_short = math.inf, True
    return milliseconds, is_short


def cdiv(number: int, by: int) -> int:
    """`number / by`, rounded up. Triton has this too, for the device, and takes a launch's time to compute it here."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The smallest power of two of at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()


def integers_up_to(largest: int) -> tl.dtype:
    """The type of offsets that reach so far: 64 bits are twice the registers and instructions."""
    return tl.int64 if largest >= 2**31 else tl.int32


def is_hopper(x: Tensor) -> bool:
    """Whether x is on a GPU of NVIDIA's generation 9, whose matrix units work beside the other ones of four warps."""
    return x.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(x.device)[0] == 9


def has_matrix_units(x: Tensor) -> bool:
    """Whether x is of 16 bits, and on a GPU of NVIDIA's whose matrix units take such factors; the interpreter does."""
    if x.element_size() != 2 or torch.version.hip:
        return False
    return not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] >= 8


def num_multiprocessors(x: Tensor) -> int:
    """Of the GPU of x; of an H100 where it is on none."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 132


def dot_dtype(x: Tensor) -> tl.dtype:
    """In what dtype factors of a matrix product are: that of x, but the interpreter knows no bfloat16 products."""
    if is_interpreted():
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype]


def dot_precision(x: Tensor) -> str:
    """How a matrix unit may round float32, as `torch.backends.cuda.matmul.fp32_precision` has it.

    `allow_tf32` and `torch.set_float32_matmul_precision` set that too; the former raises where it was set otherwise.
    """
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _keep(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) >= _MOST_KEPT:
        memory.clear()
    memory[key] = value


def _milliseconds(call: Callable[[], Any]) -> float:
    """How long a GPU takes for a call; forever if it fails, so that what no compiler or GPU takes is not chosen.

    Raises:
        torch.OutOfMemoryError: memory is short for a moment.
    """
    try:
        return clock.milliseconds(call)
    except triton.runtime.errors.OutOfResources:
        return math.inf
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises
        _log.warning("a candidate for a tile is left out: %s: %s", type(error).__name__, error)
        return math.inf


def _plain(problem: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(tuple, problem))


def _rounded(problem: tuple[Any, ...]) -> tuple[Any, ...]:
    """Maps within a factor of two share a tile, so that maps of many sizes do not measure without end."""
    (*sizes, channels), *rest = problem
    return (*((size - 1).bit_length() for size in sizes), channels, *_plain(rest))


def _device_name(x: Tensor) -> str:
    return torch.cuda.get_device_name(x.device)


def _file() -> Path:
    directory = os.environ.get("LOCALMIX_CACHE")
    if directory:
        return Path(directory) / "tiles.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localmix" / "tiles.json"


def _read() -> dict[str, Tile]:
    try:
        entries = json.loads(_file().read_text())
        return {key: tuple(tile) for key, tile in entries.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, TypeError):
        return {}


def _write(key: str, tile: Tile) -> None:
    """Adds an entry; another process sees the file before or after, never half of it."""
    content = json.dumps({**_read(), key: tile}).encode()
    with suppress(OSError, RuntimeError):
        write_atomically(_file(), lambda file: file.write(content))


@triton.jit
def _probe():
    pass
