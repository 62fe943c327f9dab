"""The CPU kernels in the circumstances of real processes: threads, forks, other processors."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from localmix import functional, kernels
from localmix.kernels import native
from localmix.kernels.native import library
from localmix.testing import assert_within_budget, check_operator, output_and_gradients

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))


def problem(operator, size=(9, 11), heads=3):
    """(tensors, options, gradient) with several lines for each of four threads, and cut windows."""
    qkv = torch.randn(2, *size, 3, heads, 5).unbind(3)
    x = torch.randn(2, *size, 12)
    if operator == "window_attention":
        tensors = dict(zip(("query", "key", "value"), qkv, strict=True)) | {"bias": torch.randn(heads, 20, 20)}
        return tensors, {"window_size": (4, 5), "shift": (1, 2)}, torch.randn_like(qkv[0])
    if operator == "neighborhood_attention":
        tensors = dict(zip(("query", "key", "value"), qkv, strict=True)) | {"bias": torch.randn(heads, 9, 5)}
        return tensors, {"kernel_size": (5, 3), "dilation": (1, 2)}, torch.randn_like(qkv[0])
    if operator == "local_mlp":
        tensors = {"x": x, "weight": torch.randn(3, 20, 20), "bias": torch.randn(3, 20)}
        return tensors, {"window_size": (4, 5), "shift": (1, 2)}, torch.randn_like(x)
    if operator == "depthwise_convolution":
        tensors = {"x": x, "weight": torch.randn(12, 5, 4), "bias": torch.randn(12)}
        return tensors, {"dilation": (1, 2)}, torch.randn_like(x)
    if operator == "homogeneous_convolution":
        return {"x": x, "weight": torch.randn(2, 12, 5, 7), "bias": torch.randn(12)}, {}, torch.randn_like(x)
    if operator == "inhomogeneous_convolution":
        return {"x": x, "weight": torch.randn(2, *size, 4, 15)}, {"kernel_size": (5, 3)}, torch.randn_like(x)
    tensors = {"x": x, "hidden": torch.randn(2, *size, 6), "projection": torch.randn(4 * 15, 6)}
    return tensors, {"kernel_size": (5, 3), "num_groups": 4}, torch.randn_like(x)


def neighborhoods():
    """Problems whose queries side by side see columns that lie side by side, within one vector, within two, and
    anywhere, and residues of which one is smaller than the kernel; their rows are more than are taken together."""
    sizes = [
        ((10, 37), (7, 7), (1, 1)),
        ((5, 71), (3, 21), (1, 1)),
        ((9, 41), (3, 7), (2, 2)),
        ((6, 75), (1, 21), (1, 3)),
        ((4, 13), (3, 7), (1, 2)),
    ]
    for (height, width), (down, across), dilation in sizes:
        tensors = {name: torch.randn(1, height, width, 2, 6) for name in ("query", "key", "value")}
        tensors["bias"] = torch.randn(2, 2 * down - 1, 2 * across - 1)
        options = {"kernel_size": (down, across), "dilation": dilation}
        yield "neighborhood_attention", tensors, options, torch.randn(1, height, width, 2, 6)


def whole_vectors():
    """Problems whose groups, and the channels of each, fill vectors of every instruction set."""
    x = torch.randn(2, 6, 5, 128)
    tensors = {"x": x, "weight": torch.randn(2, 6, 5, 15, 32).transpose(3, 4)}
    yield "inhomogeneous_convolution", tensors, {"kernel_size": (5, 3)}, torch.randn_like(x)
    tensors = {"x": x, "hidden": torch.randn(2, 6, 5, 40), "projection": torch.randn(32 * 15, 40)}
    options = {"kernel_size": (5, 3), "num_groups": 32}
    yield "projected_inhomogeneous_convolution", tensors, options, torch.randn_like(x)


def odd_maps():
    """Problems of several small maps that are taken together, their positions and features odd in number."""
    for size, groups, rank in ((7, 32, 24), (5, 3, 7), (1, 2, 1)):
        x = torch.randn(5, size, size, 2 * groups)
        tensors = {"x": x, "hidden": torch.randn(5, size, size, rank), "projection": torch.randn(groups * 21, rank)}
        tensors["projection_bias"] = torch.randn(groups * 21)
        options = {"kernel_size": (7, 3), "num_groups": groups}
        yield "projected_inhomogeneous_convolution", tensors, options, torch.randn_like(x)


def few_groups():
    """Problems whose channels are side by side in vectors: whole ones, 8, 4, 2 and 1 at a time, and cut ones."""
    for groups, dim in ((1, 250), (2, 128), (3, 40), (1, 7)):
        x = torch.randn(2, 6, 5, groups * dim)
        tensors = {"x": x, "weight": torch.randn(2, 6, 5, groups, 15)}
        yield "inhomogeneous_convolution", tensors, {"kernel_size": (5, 3), "dilation": (1, 2)}, torch.randn_like(x)
        tensors = {"x": x, "weight": torch.randn(2, 6, 5, 28, groups).transpose(3, 4)}
        yield "inhomogeneous_convolution", tensors, {"kernel_size": (4, 7)}, torch.randn_like(x)
        tensors = {"x": x, "hidden": torch.randn(2, 6, 5, 9), "projection": torch.randn(groups * 15, 9)}
        options = {"kernel_size": (5, 3), "num_groups": groups}
        yield "projected_inhomogeneous_convolution", tensors, options, torch.randn_like(x)


def windows_together():
    """Local MLPs of so many windows, whole and cut, that several are taken together and some are left; of odd numbers
    of slots and channels, and of slots that fill vectors."""
    for dim, window, shift in ((1, 3, 1), (3, 7, 3), (7, 4, 0), (12, 5, 2), (24, 3, 0), (40, 4, 1)):
        x = torch.randn(5, 3 * window, 2 * window, 2 * dim)
        tensors = {"x": x, "weight": torch.randn(2, window**2, window**2), "bias": torch.randn(2, window**2)}
        yield "local_mlp", tensors, {"window_size": window, "shift": shift}, torch.randn_like(x)


def cut_windows():
    """Problems whose border cuts windows: rows wider than a vector, rows that a block of 64 queries ends in, and maps
    that are smaller than a window."""
    sizes = [
        ((5, 43), (3, 20), (1, 7)),
        ((9, 70), (2, 33), (1, 12)),
        ((17, 15), (12, 10), (5, 3)),
        ((20, 6), (33, 2), (16, 1)),
        ((10, 10), (3, 17), (1, 9)),
    ]
    for size, window, shift in sizes:
        tensors = {name: torch.randn(1, *size, 2, 5) for name in ("query", "key", "value")}
        tensors["bias"] = torch.randn(2, *[window[0] * window[1]] * 2)
        yield "window_attention", tensors, {"window_size": window, "shift": shift}, torch.randn(1, *size, 2, 5)


def many_heads():
    """Windows whose heads are read in several parts, whole ones and cut ones."""
    for size, shift in (((16, 16), 0), ((20, 18), (5, 3))):
        tensors = {name: torch.randn(1, *size, 8, 32) for name in ("query", "key", "value")}
        tensors["bias"] = torch.randn(8, 256, 256)
        yield "window_attention", tensors, {"window_size": 16, "shift": shift}, torch.randn(1, *size, 8, 32)


def check_in_every_dtype(operator, tensors, options, gradient):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = {name: t.to(dtype) for name, t in tensors.items()}
        check_operator(operator, cast, options, gradient.to(dtype), impl="native")


def check_roundings(dtype):
    """Every number of 16 bits times some others: products that float32 holds, rounded once."""
    patterns = torch.arange(2**16).short().view(dtype)
    for factor in (1.0, -1.25, 3.0, 2.0**-9, 2.0**9):
        factors = torch.full((37,), factor, dtype=dtype)
        x = torch.cat((patterns, patterns[:28])).view(1, 4, 443, 37)
        y = kernels.depthwise_convolution(x, factors.view(37, 1, 1), impl="native")
        torch.testing.assert_close(y, (x.float() * factors.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


def check_gelu(dtype):
    """Whole vectors and cut ones, anywhere in memory; all sizes, of which the share below runs out."""
    sizes = torch.cat((torch.linspace(-9, 9, 5003), torch.linspace(-5.6, -5.4, 501), torch.tensor([0.0, 1e-20])))
    for x in (sizes.to(dtype), torch.randn(2**15 + 5).to(dtype), *(sizes[n:].to(dtype)[n:][:n] for n in range(35))):
        around = x.clone()
        actual, expected = around[1:-1], torch.nn.functional.gelu(x[1:-1].double())
        native.gelu_(actual)
        assert_within_budget(actual, expected, torch.nn.functional.gelu(x[1:-1]))
        assert torch.equal(around[:1], x[:1]) and torch.equal(around[-1:], x[-1:])
    infinite = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0**15, -(2.0**15), -0.0]).to(dtype)
    native.gelu_(infinite)
    right = torch.tensor([torch.nan, torch.inf, torch.nan, 2.0**15, 0.0, 0.0]).to(dtype)
    torch.testing.assert_close(infinite, right, rtol=0, atol=0, equal_nan=True)


OPERATORS = [operator for operator in kernels.OPERATORS if hasattr(native, operator)]
every_operator = pytest.mark.parametrize("operator", OPERATORS)


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(operator, tensors, options, gradient):
    return output_and_gradients(getattr(kernels, operator), tensors, {**options, "impl": "native"}, gradient)


@every_operator
def test_any_number_of_threads(operator, num_threads):
    for threads in (1, 2, 3, 4):
        num_threads(threads)
        check_operator(operator, *problem(operator), impl="native")


@every_operator
def test_more_threads_than_lines(operator, num_threads):
    num_threads(4)
    check_operator(operator, *problem(operator, size=(1, 1)), impl="native")


def few_places(operator, places):
    """(tensors, options, gradient) of heads or groups that threads share: so many windows in all, or lines."""
    size = (1, 3) if operator == "neighborhood_attention" else (4, 5)
    qkv = torch.randn(places, *size, 3, 7, 6).unbind(3)
    if operator == "local_mlp":
        x = torch.randn(places, *size, 7 * 20)
        tensors = {"x": x, "weight": torch.randn(7, 20, 20), "bias": torch.randn(7, 20)}
        return tensors, {"window_size": (4, 5)}, torch.randn_like(x)
    by_window = operator == "window_attention"
    bias = torch.randn(7, 20, 20) if by_window else torch.randn(7, 1, 5)
    options = {"window_size": (4, 5)} if by_window else {"kernel_size": (1, 3)}
    tensors = dict(zip(("query", "key", "value"), qkv, strict=True)) | {"bias": bias}
    return tensors, options, torch.randn_like(qkv[0])


@pytest.mark.parametrize("operator", ["window_attention", "neighborhood_attention", "local_mlp"])
@pytest.mark.parametrize(("places", "threads"), [(1, 2), (1, 3), (1, 8), (2, 3), (2, 5), (3, 4), (3, 11)])
def test_threads_share_the_heads_of_few_windows(operator, places, threads, num_threads):
    """Heads or groups in parts of other sizes, more threads than these, and gradients of biases that threads share."""
    num_threads(threads)
    check_operator(operator, *few_places(operator, places), impl="native")


@every_operator
def test_as_many_threads_give_the_same_bits(operator, num_threads):
    num_threads(3)
    case = problem(operator)
    first, second = run(operator, *case), run(operator, *case)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("threads", [1, 4])
def test_only_the_gradients_that_are_needed(threads, num_threads):
    """Of weights that are made of features: any of them alone or together, to the same bits."""
    num_threads(threads)
    sizes = {"kernel_size": (5, 4), "num_groups": 3, "impl": "native"}
    tensors = [torch.randn(2, 6, 5, 6), torch.randn(2, 6, 5, 7), torch.randn(60, 7), torch.randn(60)]
    gradient = torch.randn(2, 6, 5, 6)

    def gradients(needed):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        kernels.projected_inhomogeneous_convolution(*leaves, **sizes).backward(gradient)
        return [t.grad for t in leaves]

    every = gradients((True,) * 4)
    for needed in list(itertools.product((False, True), repeat=4))[1:]:
        for actual, expected, n in zip(gradients(needed), every, needed, strict=True):
            assert torch.equal(actual, expected) if n else actual is None


def test_hidden_features_of_more_than_a_panel(num_threads):
    """Sums over two vectors of them at a time, and lines around those of a thread that reach into them."""
    num_threads(3)
    tensors = {"x": torch.randn(1, 13, 6, 4), "hidden": torch.randn(1, 13, 6, 37), "projection": torch.randn(42, 37)}
    options = {"kernel_size": (7, 3), "num_groups": 2, "dilation": (2, 1)}
    check_operator("projected_inhomogeneous_convolution", tensors, options, torch.randn(1, 13, 6, 4), impl="native")


@every_operator
def test_two_python_threads_at_once(operator, num_threads):
    num_threads(2)
    cases = [problem(operator) for _ in range(2)]
    expected = [run(operator, *case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            for actual, right in zip(pool.map(lambda case: run(operator, *case), cases), expected, strict=True):
                assert all(torch.equal(actual[name], right[name]) for name in right)


# in a process of its own: where autograd has threads, as after torch.compile, PyTorch refuses gradients in a fork
FORK = """
import multiprocessing, sys
import torch
sys.path.insert(0, {folder!r})
from test_native import OPERATORS, problem, run

