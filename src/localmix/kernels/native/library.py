"""The compiled kernels, loaded once, on PyTorch's own threads."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`NumberType` of csrc/interface.h."""

NO_MEMORY = "localmix: no memory for the scratch rows of a CPU kernel"

_INSTRUCTION_SET = "LOCALMIX_INSTRUCTION_SET"
"""Environment variable that names the instruction set to use, to test one that is not the best of the machine."""


def _built(folder: Path) -> Path | None:
    """The kernels in `folder`: of this Python before those of another one, which may be of sources long gone."""
    own = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    return own if own.exists() else next(folder.glob("_native.*"), None)


def _why_none(file: Path | None, interface: Path) -> str | None:
    """Why there are no kernels that can be called as `interface`, a header, says; None if there are.

    By another version of it, a function would take numbers for addresses.
    """
    if file is None:
        return "the kernels were not compiled: there was no C++ compiler when localmix was installed"
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return f"the kernels cannot be loaded: {error}"
    if interface.exists():
        of = getattr(library, "localmix_interface", None)
        if of is not None:
            of.restype = ctypes.c_char_p
        if of is None or of().decode() != hashlib.sha256(interface.read_bytes()).hexdigest():
            return f"the kernels were compiled from other sources than these: install localmix again, or delete {file}"
    return None


_FOLDER = Path(__file__).parent.parent
_FILE = _built(_FOLDER)

MISSING = _why_none(_FILE, _FOLDER / "csrc" / "interface.h")
"""Why there are no compiled kernels; None if there are."""

if _FILE and MISSING:
    warnings.warn(f"{MISSING}; plain PyTorch takes their place", RuntimeWarning, stacklevel=1)


def description() -> str:
    """What was built, in words."""
    if MISSING:
        return f"CPU kernels: none ({MISSING})"
    threads = "the threads of PyTorch" if _openmp() else "one thread: PyTorch's OpenMP runtime was not found"
    return f"CPU kernels: {instruction_set()}, on {threads}"


def instruction_set() -> str:
    """The one that the kernels use on this processor: "generic", "avx2", "avx512" or "avx512_bf16"."""
    return library().localmix_instruction_set().decode()


@functools.cache
def is_amd() -> bool:
    """Whether the processor is known to be one of AMD's; without kernels nothing is known."""
    return not MISSING and bool(library().localmix_is_amd())


def pointer(t: Tensor | None) -> ctypes.c_void_p:
    """Where the numbers of a tensor begin; null for none."""
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def is_forked() -> bool:
    """Whether this process was forked from one that had used kernels: the threads of OpenMP do not survive that."""
    return os.getpid() != _first_process()


def num_threads() -> int:
    """Threads for a kernel."""
    return torch.get_num_threads() if _openmp() and not is_forked() else 1


@functools.cache
def _first_process() -> int:
    return os.getpid()


@functools.cache
def library() -> ctypes.CDLL:
    """The functions of csrc/interface.h; only where there are kernels."""
    library = ctypes.CDLL(str(_FILE))
    library.localmix_instruction_set.restype = ctypes.c_char_p
    library.localmix_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.localmix_local_weight.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3]
    library.localmix_projected_local_weight.argtypes = [*[ctypes.c_void_p] * 6, ctypes.c_int64]
    library.localmix_projected_local_weight_backward.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64]
    library.localmix_pairwise_weight.argtypes = [*[ctypes.c_int64] * 2, ctypes.c_void_p, ctypes.c_int64]
    library.localmix_shared_weight.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int64]
    library.localmix_shared_weight_backward.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int64]
    library.localmix_window_weight.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64]
    library.localmix_gelu.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    wanted = os.environ.get(_INSTRUCTION_SET)
    if wanted and library.localmix_use_instruction_set(wanted.encode()):
        raise ValueError(
            f"{_INSTRUCTION_SET}: expected generic, avx2, avx512 or avx512_bf16, and what the CPU has; got {wanted!r}"
        )
    openmp = _openmp()
    if openmp:
        functions = (openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads)
        library.localmix_use_threads(*(ctypes.cast(f, ctypes.c_void_p) for f in functions))
    return library


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that PyTorch has loaded into this process: a second one would fight it for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or not torch.backends.openmp.is_available():
        return None
    loaded = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "/" in line}
    for path in sorted(loaded):
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            library = ctypes.CDLL(path)
            if hasattr(library, "GOMP_parallel"):
                return library
    return None
