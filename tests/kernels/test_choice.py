import types

import pytest
import torch

from localmix import functional, kernels
from localmix.kernels import aten


def called(monkeypatch, module):
    """The operators that are called in a module from now on."""
    calls = []

    def record(operator, function):
        def run(*values, **options):
            calls.append(operator)
            return function(*values, **options)

        monkeypatch.setattr(module, operator, run)

    for operator in kernels.OPERATORS:
        record(operator, getattr(module, operator))
    return calls


x, weight = torch.ones(1, 3, 3, 2), torch.ones(2, 3, 3)


def test_the_named_implementation_runs(monkeypatch):
    fast, definition = called(monkeypatch, aten), called(monkeypatch, functional)
    kernels.depthwise_convolution(x, weight, impl="aten")
    assert (fast, definition) == (["depthwise_convolution"], [])
    kernels.depthwise_convolution(x, weight, impl="reference")
    assert (fast, definition) == (["depthwise_convolution"], ["depthwise_convolution"])


def test_auto_takes_the_first_that_has_the_operator(monkeypatch):
    monkeypatch.setattr(kernels, "_auto", ("aten", "reference"))
    assert kernels.choose("local_mlp") == "aten"
    monkeypatch.delattr(aten, "local_mlp")
    assert kernels.choose("local_mlp") == "reference"


def test_a_named_implementation_never_falls_back(monkeypatch):
    monkeypatch.delattr(aten, "depthwise_convolution")
    with pytest.raises(ValueError, match=r"^impl: expected an implementation of depthwise_convolution, got 'aten'"):
        kernels.depthwise_convolution(x, weight, impl="aten")


@pytest.mark.parametrize("impl", ["fastest", "Aten", "", None, 1])
def test_unknown_implementation(impl):
    with pytest.raises(ValueError, match=r"^impl: expected one of 'auto', .*'reference', got "):
        kernels.depthwise_convolution(x, weight, impl=impl)
    with pytest.raises(ValueError, match=r"^impl: expected one of "), kernels.prefer(impl):
        pass


@pytest.mark.parametrize("operator", ["convolution", "sliding", "torch", "choose"])
def test_unknown_operator(operator):
    """Also one that an implementation happens to have as a name."""
    for impl in ("auto", "aten", "reference"):
        with pytest.raises(ValueError, match=rf"^operator: expected one of .*, got '{operator}'"):
            kernels.choose(operator, impl)


def test_prefer_holds_within_it_only(monkeypatch):
    definition = called(monkeypatch, functional)
    before = kernels.choose("local_mlp")
    with kernels.prefer("reference"):
        assert kernels.choose("local_mlp") == "reference"
        assert kernels.choose("local_mlp", "aten") == "aten"
        with kernels.prefer("aten"):
            assert kernels.choose("local_mlp") == "aten"
        kernels.depthwise_convolution(x, weight)
    assert definition == ["depthwise_convolution"]
    assert kernels.choose("local_mlp") == before != "reference"


def test_prefer_ends_with_an_error():
    with pytest.raises(KeyError), kernels.prefer("reference"):
        raise KeyError
    assert kernels.choose("local_mlp") != "reference"


def test_table_tells_what_auto_takes():
    def first_words():
        return dict(line.split()[:2] for line in kernels.table().splitlines() if line.startswith(kernels.OPERATORS))

    assert first_words() == {operator: kernels.choose(operator) for operator in kernels.OPERATORS}
    with kernels.prefer("reference"):
        assert first_words() == dict.fromkeys(kernels.OPERATORS, "reference")


@pytest.mark.parametrize("operator", kernels.OPERATORS)
def test_refusals_tell_why_auto_takes_what_it_takes(operator):
    refusals = kernels.refusals(operator, x)
    assert next(name for name, reason in refusals.items() if reason is None) == kernels.choose(operator, x=x)
    assert list(refusals) == list(kernels.IMPLEMENTATIONS)
    with kernels.prefer("reference"):
        assert next(iter(kernels.refusals(operator))) == "reference"


def test_implementation_that_refuses_is_passed_over_or_says_why(monkeypatch):
    module = types.ModuleType("picky")
    module.refusal = lambda x, *_: "it has float32" if x.dtype != torch.float32 else None
    module.local_mlp = lambda x, *_, **__: x * 0 + 7
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "picky", module)
    monkeypatch.setattr(kernels, "_auto", ("picky", "aten", "reference"))
    tensors = {"x": torch.ones(1, 2, 2, 1), "weight": torch.ones(1, 4, 4)}
    exact = {name: t.double() for name, t in tensors.items()}
    assert (kernels.local_mlp(**tensors, window_size=2) == 7).all()
    assert (kernels.local_mlp(**exact, window_size=2) == 4).all()
    with pytest.raises(
        ValueError, match=r"^impl: expected an implementation of local_mlp, got 'picky': it has float32$"
    ):
        kernels.local_mlp(**exact, window_size=2, impl="picky")
