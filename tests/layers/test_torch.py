"""Layers under `torch.compile`, `torch.export`, activation checkpointing and autocast."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from localmix.layers import (
    DepthwiseConv,
    HomogeneousDynamicConv,
    InhomogeneousDynamicConv,
    LocalMixer,
    LocalMLP,
    NeighborhoodAttention,
    WindowAttention,
)

LAYERS = {
    "depthwise": lambda: DepthwiseConv(8, kernel_size=(3, 4)),
    "homogeneous": lambda: HomogeneousDynamicConv(8, kernel_size=3),
    "inhomogeneous": lambda: InhomogeneousDynamicConv(8, num_groups=2, kernel_size=3),
    "window": lambda: WindowAttention(8, num_heads=2, window_size=4, shift=(1, 2)),
    "window, padded": lambda: WindowAttention(8, num_heads=2, window_size=4, shift=(1, 2), border="pad"),
    "neighborhood": lambda: NeighborhoodAttention(8, num_heads=2, kernel_size=3, dilation=(2, 1)),
    "local MLP": lambda: LocalMLP(8, num_groups=2, window_size=4, shift=(1, 2)),
    **{
        name: lambda name=name: LocalMixer.from_name(name, dim=8)
        for name in (
            "sliding3x4/shared-positions/groups2/mixture3/softmax",
            "sliding3/unshared-positions/groups2/inhomogeneous/softmax",
            "sliding3/shared-windows4/groups2/static",
            "sliding3/shared-windows4/groups2/homogeneous",
            "window4-shift1x2/shared-positions/groups2/static",
            "window4-shift1x2/shared-windows/groups2/mixture3",
            "window4-shift1x2/unshared-positions/groups2/inhomogeneous",
            "window4-shift1x2/unshared-positions/groups2/dot-product/free",
            "sliding3x4/unshared-positions/groups2/dot-product/free",
        )
    },
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def step(layer, call, x):
    """Output, and gradients of the input and of every parameter, after one step on a copy of the layer."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = call(x)
    y.float().square().mean().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@every_layer
def test_compiles_as_one_graph(name):
    torch.compiler.reset()
    layer = LAYERS[name]()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 7, 5, 8)
    for actual, expected in zip(step(layer, compiled, x), step(layer, layer, x), strict=True):
        torch.testing.assert_close(actual, expected)


@every_layer
def test_exports_with_batch_and_size_left_open(name):
    layer = LAYERS[name]().eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(layer, (torch.randn(3, 13, 17, 8),), dynamic_shapes=(dims,))
    module = program.module()
    # a multiple of the window, no multiple, smaller than the window, one window, one position, a short line, a long one
    for size in [(2, 8, 12), (1, 7, 5), (4, 2, 3), (2, 4, 4), (1, 1, 1), (1, 2, 1), (2, 29, 3)]:
        x = torch.randn(*size, 8)
        torch.testing.assert_close(module(x), layer(x))


@every_layer
def test_exports_for_one_size_without_operators_of_its_own(name):
    """Such a graph holds PyTorch's operators alone: other programs can read it."""
    program = torch.export.export(LAYERS[name]().eval(), (torch.randn(2, 7, 5, 8),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not [target for target in targets if "localmix" in target]


@every_layer
def test_checkpointing_changes_nothing(name):
    layer, x = LAYERS[name]().eval(), torch.randn(2, 7, 5, 8)
    actual = step(layer, lambda x: checkpoint(layer, x, use_reentrant=False), x)
    for a, e in zip(actual, step(layer, layer, x), strict=True):
        assert torch.equal(a, e)


@every_layer
def test_autocast(name):
    """Output in bfloat16, gradients in the dtype of their parameter, all near those of float32."""
    layer, x = LAYERS[name]().eval(), torch.randn(2, 7, 5, 8)

    def call(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    expected, actual = step(layer, layer, x), step(layer, call, x)
    assert actual[0].dtype == torch.bfloat16
    assert {t.dtype for t in actual[1:]} == {torch.float32}
    for a, e in zip(actual, expected, strict=True):
        # some forty roundings on the way
        assert (a - e).norm() <= 40 * torch.finfo(torch.bfloat16).eps * e.norm() + 1e-6


@every_layer
def test_bfloat16(name):
    layer = LAYERS[name]()
    x = torch.randn(2, 7, 5, 8)
    y, expected = copy.deepcopy(layer).bfloat16()(x.bfloat16()), layer(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() <= 40 * torch.finfo(torch.bfloat16).eps * expected.norm()
