"""Operators skip PyTorch's dispatcher where nobody looks, and only there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from localmix.registration import Operator

CALLS = []


def power(x: torch.Tensor, exponent: int) -> torch.Tensor:
    CALLS.append(type(x))
    return x**exponent


@pytest.fixture(scope="module")
def operator():
    operator = Operator("localmix::test_power", power, "cpu")
    operator.register_fake(lambda x, exponent: torch.empty_like(x))

    def save(ctx, inputs, output):
        x, ctx.exponent = inputs
        ctx.save_for_backward(x)

    def gradients(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ctx.exponent * operator(x, ctx.exponent - 1), None

    operator.register_autograd(gradients, setup_context=save)
    return operator


@pytest.fixture
def seen(operator, monkeypatch):
    """Calls that PyTorch's dispatcher sees."""
    seen = []
    registered = operator.registered

    def watch(*arguments):
        seen.append(arguments)
        return registered(*arguments)

    monkeypatch.setattr(operator, "registered", watch)
    return seen


def numbers(requires_grad=False):
    return torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64, requires_grad=requires_grad)


def test_a_plain_call_goes_to_the_function(operator, seen):
    assert operator(numbers(), 2).tolist() == [1, 4, 9]
    with torch.no_grad():
        assert not operator(numbers(requires_grad=True), 2).requires_grad
    with torch.inference_mode():
        assert operator(numbers(), 3).tolist() == [1, 8, -27]
    assert not operator(torch.nn.Parameter(numbers(), requires_grad=False), 2).requires_grad
    assert not seen


def test_gradients_of_first_and_second_order_are_those_of_the_registered_operator(operator, seen):
    for call in (operator, torch.ops.localmix.test_power):
        x = numbers(requires_grad=True)
        (first,) = torch.autograd.grad(call(x, 3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert first.tolist() == [3, 12, 27]
        assert second.tolist() == [6, 12, -18]
    assert not seen
    assert torch.autograd.gradcheck(lambda x: operator(x, 3), numbers(requires_grad=True))
    assert torch.autograd.gradgradcheck(lambda x: operator(x, 3), numbers(requires_grad=True))


def test_a_result_without_gradients_has_none(operator):
    assert not operator(numbers(), 2).requires_grad
    assert operator(numbers(requires_grad=True), 2).grad_fn is not None


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


WATCHERS = {
    "dispatch mode": Mode,
    "function mode": FunctionMode,
    "counter of FLOPs": lambda: FlopCounterMode(display=False),
    "profiler": lambda: torch.profiler.profile(acc_events=True),  # PyTorch 2.11 warns without
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_watcher_sees_the_operator(operator, seen, watcher):
    with WATCHERS[watcher]():
        assert operator(numbers(), 2).tolist() == [1, 4, 9]
    assert len(seen) == 1


def test_many_gradients_at_once_see_the_operator(operator, seen):
    x = numbers(requires_grad=True)
    y = operator(x, 3)
    gradients = torch.eye(3, dtype=torch.float64)
    (jacobian,) = torch.autograd.grad(y, x, gradients, is_grads_batched=True)
    assert jacobian.tolist() == [[3, 0, 0], [0, 12, 0], [0, 0, 27]]
    assert not seen  # the gradient of this operator calls it on x, which is one tensor
    batched = torch._vmap_internals._vmap(lambda x: operator(x, 2))(torch.stack([numbers(), 2 * numbers()]))
    assert batched.tolist() == [[1, 4, 9], [4, 16, 36]]
    assert len(seen) == 1


def test_fake_tensors_need_no_data(operator, seen):
    with FakeTensorMode() as mode:
        fake = operator(torch.empty(5), 2)
    assert fake.shape == (5,)
    CALLS.clear()
    assert operator(mode.from_tensor(numbers()), 2).shape == (3,)  # also outside of the mode
    assert len(seen) == 2
    assert not CALLS


def test_subclasses_see_the_operator(operator, seen):
    operator(numbers().as_subclass(Subclass), 2)
    assert len(seen) == 1


def test_transforms_see_the_operator(operator, seen):
    def loss(x):
        return operator(x, 2).sum()

    with pytest.raises(RuntimeError, match="setup_context"):  # PyTorch's own limit of registered operators
        torch.func.grad(loss)(numbers())
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_forward_derivatives_are_refused(operator, seen):
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        operator(forward_ad.make_dual(numbers(requires_grad=True), numbers()), 2)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_trace_holds_the_operator_and_no_constant(operator):
    traced = torch.jit.trace(lambda x: operator(x, 2), (numbers(),))
    assert traced(2 * numbers()).tolist() == [4, 16, 36]


def test_compiles_as_one_graph_that_names_the_operator(operator):
    torch.compiler.reset()
    nodes = []

    def backend(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    compiled = torch.compile(lambda x: operator(x, 2) + 1, fullgraph=True, backend=backend)
    assert compiled(numbers()).tolist() == [2, 5, 10]
    assert any("test_power" in node for node in nodes)


def test_an_operator_without_gradients_says_so(operator):
    plain = Operator("localmix::test_plain", lambda x: x + 1, "cpu", schema="(Tensor x) -> Tensor")
    assert plain(numbers()).tolist() == [2, 3, -2]
    with pytest.raises(RuntimeError, match="autograd"):
        plain(numbers(requires_grad=True)).sum().backward()
