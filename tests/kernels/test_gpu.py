"""The Triton kernels on a GPU, where there is one; without, the other tests run them in Triton's interpreter.

Where time is short, the topmost run: those of what the interpreter has not, then output and gradients.
"""

import pytest
import torch

from localmix import functional, kernels
from localmix.testing import assert_within_budget, check_operator

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    # of PyTorch, where a product is the first that the thread of a backward pass does
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context"),
]

CASES = [
    # operator, shapes, options
    ("depthwise_convolution", {"x": (2, 13, 9, 20), "weight": (20, 7, 7), "bias": (20,)}, {}),
    ("depthwise_convolution", {"x": (3, 5, 6, 1), "weight": (1, 4, 3)}, {"dilation": (2, 1)}),
    ("depthwise_convolution", {"x": (2, 3, 2, 33), "weight": (33, 7, 7), "bias": (33,)}, {}),
    ("depthwise_convolution", {"x": (2, 56, 56, 96), "weight": (96, 7, 7), "bias": (96,)}, {}),
    # several strips, tiles and shares
    ("depthwise_convolution", {"x": (48, 14, 14, 384), "weight": (384, 7, 7), "bias": (384,)}, {}),
    ("depthwise_convolution", {"x": (48, 7, 7, 768), "weight": (768, 7, 7), "bias": (768,)}, {}),
    ("depthwise_convolution", {"x": (2, 13, 9, 20), "weight": (20, 11, 11)}, {}),
    # more images than run at the same time, on a map that is one tile
    ("depthwise_convolution", {"x": (180, 7, 7, 768), "weight": (768, 7, 7), "bias": (768,)}, {}),
    ("homogeneous_convolution", {"x": (32, 56, 56, 128), "weight": (32, 128, 5, 3)}, {"dilation": (1, 2)}),
    ("homogeneous_convolution", {"x": (3, 13, 9, 20), "weight": (3, 20, 7, 7), "bias": (20,)}, {}),
    ("homogeneous_convolution", {"x": (2, 4, 6, 3), "weight": (2, 3, 4, 5)}, {"dilation": (1, 2)}),
    ("inhomogeneous_convolution", {"x": (2, 13, 9, 24), "weight": (2, 13, 9, 4, 49)}, {"kernel_size": 7}),
    ("inhomogeneous_convolution", {"x": (2, 5, 6, 6), "weight": (2, 5, 6, 6, 12)}, {"kernel_size": (3, 4)}),
    ("inhomogeneous_convolution", {"x": (2, 3, 3, 5), "weight": (2, 3, 3, 1, 49)}, {"kernel_size": 7, "dilation": 2}),
    (
        "projected_inhomogeneous_convolution",
        {"x": (2, 13, 9, 24), "hidden": (2, 13, 9, 6), "projection": (196, 6), "projection_bias": (196,)},
        {"kernel_size": 7, "num_groups": 4},
    ),
    (
        "projected_inhomogeneous_convolution",
        {"x": (2, 14, 14, 384), "hidden": (2, 14, 14, 96), "projection": (1568, 96), "projection_bias": (1568,)},
        {"kernel_size": 7, "num_groups": 32},
    ),
    (
        "projected_inhomogeneous_convolution",
        {"x": (1, 3, 2, 8), "hidden": (1, 3, 2, 1), "projection": (50, 1)},
        {"kernel_size": 5, "num_groups": 2},
    ),
    (
        "window_attention",
        {**dict.fromkeys(("query", "key", "value"), (2, 17, 10, 3, 32)), "bias": (3, 49, 49)},
        {"window_size": 7, "shift": 3},
    ),
    ("window_attention", dict.fromkeys(("query", "key", "value"), (2, 5, 7, 1, 3)), {"window_size": (4, 3)}),
    (
        "window_attention",
        {**dict.fromkeys(("query", "key", "value"), (2, 26, 25, 2, 16)), "bias": (2, 144, 144)},
        {"window_size": 12, "shift": 6},
    ),
    (
        "neighborhood_attention",
        {**dict.fromkeys(("query", "key", "value"), (2, 17, 10, 3, 32)), "bias": (3, 13, 13)},
        {"kernel_size": 7},
    ),
    (
        "neighborhood_attention",  # the whole map
        {**dict.fromkeys(("query", "key", "value"), (3, 7, 6, 3, 32)), "bias": (3, 13, 17)},
        {"kernel_size": (7, 9)},
    ),
    (
        "neighborhood_attention",
        dict.fromkeys(("query", "key", "value"), (2, 9, 11, 2, 5)),
        {"kernel_size": 3, "dilation": (2, 3)},
    ),
    (
        "local_mlp",
        {"x": (2, 17, 10, 96), "weight": (32, 49, 49), "bias": (32, 49)},
        {"window_size": 7, "shift": 3},
    ),
    ("local_mlp", {"x": (2, 13, 25, 80), "weight": (1, 144, 144)}, {"window_size": 12, "shift": (6, 0)}),
]
LARGE = {"x": (23, 1024, 1024, 96), "weight": (96, 3, 3)}
"""More than 2**31 numbers."""
LIKELY_SUMMANDS = 48 * 14 * 14
"""Of the gradient of a shared weight: as many as there are positions."""


@pytest.fixture(autouse=True)
def same_numbers_every_day():
    """Without the deterministic mode of the other tests of kernels: on a GPU it is another way to compute."""
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    # tests run side by side, and a definition takes gigabytes
    torch.cuda.empty_cache()


def name_of(case):
    return f"{case[0]}-{'x'.join(map(str, next(iter(case[1].values()))))}"


def draw(shapes, dtype, strided):
    def tensor(shape):
        t = torch.randn(shape, device="cuda").to(dtype)
        if strided and len(shape) > 3:
            # the same numbers, every second one of a larger tensor
            t = torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]
        return t

    return {name: tensor(shape) for name, shape in shapes.items()}