def in_child(connection, operator, case):
    connection.send({{name: t.numpy() for name, t in run(operator, *case).items()}})

torch.manual_seed(0)
torch.set_num_threads(2)
context = multiprocessing.get_context("fork")
for operator in OPERATORS:
    case = problem(operator)
    expected = run(operator, *case)
    here, there = context.Pipe()
    child = context.Process(target=in_child, args=(there, operator, case), daemon=True)
    child.start()
    there.close()
    assert here.poll(60), operator + ": the child hangs"
    actual = here.recv()
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(torch.from_numpy(value), expected[name])
    child.join()
    print(operator)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_fork_after_use():
    """As a DataLoader does it: the threads of the parent are gone in the child, which must not wait for them."""
    script = FORK.format(folder=os.path.dirname(__file__))
    command = [sys.executable, "-W", "ignore:.*use of fork.*:DeprecationWarning", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.stdout.split() == OPERATORS, process.stderr


@pytest.mark.parametrize("size", [(13, 27), (6, 14), (3, 7), (2, 5)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (9, 9), (11, 11), (4, 6), (1, 7), (5, 1)], ids=str)
def test_every_width_of_a_kernel_that_has_code_of_its_own(kernel, size):
    """Runs of 7 positions that are whole, laid over one another or too short; three blocks of channels, one cut."""
    for operator, lead in (("depthwise_convolution", ()), ("homogeneous_convolution", (2,))):
        tensors = {"x": torch.randn(2, *size, 37), "weight": torch.randn(*lead, 37, *kernel)}
        tensors["bias"] = torch.randn(37)
        summands = 2 * size[0] * size[1]
        check_operator(operator, tensors, {}, torch.randn(2, *size, 37), impl="native", summands=summands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [3, 32])
def test_threads_that_pack_the_projection_themselves(groups, dtype, num_threads):
    """With 20 features the one thread of 30 positions does not, more threads of fewer positions do."""
    tensors = {"x": (2, 3, 5, 2 * groups), "hidden": (2, 3, 5, 20), "projection": (groups * 12, 20)}
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in tensors.items()}
    tensors["projection_bias"] = torch.randn(groups * 12).to(dtype)
    options, results = {"kernel_size": (4, 3), "num_groups": groups}, []
    for threads in (1, 2, 3, 4):
        num_threads(threads)
        operator = "projected_inhomogeneous_convolution"
        check_operator(operator, tensors, options, torch.randn_like(tensors["x"]), impl="native")
        results.append(getattr(kernels, operator)(**tensors, **options, impl="native"))
    assert all(torch.equal(results[0], y) for y in results)


