"""Networks around any point of the space."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from localmix.axes import MIXERS
from localmix.layers import LocalMixer, SqueezeExcitation
from localmix.models import create_model, fold
from localmix.point import MIXER_POINTS
from localmix.reports.explain import explain

SHALLOW = (2, 1, 1, 1)
OTHERS = [
    "sliding5/shared-positions/groups4/mixture2",
    "sliding5-dilation2/unshared-positions/groups2,4,8,16/inhomogeneous/softmax",
    "sliding3/shared-windows8x4/groups4/static",
    "window4-shift2/shared-positions/unshared-channels/homogeneous",
    "window4x5-shift2x1/unshared-positions/shared-channels/inhomogeneous",
    "window4x5-shift2x1/unshared-positions/groups2,4,8,16/dot-product/free",
    "sliding3/unshared-positions/groups4/dot-product/free",
]


def name_of(function, size):
    """The six mixers as the networks of that size have them."""
    return MIXER_POINTS[function].name.replace("groups32", "groups8" if size == "nano" else "groups32")


def block_of(function):
    return "swin" if "attention" in function else "dwnet"


@pytest.mark.parametrize("size", ["nano", "tiny"])
@pytest.mark.parametrize("function", MIXERS)
def test_a_network_of_the_paper_is_that_of_its_point(function, size):
    """Parameter for parameter, in one order, and with these the same output."""
    dedicated, options = f"{MIXERS[function].network}_{size}", {"mixer": name_of(function, size)}
    options["block"] = block_of(function)
    with torch.device("meta"):
        nets = timm.create_model(dedicated), timm.create_model(f"localmixer_{size}", **options)
    first, second = ([(n, p.shape) for n, p in net.state_dict().items()] for net in nets)
    assert first == second
    assert [p.shape for p in nets[0].parameters()] == [p.shape for p in nets[1].parameters()]
    assert nets[0].no_weight_decay() == nets[1].no_weight_decay()
    if size == "nano":
        net = timm.create_model(dedicated, num_classes=10, depths=SHALLOW).eval()
        twin = timm.create_model("localmixer_nano", num_classes=10, depths=SHALLOW, **options).eval()
        twin.load_state_dict(dict(zip(twin.state_dict(), net.state_dict().values(), strict=True)))
        for side in ((30, 41), (64, 64)):
            x = torch.randn(2, 3, *side)
            assert torch.equal(twin(x), net(x))


def test_parameters_in_the_document():
    document = (Path(__file__).parents[2] / "docs/local_mixer.md").read_text()
    for weights in ("homogeneous", "mixture4", "static"):
        with torch.device("meta"):
            net = timm.create_model("localmixer_tiny", mixer=f"sliding7/shared-positions/unshared-channels/{weights}")
        assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.3f}M" in document


def test_the_mixer_of_no_name_is_that_of_dwnet():
    mixers = [m for m in create_model("localmixer_nano").modules() if isinstance(m, LocalMixer)]
    assert {m.name for m in mixers} == {name_of("depthwise_convolution", "nano")}


def test_windows_are_shifted_in_every_second_block():
    net = create_model("localmixer_nano", mixer=name_of("local_mlp", "nano"))
    shifts = [[block.mixer.point.shift for block in stage.blocks] for stage in net.stages]
    assert shifts == [[(0, 0), (3, 3)], [(0, 0), (3, 3)], [(0, 0), (3, 3)] * 2, [(0, 0)]]


def test_groups_of_each_stage():
    net = create_model("localmixer_nano", mixer=name_of("window_attention", "nano"), block="swin")
    assert [stage.blocks[0].mixer.num_groups for stage in net.stages] == [3, 6, 12, 24]


@pytest.mark.parametrize("mixer", OTHERS)
@pytest.mark.parametrize("block", ["dwnet", "swin"])
def test_other_points_train(mixer, block):
    """In every block, with the norm that is not its own, squeeze-and-excitation and mixed precision."""
    norm = {"dwnet": "layer", "swin": "batch"}[block]
    net = create_model(
        "localmixer_nano",
        num_classes=10,
        depths=SHALLOW,
        mixer=mixer,
        block=block,
        norm=norm,
        squeeze_excitation=True,
        drop_path_rate=0.0,
    )
    x, labels = torch.randn(4, 3, 30, 26), torch.arange(4)
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=1e-3), []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert net.eval()(x[:1, :, :9, :5]).shape == (1, 10)
    maps = create_model("localmixer_nano", mixer=mixer, block=block, depths=SHALLOW, features_only=True)(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 15, 13), (48, 8, 7), (96, 4, 4), (192, 2, 2)]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("layer", nn.LayerNorm)])
@pytest.mark.parametrize("block", ["dwnet", "swin"])
def test_norm_of_the_block(block, norm, kind):
    net = create_model("localmixer_nano", depths=SHALLOW, block=block, norm=norm)
    norms = [
        m for b in net.modules() if hasattr(b, "mixer") for m in b.children() if type(m).__name__.endswith("Norm2d")
    ]
    norms += [m for b in net.modules() if hasattr(b, "mixer") for m in b.children() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == {"dwnet": 4, "swin": 2}[block] * sum(SHALLOW)
    assert {type(m) for m in norms} == {kind}
    own = create_model("localmixer_nano", depths=SHALLOW, block=block)
    assert ({"dwnet": "batch", "swin": "layer"}[block] == norm) == (list(own.state_dict()) == list(net.state_dict()))


def test_squeeze_and_excitation():
    plain = create_model("localmixer_nano", depths=SHALLOW)
    for given, hidden in ((True, 6), (0.5, 12)):
        net = create_model("localmixer_nano", depths=SHALLOW, squeeze_excitation=given)
        modules = [m for m in net.modules() if isinstance(m, SqueezeExcitation)]
        assert len(modules) == sum(SHALLOW)
        assert modules[0].reduce.out_features == hidden
        behind = [block.mixer for stage in net.stages for block in stage.blocks]
        assert all([type(m) for m in mixer] == [LocalMixer, SqueezeExcitation] for mixer in behind)
    assert not any(isinstance(m, SqueezeExcitation) for m in plain.modules())


@pytest.mark.parametrize(
    "options", [{"norm": "layer"}, {"squeeze_excitation": True}, {"block": "swin", "norm": "batch"}]
)
def test_folding_leaves_the_outputs(options):
    net = create_model("localmixer_nano", num_classes=10, depths=SHALLOW, mixer=OTHERS[0], **options).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, 30, 41, dtype=torch.float64)
    torch.testing.assert_close(fold(net)(x), net(x))


@pytest.mark.parametrize("mixer", [OTHERS[2], OTHERS[4]])
def test_compiles_and_exports(mixer):
    torch.compiler.reset()
    net = create_model("localmixer_nano", num_classes=10, depths=(2,), mixer=mixer, squeeze_excitation=0.5).eval()
    compiled, x = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager"), torch.randn(2, 3, 20, 28)
    torch.testing.assert_close(compiled(x), net(x))
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=5), 3: torch.export.Dim("width", min=5)}
    program = torch.export.export(net, (x,), dynamic_shapes=(dims,)).module()
    for shape in ((2, 3, 20, 28), (1, 3, 33, 9), (3, 3, 64, 64)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "sliding7"}, "point: expected connectivity/positions/channels/weights"),
        ({"mixer": "sliding7/shared-positions/groups3/dot-product"}, "positions: expected unshared-positions for dot-"),
        ({"mixer": "sliding7/shared-positions/groups5/static"}, "num_groups: expected a divisor of dim = 24, got 5"),
        ({"mixer": "sliding7/shared-positions/groups3,6/static"}, "num_groups: .* for stage 2, got"),
        ({"block": "resnet"}, "block: expected one of 'dwnet', 'swin', got 'resnet'"),
        ({"norm": "group"}, "norm: expected one of 'batch', 'layer', got 'group'"),
        ({"squeeze_excitation": -1.0}, "ratio: expected a number above 0, got -1.0"),
        ({"impl": "fastest"}, "impl: expected one of .*, got 'fastest'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        create_model("localmixer_nano", **options).eval()(torch.randn(1, 3, 8, 8))


def test_it_is_explained():
    assert explain("localmixer_nano").startswith(
        f"any mixer by its name, here {MIXER_POINTS['depthwise_convolution']}\n"
    )
