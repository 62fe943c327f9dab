"""The MLP of a block in pieces: the same numbers, and whole where somebody looks."""

import pytest
import timm.layers
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from localmix.models import mlp
from localmix.models.mlp import Mlp


class Products(TorchDispatchMode):
    """Counts the matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(mlp, "_FRESH_BYTES", 4096)
    monkeypatch.setattr(mlp, "_PIECE_BYTES", 1024)
    return Mlp(6, 24).eval()


def calls_of(layer, x):
    """How many positions each call of the first layer sees, and the result."""
    seen, forward = [], layer.fc1.forward

    def noted(x):
        seen.append(x.shape[:-1].numel())
        return forward(x)

    layer.fc1.forward = noted
    try:
        return seen, layer(x)
    finally:
        del layer.fc1.forward


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 43, 6), (97, 6)], ids=str)
def test_pieces_give_what_the_whole_gives(layer, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        seen, y = calls_of(layer, x)
        expected = timm.layers.Mlp.forward(layer, x)
    positions = x[..., 0].numel()
    assert len(seen) == (1 if positions * 24 * 4 <= 4096 else -(-positions * 24 * 4 // 1024)) and sum(seen) == positions
    assert max(seen) - min(seen) <= 1
    torch.testing.assert_close(y, expected)


def test_a_small_map_and_one_with_gradients_are_taken_whole(layer):
    with torch.no_grad():
        assert calls_of(layer, torch.randn(1, 2, 3, 6))[0] == [6]
    x = torch.randn(2, 5, 7, 6)
    assert calls_of(layer, x)[0] == [70]
    with torch.no_grad():
        assert calls_of(layer.train(), x)[0] == [70]


def test_who_looks_sees_one_call(layer):
    """A dispatch mode, a hook, a compiler and an export."""
    x = torch.randn(2, 5, 7, 6)
    with torch.no_grad():
        with Products() as products:
            layer(x)
        assert products.count == 2
        exported = torch.export.export(layer, (x,))
        assert sum("linear" in str(node.target) for node in exported.graph.nodes) == 2
        shapes = []
        layer.fc2.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        layer(x)
        assert shapes == [x.shape]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(layer, dtype):
    x = torch.randn(2, 9, 7, 6, dtype=dtype)
    with torch.no_grad():
        layer = layer.to(dtype)
        seen, y = calls_of(layer, x)
        assert len(seen) > 1 and y.dtype == dtype
        torch.testing.assert_close(y, timm.layers.Mlp.forward(layer, x))


def test_under_autocast(layer):
    x = torch.randn(2, 9, 7, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen, y = calls_of(layer, x)
        assert len(seen) > 1 and y.dtype == torch.bfloat16
        torch.testing.assert_close(y, timm.layers.Mlp.forward(layer, x))
