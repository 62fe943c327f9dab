"""Every operator, by every implementation, against the definition in float64: output and all gradients."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from localmix import functional, kernels
from localmix.kernels import aten, native
from localmix.testing import assert_within_budget, check_operator, output_and_gradients

# (map, channels or (heads, channels of a head), groups, window or kernel, dilation or shift)
SLIDING = [
    ((7, 5), 6, 3, (3, 3), (1, 1)),
    ((6, 9), 4, 2, (4, 2), (1, 2)),  # even, dilated
    ((8, 7), 4, 1, (3, 5), (3, 2)),
    ((2, 3), 4, 4, (7, 6), (1, 1)),  # larger than the map
    ((3, 4), 2, 1, (3, 3), (5, 7)),  # dilated out of the map
    ((5, 6), 1, 1, (3, 3), (1, 1)),  # one channel
    ((1, 1), 3, 3, (1, 1), (1, 1)),
    ((4, 1), 48, 2, (7, 7), (1, 1)),
]
WINDOWS = [
    ((6, 9), 6, 3, (3, 3), (0, 0)),
    ((6, 9), 4, 2, (2, 3), (1, 2)),  # whole windows, and cut ones above and beside them
    ((7, 5), 4, 1, (4, 2), (0, 1)),  # the window does not divide the map
    ((2, 3), 4, 4, (4, 7), (0, 0)),  # larger than the map
    ((2, 3), 4, 2, (4, 7), (3, 5)),
    ((5, 6), 1, 1, (3, 2), (0, 0)),  # one channel
    ((1, 1), 3, 3, (1, 1), (0, 0)),
    ((4, 9), 48, 2, (7, 7), (3, 3)),
]


def depthwise_convolution(size, channels, groups, kernel, dilation):
    shapes = {"x": (2, *size, channels), "weight": (channels, *kernel), "bias": (channels,)}
    return shapes, {"dilation": dilation}


def homogeneous_convolution(size, channels, groups, kernel, dilation):
    shapes = {"x": (2, *size, channels), "weight": (2, channels, *kernel), "bias": (channels,)}
    return shapes, {"dilation": dilation}


def inhomogeneous_convolution(size, channels, groups, kernel, dilation):
    shapes = {"x": (2, *size, channels), "weight": (2, *size, groups, kernel[0] * kernel[1])}
    return shapes, {"kernel_size": kernel, "dilation": dilation}


def projected_inhomogeneous_convolution(size, channels, groups, kernel, dilation):
    rows = groups * kernel[0] * kernel[1]
    shapes = {"x": (2, *size, channels), "hidden": (2, *size, 3), "projection": (rows, 3), "projection_bias": (rows,)}
    return shapes, {"num_groups": groups, "kernel_size": kernel, "dilation": dilation}


def window_attention(size, channels, heads, window, shift):
    slots = window[0] * window[1]
    qkv = (2, *size, heads, channels // heads)
    return {"query": qkv, "key": qkv, "value": qkv, "bias": (heads, slots, slots)}, {
        "window_size": window,
        "shift": shift,
    }


def neighborhood_attention(size, channels, heads, kernel, dilation):
    qkv = (2, *size, heads, channels // heads)
    shapes = {"query": qkv, "key": qkv, "value": qkv, "bias": (heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1)}
    return shapes, {"kernel_size": kernel, "dilation": dilation}


def local_mlp(size, channels, groups, window, shift):
    slots = window[0] * window[1]
    shapes = {"x": (2, *size, channels), "weight": (groups, slots, slots), "bias": (groups, slots)}
    return shapes, {"window_size": window, "shift": shift}


OPERATORS = {
    function.__name__: (function, geometries)
    for function, geometries in [
        (depthwise_convolution, SLIDING),
        (homogeneous_convolution, SLIDING),
        (inhomogeneous_convolution, SLIDING),
        (projected_inhomogeneous_convolution, SLIDING),
        (window_attention, WINDOWS),
        (neighborhood_attention, SLIDING),
        (local_mlp, WINDOWS),
    ]
}


def implementations_of(operator):
    """All but the definition itself, and but what was not built here."""
    for impl, module in kernels.IMPLEMENTATIONS.items():
        if impl != "reference" and hasattr(module, operator) and not getattr(module, "MISSING", None):
            yield impl


SERVED = [(impl, operator) for operator in OPERATORS for impl in implementations_of(operator)]
every_implementation = pytest.mark.parametrize(("impl", "operator"), SERVED)
every_operator = pytest.mark.parametrize("operator", OPERATORS)


# Triton's interpreter takes a second for what a GPU does in microseconds, and rounds bfloat16 in its own way
def is_quick(impl, case, dtype):
    return impl != "triton" or dtype == torch.float32 or (dtype == torch.float16 and case == 1)


def geometry_of(impl, operator, case=1):
    """Of a test of what does not depend on the size: even and dilated kernels, or windows whole and cut."""
    geometry = OPERATORS[operator][1][case]
    return ((4, 5), *geometry[1:]) if impl == "triton" and case == 1 else geometry  # all on a smaller map too


def sliced(t):
    """Every second element along each axis of a larger tensor, from the second on."""
    larger = torch.full([2 * size + 1 for size in t.shape], torch.nan, dtype=t.dtype)
    view = larger[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


def reversed_axes(t):
    axes = tuple(reversed(range(t.ndim)))
    return t.permute(axes).contiguous().permute(axes)


def images_first(t):
    """As a channels-first net leaves its maps: the last axis before the two in front of it."""
    return t.movedim(-1, 1).contiguous().movedim(1, -1) if t.ndim > 2 else t


def expanded(t):
    return t[:1].expand_as(t)


LAYOUTS = [sliced, reversed_axes, images_first, expanded]


BATCHED = {
    "depthwise_convolution": ["x"],
    "homogeneous_convolution": ["x", "weight"],
    "inhomogeneous_convolution": ["x", "weight"],
    "projected_inhomogeneous_convolution": ["x", "hidden"],
    "window_attention": ["query", "key", "value"],
    "neighborhood_attention": ["query", "key", "value"],
    "local_mlp": ["x"],
}


def make(operator, geometry, dtype, layout=torch.Tensor.contiguous):
    function, _ = OPERATORS[operator]
    shapes, options = function(*geometry)
    tensors = {name: layout(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}
    first = next(iter(shapes.values()))
    return tensors, options, layout(torch.randn(first).to(dtype))


def check(operator, tensors, options, gradient, *, impl):
    """`check_operator`; some of PyTorch's own operators add up one after the other on some processors.

    So do fused attention with the keys of a query, and convolution with the positions for the gradient of a weight.
    """
    size, summands = options.get("window_size", options.get("kernel_size")), 0
    if impl == "aten" and operator.endswith("attention"):
        summands = size[0] * size[1]
    if impl == "aten" and operator in ("depthwise_convolution", "homogeneous_convolution"):
        summands = gradient[..., 0].numel()
    cancelled = 0.0
    if impl == "triton" and operator.endswith("attention"):
        # of a score: the gradient of its weight less their mean, two dot products of gradient and value
        most = {name: float(t.abs().max()) for name, t in {**tensors, "gradient": gradient}.items() if t.numel()}
        cancelled = 2 * gradient.shape[-1] * most["gradient"] * most["value"] * max(most["query"], most["key"], 1.0)
    check_operator(operator, tensors, options, gradient, impl=impl, summands=summands, cancelled=cancelled)


def test_every_operator_is_tested():
    assert set(OPERATORS) == set(kernels.OPERATORS)


@pytest.mark.parametrize(
    ("impl", "operator", "case", "dtype"),
    [
        (impl, operator, case, dtype)
        for (impl, operator), case, dtype in itertools.product(
            SERVED, range(8), [torch.float32, torch.bfloat16, torch.float16]
        )
        if is_quick(impl, case, dtype)
    ],
    ids=str,
)
def test_is_within_the_budget(impl, operator, case, dtype):
    check(operator, *make(operator, OPERATORS[operator][1][case], dtype), impl=impl)


@pytest.mark.parametrize("case", range(8))
@every_operator
def test_equals_the_definition_in_float64(operator, case):
    tensors, options, gradient = make(operator, OPERATORS[operator][1][case], torch.float64)
    expected = output_and_gradients(getattr(functional, operator), tensors, options, gradient)
    actual = output_and_gradients(getattr(kernels, operator), tensors, {**options, "impl": "aten"}, gradient)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("impl", "operator", "case"),
    [(impl, operator, case) for impl, operator in SERVED for case in ([1] if impl == "triton" else [0, 1, 3])],
)
def test_takes_any_strides(impl, operator, case, layout):
    geometry = geometry_of(impl, operator, case)
    tensors, options, gradient = make(operator, geometry, torch.float32, layout)
    check(operator, tensors, options, gradient, impl=impl)
    # and a gradient in other strides than the input
    check(operator, make(operator, geometry, torch.float32)[0], options, gradient, impl=impl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), (1, 1)), ((4, 3), (2, 1)), ((1, 5), (1, 2)), ((6, 1), (5, 1))]
)
@pytest.mark.parametrize(
    "impl", [i for i in implementations_of("projected_inhomogeneous_convolution") if i != "triton"]
)
def test_weights_made_in_many_strips(impl, kernel, dilation, dtype):
    """A map so tall that the implementations make its weights for some rows at a time."""
    geometry = ((67, 6), 4, 4, kernel, dilation)
    operator = "projected_inhomogeneous_convolution"
    check(operator, *make(operator, geometry, dtype), impl=impl)


@pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("operator", "geometry"),
    [
        # weights of a few lines at a time, then of parts of a line; of 108 or 120 positions for the gradients, cut in
        # the middle of a line; the last ones fill no block of the product
        ("projected_inhomogeneous_convolution", ((9, 7), 64, 32, (7, 7), (1, 1))),
        ("projected_inhomogeneous_convolution", ((2, 90), 64, 32, (5, 7), (1, 2))),
        ("projected_inhomogeneous_convolution", ((5, 61), 32, 32, (7, 7), (1, 1))),
        ("inhomogeneous_convolution", ((2, 19), 33, 33, (11, 13), (1, 1))),
    ],
)
def test_maps_taken_in_many_runs(operator, geometry, dtype):
    """So many weights at a position that the CPU kernels take a line in parts."""
    check(operator, *make(operator, geometry, dtype), impl="native")
    if operator == "inhomogeneous_convolution":
        tensors, options, gradient = make(operator, geometry, dtype)
        tensors["weight"] = tensors["weight"].transpose(3, 4).contiguous().transpose(3, 4)
        check(operator, tensors, options, gradient, impl="native")


@every_implementation
def test_second_derivatives_are_within_the_budget(impl, operator):
    """Of the squares of output and gradients, so that every tensor takes part."""
    tensors, options, gradient = make(operator, ((4, 3), 2, 1, (3, 2), (1, 1)), torch.float32)

    def squares(function, tensors, gradient, **impl):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        y = function(**dict(zip(tensors, leaves, strict=True)), **options, **impl)
        first = torch.autograd.grad(y, leaves, gradient, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in (y, *first)), leaves)

    exact = {name: t.double() for name, t in tensors.items()}
    definition = getattr(functional, operator)
    # PyTorch's fused attention is differentiable once, and says so
    with sdpa_kernel(SDPBackend.MATH):
        actual = squares(getattr(kernels, operator), tensors, gradient, impl=impl)
        eager = squares(definition, tensors, gradient)
        reference = squares(definition, exact, gradient.double())
    for name, *results in zip(tensors, actual, reference, eager, strict=True):
        assert_within_budget(*results, name=f"second derivative by {name}")


@every_implementation
def test_without_bias(impl, operator):
    for case in (0, 2, 4):
        tensors, options, gradient = make(operator, OPERATORS[operator][1][case], torch.float32)
        tensors.pop("bias", None)
        tensors.pop("projection_bias", None)
        check(operator, tensors, options, gradient, impl=impl)


@pytest.mark.parametrize("scale", [0.0, 1.7])
@pytest.mark.parametrize(("impl", "operator"), [(i, o) for i, o in SERVED if o.endswith("attention")])
def test_scale_of_attention(impl, operator, scale):
    tensors, options, gradient = make(operator, geometry_of(impl, operator), torch.float32)
    check(operator, tensors, {**options, "scale": scale}, gradient, impl=impl)


@pytest.mark.parametrize(("impl", "operator"), [*SERVED, *(("reference", operator) for operator in OPERATORS)])
def test_any_choice_of_gradients(impl, operator):
    """A tensor gets the same gradient whichever others want one, and none where it wants none."""
    tensors, options, gradient = make(operator, geometry_of(impl, operator), torch.float32)
    function = getattr(kernels, operator)
    full = output_and_gradients(function, tensors, {**options, "impl": impl}, gradient)
    for wanted in itertools.product([False, True], repeat=len(tensors)):
        leaves = {n: t.detach().requires_grad_(w) for (n, t), w in zip(tensors.items(), wanted, strict=True)}
        y = function(**leaves, **options, impl=impl)
        assert y.requires_grad == any(wanted)
        torch.testing.assert_close(y.detach(), full["output"])
        if any(wanted):
            y.backward(gradient)
        for name, leaf in leaves.items():
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, full[f"gradient of {name}"])
            else:
                assert leaf.grad is None


@pytest.mark.parametrize(("impl", "operator"), [*SERVED, *(("reference", operator) for operator in OPERATORS)])
def test_inputs_are_left_as_they_were(impl, operator):
    tensors, options, gradient = make(operator, geometry_of(impl, operator), torch.float32)
    before = {name: t.clone() for name, t in tensors.items()}
    copy = gradient.clone()
    output_and_gradients(getattr(kernels, operator), tensors, {**options, "impl": impl}, gradient)
    assert torch.equal(gradient, copy)
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())


@every_implementation
def test_no_image(impl, operator):
    tensors, options, gradient = make(operator, geometry_of(impl, operator), torch.float32)
    tensors = {name: t[:0] if name in BATCHED[operator] else t for name, t in tensors.items()}
    result = output_and_gradients(getattr(kernels, operator), tensors, {**options, "impl": impl}, gradient[:0])
    assert result["output"].shape == gradient[:0].shape
    for name, t in tensors.items():
        assert torch.equal(result[f"gradient of {name}"], torch.zeros_like(t))


@every_operator
def test_differentiable_twice(operator):
    geometry = ((4, 3), 2, 1, (3, 2), (1, 1))
    tensors, options, _ = make(operator, geometry, torch.float64)
    tensors = {name: t[:1] if name in BATCHED[operator] else t for name, t in tensors.items()}
    leaves = [t.detach().requires_grad_() for t in tensors.values()]

    def call(*values):
        return getattr(kernels, operator)(**dict(zip(tensors, values, strict=True)), **options, impl="aten")

    # PyTorch's fused attention is differentiable once, and says so
    with sdpa_kernel(SDPBackend.MATH) if "attention" in operator else nullcontext():
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("operator", ["window_attention", "neighborhood_attention"])
def test_fused_attention_is_differentiable_once_and_says_so(operator):
    tensors, options, _ = make(operator, OPERATORS[operator][1][0], torch.float32)
    leaves = {name: t.requires_grad_() for name, t in tensors.items() if name != "bias"}
    y = getattr(kernels, operator)(**leaves, **options, impl="aten")
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="is not implemented"):
        sum(g.square().sum() for g in gradients).backward()


def test_device_without_a_proven_grouped_convolution_is_served_image_by_image(monkeypatch):
    monkeypatch.setattr(aten, "_GROUPED_CONVOLUTION_IS_RIGHT", frozenset())
    for case in (0, 1, 3):
        check("homogeneous_convolution", *make("homogeneous_convolution", SLIDING[case], torch.float32), impl="aten")


@every_implementation
def test_autocast(impl, operator):
    """Float32 features and bfloat16 weights are mixed in bfloat16; each tensor gets its gradient in its own dtype."""
    tensors, options, gradient = make(operator, geometry_of(impl, operator), torch.float32)
    low = {name: t.bfloat16() for name, t in tensors.items()}
    expected = output_and_gradients(getattr(kernels, operator), low, {**options, "impl": impl}, gradient.bfloat16())
    mixed = {name: low[name] if name in ("weight", "key", "hidden") else t for name, t in tensors.items()}

    def call(**arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return getattr(kernels, operator)(**arguments)

    result = output_and_gradients(call, mixed, {**options, "impl": impl}, gradient.bfloat16())
    assert result["output"].dtype == torch.bfloat16
    assert torch.equal(result["output"], expected["output"])
    for name, t in mixed.items():
        g = result[f"gradient of {name}"]
        assert g.dtype == t.dtype
        assert torch.equal(g.bfloat16(), expected[f"gradient of {name}"])


def test_autocast_leaves_float64_alone():
    x, weight = torch.randn(1, 3, 3, 2, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels.depthwise_convolution(x, weight).dtype == torch.float64
