"""What only the Triton kernels have: when they serve, registration with PyTorch, more than one tile or share."""

import os
import subprocess
import sys
import types

import pytest
import torch

from localmix import kernels
from localmix.kernels import triton
from localmix.testing import check_operator, output_and_gradients

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))

CALLS = {
    "depthwise_convolution": ([(2, 5, 6, 4), (4, 3, 2), (4,)], {"dilation": (1, 2)}),
    "homogeneous_convolution": ([(2, 5, 6, 4), (2, 4, 3, 2), (4,)], {"dilation": (1, 2)}),
    "inhomogeneous_convolution": ([(2, 5, 6, 4), (2, 5, 6, 2, 6)], {"kernel_size": (3, 2), "dilation": (1, 2)}),
    "projected_inhomogeneous_convolution": (
        [(2, 5, 6, 4), (2, 5, 6, 3), (12, 3), (12,)],
        {"kernel_size": (3, 2), "num_groups": 2, "dilation": (1, 2)},
    ),
    "window_attention": ([*[(2, 3, 4, 1, 3)] * 3, (1, 6, 6)], {"window_size": (3, 2), "shift": (1, 0)}),
    "neighborhood_attention": ([*[(1, 3, 4, 2, 3)] * 3, (2, 5, 3)], {"kernel_size": (3, 2), "dilation": (1, 2)}),
    "local_mlp": ([(2, 5, 6, 4), (2, 6, 6), (2, 6)], {"window_size": (3, 2), "shift": (1, 0)}),
}
every_operator = pytest.mark.parametrize("operator", CALLS)


def make(operator):
    shapes, options = CALLS[operator]
    return {str(i): torch.randn(shape) for i, shape in enumerate(shapes)}, options


def call(operator, impl="triton"):
    def run(**named):
        tensors = [t for name, t in named.items() if name.isdigit()]
        options = {name: value for name, value in named.items() if not name.isdigit()}
        if operator.endswith("attention"):
            options["bias"] = tensors.pop()
        return getattr(kernels, operator)(*tensors, impl=impl, **options)

    return run


def test_auto_never_takes_the_interpreter():
    x = torch.ones(1, 2, 2, 1)
    assert kernels.choose("depthwise_convolution", "triton", x) == "triton"
    assert kernels.choose("depthwise_convolution", "auto", x) != "triton"
    with kernels.prefer("triton"):
        assert kernels.choose("depthwise_convolution", "auto", x) != "triton"


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(1, 2, 2, 1, device="meta"), "it runs on GPUs and x is on meta"),
        (torch.ones(1, 2, 2, 1, dtype=torch.float64), "it has float32, bfloat16 and float16 and x has torch.float64"),
    ],
)
def test_says_why_it_cannot_serve(x, reason):
    with pytest.raises(ValueError, match=f"got 'triton': {reason}$"):
        kernels.choose("depthwise_convolution", "triton", x)


def test_without_the_interpreter_it_does_not_serve_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"got 'triton': it runs on GPUs and x is on cpu$"):
        kernels.choose("depthwise_convolution", "triton", torch.ones(1, 2, 2, 1))


def test_a_gpu_without_a_compiler_is_served_by_others(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x = types.SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.float32)
    monkeypatch.setattr(triton, "_HAS_COMPILER", False)
    assert "there is no C compiler" in triton.refusal(x, False)


@pytest.mark.skipif(not triton._HAS_COMPILER, reason="no C compiler")
def test_auto_takes_it_on_a_gpu_but_not_the_interpreter(monkeypatch):
    x = types.SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.float32)
    assert kernels.choose("depthwise_convolution", "auto", x) == "aten"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert kernels.choose("depthwise_convolution", "auto", x) == "triton"


