"""Peak memory on the CPU, as the allocator reports it, inputs not counted."""

import pytest
import torch

from localmix import kernels
from localmix.layers import InhomogeneousDynamicConv
from localmix.reports.benchmarks.timing import peak_bytes

TAPS = 49


def calls():
    """Every operator with 49 taps or slots on a map [2, 28, 28, 96] of three heads or groups."""

    def leaf(*shape):
        return torch.randn(shape, requires_grad=True)

    x, qkv = leaf(2, 28, 28, 96), [leaf(2, 28, 28, 3, 32) for _ in range(3)]
    arguments = {
        "depthwise_convolution": ((x, leaf(96, 7, 7), leaf(96)), {}),
        "homogeneous_convolution": ((x, leaf(2, 96, 7, 7), leaf(96)), {}),
        "inhomogeneous_convolution": ((x, leaf(2, 28, 28, 3, TAPS)), {"kernel_size": 7}),
        "projected_inhomogeneous_convolution": (
            (x, leaf(2, 28, 28, 24), leaf(3 * TAPS, 24), leaf(3 * TAPS)),
            {"num_groups": 3, "kernel_size": 7},
        ),
        "window_attention": (qkv, {"window_size": 7, "shift": 3, "bias": leaf(3, TAPS, TAPS)}),
        "neighborhood_attention": (qkv, {"kernel_size": 7, "bias": leaf(3, 13, 13)}),
        "local_mlp": ((x, leaf(3, TAPS, TAPS), leaf(3, TAPS)), {"window_size": 7, "shift": 3}),
    }
    for operator, (tensors, options) in arguments.items():
        yield operator, lambda impl, o=operator, t=tensors, k=options: getattr(kernels, o)(*t, **k, impl=impl)


CALLS = dict(calls())
INPUT = 2 * 28 * 28 * 96 * 4


def test_every_operator_is_tested():
    assert set(CALLS) == set(kernels.OPERATORS)


@pytest.mark.parametrize("operator", CALLS)
def test_no_operator_allocates_a_copy_of_the_input_per_tap(operator):
    """Neither forward nor with the backward pass. The definition, which gathers, does and is seen."""
    call = CALLS[operator]
    assert peak_bytes(lambda: call("aten")) < TAPS * INPUT
    assert peak_bytes(lambda: call("aten").sum().backward()) < TAPS * INPUT
    assert peak_bytes(lambda: call("reference")) > TAPS * INPUT


@pytest.mark.parametrize(
    ("dim", "size", "autocast"), [(96, 56, False), (192, 28, False), (384, 14, False), (96, 56, True), (192, 28, True)]
)
def test_inhomogeneous_layer_stays_within_three_times_its_weights(dim, size, autocast):
    """The layer of a stage of the tiny network, 32 groups and 7 x 7, without compiled kernels.

    On the small maps of late stages, and sooner in bfloat16, its parameters are larger than the weights they make.
    """
    x = torch.randn(2, size, size, dim, requires_grad=True)
    weights = 2 * size * size * 32 * TAPS * (2 if autocast else 4)
    layer = InhomogeneousDynamicConv(dim, num_groups=32, impl="aten")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert peak_bytes(lambda: layer(x)) < 3 * weights
        assert peak_bytes(lambda: layer(x).sum().backward()) < 3 * weights
        layer.impl = "reference"
        assert peak_bytes(lambda: layer(x)) > 3 * weights
