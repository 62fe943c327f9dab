"""One way to compute an operator: an implementation of localmix, or what users have otherwise."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from localmix import kernels
from localmix.reports.benchmarks.problems import Problem, Tensors


@dataclass(frozen=True)
class Contender:
    """One way to compute an operator: `finish(run(**prepare(tensors)))` is its output, and `run` alone is timed.

    `missing` says why it cannot take part here; None if it can.
    """

    name: str
    run: Callable[..., Tensor]
    prepare: Callable[..., Tensors] = dict
    finish: Callable[[Tensor], Tensor] = lambda y: y
    is_ours: bool = False
    missing: str | None = None


def own(problem: Problem) -> list[Contender]:
    """What `localmix.kernels` has for the operator, the preferred implementation first."""
    contenders = []
    for impl, missing in kernels.refusals(problem.operator, problem.first).items():
        if not hasattr(kernels.IMPLEMENTATIONS[impl], problem.operator):
            continue
        run = partial(getattr(kernels, problem.operator), impl=impl, **problem.options)
        prepare = dict
        if problem.operator == "inhomogeneous_convolution":
            prepare = _images_innermost if impl == "aten" else _groups_innermost
        contenders.append(Contender(impl, run, prepare, is_ours=True, missing=missing))
    return contenders


def _groups_innermost(x: Tensor, weight: Tensor) -> Tensors:
    return {"x": x, "weight": weight.transpose(3, 4).contiguous().transpose(3, 4)}


def _images_innermost(x: Tensor, weight: Tensor) -> Tensors:
    return {"x": x, "weight": weight.movedim(0, 4).contiguous().movedim(4, 0)}


def compiled(make: Callable[[Problem], Contender]) -> Callable[[Problem], Contender]:
    """The same under torch.compile, for one shape."""

    def make_compiled(problem: Problem) -> Contender:
        contender = make(problem)
        missing = contender.missing or compiler_missing(problem.device)
        return replace(contender, run=torch.compile(contender.run, dynamic=False), missing=missing)

    return make_compiled


def compiler_missing(device: str) -> str | None:
    """Why torch.compile cannot work here; None if it can."""
    compilers, variable = (("g++", "clang++"), "CXX") if device == "cpu" else (("gcc", "clang"), "CC")
    if os.environ.get(variable) or any(map(shutil.which, compilers)):
        return None
    return f"torch.compile needs a compiler: {variable}, {' or '.join(compilers)}"


def not_installed(package: str) -> str | None:
    """Why the package cannot be used; None if it can."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def only_on_cuda(problem: Problem) -> str | None:
    """Why a peer that is made for GPUs has no part; None on one."""
    return None if problem.device == "cuda" else "it needs CUDA"


def no_bias(problem: Problem) -> str | None:
    """Why a peer that knows no bias of attention has no part; None where there is none."""
    return "it has no bias of attention" if "bias" in problem.tensors else None
