"""The judge of the kernels is itself seen red."""

import pytest
import torch

from localmix.kernels import aten
from localmix.testing import assert_within_budget, check_operator

reference = torch.linspace(-1, 1, 101, dtype=torch.float64) / 3


def test_error_of_eager_is_allowed_twice():
    eager = reference.float()
    eager[0] += 1e-3
    assert_within_budget(reference.float() + 1.9e-3, reference, eager)
    with pytest.raises(AssertionError, match=r"^result: error 2.10e-03 is over the budget of 2.00e-03$"):
        assert_within_budget(reference.float() + 2.1e-3, reference, eager)


def test_a_last_digit_is_allowed_where_eager_is_exact():
    half = torch.full((3,), 0.5, dtype=torch.float64)
    eps = torch.finfo(torch.bfloat16).eps
    assert_within_budget((half + eps / 2).bfloat16(), half, half.bfloat16())
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget((half + 2 * eps).bfloat16(), half, half.bfloat16())


def test_a_long_sum_may_be_in_any_order():
    terms = torch.randn(10_000, 64, dtype=torch.float64)
    exact, pairwise = terms.sum(0), terms.float().sum(0)
    in_order = torch.zeros(64)
    for row in terms.float():
        in_order += row
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(in_order, exact, pairwise)
    assert_within_budget(in_order, exact, pairwise, summands=10_000)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(in_order - terms.float()[7], exact, pairwise, summands=10_000)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite(value):
    actual = reference.float()
    actual[7] = value
    with pytest.raises(AssertionError, match=r"^gradient: 1 of 101 values are not finite$"):
        assert_within_budget(actual, reference, reference.float(), name="gradient")


def test_shape_and_dtype():
    with pytest.raises(AssertionError, match=r"expected torch.float32 \(101,\), got torch.float32 \(1, 101\)"):
        assert_within_budget(reference.float()[None], reference, reference.float())
    with pytest.raises(AssertionError, match=r"expected torch.bfloat16 \(101,\), got torch.float32"):
        assert_within_budget(reference.float(), reference, reference.bfloat16())
    assert_within_budget(torch.ones(0, 3), torch.ones(0, 3).double(), torch.ones(0, 3))


@pytest.mark.parametrize("unfit", [reference.float(), reference / 0, reference * torch.nan])
def test_unfit_reference(unfit):
    with pytest.raises(ValueError, match=r"^reference: expected finite float64 values"):
        assert_within_budget(reference.float(), unfit, reference.float())


def test_nothing_judges_float64():
    with pytest.raises(ValueError, match=r"^eager: expected a dtype below float64, got torch.float64$"):
        assert_within_budget(reference, reference, reference)


def wrong_tap(y, x, weight, *_):
    return y + 1e-2 * x


def wrong_gradient(y, x, weight, *_):
    return y + (weight - weight.detach()).sum() * 1e-2


def unwritten(y, x, weight, *_):
    y = y.clone()
    y[..., -1] = torch.empty(y.shape[:-1])
    return y


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (wrong_tap, "^output of"),
        (wrong_gradient, "^gradient of weight of"),
        (unwritten, "^output of .* are not finite"),
    ],
)
def test_planted_error_is_seen(monkeypatch, error, complaint):
    right = aten.depthwise_convolution
    monkeypatch.setattr(aten, "depthwise_convolution", lambda *a, **k: error(right(*a, **k), *a))
    tensors = {"x": torch.randn(1, 4, 5, 2), "weight": torch.randn(2, 3, 3), "bias": torch.randn(2)}
    with pytest.raises(AssertionError, match=complaint):
        check_operator("depthwise_convolution", tensors, {}, torch.randn(1, 4, 5, 2), impl="aten")
