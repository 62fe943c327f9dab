"""Bad input: the error names the argument, what was expected and what came."""

import re

import pytest
import torch

from localmix import functional, kernels

r = torch.randn

# A call of each function that is right, ...
RIGHT = {
    "sliding": {"height": 5, "width": 4, "kernel_size": 3},
    "window": {"height": 5, "width": 4, "window_size": (2, 3)},
    "aggregate": {"x": r(2, 5, 4, 6), "weight": r(2, 5, 4, 3, 9), "neighborhood": functional.sliding(5, 4, 3)},
    "relative_position_bias": {"table": r(2, 3, 5), "window_size": (2, 3)},
    "depthwise_convolution": {"x": r(2, 5, 4, 6), "weight": r(6, 3, 3), "bias": r(6)},
    "homogeneous_convolution": {"x": r(2, 5, 4, 6), "weight": r(2, 6, 3, 3), "bias": r(6)},
    "inhomogeneous_convolution": {"x": r(2, 5, 4, 6), "weight": r(2, 5, 4, 3, 9), "kernel_size": 3},
    "projected_inhomogeneous_convolution": {
        "x": r(2, 5, 4, 6),
        "hidden": r(2, 5, 4, 7),
        "projection": r(27, 7),
        "projection_bias": r(27),
        "num_groups": 3,
        "kernel_size": 3,
    },
    "neighborhood_products": {"query": r(2, 5, 4, 6), "key": r(2, 5, 4, 6), "num_groups": 3, "kernel_size": 3},
    "window_attention": {
        **{name: r(2, 5, 4, 2, 3) for name in ("query", "key", "value")},
        "bias": r(2, 6, 6),
        "window_size": (2, 3),
        "shift": (1, 1),
    },
    "neighborhood_attention": {
        **{name: r(2, 5, 4, 2, 3) for name in ("query", "key", "value")},
        "bias": r(2, 3, 5),
        "kernel_size": (2, 3),
    },
    "local_mlp": {"x": r(2, 5, 4, 6), "weight": r(2, 6, 6), "bias": r(2, 6), "window_size": (2, 3), "shift": (1, 1)},
}

INT, POSITIVE, FLOATING = "an int or a pair of ints", "at least 1", "a floating point tensor"