def test_machine_without_triton_is_served_by_others():
    script = """
import sys
sys.modules["triton"] = None
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
import torch
from localmix import kernels
x, weight = torch.ones(1, 2, 2, 1), torch.ones(1, 1, 1)
assert kernels.depthwise_convolution(x, weight).equal(x)
try:
    kernels.depthwise_convolution(x, weight, impl="triton")
except ValueError as error:
    assert str(error).endswith("got 'triton': Triton is not installed"), error
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_loaded_by_the_first_call_only():
    script = "import sys, localmix.kernels, localmix.layers\nassert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def nodes():
    """Every registered operator and arguments for it; also with gradients wanted of some tensors only."""
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 2, 6)
    sizes = ([3, 2], [1, 2])
    one, each = torch.randn(1, 4, 3, 2), torch.randn(2, 4, 3, 2)
    yield "triton_shared_weight", (x, one, torch.randn(4), [1, 2])
    yield "triton_shared_weight", (x, each, None, [1, 2])
    yield "triton_shared_weight_backward", (x, x, one, [1, 2], [True, True, True])
    yield "triton_shared_weight_backward", (x, x, each, [1, 2], [False, True, False])
    groups_inside = weight.transpose(3, 4).contiguous().transpose(3, 4)
    yield "triton_local_weight", (x, groups_inside, *sizes)
    yield "triton_local_weight_backward", (x, x, groups_inside, *sizes, [True, True])
    yield "triton_local_weight_backward", (x, x, weight[:1].expand_as(weight), *sizes, [False, True])
    hidden, projection, bias = torch.randn(2, 3, 4, 5), torch.randn(12, 5), torch.randn(12)
    yield "triton_projected_local_weight", (x, hidden, projection, bias, 2, *sizes)
    yield "triton_projected_local_weight", (x, hidden, projection, None, 2, *sizes)
    tensors = (x, x, hidden, projection, bias, 2, *sizes)
    yield "triton_projected_local_weight_backward", (*tensors, [True, True, True, True])
    yield "triton_projected_local_weight_backward", (*tensors, [False, True, False, True])
    matrices, window = torch.randn(2, 6, 6), ([3, 2], [1, 0])
    yield "triton_window_weight", (x, matrices, torch.randn(2, 6), *window)
    yield "triton_window_weight", (x, matrices, None, *window)
    yield "triton_window_weight_backward", (x, x, matrices, *window, [True, True, True])
    yield "triton_window_weight_backward", (x, x, matrices, *window, [False, False, True])
    query, key, value = torch.randn(1, 2, 3, 3, 1, 2).unbind(3)
    for name, bias, sizes in [
        ("window_attention", torch.randn(1, 4, 4), ([2, 2], [1, 0])),
        ("window_attention", None, ([6, 7], [1, 0])),
        ("neighborhood_attention", torch.randn(1, 3, 5), ([2, 3], [1, 2])),
    ]:
        inputs, options = (query, key, value, bias), (0.5, *sizes)
        yield f"triton_{name}", (*inputs, *options)
        # of windows that fit a block there are no logarithms, and of others any will do
        logarithms = torch.zeros(0) if sizes[0] == [2, 2] else torch.zeros(1, 1, 2, 3)
        yield (
            f"triton_{name}_backward",
            (
                query,
                *inputs,
                query + 1,
                logarithms,
                logarithms.clone(),
                *options,
                [True, False, True, bias is not None],
            ),
        )


@pytest.fixture(scope="module")
def registered():
    from localmix.kernels.triton import (
        local_weight,
        local_weight_launches,
        pairwise_weight,
        shared_weight,
        window_weight,
    )

    return local_weight_launches, pairwise_weight, local_weight, shared_weight, window_weight


# the other backward nodes are differentiated by way of other operators
WITH_GRADIENTS = {
    *("triton_shared_weight", "triton_shared_weight_backward", "triton_local_weight", "triton_local_weight_backward"),
    *("triton_projected_local_weight", "triton_window_attention", "triton_neighborhood_attention"),
    *("triton_window_weight", "triton_window_weight_backward"),
}


# opcheck looks at the gradients of what it has made of the arguments
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", range(17))
def test_nodes_are_well_formed(registered, case):
    name, arguments = list(nodes())[case]
    has_rule = name in WITH_GRADIENTS
    arguments = tuple(t.detach().requires_grad_() if has_rule and isinstance(t, torch.Tensor) else t for t in arguments)
    torch.library.opcheck(getattr(torch.ops.localmix, name).default, arguments)


def test_every_node_is_checked():
    assert len(list(nodes())) == 21


@every_operator
def test_compiles_as_one_graph(operator):
    torch.compiler.reset()
    tensors, options = make(operator)
    gradient = torch.randn_like(tensors["0"])
    expected = output_and_gradients(call(operator), tensors, options, gradient)
    compiled = torch.compile(call(operator), fullgraph=True, backend="aot_eager")
    actual = output_and_gradients(compiled, tensors, options, gradient)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@every_operator
def test_two_runs_are_equal_to_the_bit(operator):
    tensors, options = make(operator)
    gradient = torch.randn_like(tensors["0"])
    first, second = (output_and_gradients(call(operator), tensors, options, gradient) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("operator", "shapes", "options"),
    [
        # several strips, tiles, blocks of channels and shares; a kernel column in parts, and one too long to unroll
        ("depthwise_convolution", {"x": (1, 17, 3, 70), "weight": (70, 3, 1), "bias": (70,)}, {"dilation": (2, 1)}),
        ("homogeneous_convolution", {"x": (2, 9, 33, 3), "weight": (2, 3, 11, 1)}, {}),
        ("depthwise_convolution", {"x": (2, 5, 2, 3), "weight": (3, 33, 2)}, {}),
        # several tiles, blocks of groups and of the channels of a group
        ("inhomogeneous_convolution", {"x": (1, 9, 10, 80), "weight": (1, 9, 10, 2, 4)}, {"kernel_size": 2}),
        ("inhomogeneous_convolution", {"x": (1, 3, 4, 35), "weight": (1, 3, 4, 35, 2)}, {"kernel_size": (1, 2)}),
        # and of hidden features
        (
            "projected_inhomogeneous_convolution",
            {"x": (1, 3, 3, 40), "hidden": (1, 3, 3, 130), "projection": (2, 130), "projection_bias": (2,)},
            {"kernel_size": (1, 2), "num_groups": 1},
        ),
        (
            "projected_inhomogeneous_convolution",
            {"x": (2, 19, 9, 34), "hidden": (2, 19, 9, 2), "projection": (68, 2)},
            {"kernel_size": (2, 1), "num_groups": 34},
        ),
        # a window of several blocks, one of them cut, and several tiles of each residue, some without a neighbor
        (
            "window_attention",
            {**dict.fromkeys(("query", "key", "value"), (1, 8, 9, 1, 2)), "bias": (1, 72, 72)},
            {"window_size": (8, 9), "shift": (0, 2)},
        ),
        (
            "neighborhood_attention",
            {**dict.fromkeys(("query", "key", "value"), (1, 11, 17, 1, 2)), "bias": (1, 5, 5)},
            {"kernel_size": 3, "dilation": (1, 2)},
        ),
    ],
)
def test_work_of_several_programs(operator, shapes, options):
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    check_operator(operator, tensors, options, torch.randn(next(iter(shapes.values()))), impl="triton")


@pytest.mark.parametrize("operator", ["window_attention", "neighborhood_attention"])
def test_attention_reads_the_views_of_a_projection_where_they_lie(monkeypatch, registered, operator):
    """Their channels of a head are dense, which is all that the kernels want; other tensors are copied."""
    _, pairwise_weight, *_ = registered
    read = []

    def launch(kernel, programs, inputs, strides, *_):
        read.append((inputs[:3], strides))

    monkeypatch.setattr(pairwise_weight.tuning, "launch", launch)
    _, options = make(operator)
    qkv = torch.randn(2, 3, 4, 3, 2, 5).unbind(3)
    getattr(kernels, operator)(*qkv, **options, impl="triton")
    ((pointers, strides),) = read
    assert all(t.data_ptr() == view.data_ptr() for t, view in zip(pointers, qkv, strict=True))
    assert strides[-15:-3] == 3 * qkv[0].stride()[:4]
    transposed = [t.transpose(3, 4).contiguous().transpose(3, 4) for t in qkv]
    getattr(kernels, operator)(*transposed, **options, impl="triton")
    pointers, _ = read[1]
    assert all(t.is_contiguous() and t.equal(view) for t, view in zip(pointers, qkv, strict=True))


@pytest.mark.parametrize("operator", ["depthwise_convolution", "homogeneous_convolution"])
@pytest.mark.parametrize("channels", [2, 70])
def test_pairs_of_bfloat16_give_what_single_numbers_give(operator, channels):
    """The sums are the same, whether maps are aligned, and read as words of two channels, or not."""

    def misaligned(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    images = [] if operator == "depthwise_convolution" else [2]
    x, weight, bias = torch.randn(2, 5, 6, channels), torch.randn(*images, channels, 3, 2), torch.randn(channels)
    tensors = {"x": x.bfloat16(), "weight": weight.bfloat16(), "bias": bias.bfloat16()}
    options, gradient = {"dilation": (1, 2), "impl": "triton"}, torch.randn(x.shape).bfloat16()
    call = getattr(kernels, operator)
    pairs = output_and_gradients(call, tensors, options, gradient)
    assert misaligned(tensors["x"]).data_ptr() % 4
    single = output_and_gradients(call, {**tensors, "x": misaligned(tensors["x"])}, options, misaligned(gradient))
    exact = {name: t.double() for name, t in tensors.items()}
    expected = output_and_gradients(call, exact, {**options, "impl": "reference"}, gradient.double())
    for name, result in pairs.items():
        assert result.equal(single[name]), name
        # the interpreter cuts float32 off to bfloat16 where a GPU rounds
        error = (result.double() - expected[name]).abs().max()
        assert error <= torch.finfo(torch.bfloat16).eps * expected[name].abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("operator", ["inhomogeneous_convolution", "projected_inhomogeneous_convolution"])
@pytest.mark.parametrize("better", [True, False], ids=["for some", "for any"])
def test_every_tile_of_local_weights_is_within_the_budget(operator, dtype, better, registered, monkeypatch):
    """The interpreter takes the first of them: here each in turn, also of the kernel for what no other takes."""
    x, groups, options = (1, 4, 6, 48), 16, {"kernel_size": (3, 2), "dilation": (1, 2)}
    shapes = {"x": x, "weight": (1, 4, 6, groups, 6)}
    if operator.startswith("projected"):
        shapes = {"x": x, "hidden": (1, 4, 6, 5), "projection": (groups * 6, 5), "projection_bias": (groups * 6,)}
        options["num_groups"] = groups
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    seen, kinds = 0, set()

    def take(name, problem, candidates, run, x):
        nonlocal most
        most = max(most, len(candidates))
        tile = candidates[min(seen, len(candidates) - 1)]
        if "gradient" not in name:
            kinds.add(min(tile[3], 0))
        return tile

    launches = registered[0]
    monkeypatch.setattr(launches.tuning, "choose", take)
    if not better:
        for tiles in ("_tiles_by_words", "_tiles_by_rows"):
            monkeypatch.setattr(launches, tiles, lambda *_: [])
    most = 1
    while seen < most:
        check_operator(operator, tensors, options, torch.randn(x).to(dtype), impl="triton")
        seen += 1
    has_strips = operator.startswith("projected") and dtype != torch.float32
    assert kinds == ({launches._BY_WORDS, *([launches._BY_ROWS] if has_strips else [])} if better else {0})
