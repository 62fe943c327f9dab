"""Operators that PyTorch knows by name, and that cost little to call.

`torch.library.custom_op` makes a function a citizen of PyTorch: `torch.compile`, fake tensors, `vmap` and profilers see
it. Its way through PyTorch's dispatcher is Python, and takes 0.02 to 0.06 ms of the processor: as long as a small map.
Where nobody looks, `Operator` calls the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

_PLAIN = frozenset((nn.Parameter, type(None), int, float, bool, tuple, list))
"""What a call is made of where nobody looks, beside tensors; anything else may be a tensor of another kind."""


class Operator:
    """A function of tensors and numbers, registered with PyTorch; called by position.

    Args:
        name: such as "localmix::window_attention".
        function: it changes none of its arguments and returns none of them.
        device_types: "cpu", "cuda", or both.
        schema: of PyTorch; None reads it from the annotations of the function.

    >>> double = Operator("localmix::docs_double", lambda x: 2 * x, "cpu", schema="(Tensor x) -> Tensor")
    >>> double.register_autograd(lambda ctx, gradient: 2 * gradient, setup_context=lambda ctx, inputs, output: None)
    >>> double(torch.ones(2, requires_grad=True)).sum().backward()
    >>> torch.ops.localmix.docs_double(torch.ones(2))
    tensor([2., 2.])
    """

    def __init__(
        self, name: str, function: Callable[..., Any], device_types: str | Sequence[str], schema: str | None = None
    ) -> None:
        self.function = function
        self._definition: Any = torch.library.custom_op(
            name, function, mutates_args=(), device_types=device_types, schema=schema
        )
        namespace, _, self._name = name.partition("::")
        self.registered: Any = getattr(getattr(torch.ops, namespace), self._name)
        self._differentiable: Any = None

    def register_fake(self, shapes: Callable[..., Any]) -> None:
        """`shapes` makes results without data for arguments without data, as in `torch.library.register_fake`."""
        self._definition.register_fake(shapes)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """The gradients of the arguments, and what they are made of, as in `torch.library.register_autograd`."""
        self._definition.register_autograd(backward, setup_context=setup_context)
        function = self.function

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._differentiable = type(self._name, (torch.autograd.Function,), rules)

    def __call__(self, *arguments: Any) -> Any:
        if is_watched(arguments):
            return self.registered(*arguments)
        if torch.is_grad_enabled():
            for a in arguments:
                if isinstance(a, Tensor) and a.requires_grad:
                    return (self._differentiable.apply if self._differentiable else self.registered)(*arguments)
        return self.function(*arguments)


def operator(name: str, device_types: str | Sequence[str]) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an `Operator` of a function whose arguments and results are annotated."""
    return lambda function: Operator(name, function, device_types)


def is_watched(arguments: tuple[Any, ...]) -> bool:
    """Whether anything but the CPU or GPU looks at a call: a compiler, a tracer, a mode, a transform or a profiler."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    ):
        return True
    # a loop, since a generator takes as long as all the questions above
    for a in arguments:
        kind = type(a)
        if kind is Tensor:
            # many gradients at once, of which nothing else tells: `torch.autograd.grad` has a vmap of its own
            if is_legacy_batchedtensor(a):
                return True
        elif kind not in _PLAIN and isinstance(a, Tensor):
            return True
    return False


def has_hooks(*modules: nn.Module) -> bool:
    """Whether a hook sees what goes into these modules or comes out of them; backward hooks see what has gradients."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)
