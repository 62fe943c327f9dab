import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from localmix.kernels import native
from localmix.layers import linear
from localmix.layers.linear import Linear
from localmix.models import create_model, fold
from localmix.testing import assert_within_budget

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Of oneDNN, which is taken to be the faster one whatever the processor."""
    made, multiply = [], linear._multiply

    def counted(x, weight, bias):
        made.append(x.shape)
        return multiply(x, weight, bias)

    monkeypatch.setattr(linear, "is_faster", lambda dtype: dtype in (torch.float32, torch.bfloat16))
    monkeypatch.setattr(linear, "_multiply", counted)
    return made


def layer(inputs=96, outputs=160, **options):
    result = nn.Linear(inputs, outputs, **options)
    result.__class__ = Linear
    return result


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(calls, bias, dtype):
    _needs(dtype)
    net = layer(bias=bias).to(dtype)
    maps = torch.randn(3, 12, 10, 192, dtype=dtype)
    few = maps[0, 0, 0, :96]
    for x in (maps[..., :96], maps[..., ::2], maps[..., :96].transpose(1, 2), torch.randn(96, 200).T.to(dtype), few):
        with torch.no_grad():
            expected = nn.functional.linear(x.double(), net.weight.double(), _double(net.bias))
            assert_within_budget(net(x), expected, nn.functional.linear(x, net.weight, net.bias))
    assert len(calls) == 4  # and not of the few


def _needs(dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN takes no bfloat16 on this processor")


def _double(bias):
    return None if bias is None else bias.double()


@needs_onednn
def test_for_inference_alone(calls):
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
    monkeypatch.setattr(linear, "is_faster", lambda dtype: False)
    with torch.no_grad():
        layer()(torch.randn(500, 96))
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_user_switched_off_is_not_taken(monkeypatch, dtype):
    _needs(dtype)
    monkeypatch.setattr(native, "is_amd", lambda: True)
    assert linear.is_faster(dtype) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not linear.is_faster(dtype)


def test_types_that_it_is_not_known_for():
    assert not any(linear.is_faster(dtype) for dtype in (torch.float16, torch.float64, torch.int8))


def _set_data(net):
    net.weight.data = torch.randn(160, 96)


CHANGES = {
    "a step of an optimizer": lambda net: torch.optim.SGD(net.parameters(), 1.0).step(),
    "load_state_dict": lambda net: net.load_state_dict(layer().state_dict()),
    "load_state_dict by assignment": lambda net: net.load_state_dict(layer().state_dict(), assign=True),
    "an initialisation": lambda net: nn.init.normal_(net.weight),
    "another parameter": lambda net: setattr(net, "weight", nn.Parameter(torch.randn(160, 96))),
    "other data": _set_data,
    "there and back": lambda net: net.bfloat16().float(),
    "a view of it": lambda net: net.weight.detach()[3:70].mul_(2),
}


@needs_onednn
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_weight_is_seen(calls, change):
    net, x = layer(), torch.randn(500, 96)
    net.weight.grad = torch.randn(160, 96)
    for _ in range(2):
        with torch.no_grad():
            before = net(x)
        change(net)
        with torch.no_grad():
            torch.testing.assert_close(net(x), nn.functional.linear(x, net.weight, net.bias), rtol=1e-5, atol=1e-5)
            assert not torch.allclose(net(x), before, rtol=1e-3, atol=1e-3) or change is CHANGES["there and back"]
    assert len(calls) == 6


@needs_onednn
def test_a_weight_is_packed_once(calls, monkeypatch):
    net, x = layer(), torch.randn(500, 96)
    with torch.no_grad():
        net(x)
        packed = net._packed
        net(torch.randn(2, 30, 40, 96))
    with torch.inference_mode():
        net(x)
    assert net._packed is packed is not None


@needs_onednn
def test_the_packed_weight_is_no_part_of_what_is_kept(calls):
    net, x = layer(), torch.randn(500, 96)
    with torch.no_grad():
        expected = net(x)
        assert net._packed is not None
        for again in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert again._packed is None
            assert torch.equal(again(x), expected)
        assert set(net.state_dict()) == {"weight", "bias"}
        assert net.double()._packed is None


@needs_onednn
def test_weights_without_versions(calls):
    x = torch.randn(500, 96)
    with torch.inference_mode():
        net = layer()
        expected = nn.functional.linear(x, net.weight, net.bias)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        net.weight.mul_(2)
        torch.testing.assert_close(net(x), 2 * (expected - net.bias) + net.bias, rtol=1e-5, atol=1e-4)
    net = nn.utils.parametrizations.weight_norm(layer())
    with torch.no_grad():
        torch.testing.assert_close(net(x), nn.functional.linear(x, net.weight, net.bias), rtol=1e-5, atol=1e-5)
    assert net._packed is None
    assert calls


@needs_onednn
@pytest.mark.parametrize("name", ["dwnet_nano", "localswin_nano", "i_dynamic_dwnet_nano"])
def test_a_folded_network(calls, name):
    net = create_model(name, in_chans=3, num_classes=10).eval()
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
