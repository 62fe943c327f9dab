"""The networks as PyTorch modules: parameters, sizes, types, copies, training."""

import copy
import io
import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from localmix import kernels, models
from localmix.tasks import fashion_mnist

ROOT = Path(__file__).parents[2]
NANO = [name for name in models.NAMES if name.endswith("_nano")]
NAMED = [name for name in NANO if name != "localmixer_nano"]  # which is any of them
TINY = [name for name in models.NAMES if name.endswith("_tiny")]
SIZES = {name.rpartition("_")[2] for name in models.NAMES}

# Parameters in millions, as printed for the nets of the paper.
PRINTED = {
    "localswin_tiny": "28.288",
    "dwnet_tiny": "24.173",
    "dynamic_dwnet_tiny": "51.132",
    "i_dynamic_dwnet_tiny": "26.244",
    "localswin_base": "87.768",
    "dwnet_base": "74.347",
    "dynamic_dwnet_base": "161.598",
    "i_dynamic_dwnet_base": "80.254",
}


def num_parameters(name, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, **options).parameters())


@pytest.fixture
def network(randomised):
    """Makes a network in eval mode, of 10 classes, all of whose weights and statistics are drawn."""

    def make(name, **options):
        return randomised(timm.create_model(name, **{"num_classes": 10, **options})).eval()

    return make


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Parameters.


def test_parameters_of_dwnet_tiny():
    assert num_parameters("dwnet_tiny") == 24_172_744


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_of_the_paper(name):
    assert f"{num_parameters(name) / 1e6:.3f}" == PRINTED[name]


@pytest.mark.parametrize("name", NANO)
def test_nano_is_small(name):
    assert 0.9e6 < num_parameters(name, num_classes=10) < 2e6


def test_there_is_a_nano_of_each_mixer():
    assert len(NAMED) == 6


@pytest.mark.parametrize("size", sorted(SIZES))
def test_variants_differ_in_parameters(size):
    counts = {name: num_parameters(name) for name in models.NAMES if name.endswith(f"_{size}")}
    # a window and a neighborhood of one size have the same parameters: they differ in what connects
    counts.pop(f"localnat_{size}", None)
    counts.pop(f"localmixer_{size}", None)  # any mixer; if none is named, that of dwnet
    assert len(set(counts.values())) == len(counts) >= 4


def test_variants_differ_in_outputs(network):
    nets = {name: network(name) for name in NAMED}
    pool = {}
    for net in nets.values():  # weights of one name and shape are the same ones
        for name, value in net.state_dict().items():
            value.copy_(pool.setdefault((name, value.shape), value))
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        outputs = {name: net(x) for name, net in nets.items()}
    for a, b in itertools.combinations(NAMED, 2):
        assert not torch.allclose(outputs[a], outputs[b], rtol=1e-3, atol=1e-3), (a, b)
    assert set(nets["localswin_nano"].state_dict()) == set(nets["localnat_nano"].state_dict())


