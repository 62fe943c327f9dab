"""Layers under `torch.compile`, `torch.export`, activation checkpointing and autocast."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
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
    "homogeneous": lambda: HomogeneousDynamicConv(8, kernel_size=(3, 4), dilation=(2, 1)),
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
MIXERS = [name for name in LAYERS if "/" not in name]
"""Those that have a class of their own."""

# a multiple of the window, no multiple, smaller than the window, one window, one position, a short line, a long one
SIZES = [(2, 8, 12), (1, 7, 5), (4, 2, 3), (2, 4, 4), (1, 1, 1), (1, 2, 1), (2, 29, 3)]

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


@pytest.mark.parametrize("name", MIXERS)
def test_sizes_left_open_are_compiled_once(name):
    """Whether windows divide the map or leave a rest; where one covers an axis, the axis has another graph.

    The first map has no size that another axis has, for PyTorch would take the two for one.
    """
    torch.compiler.reset()
    layer, compiled = LAYERS[name]().eval(), []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    call = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in [(2, 29, 11), (3, 8, 12), (2, 9, 8), (4, 5, 20), (2, 6, 6)]:
        x = torch.randn(*size, 8)
        torch.testing.assert_close(call(x), layer(x))
    assert len(compiled) == 1


@every_layer
def test_exports_with_batch_and_size_left_open(name):
    layer = LAYERS[name]().eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(layer, (torch.randn(3, 13, 17, 8),), dynamic_shapes=(dims,))
    module = program.module()
    for size in SIZES:
        x = torch.randn(*size, 8)
        torch.testing.assert_close(module(x), layer(x))


@every_layer
def test_exports_for_one_size_without_operators_of_its_own(name):
    """Such a graph holds PyTorch's operators alone: other programs can read it."""
    program = torch.export.export(LAYERS[name]().eval(), (torch.randn(2, 7, 5, 8),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not [target for target in targets if "localmix" in target]


@pytest.mark.parametrize(
    ("name", "traced"),
    [*((name, (3, 13, 17)) for name in MIXERS), ("neighborhood", (5, 3, 2)), ("local MLP", (5, 3, 2))],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_runs_in_onnxruntime_with_batch_and_size_left_open(name, traced, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, file, open_axis = LAYERS[name]().eval(), tmp_path / "layer.onnx", torch.export.Dim.DYNAMIC
    with torch.no_grad():
        shapes = (dict.fromkeys((0, 1, 2), open_axis),)
        torch.onnx.export(layer, (torch.randn(*traced, 8),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for size in SIZES:
            x = torch.randn(*size, 8)
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-4, atol=1e-4)


@every_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
def test_traces_for_the_tools_that_count_and_draw(name):
    """`torch.jit.trace` hands out sizes as tensors, and holds the shifts of the map that it saw."""
    layer = LAYERS[name]().eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, (torch.randn(3, 13, 17, 8),))
        x = torch.randn(2, 9, 10, 8)
        torch.testing.assert_close(traced(x), layer(x))


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


class Adapter(nn.Module):
    """A linear map with a change of low rank, as parameter-efficient tuning puts it in the place of the map."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class AdaptedLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_hook(linear):
    linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    return linear


def with_forward(linear):
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)
    return linear


REPLACEMENTS = {
    "adapter": Adapter,
    "subclass": lambda linear: AdaptedLinear(linear.in_features, linear.out_features),
    "hook": with_hook,
    "forward": with_forward,
    "parametrization": weight_norm,
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@every_layer
def test_what_takes_the_place_of_a_linear_map_is_called(name, replacement):
    """None of its parameters is read past it: the layer is still its definition, and all of them learn."""
    layer = LAYERS[name]().eval()
    for path, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            layer.set_submodule(path, REPLACEMENTS[replacement](module))
    x = torch.randn(2, 7, 5, 8)
    y = layer(x)
    torch.testing.assert_close(y, layer.definition(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@every_layer
def test_what_a_hook_has_kept_stays_as_it_was(name):
    """Without gradients activations overwrite their input, but not under the eyes of a hook."""
    layer, kept, copies = LAYERS[name]().eval(), [], []
    for module in layer.modules():
        module.register_forward_hook(lambda module, inputs, output: kept.append(output))
        module.register_forward_hook(lambda module, inputs, output: copies.append(copy.deepcopy(output)))
    with torch.no_grad():
        layer(torch.randn(2, 7, 5, 8))
    torch.testing.assert_close(kept, copies, rtol=0, atol=0)