# ... and what makes it wrong: argument, value, what the message says was expected, and what it says came.
SIZES = [
    (0, POSITIVE, "0"),
    (-3, POSITIVE, "-3"),
    ((3, 0), POSITIVE, "(3, 0)"),
    (2.0, INT, "2.0"),
    (True, INT, "True"),
    ((3, True), INT, "(3, True)"),
    ("3", INT, "'3'"),
    ((3, 3, 3), INT, "(3, 3, 3)"),
    ((3,), INT, "(3,)"),
    (None, INT, "None"),
]
SHIFTS = [
    (2, "less than window_size = (2, 3)", "2"),
    ((1, 3), "less than window_size = (2, 3)", "(1, 3)"),
    (-1, "at least 0", "-1"),
    ((0, -2), "at least 0", "(0, -2)"),
    (1.0, INT, "1.0"),
    (False, INT, "False"),
]
WRONG = {
    "sliding": [
        *(("kernel_size", *size) for size in SIZES),
        *(("dilation", *size) for size in SIZES),
        ("border", "same", "one of 'zero', 'clamp'", "'same'"),
        ("height", 0, POSITIVE, "(0, 4)"),
        ("width", 4.0, INT, "(5, 4.0)"),
    ],
    "window": [
        *(("window_size", *size) for size in SIZES),
        *(("shift", *shift) for shift in SHIFTS),
        ("height", -5, POSITIVE, "(-5, 4)"),
    ],
    "aggregate": [
        ("x", r(5, 4, 6), "[B, H, W, C]", "shape (5, 4, 6)"),
        ("x", [1.0], "a tensor [B, H, W, C]", "list"),
        ("x", torch.ones(2, 5, 4, 6, dtype=torch.int64), FLOATING, "torch.int64"),
        ("weight", r(2, 5, 4, 3), "[B, H, W, G, K]", "shape (2, 5, 4, 3)"),
        ("weight", r(2, 5, 4, 4, 9), "a divisor of C = 6", "4"),
        ("weight", r(2, 5, 3, 3, 9), "B, H, W = 2, 5, 4", "shape (2, 5, 3, 3, 9)"),
        ("weight", r(3, 5, 4, 3, 9), "B, H, W = 2, 5, 4", "shape (3, 5, 4, 3, 9)"),
        ("weight", r(2, 5, 4, 3, 8), "K = 9", "shape (2, 5, 4, 3, 8)"),
        ("weight", r(2, 5, 4, 3, 9).double(), "dtype torch.float32", "torch.float64"),
        ("neighborhood", torch.zeros(5, 4, 9), "an int64 tensor [H, W, K]", "torch.float32 (5, 4, 9)"),
        ("neighborhood", torch.zeros(5, 4, 9, dtype=torch.int32), "an int64 tensor", "torch.int32 (5, 4, 9)"),
        ("neighborhood", torch.zeros(20, 9, dtype=torch.int64), "an int64 tensor [H, W, K]", "torch.int64 (20, 9)"),
        ("neighborhood", torch.zeros(4, 5, 9, dtype=torch.int64), "[5, 4] as in x", "shape (4, 5, 9)"),
        ("neighborhood", torch.full((5, 4, 9), 20), "from -1 (no input) to 19", "20 to 20"),
        ("neighborhood", torch.full((5, 4, 9), -2), "from -1 (no input) to 19", "-2 to -2"),
        ("neighborhood", None, "an int64 tensor [H, W, K]", "NoneType"),
    ],
    "relative_position_bias": [
        *(("window_size", *size) for size in SIZES),
        ("table", r(3, 5), "[heads, 2wh-1, 2ww-1]", "shape (3, 5)"),
        ("table", r(2, 3, 4), "[heads, 2 wh - 1, 2 ww - 1]", "shape (2, 3, 4)"),
        ("table", r(2, 5, 3), "[heads, 2 wh - 1, 2 ww - 1]", "shape (2, 5, 3)"),
    ],
    "depthwise_convolution": [
        ("x", r(5, 4, 6), "[B, H, W, C]", "shape (5, 4, 6)"),
        ("x", r(2, 5, 0, 6), "sizes of at least 1", "shape (2, 5, 0, 6)"),
        ("x", None, "a tensor [B, H, W, C]", "NoneType"),
        ("x", torch.ones(2, 5, 4, 6, dtype=torch.uint8), FLOATING, "torch.uint8"),
        ("weight", r(6, 9), "[C, kh, kw]", "shape (6, 9)"),
        ("weight", r(6, 1, 3, 3), "[C, kh, kw]", "shape (6, 1, 3, 3)"),
        ("weight", r(5, 3, 3), "C = 6", "shape (5, 3, 3)"),
        ("weight", r(6, 0, 3), "at least 1", "shape (6, 0, 3)"),
        ("weight", r(6, 3, 3).half(), "dtype torch.float32", "torch.float16"),
        ("weight", r(6, 3, 3, device="meta"), "device cpu", "meta"),
        ("bias", r(5), "[C] = [6]", "shape (5,)"),
        ("bias", r(6, 1), "[C]", "shape (6, 1)"),
        ("bias", r(6).double(), "dtype torch.float32", "torch.float64"),
        ("bias", 1.0, "a tensor [C]", "float"),
        *(("dilation", *size) for size in SIZES),
    ],
    "homogeneous_convolution": [
        ("x", r(2, 5, 4), "[B, H, W, C]", "shape (2, 5, 4)"),
        ("weight", r(6, 3, 3), "[B, C, kh, kw]", "shape (6, 3, 3)"),
        ("weight", r(3, 6, 3, 3), "B = 2 and C = 6", "shape (3, 6, 3, 3)"),
        ("weight", r(1, 6, 3, 3), "B = 2 and C = 6", "shape (1, 6, 3, 3)"),
        ("weight", r(2, 4, 3, 3), "B = 2 and C = 6", "shape (2, 4, 3, 3)"),
        ("weight", r(2, 6, 3, 0), "at least 1", "shape (2, 6, 3, 0)"),
        ("weight", r(2, 6, 3, 3).bfloat16(), "dtype torch.float32", "torch.bfloat16"),
        ("weight", r(2, 6, 3, 3, device="meta"), "device cpu", "meta"),
        ("bias", r(2, 6), "[C]", "shape (2, 6)"),
        ("dilation", -1, POSITIVE, "-1"),
    ],
    "inhomogeneous_convolution": [
        ("x", r(2, 5, 4, 6, 1), "[B, H, W, C]", "shape (2, 5, 4, 6, 1)"),
        ("weight", r(2, 5, 4, 27), "[B, H, W, G, K]", "shape (2, 5, 4, 27)"),
        ("weight", r(1, 5, 4, 3, 9), "[2, 5, 4, G, 9]", "shape (1, 5, 4, 3, 9)"),
        ("weight", r(2, 4, 5, 3, 9), "[2, 5, 4, G, 9]", "shape (2, 4, 5, 3, 9)"),
        ("weight", r(2, 5, 4, 3, 8), "[2, 5, 4, G, 9]", "shape (2, 5, 4, 3, 8)"),
        ("weight", r(2, 5, 4, 4, 9), "a divisor of C = 6", "4"),
        ("weight", r(2, 5, 4, 12, 9), "a divisor of C = 6", "12"),
        ("weight", r(2, 5, 4, 3, 9).double(), "dtype torch.float32", "torch.float64"),
        ("kernel_size", (3, 4), "[2, 5, 4, G, 12]", "shape (2, 5, 4, 3, 9)"),
        *(("kernel_size", *size) for size in SIZES),
        *(("dilation", *size) for size in SIZES),
    ],
    "projected_inhomogeneous_convolution": [
        ("x", r(2, 5, 4), "[B, H, W, C]", "shape (2, 5, 4)"),
        ("hidden", r(2, 4, 5, 7), "[2, 5, 4] as in x", "shape (2, 4, 5, 7)"),
        ("hidden", r(2, 5, 4, 7).half(), "dtype torch.float32", "torch.float16"),
        ("projection", r(27, 6), "[G * K, R] = [27, 7]", "shape (27, 6)"),
        ("projection", r(26, 7), "[G * K, R] = [27, 7]", "shape (26, 7)"),
        ("projection_bias", r(9), "[G * K] = [27]", "shape (9,)"),
        ("num_groups", 4, "a divisor of C = 6", "4"),
        ("num_groups", 0, "an int of at least 1", "0"),
        ("num_groups", 3.0, "an int of at least 1", "3.0"),
        *(("kernel_size", *size) for size in SIZES),
        *(("dilation", *size) for size in SIZES),
    ],
    "neighborhood_products": [
        ("query", r(2, 5, 4), "[B, H, W, C]", "shape (2, 5, 4)"),
        ("key", r(2, 4, 5, 6), "the shape of query, (2, 5, 4, 6)", "shape (2, 4, 5, 6)"),
        ("key", r(2, 5, 4, 6).double(), "dtype torch.float32", "torch.float64"),
        ("num_groups", 4, "a divisor of C = 6", "4"),
        ("num_groups", 3.0, "an int of at least 1", "3.0"),
        *(("kernel_size", *size) for size in SIZES),
        *(("dilation", *size) for size in SIZES),
    ],
    "window_attention": [
        ("query", r(2, 5, 4, 6), "[B, H, W, heads, D]", "shape (2, 5, 4, 6)"),
        ("query", r(2, 5, 4, 2, 0), "at least 1", "shape (2, 5, 4, 2, 0)"),
        ("key", r(2, 4, 5, 2, 3), "(2, 5, 4, 2, 3)", "shape (2, 4, 5, 2, 3)"),
        ("value", r(2, 5, 4, 2, 4), "(2, 5, 4, 2, 3)", "shape (2, 5, 4, 2, 4)"),
        ("key", r(2, 5, 4, 2, 3).half(), "dtype torch.float32", "torch.float16"),
        ("value", r(2, 5, 4, 2, 3, device="meta"), "device cpu", "meta"),
        ("value", None, "a tensor", "NoneType"),
        ("bias", r(2, 6, 5), "[heads, N, N] = [2, 6, 6]", "shape (2, 6, 5)"),
        ("bias", r(1, 6, 6), "[heads, N, N] = [2, 6, 6]", "shape (1, 6, 6)"),
        ("bias", r(6, 6), "[heads, N, M]", "shape (6, 6)"),
        ("bias", r(2, 6, 6).double(), "dtype torch.float32", "torch.float64"),
        *(("window_size", *size) for size in SIZES),
        *(("shift", *shift) for shift in SHIFTS),
    ],
    "neighborhood_attention": [
        ("query", r(2, 5, 4, 6), "[B, H, W, heads, D]", "shape (2, 5, 4, 6)"),
        ("key", r(1, 5, 4, 2, 3), "(2, 5, 4, 2, 3)", "shape (1, 5, 4, 2, 3)"),
        ("value", torch.ones(2, 5, 4, 2, 3, dtype=torch.int32), FLOATING, "torch.int32"),
        ("bias", r(2, 3, 3), "[heads, 2 kh - 1, 2 kw - 1] = [2, 3, 5]", "shape (2, 3, 3)"),
        ("bias", r(3, 3, 5), "[heads, 2 kh - 1, 2 kw - 1] = [2, 3, 5]", "shape (3, 3, 5)"),
        *(("kernel_size", *size) for size in SIZES),
        *(("dilation", *size) for size in SIZES),
    ],
    "local_mlp": [
        ("x", r(5, 4, 6), "[B, H, W, C]", "shape (5, 4, 6)"),
        ("weight", r(6, 6), "[G, N, N]", "shape (6, 6)"),
        ("weight", r(2, 6, 5), "[G, N, N] with N = 6", "shape (2, 6, 5)"),
        ("weight", r(2, 9, 9), "[G, N, N] with N = 6", "shape (2, 9, 9)"),
        ("weight", r(4, 6, 6), "a divisor of C = 6", "4"),
        ("weight", r(2, 6, 6).double(), "dtype torch.float32", "torch.float64"),
        ("bias", r(6), "[G, N]", "shape (6,)"),
        ("bias", r(2, 5), "[G, N] = [2, 6]", "shape (2, 5)"),
        *(("window_size", *size) for size in SIZES),
        *(("shift", *shift) for shift in SHIFTS),
    ],
}
CASES = [
    pytest.param(module, function, *wrong, id=f"{module.__name__.split('.')[1]}-{function}-{wrong[0]}-{wrong[2]}")
    for function, rows in WRONG.items()
    for wrong in rows
    for module in (functional, kernels)
    if hasattr(module, function)
]
# one check serves both, and the one that knows more speaks
NAMES = {"height": "height, width", "width": "height, width"}
BLAMED = {("inhomogeneous_convolution", "kernel_size", (3, 4)): "weight"}


@pytest.mark.parametrize("function", RIGHT)
def test_right_calls_are_right(function):
    for module in (functional, kernels):
        if hasattr(module, function):
            assert isinstance(getattr(module, function)(**RIGHT[function]), torch.Tensor)


def test_every_function_is_tested():
    functions = {name for name in functional.__all__ if callable(getattr(functional, name))}
    assert functions == set(WRONG) == set(RIGHT)
    assert set(kernels.OPERATORS) <= set(WRONG)


@pytest.mark.parametrize(("module", "function", "argument", "value", "expected", "got"), CASES)
def test_message_tells_what_was_wrong(module, function, argument, value, expected, got):
    blamed = NAMES.get(argument, argument)
    if not isinstance(value, torch.Tensor):
        blamed = BLAMED.get((function, argument, value if isinstance(value, tuple) else None), blamed)
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(module, function)(**{**RIGHT[function], argument: value})
    pattern = rf"{re.escape(blamed)}: expected .*{re.escape(expected)}.*, got {re.escape(got)}"
    assert re.fullmatch(pattern, re.sub(r"as the first argument (has|is on)", "", str(caught.value)))
    wrong_kind = "a tensor" in expected
    assert caught.type is (TypeError if wrong_kind else ValueError)