def test_document_lists_every_network():
    table = re.findall(r"^\| `(\w+)_\*` \|[^|]*\|[^|]*\|(.*)\|$", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    sizes = ("nano", "tiny", "small", "base")
    printed = {
        f"{stem}_{size}": n.strip() for stem, row in table for size, n in zip(sizes, row.split("|"), strict=True)
    }
    assert {name: n for name, n in printed.items() if n} == {n: f"{num_parameters(n) / 1e6:.3f}M" for n in models.NAMES}


# Sizes.


@pytest.mark.parametrize("name", TINY)
def test_any_size_tiny(name):
    net = timm.create_model(name, features_only=True).eval()
    for height, width in [(250, 333), (32, 32)]:
        with torch.no_grad():
            maps = net(images(1, 3, height, width))
        for channels, stride, y in zip((96, 192, 384, 768), (4, 8, 16, 32), maps, strict=True):
            assert y.shape == (1, channels, -(-height // stride), -(-width // stride))
            assert y.isfinite().all()


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [(1, 1), (1, 45), (7, 2), (29, 13), (33, 47)])
def test_any_size_nano(network, name, size):
    net = network(name)
    x = images(2, 3, *size)
    height, width = size
    with torch.no_grad():
        y = net(x)
        # a patch that the border cuts is filled with zeros
        padded = net(F.pad(x, (0, width % 2, 0, height % 2)))
        with kernels.prefer("reference"):
            by_definition = net(x)
    assert y.shape == (2, 10)
    assert y.isfinite().all()
    torch.testing.assert_close(y, padded)
    torch.testing.assert_close(y, by_definition, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(y[0], y[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NANO)
def test_image_does_not_see_its_batch(network, name):
    net = network(name)
    x = images(3, 3, 30, 26)
    with torch.no_grad():
        together = net(x)
        for i in range(3):
            torch.testing.assert_close(net(x[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-4)
        assert net(x[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_channels_of_the_image(network, name, in_chans):
    net = network(name, in_chans=in_chans, num_classes=0)
    x = images(2, in_chans, 20, 20)
    with torch.no_grad():
        y = net(x)
        assert y.shape == (2, 192)
        for channel in range(in_chans):  # each is looked at
            changed = x.clone()
            changed[:, channel] += 1
            assert not torch.allclose(net(changed), y, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=rf"^image: expected \[B, {in_chans}, H, W\], got shape \(2, 3, 20, 20\)"):
        net(images(2, 3, 20, 20))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8, 8), r"^image: expected \[B, in_chans, H, W\], got shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "^image: expected a floating point tensor, got torch.uint8"),
        (torch.zeros(1, 3, 0, 8), r"^image: .*got shape \(1, 3, 0, 8\)"),
    ],
    ids=["rank", "dtype", "empty"],
)
def test_what_is_no_image_is_refused(x, message):
    net = timm.create_model("dwnet_nano", depths=(1,)).eval()
    with pytest.raises(ValueError, match=message):
        net(x)


# Types, layouts, copies.


@pytest.mark.parametrize("name", NANO)
def test_float64_and_bfloat16(network, name):
    net = network(name)
    x = images(2, 3, 28, 20)
    with torch.no_grad():
        y = net(x)
        exact = copy.deepcopy(net).double()(x.double())
        rough = copy.deepcopy(net).bfloat16()(x.bfloat16())
    assert (exact.dtype, rough.dtype) == (torch.float64, torch.bfloat16)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    assert (rough - exact).norm() < 0.1 * exact.norm()
    assert (rough - exact).norm() > (y - exact).norm()


@pytest.mark.parametrize("name", NANO)
def test_copies_give_the_same(network, name):
    net = network(name)
    x = images(2, 3, 28, 20)
    with torch.device("meta"):
        empty = timm.create_model(name, num_classes=10)
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(net.state_dict())
    whole = io.BytesIO()
    torch.save(net, whole)
    whole.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "torch.save": torch.load(whole, weights_only=False),
        "meta": filled,
        "channels_last": copy.deepcopy(net).to(memory_format=torch.channels_last),
        "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)),
    }
    with torch.no_grad():
        y = net(x)
        for kind, other in copies.items():
            torch.testing.assert_close(other(x), y, msg=lambda text, kind=kind: f"{kind}: {text}")
        torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last)), y)
        torch.testing.assert_close(net(x.transpose(2, 3).contiguous().transpose(2, 3)), y)


@pytest.mark.parametrize("name", NANO)
def test_batch_norms_can_be_synchronised(name):
    net = timm.create_model(name, depths=(1,))
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert [n for n, m in converted.named_modules() if isinstance(m, nn.SyncBatchNorm)] == norms
    assert bool(norms) == (not name.startswith(("localswin", "localnat")))


def test_weights_are_loaded_strictly():
    net = timm.create_model("dwnet_nano", depths=(1,))
    weights = net.state_dict()
    weights["stray"] = weights.pop("norm.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.bias(.|\n)*Unexpected key.*stray"):
        net.load_state_dict(weights)


# Training.


@pytest.mark.parametrize("name", NANO)
def test_every_parameter_learns_in_bfloat16(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10, drop_path_rate=0.0)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images(4, 3, 28, 28))
        loss = F.cross_entropy(y, torch.arange(4))
    assert y.dtype == torch.bfloat16
    loss.backward()
    for key, parameter in net.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    optimizer.step()
    # also the batch statistics: nothing in the state stays as it was
    unmoved = [key for key, value in net.state_dict().items() if torch.equal(value, before[key])]
    assert not unmoved


def test_two_processes_train_as_one(tmp_path):
    """Gradients of two processes with half of the batch each are those of one process with all of it.

    Batch norms run by their statistics, for those of a half are others.
    """
    script = """
import sys
import timm, torch
from torch.nn.parallel import DistributedDataParallel
import localmix.models

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
x = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name in sys.argv[3:]:
    torch.manual_seed(rank)  # the weights of the first process count
    net = timm.create_model(name, num_classes=10, depths=(2, 1)).eval()
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(2):  # a parameter that is not used fails in the second
        optimizer.zero_grad()
        parallel(x[rank::2]).square().mean().backward()
        optimizer.step()
    torch.save(net.state_dict(), f"{folder}/{name}.{rank}")
torch.distributed.destroy_process_group()
"""
    names = ["dynamic_dwnet_nano", "localswin_nano"]
    command = [sys.executable, "-W", "error", "-c", script]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), *names], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for name in names:
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=10, depths=(2, 1)).eval()
        before = copy.deepcopy(net.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            net(images(4, 3, 20, 20)).square().mean().backward()
            optimizer.step()
        results = [torch.load(tmp_path / f"{name}.{rank}") for rank in range(2)]
        for key, value in net.state_dict().items():
            torch.testing.assert_close(results[0][key], value, rtol=1e-5, atol=1e-6)
            assert torch.equal(results[0][key], results[1][key])
        assert not torch.equal(net.state_dict()["patch_embed.proj.weight"], before["patch_embed.proj.weight"])


@pytest.mark.parametrize("name", NANO)
def test_overfits_one_batch(name):
    pixels, labels = fashion_mnist.load("train")
    x = torch.from_numpy(pixels[:16]).float().div(255).sub(0.5).unsqueeze(1)
    labels = torch.from_numpy(labels[:16])
    assert len(labels.unique()) > 5
    torch.manual_seed(0)
    net = timm.create_model(name, in_chans=1, num_classes=10, drop_path_rate=0.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    while len(losses) < 60 and (not losses or losses[-1] > 0.1):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.1, losses
