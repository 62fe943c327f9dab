import pytest
import torch
from torch import nn

from localmix.kernels import native
from localmix.layers import activation
from localmix.testing import assert_within_budget


@pytest.fixture
def calls(monkeypatch):
    """What the CPU kernel was called for."""
    made, gelu_ = [], native.gelu_

    def counted(x):
        made.append(x.dtype)
        gelu_(x)

    monkeypatch.setattr(native, "gelu_", counted)
    return made


def check(x, act, *made_by):
    """The result of `act`, and whether it lies where x lay."""
    expected, address = act(x.double()), x.data_ptr()
    eager = act(x.clone())
    result = activation.gelu(x, act, *made_by)
    assert_within_budget(result.detach(), expected.detach(), eager.detach())
    return result.data_ptr() == address


@pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_kernel_overwrites_what_nobody_looks_at(dtype, calls):
    with torch.no_grad():
        assert check(torch.randn(2, 3, 5, 7).to(dtype), nn.GELU())
        assert check(torch.randn(0, 3).to(dtype), nn.GELU())
    assert calls == [dtype, dtype]


def test_pytorch_overwrites_what_the_kernel_does_not_take(calls, monkeypatch):
    with torch.no_grad():
        assert check(torch.randn(5, 7), nn.GELU(approximate="tanh"))
        assert check(torch.randn(5, 7).t(), nn.GELU())
        with torch.profiler.profile(acc_events=True):  # without, PyTorch 2.11 warns
            assert check(torch.randn(5, 7), nn.GELU())
        monkeypatch.setattr(native.library, "MISSING", "none for this test")
        assert check(torch.randn(5, 7), nn.GELU())
    assert not calls


def test_nothing_is_overwritten_that_a_gradient_or_a_hook_may_need(calls):
    assert not check(torch.randn(5, 7, requires_grad=True), nn.GELU())
    with torch.no_grad():
        act, linear = nn.GELU(), nn.Linear(7, 7)
        for module in (act, linear):
            hook = module.register_forward_hook(lambda *_: None)
            assert not check(torch.randn(5, 7), act, linear)
            hook.remove()
        assert not calls
        check(torch.randn(5, 7), act, linear)


@torch.no_grad()
def test_a_compiled_network_sees_pytorchs_operator(calls):
    linear, act = nn.Linear(6, 7), nn.GELU()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def hidden(x):
        return activation.gelu(linear(x), act, linear)

    x = torch.randn(5, 6)
    torch.testing.assert_close(hidden(x), act(linear(x)))
    assert not calls
