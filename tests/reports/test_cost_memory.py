import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from localmix import layers
from localmix.models import create_model
from localmix.reports.cost_memory import layer_weights, saved_bytes

STEMS = ("dwnet", "dynamic_dwnet", "i_dynamic_dwnet", "localswin", "localnat", "localmlp")


def kept_by_a_real_pass(net, images, precision="float32"):
    """Bytes of the storages that hooks see, but for those of the state."""
    storages = []

    def keep(t):
        storages.append(t.untyped_storage())
        return t

    with saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = net.train()(images)
    own = {t.data_ptr() for t in (*net.parameters(), *net.buffers())}
    sizes = {s.data_ptr(): s.nbytes() for s in storages}
    assert outputs is not None
    return sum(size for address, size in sizes.items() if address not in own)


@pytest.mark.parametrize("name", [*(f"{stem}_nano" for stem in STEMS), "resnet18"])
def test_kept_for_the_backward_pass_is_what_a_real_pass_keeps(name):
    net = create_model(name)
    assert saved_bytes(net, (2, 3, 40, 56)) == kept_by_a_real_pass(net, torch.rand(2, 3, 40, 56))


def test_kept_under_autocast():
    net = create_model("i_dynamic_dwnet_nano")
    half = saved_bytes(net, (2, 3, 40, 56), precision="bfloat16")
    # PyTorch's rules for fake tensors take the statistics of norms to be in bfloat16, which are in float32
    assert half == pytest.approx(kept_by_a_real_pass(net, torch.rand(2, 3, 40, 56), "bfloat16"), rel=0.005)
    assert half < saved_bytes(net, (2, 3, 40, 56))


def test_each_storage_counts_once_and_parameters_do_not():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            y = x * self.scale  # keeps x, and the parameter that is there anyway
            return y * y.view(-1).view_as(y)  # keeps y, twice

    assert saved_bytes(Square(), (2, 3, 4, 5)) == 2 * 4 * (2 * 3 * 4 * 5)


def test_a_network_is_left_as_it_was():
    net = create_model("dwnet_nano").eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    saved_bytes(net, (2, 3, 16, 16))
    layer_weights(net, (2, 3, 16, 16))
    assert not any(module.training or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_checkpointing_keeps_less():
    net = create_model("dwnet_nano")
    everything = saved_bytes(net, (2, 3, 32, 32))
    net.set_grad_checkpointing()
    assert saved_bytes(net, (2, 3, 32, 32)) < everything / 2


@pytest.mark.parametrize(
    ("mixer", "shape", "is_dynamic"),
    [
        (layers.DepthwiseConv(8, kernel_size=3), (1, 1, 1, 8, 9), False),
        (layers.HomogeneousDynamicConv(8, kernel_size=3), (5, 1, 1, 8, 9), True),
        (layers.InhomogeneousDynamicConv(8, num_groups=2, kernel_size=3), (5, 6, 7, 2, 9), True),
        (layers.WindowAttention(8, num_heads=4, window_size=4), (5, 6, 7, 4, 16), True),
        (layers.WindowAttention(8, num_heads=4, window_size=4, shift=1, border="pad"), (5, 8, 8, 4, 16), True),
        (layers.NeighborhoodAttention(8, num_heads=4, kernel_size=3), (5, 6, 7, 4, 9), True),
        (layers.LocalMLP(8, num_groups=2, window_size=4), (1, 6, 7, 2, 16), False),
    ],
)
def test_weights_written_out_have_the_shape_of_the_equation(mixer, shape, is_dynamic):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = mixer

        def forward(self, images):
            return self.mixer(F.pad(images.permute(0, 2, 3, 1), (0, 5)))

    for precision, itemsize in (("float32", 4), ("bfloat16", 2)):
        (layer,) = layer_weights(Net(), (5, 3, 6, 7), precision=precision)
        assert (layer.layer, layer.shape, layer.is_dynamic) == ("mixer", shape, is_dynamic)
        assert layer.num_bytes == itemsize * torch.empty(shape).numel()
    assert layer_weights(nn.Conv2d(3, 3, 1), (1, 3, 4, 4)) == []
