"""How kernels are launched, and which tile sizes they take: measured once per shape, and remembered across processes.

The file is `tiles.json` in `LOCALMIX_CACHE`, or in `localmix` under the user's cache directory. It may be deleted at
any time, and where it cannot be read or written the tiles are measured once per process.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Tile = tuple[int, ...]

_remembered: dict[tuple[Any, ...], Tile] = {}
_chosen: dict[tuple[Any, ...], Tile] = {}
_compiled: dict[tuple[Any, ...], Callable[..., None]] = {}

_MOST_KEPT = 4096
"""Launches and choices that are kept at most, of so many sizes of maps: a few hundred bytes each."""


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
) -> None:
    """Runs `programs` programs of a kernel on the device of its first input.

    Args:
        kernel: a function of inputs, strides and constants, in that order.
        programs: their number.
        inputs: tensors and numbers, the first one a tensor.
        strides: numbers too.
        constants: what the kernel is compiled for.
        warps: of a program.
        stages: how many steps of a loop with a matrix product have their data in shared memory at a time.
        registers: of a thread at most, on GPUs of NVIDIA's generation 9 (Hopper), for which that was tried.
    """
    # Triton finds the compiled kernel of a launch in 0.02 ms; here it is found by all that Triton makes constants of
    key = (id(kernel), programs, warps, stages, registers, inputs[0].device, *map(_kind, inputs), *strides, *constants)
    run = _compiled.get(key)
    with torch.cuda.device_of(inputs[0]):
        if run is not None:
            run(*inputs, *strides, *constants)
            return
        # fused multiply-adds are named because Triton is about to change its default
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        if registers is not None and _is_hopper(inputs[0]):
            options["maxnreg"] = registers
        compiled = kernel[(programs,)](*inputs, *strides, *constants, **options)
    if compiled is not None and not torch.version.hip:  # an AMD kernel depends on the size of the memory too
        _keep(_compiled, key, compiled[(programs, 1, 1)])


def choose(name: str, problem: tuple[Any, ...], candidates: Sequence[Tile], run: Callable[..., Any], x: Tensor) -> Tile:
    """The fastest of some tiles for a kernel and a problem on the device of x.

    Not measured, so the first one: in the interpreter, while a CUDA graph is captured, and where deterministic
    algorithms are asked for, since another tile sums in another order.
    """
    if is_interpreted() or len(candidates) == 1 or torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    exactly = (name, *map(tuple, problem), x.dtype, x.device)
    tile = _chosen.get(exactly)
    if tile is None or tile not in candidates:
        tile = _choose(name, problem, candidates, run, x)
        if not torch.cuda.is_current_stream_capturing():
            _keep(_chosen, exactly, tile)
    return tile


def _choose(
    name: str, problem: tuple[Any, ...], candidates: Sequence[Tile], run: Callable[..., Any], x: Tensor
) -> Tile:
    key = (name, *_rounded(problem), x.dtype, x.device)
    if key not in _remembered:
        # in the file, what tells GPUs and compilers apart too
        entry = json.dumps([str(part) for part in (*key[:-1], _device_name(x), torch.__version__, triton.__version__)])
        read = _read().get(entry)
        if read in candidates:
            _remembered[key] = read
        elif torch.cuda.is_current_stream_capturing():
            return candidates[0]
        else:
            with torch.cuda.device_of(x):
                _remembered[key] = min(candidates, key=lambda candidate: _milliseconds(lambda: run(*candidate)))
            _write(entry, _remembered[key])
    return _remembered[key]


def cdiv(number: int, by: int) -> int:
    """`number / by`, rounded up. Triton has this too, for the device, and takes a launch's time to compute it here."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The smallest power of two of at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()


def integers_up_to(largest: int) -> tl.dtype:
    """The type of offsets that reach so far: 64 bits are twice the registers and instructions."""
    return tl.int64 if largest >= 2**31 else tl.int32


def dot_dtype(x: Tensor) -> tl.dtype:
    """In what dtype factors of a matrix product are: that of x, but the interpreter knows no bfloat16 products."""
    if is_interpreted():
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype]


def dot_precision(x: Tensor) -> str:
    """How a matrix unit may round float32, as `torch.backends.cuda.matmul.allow_tf32` has it."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _kind(value: Any) -> Any:
    """What a compiled kernel depends on: dtype and alignment of a tensor, an integer itself, of a float nothing."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return float if isinstance(value, float) else value


def _keep(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) >= _MOST_KEPT:
        memory.clear()
    memory[key] = value


def _milliseconds(call: Callable[[], Any]) -> float:
    try:
        return triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return math.inf


def _rounded(problem: tuple[Any, ...]) -> tuple[Any, ...]:
    """Maps within a factor of two share a tile, so that maps of many sizes do not measure without end."""
    (*sizes, channels), *rest = problem
    return (*((size - 1).bit_length() for size in sizes), channels, *map(tuple, rest))


def _is_hopper(x: Tensor) -> bool:
    return x.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(x.device)[0] == 9


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
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            json.dump({**_read(), key: tile}, temporary)
        os.replace(temporary.name, file)
    except (OSError, RuntimeError):
        pass


@triton.jit
def _probe():
    pass
