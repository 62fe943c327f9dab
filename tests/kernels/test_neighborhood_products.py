"""Dot products over a sliding kernel, by every implementation that serves the convolution whose derivative they are."""

import itertools

import pytest
import torch

from localmix import functional, kernels
from localmix.kernels import native
from localmix.testing import check_operator, output_and_gradients

# map, channels, groups, kernel, dilation
CASES = [
    ((7, 5), 6, 3, (3, 3), (1, 1)),
    ((6, 9), 4, 2, (4, 2), (1, 2)),
    ((2, 3), 4, 4, (7, 6), (1, 1)),
    ((3, 4), 2, 1, (3, 3), (5, 7)),
    ((1, 1), 3, 3, (1, 1), (1, 1)),
]
SERVED = [impl for impl in ("native", "triton", "aten") if not getattr(kernels.IMPLEMENTATIONS[impl], "MISSING", None)]


def make(case, dtype, batch=2):
    size, channels, groups, kernel, dilation = case
    query, key = (torch.randn(batch, *size, channels).to(dtype) for _ in range(2))
    gradient = torch.randn(batch, *size, groups, kernel[0] * kernel[1]).to(dtype)
    return {"query": query, "key": key}, {"num_groups": groups, "kernel_size": kernel, "dilation": dilation}, gradient


@pytest.mark.parametrize("case", CASES)
def test_definition_is_the_gradient_of_the_convolution_in_its_weight(case):
    tensors, options, weight = make(case, torch.float64)
    weight.requires_grad_()
    sizes = {name: options[name] for name in ("kernel_size", "dilation")}
    y = functional.inhomogeneous_convolution(tensors["key"], weight, **sizes)
    (expected,) = torch.autograd.grad(y, weight, tensors["query"])
    torch.testing.assert_close(functional.neighborhood_products(**tensors, **options), expected)


@pytest.mark.parametrize(
    ("impl", "case", "dtype"),
    [
        (impl, case, dtype)
        for impl, case, dtype in itertools.product(SERVED, CASES, [torch.float32, torch.bfloat16, torch.float16])
        if impl != "triton" or (dtype == torch.float32 and case in CASES[:2])  # its interpreter is slow
    ],
    ids=str,
)
def test_is_within_the_budget(impl, case, dtype):
    check_operator("neighborhood_products", *make(case, dtype), impl=impl)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition_in_float64(case):
    tensors, options, gradient = make(case, torch.float64)
    expected = output_and_gradients(functional.neighborhood_products, tensors, options, gradient)
    actual = output_and_gradients(kernels.neighborhood_products, tensors, {**options, "impl": "aten"}, gradient)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@pytest.mark.parametrize("impl", [impl for impl in SERVED if impl != "triton"])
def test_takes_any_strides_and_no_image(impl):
    tensors, options, gradient = make(CASES[1], torch.float32)
    sliced = {name: t.repeat_interleave(2, 2)[:, :, ::2] for name, t in tensors.items()}
    check_operator("neighborhood_products", sliced, options, gradient.transpose(3, 4).contiguous().mT, impl=impl)
    tensors, options, gradient = make(CASES[1], torch.float32, batch=0)
    results = output_and_gradients(kernels.neighborhood_products, tensors, {**options, "impl": impl}, gradient)
    assert [t.shape[0] for t in results.values()] == [0, 0, 0]


@pytest.mark.parametrize("impl", ["reference", "aten"])
def test_second_derivatives(impl):
    tensors, options, _ = make(((2, 3), 4, 2, (3, 2), (1, 2)), torch.float64, batch=1)

    def call(query, key):
        return kernels.neighborhood_products(query, key, **options, impl=impl)

    leaves = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))
def test_second_derivatives_of_the_cpu_kernels():
    """Against those of the definition, in float32, which is what they have."""

    def second(impl, dtype):
        leaves = {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}
        y = kernels.neighborhood_products(**leaves, **options, impl=impl)
        first = torch.autograd.grad(y.square().sum(), tuple(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tuple(leaves.values()))

    tensors, options, _ = make(CASES[0], torch.float32)
    for actual, expected in zip(second("native", torch.float32), second("reference", torch.float64), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))
# opcheck looks at the gradients of what it has made of the arguments
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_operator_of_pytorch_is_well_formed():
    query, key = (torch.randn(2, 4, 5, 6, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.localmix.native_local_products, (query, key, 3, [3, 2], [1, 2]))


@pytest.mark.parametrize("impl", [impl for impl in SERVED if impl != "triton"])
def test_compiles_as_one_graph(impl):
    torch.compiler.reset()
    tensors, options, gradient = make(CASES[1], torch.float32)

    def call(query, key):
        return kernels.neighborhood_products(query, key, **options, impl=impl)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected, actual = (output_and_gradients(f, tensors, {}, gradient) for f in (call, compiled))
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


def test_served_by_what_serves_the_convolution():
    tensors, options, _ = make(CASES[0], torch.float64)
    with pytest.raises(
        ValueError, match=r"^impl: expected an implementation of inhomogeneous_convolution, got 'native'"
    ):
        kernels.neighborhood_products(**tensors, **options, impl="native")
    for module in kernels.IMPLEMENTATIONS.values():
        assert hasattr(module, "neighborhood_products") == hasattr(module, "inhomogeneous_convolution")
