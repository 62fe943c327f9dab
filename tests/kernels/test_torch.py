"""Operators under `torch.compile`, `torch.export` and activation checkpointing."""

import shutil

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from localmix import kernels
from localmix.testing import output_and_gradients

# Each operator as a function of tensors and `impl`, and the shapes of these at a batch and a map.
CALLS = {
    "depthwise_convolution": (
        lambda x, weight, bias, impl="aten": kernels.depthwise_convolution(x, weight, bias, dilation=(1, 2), impl=impl),
        lambda b, h, w: [(b, h, w, 4), (4, 3, 2), (4,)],
    ),
    "homogeneous_convolution": (
        lambda x, weight, bias, impl="aten": kernels.homogeneous_convolution(
            x, weight, bias, dilation=(1, 2), impl=impl
        ),
        lambda b, h, w: [(b, h, w, 4), (b, 4, 3, 2), (4,)],
    ),
    "inhomogeneous_convolution": (
        lambda x, weight, impl="aten": kernels.inhomogeneous_convolution(
            x, weight, kernel_size=(3, 2), dilation=(1, 2), impl=impl
        ),
        lambda b, h, w: [(b, h, w, 4), (b, h, w, 2, 6)],
    ),
    "projected_inhomogeneous_convolution": (
        lambda x, hidden, projection, bias, impl="aten": kernels.projected_inhomogeneous_convolution(
            x, hidden, projection, bias, num_groups=2, kernel_size=(3, 2), dilation=(1, 2), impl=impl
        ),
        lambda b, h, w: [(b, h, w, 4), (b, h, w, 3), (12, 3), (12,)],
    ),
    "window_attention": (
        lambda q, k, v, bias, impl="aten": kernels.window_attention(
            q, k, v, window_size=4, shift=(1, 0), bias=bias, impl=impl
        ),
        lambda b, h, w: [*[(b, h, w, 2, 3)] * 3, (2, 16, 16)],
    ),
    "neighborhood_attention": (
        lambda q, k, v, bias, impl="aten": kernels.neighborhood_attention(
            q, k, v, kernel_size=(3, 4), dilation=(2, 1), bias=bias, impl=impl
        ),
        lambda b, h, w: [*[(b, h, w, 2, 3)] * 3, (2, 5, 7)],
    ),
    "local_mlp": (
        lambda x, weight, bias, impl="aten": kernels.local_mlp(x, weight, bias, window_size=4, shift=(1, 0), impl=impl),
        lambda b, h, w: [(b, h, w, 4), (2, 16, 16), (2, 16)],
    ),
}


def tensors(operator, batch=2, height=8, width=12):
    return [torch.randn(shape) for shape in CALLS[operator][1](batch, height, width)]


def results(function, values):
    named = {f"argument {i}": t for i, t in enumerate(values)}
    return output_and_gradients(
        lambda **arguments: function(*arguments.values()), named, {}, torch.ones_like(values[0])
    )


def test_every_operator_is_tested():
    assert set(CALLS) == set(kernels.OPERATORS)


@pytest.mark.parametrize("operator", CALLS)
def test_compiles_as_one_graph(operator):
    torch.compiler.reset()
    function, values = CALLS[operator][0], tensors(operator, height=7, width=5)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected, actual = results(function, values), results(compiled, values)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


def test_channels_left_open_are_compiled_once():
    """Words for an error that never comes would make every number of channels, and every map, another graph."""
    torch.compiler.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def mix(x, weight, bias, kernels_of_images):
        y = kernels.depthwise_convolution(x, weight, bias, impl="aten")
        y = kernels.homogeneous_convolution(y, kernels_of_images, bias, impl="aten")
        return kernels.neighborhood_products(y, x, num_groups=2, kernel_size=3, impl="aten")

    for batch, height, width, channels in [(2, 5, 6, 12), (3, 7, 8, 16), (4, 9, 10, 20)]:
        values = [(batch, height, width, channels), (channels, 3, 3), (channels,), (batch, channels, 3, 3)]
        assert mix(*map(torch.ones, values)).shape == (batch, height, width, 2, 9)
    assert len(compiled) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiles_to_machine_code():
    torch.compiler.reset()
    function, values = CALLS["inhomogeneous_convolution"][0], tensors("inhomogeneous_convolution", height=7, width=5)
    compiled = torch.compile(function, fullgraph=True)
    expected, actual = results(function, values), results(compiled, values)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


