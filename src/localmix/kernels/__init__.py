"""The six mixers, fast: the signatures of `localmix.functional` with an `impl`.

    impl="auto"       the first implementation in `IMPLEMENTATIONS` that can serve the call
    impl="native"     CPU kernels, compiled when the package was installed
    impl="triton"     GPU kernels, compiled on first use
    impl="aten"       plain PyTorch operators that allocate no K copies of the input
    impl="reference"  the definition in `localmix.functional`

An `impl` that is named never falls back to another: it raises and says why. `localmix.kernels.table()` prints what
"auto" takes here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from localmix import arguments, functional
from localmix.arguments import Size
from localmix.exporting import is_exporting
from localmix.kernels import aten, native, triton

IMPLEMENTATIONS: dict[str, ModuleType] = {"native": native, "triton": triton, "aten": aten, "reference": functional}
"""All implementations, the preferred ones first.

One that cannot serve every call has a function `refusal(x, named)`: why not, or None. `named` tells a call with that
`impl` from one with "auto".
"""

OPERATORS = (
    "depthwise_convolution",
    "homogeneous_convolution",
    "inhomogeneous_convolution",
    "projected_inhomogeneous_convolution",
    "window_attention",
    "neighborhood_attention",
    "local_mlp",
)

_auto = tuple(IMPLEMENTATIONS)


def choose(operator: str, impl: str = "auto", x: Tensor | None = None) -> str:
    """Name of the implementation that serves `operator` under `impl` for an input such as x (float32 on the CPU).

    Raises:
        ValueError: operator or `impl` is unknown, or the implementation named cannot serve the call; says why.

    >>> choose("local_mlp", "reference")
    'reference'
    """
    arguments.choice("operator", operator, OPERATORS)
    arguments.choice("impl", impl, ("auto", *IMPLEMENTATIONS))
    reason = None
    for name in _auto if impl == "auto" else (impl,):
        reason = _refusal(name, operator, x, impl == name)
        if reason is None:
            return name
    raise ValueError(f"impl: expected an implementation of {operator}, got {impl!r}: {reason}")


def _refusal(name: str, operator: str, x: Tensor | None, named: bool) -> str | None:
    """Why an implementation cannot serve the call; None if it can."""
    implementation = IMPLEMENTATIONS[name]
    if not hasattr(implementation, operator):
        return "it has none"
    if not hasattr(implementation, "refusal"):
        return None
    return implementation.refusal(torch.empty(0) if x is None else x, named)


@contextmanager
def prefer(impl: str) -> Generator[None]:
    """Within it "auto" means `impl` first: for counting, comparing and debugging whole networks.

    >>> with prefer("reference"):
    ...     choose("local_mlp")
    'reference'
    """
    global _auto
    arguments.choice("impl", impl, tuple(IMPLEMENTATIONS))
    before = _auto
    _auto = (impl, *(name for name in before if name != impl))
    try:
        yield
    finally:
        _auto = before


def refusals(operator: str, x: Tensor | None = None) -> dict[str, str | None]:
    """Every implementation, the preferred ones first, and why "auto" passes it over for an input such as x.

    None stands for one that can serve: "auto" takes the first of these.

    >>> refusals("projected_inhomogeneous_convolution")["reference"] is None
    True
    """
    arguments.choice("operator", operator, OPERATORS)
    return {name: _refusal(name, operator, x, False) for name in _auto}


def table() -> str:
    """What "auto" takes for each operator on this machine, and what else there is: a line each."""
    lines = []
    for operator in OPERATORS:
        have = [name for name, reason in refusals(operator).items() if reason is None]
        lines.append(f"{operator:38}{have[0]:12}(also {', '.join(have[1:])})")
    return "\n".join(lines)


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: Size = 1, impl: str = "auto"
) -> Tensor:
    """Fast `localmix.functional.depthwise_convolution`: x [B, H, W, C], weight [C, kh, kw], bias [C]."""
    x, weight, bias = arguments.autocast(x, weight, bias)
    dilation = arguments.depthwise_convolution(x, weight, bias, dilation)
    run = _implementation("depthwise_convolution", impl, x)
    return run(x, weight, bias, dilation=dilation)


def homogeneous_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: Size = 1, impl: str = "auto"
) -> Tensor:
    """Fast `localmix.functional.homogeneous_convolution`: x [B, H, W, C], weight [B, C, kh, kw], bias [C]."""
    x, weight, bias = arguments.autocast(x, weight, bias)
    dilation = arguments.homogeneous_convolution(x, weight, bias, dilation)
    run = _implementation("homogeneous_convolution", impl, x)
    return run(x, weight, bias, dilation=dilation)


def inhomogeneous_convolution(
    x: Tensor, weight: Tensor, *, kernel_size: Size, dilation: Size = 1, impl: str = "auto"
) -> Tensor:
    """Fast `localmix.functional.inhomogeneous_convolution`: x [B, H, W, C], weight [B, H, W, G, K] in any strides.

    The CPU kernels read either G or K innermost as it lies, and are fastest with G. Plain PyTorch wants the images of
    the batch innermost, as a projection `matrix @ features` with features [R, H * W * B] leaves them. Weights that lie
    otherwise are copied.
    """
    x, weight = arguments.autocast(x, weight)
    kernel_size, dilation = arguments.inhomogeneous_convolution(x, weight, kernel_size, dilation)
    run = _implementation("inhomogeneous_convolution", impl, x)
    return run(x, weight, kernel_size=kernel_size, dilation=dilation)


def neighborhood_products(
    query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Size, dilation: Size = 1, impl: str = "auto"
) -> Tensor:
    """Fast `localmix.functional.neighborhood_products`: query, key [B, H, W, C] to [B, H, W, G, K].

    The gradient of `inhomogeneous_convolution` in its weight, computed by the implementation that serves that operator.
    """
    query, key = arguments.autocast(query, key)
    kernel_size, dilation = arguments.neighborhood_products(query, key, num_groups, kernel_size, dilation)
    run = IMPLEMENTATIONS[choose("inhomogeneous_convolution", impl, query)].neighborhood_products
    return run(query, key, num_groups=num_groups, kernel_size=kernel_size, dilation=dilation)


def projected_inhomogeneous_convolution(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    projection_bias: Tensor | None = None,
    *,
    kernel_size: Size,
    num_groups: int,
    dilation: Size = 1,
    impl: str = "auto",
) -> Tensor:
    """Fast `localmix.functional.projected_inhomogeneous_convolution`: the weights are used at once and forgotten.

    It needs memory of the order of x, forward and backward; the backward pass makes the weights again.
    """
    x, hidden, projection, projection_bias = arguments.autocast(x, hidden, projection, projection_bias)
    kernel_size, dilation = arguments.projected_inhomogeneous_convolution(
        x, hidden, projection, projection_bias, kernel_size, num_groups, dilation
    )
    run = _implementation("projected_inhomogeneous_convolution", impl, x)
    return run(
        x, hidden, projection, projection_bias, kernel_size=kernel_size, num_groups=num_groups, dilation=dilation
    )


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window_size: Size,
    shift: Size = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Fast `localmix.functional.window_attention`: query, key, value [B, H, W, heads, D], bias [heads, N, N]."""
    query, key, value, bias = arguments.autocast(query, key, value, bias)
    arguments.attention(query, key, value)
    window_size = arguments.pair("window_size", window_size)
    shift = arguments.shift_of_window(shift, window_size)
    slots = window_size[0] * window_size[1]
    arguments.attention_bias(bias, query, (slots, slots), "[heads, N, N]")
    run = _implementation("window_attention", impl, query)
    if is_exported_with_open_size(query):
        return torch.ops.localmix.window_attention(query, key, value, bias, scale, impl, window_size, shift)
    return run(query, key, value, window_size=window_size, shift=shift, bias=bias, scale=scale)


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: Size,
    dilation: Size = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Fast `localmix.functional.neighborhood_attention`: query, key, value [B, H, W, heads, D], bias by distance."""
    query, key, value, bias = arguments.autocast(query, key, value, bias)
    arguments.attention(query, key, value)
    kernel_size, dilation = arguments.pair("kernel_size", kernel_size), arguments.pair("dilation", dilation)
    distances = (2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1)
    arguments.attention_bias(bias, query, distances, "[heads, 2 kh - 1, 2 kw - 1]")
    run = _implementation("neighborhood_attention", impl, query)
    if is_exported_with_open_size(query):
        return torch.ops.localmix.neighborhood_attention(query, key, value, bias, scale, impl, kernel_size, dilation)
    return run(query, key, value, kernel_size=kernel_size, dilation=dilation, bias=bias, scale=scale)


def local_mlp(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    window_size: Size,
    shift: Size = 0,
    impl: str = "auto",
) -> Tensor:
    """Fast `localmix.functional.local_mlp`: x [B, H, W, C], weight [G, N, N], bias [G, N]."""
    x, weight, bias = arguments.autocast(x, weight, bias)
    window_size, shift = arguments.local_mlp(x, weight, bias, window_size, shift)
    run = _implementation("local_mlp", impl, x)
    if is_exported_with_open_size(x):
        return torch.ops.localmix.local_mlp(x, weight, bias, impl, window_size, shift)
    return run(x, weight, bias, window_size=window_size, shift=shift)


def _implementation(operator: str, impl: str, x: Tensor) -> Callable[..., Tensor]:
    return getattr(IMPLEMENTATIONS[choose(operator, impl, x)], operator)


# One node of an exported graph each. `torch.export` excludes every size at which a number of windows or tiles is 1, so
# that a graph of their plain form refuses the maps that one window covers. ONNX knows neither the nodes nor the limits.

_ATTENTION = ("Tensor query", "Tensor key", "Tensor value", "Tensor? bias", "float? scale", "str impl")
_NODES = {
    "window_attention": (*_ATTENTION, "SymInt[] window_size", "SymInt[] shift"),
    "neighborhood_attention": (*_ATTENTION, "SymInt[] kernel_size", "SymInt[] dilation"),
    "local_mlp": ("Tensor x", "Tensor weight", "Tensor? bias", "str impl", "SymInt[] window_size", "SymInt[] shift"),
}


def is_exported_with_open_size(x: Tensor) -> bool:
    """Whether `torch.export` is at work and leaves batch, height or width of x open; false for ONNX."""
    if not is_exporting() or torch.onnx.is_in_onnx_export():
        return False
    return not all(isinstance(size, int) for size in x.shape[:3])


def _register(operator: str, parameters: tuple[str, ...]) -> None:
    def run(*values: Any) -> Tensor:
        names = (parameter.split()[1] for parameter in parameters)
        named = {name: tuple(v) if isinstance(v, list) else v for name, v in zip(names, values, strict=True)}
        return globals()[operator](**named).contiguous()

    schema = f"({', '.join(parameters)}) -> Tensor"
    node = torch.library.custom_op(f"localmix::{operator}", run, mutates_args=(), schema=schema)
    node.register_fake(lambda x, *_: x.new_empty(x.shape))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]
        ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in inputs))

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # run again, on views: one tensor may be the query and the key, or one be made of another
        values, wanted, twice = list(ctx.inputs), {}, torch.is_grad_enabled()
        with torch.enable_grad():
            for i, (t, needed) in enumerate(zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)):
                values[i] = values[i] if t is None else t.view_as(t)
                if needed:
                    wanted[i] = values[i]
            y = run(*values)
        found = torch.autograd.grad(y, tuple(wanted.values()), gradient, create_graph=twice)
        gradient_of = dict(zip(wanted, found, strict=True))
        return tuple(gradient_of.get(i) for i in range(len(values)))

    node.register_autograd(gradients, setup_context=save)


for _operator, _parameters in _NODES.items():
    _register(_operator, _parameters)