def check(case, dtype, strided):
    operator, shapes, options = case
    gradient = draw({"gradient": next(iter(shapes.values()))}, dtype, strided)["gradient"]
    check_operator(
        operator,
        draw(shapes, dtype, strided),
        options,
        gradient,
        impl="triton",
        summands=LIKELY_SUMMANDS,
        # attention's gradients are differences of terms about this large
        cancelled=float(gradient.abs().max()) if operator.endswith("attention") else 0.0,
    )


def test_the_clock_of_tiles_leaves_out_what_python_takes_to_start_a_call():
    """A call of many short launches takes as long as the graph of it."""
    from localmix.kernels.triton import clock

    x = torch.zeros(1000, device="cuda")

    def run():
        for _ in range(100):
            x.add_(1)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    # other processes use the GPU too
    calls, replays = (min(clock.milliseconds(call) for _ in range(5)) for call in (run, graph.replay))
    assert calls < 3 * replays


def test_more_than_two_to_the_31_numbers(monkeypatch):
    """Offsets of 64 bits, by every tile: the last image is right where the first number of it lies beyond 2**31."""
    from localmix.kernels.triton import tuning

    x = torch.zeros(LARGE["x"], device="cuda", dtype=torch.bfloat16)
    x[-1] = torch.randn(LARGE["x"][1:], device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(LARGE["weight"], device="cuda", dtype=torch.bfloat16)
    # the rows above are the neighbors of the first of these
    part = x[-1:, -33:]
    exact = functional.depthwise_convolution(part.double(), weight.double())[:, 1:]
    eager = functional.depthwise_convolution(part, weight)[:, 1:]
    untried = None

    def take(name, problem, candidates, run, x):
        nonlocal untried
        untried = list(candidates) if untried is None else untried
        return untried.pop()

    monkeypatch.setattr(tuning, "choose", take)
    while untried is None or untried:
        monkeypatch.setattr(tuning, "_ready", {})
        y = kernels.depthwise_convolution(x, weight, impl="triton")[-1:, -32:]
        assert_within_budget(y, exact, eager)
        # what the next one leaves unwritten is not right by chance
        y.fill_(torch.nan)


def test_empty_batch():
    x = torch.randn(0, 5, 5, 4, device="cuda", requires_grad=True)
    weight = torch.randn(4, 3, 3, device="cuda", requires_grad=True)
    y = kernels.depthwise_convolution(x, weight, impl="triton")
    y.sum().backward()
    assert y.shape == x.shape and weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_tile(case, monkeypatch):
    """One that is not the fastest here may be on another GPU."""
    from localmix.kernels.triton import tuning

    tile, most = 0, 1

    def take(name, problem, candidates, run, x):
        nonlocal most
        most = max(most, len(candidates))
        return candidates[min(tile, len(candidates) - 1)]

    monkeypatch.setattr(tuning, "choose", take)
    while tile < most:
        monkeypatch.setattr(tuning, "_ready", {})
        check(case, torch.bfloat16, False)
        tile += 1


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_auto_takes_triton_and_compiles_as_one_graph(case):
    operator, shapes, options = case
    tensors = draw(shapes, torch.float32, False)
    assert kernels.choose(operator, "auto", next(iter(tensors.values()))) == "triton"
    torch.compiler.reset()
    seen = []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def run(tensors):
        return getattr(kernels, operator)(**tensors, **options)

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend=look)(tensors), run(tensors))
    assert any("triton" in name for name in seen), seen
    definition = getattr(functional, operator)
    exact = definition(**{name: t.double() for name, t in tensors.items()}, **options)
    compiled = torch.compile(run, fullgraph=True)(tensors)
    assert_within_budget(compiled, exact, definition(**tensors, **options))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_deterministic_where_it_is_asked_for(case):
    operator, shapes, options = case
    leaves = {name: t.requires_grad_() for name, t in draw(shapes, torch.float32, False).items()}
    torch.use_deterministic_algorithms(True)
    gradients = []
    for _ in range(2):
        y = getattr(kernels, operator)(**leaves, **options, impl="triton")
        gradients.append(torch.autograd.grad(y.square().sum(), list(leaves.values())))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_calls_that_are_alike_take_their_own_tensors(case):
    """The second call finds a launch that is ready, and another view of the same memory has one of its own."""
    operator, shapes, options = case
    run = getattr(kernels, operator)
    for tensors in [draw(shapes, torch.float16, False) for _ in range(3)]:
        exact = getattr(functional, operator)(**{name: t.double() for name, t in tensors.items()}, **options)
        eager = getattr(functional, operator)(**tensors, **options)
        assert_within_budget(run(**tensors, **options, impl="triton"), exact, eager)
        misaligned = {name: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for name, t in tensors.items()}
        assert_within_budget(run(**misaligned, **options, impl="triton"), exact, eager)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_captured_in_a_graph(case):
    """What was called once can be captured; a replay reads what the tensors hold then."""
    operator, shapes, options = case
    tensors, others = draw(shapes, torch.float32, False), draw(shapes, torch.float32, False)

    def run():
        return getattr(kernels, operator)(**tensors, **options, impl="triton")

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    for name, t in tensors.items():
        t.copy_(others[name])
    graph.replay()
    torch.testing.assert_close(y, run())


# every case runs in one dtype before the next: pytest goes through the topmost first
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("hostile", [True, False], ids=["hostile", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_output_and_gradients(case, dtype, hostile):
    """Hostile: NaN between the numbers of the inputs, and in memory that nothing has written (deterministic mode)."""
    torch.use_deterministic_algorithms(hostile)
    check(case, dtype, hostile)