@pytest.mark.parametrize("operator", CALLS)
def test_exports_with_batch_and_size_left_open(operator):
    function, shapes = CALLS[operator]
    # the sizes that stand for B, H and W are told by their value, which no other axis has
    dims = {11: torch.export.Dim("batch"), 13: torch.export.Dim("height"), 17: torch.export.Dim("width")}
    values = tensors(operator, 11, 13, 17)
    axes = [{i: dims[size] for i, size in enumerate(shape) if size in dims} for shape in shapes(11, 13, 17)]
    module = torch.export.export(Function(function), tuple(values), dynamic_shapes=((*axes,),)).module()
    for size in [(2, 8, 12), (1, 7, 5), (3, 2, 3), (2, 4, 4), (1, 1, 1), (2, 29, 3)]:
        values = tensors(operator, *size)
        torch.testing.assert_close(module(*values), function(*values))


@pytest.mark.parametrize("operator", CALLS)
def test_checkpointing_changes_nothing(operator):
    function, values = CALLS[operator][0], tensors(operator)
    expected = results(function, values)
    actual = results(lambda *v: checkpoint(function, *v, use_reentrant=False), values)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("node", "sizes"),
    [
        ("window_attention", ([4, 4], [1, 0])),
        ("neighborhood_attention", ([3, 4], [2, 1])),
        ("local_mlp", ([4, 4], [1, 0])),
    ],
)
def test_nodes_of_an_exported_graph_are_well_formed(node, sizes):
    first, second, *others, bias = tensors(node)
    scale = (None,) if others else ()
    for bias_or_none in (bias, None):
        arguments = (first, second, *others, bias_or_none, *scale, "aten", *sizes)
        torch.library.opcheck(getattr(torch.ops.localmix, node).default, arguments)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("operator", CALLS)
def test_forward_derivatives_are_those_of_plain_operators(operator):
    """A kernel has only a backward pass: a registered operator would lose the tangents, and say nothing."""
    function, values = CALLS[operator][0], tensors(operator, height=7, width=5)
    tangents = [torch.randn_like(t) for t in values]
    expected = torch.func.jvp(lambda *v: function(*v, impl="reference"), tuple(values), tuple(tangents))
    torch.testing.assert_close(
        torch.func.jvp(lambda *v: function(*v, impl="auto"), tuple(values), tuple(tangents)), expected
    )
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, tangent) for t, tangent in zip(values, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(function(*dual, impl="auto")).tangent, expected[1])


