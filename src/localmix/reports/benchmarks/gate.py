"""A call, and whether it is right: nothing is timed that has not just given the right numbers.

The judge is the error budget of `localmix.testing`, for the very call that is timed: same tensors, same batch. The
definition gathers all K inputs of each position, so it is computed for one image, the last one. For the backward pass
the gradient of the output is zero but for that image, so that the gradients of weights that all images share are those
of that image; the other images must get none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from localmix.reports.benchmarks.contenders import Contender
from localmix.reports.benchmarks.problems import Problem, Tensors
from localmix.testing import assert_within_budget


class Call:
    """A contender on the tensors of a problem, in the layout that it likes best."""

    def __init__(self, contender: Contender, problem: Problem) -> None:
        self.contender, self.problem = contender, problem
        prepared = contender.prepare(**problem.tensors)
        self.inputs = {name: t.detach() for name, t in prepared.items()}
        self.leaves = {name: t.detach().requires_grad_() for name, t in prepared.items()}
        self._output: Tensor | None = None

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The output, as in inference."""
        return self.contender.run(**self.inputs)

    def kept(self) -> Tensor:
        """The output with the graph behind it; the forward pass is run once."""
        if self._output is None:
            self._output = self.contender.run(**self.leaves)
        return self._output

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all inputs, from the forward pass that is kept."""
        return torch.autograd.grad(self.kept(), tuple(self.leaves.values()), gradient, retain_graph=True)

    def training(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Forward and backward pass."""
        return torch.autograd.grad(self.contender.run(**self.leaves), tuple(self.leaves.values()), gradient)

    def gradient(self, gradient: Tensor) -> Tensor:
        """A gradient [B, H, W, ...] of the finished output, in the layout of the output."""
        output = self.kept().detach().requires_grad_()
        (laid_out,) = torch.autograd.grad(self.contender.finish(output), output, gradient)
        return torch.empty_like(output).copy_(laid_out)

    def results(self, direction: str) -> Tensors:
        """What the problem asks for: the output, and in the backward direction the gradients of its tensors."""
        if direction == "forward":
            return {"output": self.contender.finish(self.forward())}
        only_last = self.problem.gradient.clone()
        only_last[:-1] = 0
        gradients = self.backward(self.gradient(only_last))
        leaves = {name: t.detach().requires_grad_() for name, t in self.problem.tensors.items()}
        prepared = self.contender.prepare(**leaves)
        sent_back = torch.autograd.grad(tuple(prepared.values()), tuple(leaves.values()), gradients)
        results = {f"gradient of {name}": g for name, g in zip(leaves, sent_back, strict=True)}
        return {"output": self.contender.finish(self.kept().detach()), **results}


def refusal(call: Call, direction: str) -> str | None:
    """Why the call must not be timed; None if the gate is green."""

    def check() -> None:
        for name, result in call.results(direction).items():
            _check(name, result, call.problem)

    return reason(check)


def reason(check: Callable[[], None]) -> str | None:
    """How `check` fails, in a line; None if it does not."""
    try:
        check()
    except Exception as error:  # whatever a compiler or another library raises
        line = str(error).strip().split("\n")[0]
        return line if isinstance(error, AssertionError) else f"{type(error).__name__}: {line}"
    return None


def _check(name: str, result: Tensor, problem: Problem) -> None:
    reference, eager = (expected[name] for expected in problem.expected)
    is_batched = name == "output" or name.removeprefix("gradient of ") in problem.batched
    if is_batched:
        others = result[:-1]
        if not others.isfinite().all():
            raise AssertionError(f"{name}: values of the other images are not finite")
        if name != "output" and others.any():
            raise AssertionError(f"{name}: images got a gradient from another image")
        result = result[-1:]
    height, width = problem.shape[1:3]
    # a gradient without positions is a sum over all of them
    summands = 0 if result.shape[1:3] == (height, width) else height * width
    assert_within_budget(result, reference, eager, name=name, summands=summands)
