from pathlib import Path

import pytest
import torch
from torch import nn

from localmix.kernels import native
from localmix.layers import linear
from localmix.layers.linear import Linear
from localmix.models import create_model, fold

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Of oneDNN, which is taken to be the faster one whatever the processor."""
    made, multiply = [], linear._multiply

    def counted(x, weight, bias):
        made.append(x.shape)
        return multiply(x, weight, bias)

    monkeypatch.setattr(linear, "is_faster", lambda: True)
    monkeypatch.setattr(linear, "_multiply", counted)
    return made


def layer(inputs=96, outputs=160, **options):
    result = nn.Linear(inputs, outputs, **options)
    result.__class__ = Linear
    return result


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(calls, bias):
    net = layer(bias=bias)
    maps = torch.randn(3, 12, 10, 192)
    few = maps[0, 0, 0, :96]
    for x in (maps[..., :96], maps[..., ::2], maps[..., :96].transpose(1, 2), torch.randn(96, 200).T, few):
        with torch.no_grad():
            actual, expected = net(x), nn.functional.linear(x.double(), net.weight.double(), _double(net.bias))
        assert actual.shape == (*x.shape[:-1], 160)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 4  # and not of the few


def _double(bias):
    return None if bias is None else bias.double()


@needs_onednn
def test_for_inference_in_float32_alone(calls):
    net, x = layer(), torch.randn(500, 96)
    net(x)
    with torch.no_grad():
        net.double()(x.double())
        net.float()
        net(x[:0])
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype == torch.bfloat16
        torch.vmap(net)(x[None])
        assert not calls
        net(x)
    assert len(calls) == 1


def test_a_compiler_and_an_export_see_one_graph_of_an_ordinary_map():
    net, x = layer(), torch.randn(500, 96)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), nn.functional.linear(x, net.weight, net.bias))
        operators = {node.target for node in torch.export.export(net, (x,)).graph.nodes if node.op == "call_function"}
    assert operators == {torch.ops.aten.linear.default}


def test_not_where_it_is_not_known_to_be_faster(calls, monkeypatch):
    monkeypatch.setattr(linear, "is_faster", lambda: False)
    with torch.no_grad():
        layer()(torch.randn(500, 96))
    assert not calls


def test_what_the_user_switched_off_is_not_taken(monkeypatch):
    monkeypatch.setattr(native, "is_amd", lambda: True)
    assert linear.is_faster() == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not linear.is_faster()


@needs_onednn
def test_a_folded_network(calls):
    net = create_model("dwnet_nano", in_chans=3, num_classes=10).eval()
    folded, image = fold(net), torch.randn(4, 3, 64, 64)
    assert {type(m) for m in folded.modules() if isinstance(m, nn.Linear)} == {Linear}
    assert Linear not in {type(m) for m in net.modules()}
    with torch.no_grad():
        torch.testing.assert_close(folded(image), net(image), rtol=1e-4, atol=1e-5)
    assert calls


@pytest.mark.skipif(bool(native.MISSING), reason=str(native.MISSING))
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not say who made the processor")
def test_who_made_the_processor():
    text = Path("/proc/cpuinfo").read_text()
    assert native.is_amd() == any(name in text for name in ("AuthenticAMD", "HygonGenuine"))