@pytest.mark.parametrize("operator", CALLS)
def test_function_transforms_serve_every_operator(operator):
    function, values = CALLS[operator][0], tensors(operator, height=7, width=5)

    def loss(impl):
        return torch.func.grad(lambda x, *others: function(x, *others, impl=impl).square().sum())

    torch.testing.assert_close(loss("auto")(*values), loss("reference")(*values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", CALLS)
def test_vmap_serves_every_operator_and_gradients_of_each_sample(operator):
    function, (x, *others) = CALLS[operator][0], tensors(operator, height=5, width=4)
    samples = torch.stack([x, 2 * x, -x])

    def loss(x):
        return function(x, *others, impl="auto").square().sum()

    expected = torch.stack([function(x, *others, impl="reference") for x in samples])
    torch.testing.assert_close(torch.func.vmap(lambda x: function(x, *others, impl="auto"))(samples), expected)
    gradients = torch.stack([torch.func.grad(loss)(x) for x in samples])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(samples), gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("operator", CALLS)
def test_many_gradients_at_once(operator, dtype):
    """`is_grads_batched`, which `jacobian(vectorize=True)` and the checks of PyTorch's own operators go by."""
    function, values = CALLS[operator][0], [t.to(dtype).requires_grad_() for t in tensors(operator, height=5, width=4)]
    y = function(*values, impl="auto")
    gradients = torch.randn(3, *y.shape, dtype=dtype)
    actual = torch.autograd.grad(y, values, gradients, is_grads_batched=True)
    exact = [t.detach().double().requires_grad_() for t in values]
    y = function(*exact, impl="reference")
    one_by_one = [torch.autograd.grad(y, exact, g.double(), retain_graph=True) for g in gradients]
    for found, expected in zip(actual, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected).to(dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", CALLS)
def test_transforms_of_second_order(operator):
    """Reverse over reverse: `jacrev` goes backwards for all numbers of a gradient at once."""
    function, values = CALLS[operator][0], [t.double() for t in tensors(operator, 1, height=3, width=2)]

    def hessian(impl):
        return torch.func.jacrev(torch.func.grad(lambda x, *others: function(x, *others, impl=impl).pow(3).sum()))

    torch.testing.assert_close(hessian("auto")(*values), hessian("reference")(*values))


@pytest.mark.parametrize("operator", CALLS)
def test_transforms_see_tensors_that_require_gradients_outside(operator):
    """As parameters of a network do, when `torch.func.grad` differentiates in its input: both gradients are there."""
    function, values = CALLS[operator][0], tensors(operator, height=5, width=4)
    found = {}
    for impl in ("auto", "reference"):
        x, *others = [t.clone().requires_grad_() for t in values]
        of_x = torch.func.grad(lambda x, others=others, impl=impl: function(x, *others, impl=impl).pow(2).sum())(x)
        found[impl] = [
            of_x.detach(),
            *torch.autograd.grad(of_x.sum(), others, allow_unused=True, materialize_grads=True),
        ]
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("operator", CALLS)
def test_plain_operators_can_be_traced(operator):
    function, values = CALLS[operator][0], tensors(operator)
    traced = make_fx(lambda *v: function(*v, impl="reference"))(*values)
    others = tensors(operator)
    torch.testing.assert_close(traced(*others), function(*others, impl="reference"))


@pytest.mark.parametrize("operator", ["window_attention", "neighborhood_attention", "local_mlp"])
def test_a_graph_of_open_size_can_be_trained(operator):
    function, shapes = CALLS[operator]
    dims = {11: torch.export.Dim("batch"), 13: torch.export.Dim("height"), 17: torch.export.Dim("width")}
    axes = [{i: dims[size] for i, size in enumerate(shape) if size in dims} for shape in shapes(11, 13, 17)]
    values = tensors(operator, 11, 13, 17)
    module = torch.export.export(Function(function), tuple(values), dynamic_shapes=((*axes,),)).module()
    values = [t.requires_grad_(i != 1) for i, t in enumerate(tensors(operator, 2, 7, 5))]
    wanted = [t for t in values if t.requires_grad]
    found = {}
    with sdpa_kernel(SDPBackend.MATH):  # which has second derivatives
        for call in (module, function):
            first = torch.autograd.grad(call(*values).pow(3).sum(), wanted, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
            found[call] = [t.detach() for t in (*first, *second)]
    torch.testing.assert_close(found[module], found[function], rtol=1e-4, atol=1e-3)


def test_a_named_kernel_says_that_it_cannot_be_transformed():
    x = torch.ones(1, 3, 3, 2)
    with pytest.raises(ValueError, match=r"^impl: expected .* torch\.func transforms PyTorch's own operators"):
        torch.func.grad(lambda x: kernels.depthwise_convolution(x, torch.ones(2, 3, 3), impl="native").sum())(x)
