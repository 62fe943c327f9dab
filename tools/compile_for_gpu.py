"""Compiles the Triton kernels that `tools/check_gpu.sh` launches, for a GPU that is elsewhere, where its time is short.

    TRITON_CACHE_DIR=/tmp/kernels TRITON_STORE_BINARY_ONLY=1 PYTHONPATH=src python tools/compile_for_gpu.py

No GPU is needed, and nothing runs. On the machine with the GPU the folder has to lie at the same path, and Python,
Triton and the files of the kernels have to be the same: Triton then finds what was compiled, and compiles the rest.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget

from localmix import kernels, models
from localmix.kernels.triton import compilation, tuning
from localmix.reports.benchmarks.operators import BATCH
from localmix.reports.benchmarks.problems import NAMES, STAGES, cases, problem

TESTS = Path(__file__).parents[1] / "tests" / "kernels" / "test_gpu.py"
NETS = ("i_dynamic_dwnet_tiny", "dynamic_dwnet_tiny", "dwnet_tiny", "localswin_tiny")
PROJECTED = ("projected_inhomogeneous_convolution", "inhomogeneous_convolution")
Call = tuple[str, Callable[[], Any]]
"""A name and what launches kernels."""


class Driver:
    """Tells Triton that there is a GPU."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def calls_of_operators() -> Iterator[Call]:
    """As `localmix bench ops --device cuda` makes them: in bfloat16, and projected ones with their peers in float32."""
    for dtype, names in ((torch.bfloat16, NAMES), (torch.float32, PROJECTED)):
        for name, shape in cases(names, tuple(STAGES.values())):
            small = problem(name, shape, batch=1)
            tensors = {}
            for key, t in small.tensors.items():
                size = (BATCH["cuda"], *t.shape[1:]) if key in small.batched else t.shape
                tensors[key] = _empty(size, dtype)
            if name == "inhomogeneous_convolution":
                tensors["weight"] = tensors["weight"].transpose(3, 4).contiguous().transpose(3, 4)
            where = " x ".join(map(str, shape))
            yield f"{name} {where} {dtype}", _both_passes(small.operator, tensors, small.options)


def calls_of_networks() -> Iterator[Call]:
    """As `localmix bench models --device cuda --dtype bfloat16` makes them."""
    for name in NETS:
        yield f"training {name}", lambda name=name: _pass_images(name, models.create_model).sum().backward()
        yield f"inference {name}", lambda name=name: torch.no_grad()(_pass_images)(name, _folded)


def _folded(name: str) -> nn.Module:
    return models.fold(models.create_model(name).eval())


def _pass_images(name: str, make: Callable[[str], nn.Module]) -> Tensor:
    return _on_no_device(name, make)(_empty((BATCH["cuda"], 3, 224, 224), torch.bfloat16))


@functools.cache
def _on_no_device(name: str, make: Callable[[str], nn.Module]) -> nn.Module:
    return make(name).to("meta", torch.bfloat16)


def calls_of_tests() -> Iterator[Call]:
    """As `tests/kernels/test_gpu.py` makes them."""
    specification = importlib.util.spec_from_file_location("test_gpu", TESTS)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    large = {name: _empty(shape, torch.bfloat16) for name, shape in module.LARGE.items()}
    yield "more than 2**31 numbers", lambda: _run("depthwise_convolution", large, {})
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for operator, shapes, options in module.CASES:
            tensors = {name: _empty(shape, dtype) for name, shape in shapes.items()}
            hostile = {name: _twice_as_far(t) for name, t in tensors.items()}
            misaligned = {name: _misalign(t) for name, t in tensors.items()}
            yield f"{operator} {dtype}", _both_passes(operator, tensors, options)
            yield f"{operator} {dtype}, hostile", _both_passes(operator, hostile, options, deterministic=True)
            if dtype == torch.float16:
                yield f"{operator}, misaligned", lambda op=operator, t=misaligned, o=options: _run(op, t, o)


def _misalign(t: Tensor) -> Tensor:
    return torch.cat([t.new_empty(1), t.flatten()])[1:].view(t.shape)


def _twice_as_far(t: Tensor) -> Tensor:
    return torch.stack((t, t), -1)[..., 0] if t.dim() > 3 else t


def _both_passes(
    operator: str, tensors: dict[str, Tensor], options: dict[str, Any], deterministic: bool = False
) -> Callable[[], None]:
    def call() -> None:
        torch.use_deterministic_algorithms(deterministic)
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        y = _run(operator, leaves, options)
        torch.autograd.grad(y, tuple(leaves.values()), torch.empty_like(y))
        torch.use_deterministic_algorithms(False)

    return call


def _run(operator: str, tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    return getattr(kernels, operator)(**tensors, **options, impl="triton")


def launches_of(calls: Iterable[Call], capability: int) -> list[Any]:
    """All that these calls launch, with every candidate for a tile where they are measured."""
    found: dict[Any, Any] = {}
    tile, most = 0, 1

    def note(
        kernel: Any, programs: int, inputs: Sequence[Any], strides: Sequence[Any], constants: Sequence[Any], *how: Any
    ) -> None:
        options = tuning.options_of(*how)
        kinds = [(v.dtype, v.data_ptr() % 16) if isinstance(v, Tensor) else v for v in inputs]
        key = (id(kernel), *options.items(), *kinds, *strides, *constants)
        arguments = (*inputs, *strides, *constants)
        found.setdefault(key, compilation.noted(kernel, programs, arguments, options))

    def take(name: str, problem: tuple[Any, ...], candidates: Sequence[Any], run: Callable[..., Any], x: Tensor) -> Any:
        nonlocal most
        if torch.are_deterministic_algorithms_enabled():
            return candidates[0]
        most = max(most, len(candidates))
        return candidates[min(tile, len(candidates) - 1)]

    for module, name, stand_in in (
        (tuning, "launch", note),
        (tuning, "choose", take),
        (tuning, "is_hopper", lambda x: capability // 10 == 9),
        (kernels.triton, "refusal", lambda x, named: None),
    ):
        setattr(module, name, stand_in)
    for _, call in calls:
        tile, most = 0, 1
        # once for each: a launch may depend on the tile of the one before it
        while tile < most:
            tuning._ready.clear()
            call()
            tile += 1
    return list(found.values())


PARTS = {"operators": calls_of_operators, "networks": calls_of_networks, "tests": calls_of_tests}


def main() -> None:
    """Compiles all; status 1 if one does not compile."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, times ten")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", default="", metavar="TEXT", help="calls whose names hold it, such as local_mlp")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    triton.runtime.driver.set_active(Driver(arguments.capability))  # ty: ignore[invalid-argument-type]
    calls = itertools.chain(*(PARTS[part]() for part in arguments.parts))
    compilations = launches_of((call for call in calls if arguments.only in call[0]), arguments.capability)
    print(f"{len(compilations)} launches", flush=True)
    failed = 0
    with ThreadPoolExecutor(arguments.threads) as pool:
        running = [pool.submit(compilation.run) for compilation in compilations]
        for number, done in enumerate(as_completed(running), 1):
            error = done.exception()
            if error is not None:
                failed += 1
                print(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", flush=True)
            if number % 50 == 0:
                print(f"{number} done", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