@pytest.mark.parametrize("problems", [few_groups, odd_maps, cut_windows, many_heads])
def test_few_groups_odd_maps_cut_windows_and_many_heads(problems, num_threads):
    num_threads(2)
    for case in problems():
        check_in_every_dtype(*case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits(dtype):
    check_roundings(dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gelu(dtype, threads, num_threads):
    num_threads(threads)
    check_gelu(dtype)


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("is_groups_inside", [False, True])
def test_weights_of_taps_outside_of_the_map_do_not_matter(is_groups_inside, groups):
    """Every tap of every position that reads nothing has a weight of NaN."""
    for size, kernel, dilation in (((6, 5), (7, 4), (1, 1)), ((4, 9), (2, 5), (3, 2)), ((1, 1), (3, 6), (5, 1))):
        outside = functional.sliding(*size, kernel, dilation=dilation)[None, :, :, None] < 0
        x, weight = torch.randn(2, *size, 32), torch.randn(2, *size, groups, kernel[0] * kernel[1])
        options, gradient = {"kernel_size": kernel, "dilation": dilation, "impl": "native"}, torch.randn_like(x)
        results = []
        for mark in (0.0, torch.nan):
            marked = weight.masked_fill(outside, mark)
            if is_groups_inside:
                marked = marked.transpose(3, 4).contiguous().transpose(3, 4)
            tensors = {"x": x, "weight": marked}
            results.append(output_and_gradients(kernels.inhomogeneous_convolution, tensors, options, gradient))
        assert outside.any()
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("impl", ["native", "aten"])
def test_one_image_on_many_threads(impl, num_threads):
    """Fewer blocks of channels than threads: lines of the map are shared out."""
    num_threads(4)
    tensors = {"x": torch.randn(1, 70, 9, 5), "weight": torch.randn(1, 5, 7, 7), "bias": torch.randn(5)}
    check_operator("homogeneous_convolution", tensors, {}, torch.randn(1, 70, 9, 5), impl=impl, summands=70 * 9)


def test_large_windows_are_taken_some_queries_at_a_time():
    """117 slots: more than the 64 queries of a block, in whole windows and in cut ones."""
    for size, shift in (((13, 18), (0, 0)), ((20, 11), (6, 4))):
        shapes = {name: (2, *size, 2, 6) for name in ("query", "key", "value")} | {"bias": (2, 117, 117)}
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        options = {"window_size": (13, 9), "shift": shift}
        gradient = torch.randn(2, *size, 2, 6)
        # each sum over the positions of a window is one in order
        check_operator("window_attention", tensors, options, gradient, impl="native", summands=117)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_neighborhood_that_covers_the_map(threads, num_threads):
    """One window where there are images for all threads, else lines as ever."""
    num_threads(threads)
    shapes = {name: (3, 4, 5, 2, 6) for name in ("query", "key", "value")} | {"bias": (2, 9, 13)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    check_operator(
        "neighborhood_attention", tensors, {"kernel_size": (5, 7)}, torch.randn(3, 4, 5, 2, 6), impl="native"
    )


@pytest.mark.parametrize("name", ["query", "key", "value", "gradient"])
@pytest.mark.parametrize("width, kernel_size, dilation", [(20, 3, 1), (41, 5, 2), (13, 7, 2), (75, 21, 3)])
def test_a_neighborhood_does_not_see_beyond_itself(width, kernel_size, dilation, name):
    """What lies beside it, in a vector of positions or of another residue, may be anything."""
    shape, column = (1, 4, width, 1, 4), width // 2
    tensors = {name: torch.randn(shape) for name in ("query", "key", "value")}
    gradient = torch.randn(shape)
    options = {"kernel_size": (3, kernel_size), "dilation": (1, dilation), "impl": "native"}
    expected = output_and_gradients(kernels.neighborhood_attention, tensors, options, gradient)
    {**tensors, "gradient": gradient}[name][:, :, column] = torch.nan
    actual = output_and_gradients(kernels.neighborhood_attention, tensors, options, gradient)

    seen = functional.sliding(1, width, (1, kernel_size), dilation=(1, dilation), border="clamp").squeeze(0)
    queries = torch.arange(width) == column if name in ("query", "gradient") else (seen == column).any(1)
    keys = torch.isin(torch.arange(width), seen[queries])
    touched = {"output": queries, "gradient of query": queries, "gradient of key": keys, "gradient of value": keys}
    for result, columns in touched.items():
        assert 0 < columns.sum() < width
        assert torch.equal(actual[result][:, :, ~columns], expected[result][:, :, ~columns])
    changed = "gradient of value" if name == "gradient" else "output"
    assert not actual[changed][:, :, touched[changed]].isfinite().any()


def test_infinite_scores():
    """-inf hides a key, as in a softmax; +inf and NaN make the result NaN."""
    query, key, value = (torch.randn(1, 3, 4, 1, 4) for _ in range(3))
    for mark in (-torch.inf, torch.inf, torch.nan):
        bias = torch.randn(1, 12, 12)
        bias[:, :, 5] = mark
        tensors = {"query": query, "key": key, "value": value, "bias": bias}
        actual, expected = (
            kernels.window_attention(**tensors, window_size=(3, 4), impl=impl) for impl in ("native", "reference")
        )
        torch.testing.assert_close(actual, expected, equal_nan=True)


EVERY_SET = """
import json, sys
import torch
torch.manual_seed(0)
sys.path.insert(0, {folder!r})
from test_native import (
    OPERATORS, check_gelu, check_in_every_dtype, check_roundings,
    cut_windows, few_groups, many_heads, neighborhoods, odd_maps, problem, whole_vectors, windows_together,
)
from localmix.kernels import native
for operator in OPERATORS:
    check_in_every_dtype(operator, *problem(operator))
for cases in (
    whole_vectors, odd_maps, few_groups, neighborhoods, windows_together, cut_windows, many_heads,
):
    for case in cases():
        check_in_every_dtype(*case)
for dtype in (torch.bfloat16, torch.float16):
    check_roundings(dtype)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    check_gelu(dtype)
print(json.dumps(native.description()))
"""


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_that_this_processor_has(name):
    script = EVERY_SET.format(folder=os.path.dirname(__file__))
    environment = {**os.environ, "LOCALMIX_INSTRUCTION_SET": name, "OMP_NUM_THREADS": "2"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if process.returncode and "and what the CPU has" in process.stderr:
        assert name != "generic"
        pytest.skip(f"this processor has no {name}")
    assert process.returncode == 0, process.stderr
    assert f" {name}," in json.loads(process.stdout)


def test_kernels_of_this_python_come_before_those_of_another(tmp_path):
    assert library._built(tmp_path) is None
    others = [tmp_path / f"_native.cpython-{version}-x86_64-linux-gnu.so" for version in range(400, 408)]
    for file in others:
        file.touch()
    assert library._built(tmp_path) in others
    own = tmp_path / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    own.touch()
    assert library._built(tmp_path) == own


def test_kernels_of_another_interface_are_not_called(tmp_path):
    folder = Path(kernels.__file__).parents[1]
    copied = shutil.copytree(folder, tmp_path / "localmix", ignore=shutil.ignore_patterns("__pycache__"))
    with open(copied / "kernels" / "csrc" / "interface.h", "a") as file:
        file.write("// younger than the library\n")
    script = """
import torch
from localmix import kernels
assert kernels.__file__.startswith({folder!r}), kernels.__file__
print(kernels.choose("depthwise_convolution"))
kernels.depthwise_convolution(torch.ones(1, 3, 3, 2), torch.ones(2, 3, 3), impl="native")
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", script.format(folder=str(tmp_path))]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.stdout == "aten\n"
    assert process.stderr.count("RuntimeWarning: the kernels were compiled from other sources than these") == 1
    assert "ValueError: impl: expected an implementation of depthwise_convolution, got 'native'" in process.stderr


def test_what_is_no_library_is_not_loaded(tmp_path):
    file, interface = tmp_path / "_native.so", tmp_path / "interface.h"
    file.write_text("cut off")
    assert library._why_none(file, interface).startswith("the kernels cannot be loaded: ")
    assert library._why_none(None, interface).startswith("the kernels were not compiled: ")
    assert library._why_none(library._FILE, interface) is None


def test_an_unknown_instruction_set_is_an_error():
    environment = {**os.environ, "LOCALMIX_INSTRUCTION_SET": "avx1024"}
    script = "from localmix.kernels import native; native.description()"
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "LOCALMIX_INSTRUCTION_SET: expected generic" in process.stderr


def leaves_of(operator):
    tensors, options, gradient = problem(operator)
    return {name: t.requires_grad_() for name, t in tensors.items()}, options, gradient


def called_operators(operator):
    """The (operator of PyTorch, arguments) that a call and its backward pass make."""
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "localmix":
                calls.append((function, args))
            return function(*args, **(kwargs or {}))

    leaves, options, gradient = leaves_of(operator)
    with Watch():
        getattr(kernels, operator)(**leaves, **options, impl="native").backward(gradient)
    return calls


# opcheck looks at the gradients of what it has made of the arguments
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@every_operator
def test_operators_of_pytorch_are_well_formed(operator):
    """Schema, fake tensors, autograd and traced forms, of what a call and its backward pass run."""
    calls = called_operators(operator)
    assert len(calls) == 2
    (forward, arguments), (backward, of_gradients) = calls
    # second derivatives of these go by other operators, see their rules
    has_rule = not operator.startswith("projected") and not operator.endswith("attention")
    for function, values, differentiable in ((forward, arguments, True), (backward, of_gradients, has_rule)):
        fresh = (
            v.detach().clone().requires_grad_(differentiable) if isinstance(v, torch.Tensor) else v for v in values
        )
        torch.library.opcheck(function, tuple(fresh))


@pytest.mark.parametrize("dynamic", [False, True])
@every_operator
def test_compiles_as_one_graph(operator, dynamic):
    leaves, options, gradient = leaves_of(operator)
    torch.compiler.reset()

    def call(*tensors):
        return getattr(kernels, operator)(**dict(zip(leaves, tensors, strict=True)), **options, impl="native")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, actual = call(*leaves.values()), compiled(*leaves.values())
    assert torch.equal(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual, list(leaves.values()), gradient),
        torch.autograd.grad(expected, list(leaves.values()), gradient),
        strict=True,
    ):
        assert torch.equal(a, b)


@every_operator
def test_checkpointing_changes_nothing(operator):
    leaves, options, gradient = leaves_of(operator)

    def call(*tensors):
        return getattr(kernels, operator)(**dict(zip(leaves, tensors, strict=True)), **options, impl="native")

    expected = torch.autograd.grad(call(*leaves.values()), list(leaves.values()), gradient)
    y = checkpoint(call, *leaves.values(), use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y, list(leaves.values()), gradient), expected, strict=True):
        assert torch.equal(a, b)
