import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from localmix.models import create_model
from localmix.reports.cost import cost
from localmix.tasks.segmentation.upernet import FCNHead, UPerHead, upernet

SMALL = {"channels": 16, "auxiliary_channels": 8, "num_classes": 5}

PAPER = {
    "localswin_tiny": (60, 945, 59_941_862),
    "dwnet_tiny": (56, 928, 55_826_252),
    "dynamic_dwnet_tiny": (83, 928, 82_785_260),
    "localswin_base": (121, 1188, 121_279_716),
    "dwnet_base": (108, 1129, 107_858_604),
    "dynamic_dwnet_base": (195, 1129, 195_109_420),
}
"""Parameters [10^6] and multiply-adds at 512x2048 [10^9] that the paper states, and parameters counted here."""


@pytest.mark.parametrize("name", PAPER)
def test_size_and_cost_are_those_of_the_paper(name):
    millions, giga, parameters = PAPER[name]
    with torch.device("meta"):
        net = upernet(name)
    counted = cost(net, (512, 2048))
    assert round(counted.parameters / 1e6) == millions
    assert counted.parameters == parameters
    assert counted.macs == pytest.approx(giga * 1e9, rel=0.02)


def randomise(net):
    """Values that all count: no scale is one, no statistic is that of the start."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape) + (0.5 if name.endswith(("var", "weight")) else 0))
    return net.eval()


def by_definition(weights, maps, pool_sizes):
    """mmsegmentation's decoder as one function of its weights."""

    def conv_norm_relu(x, name):
        kernel = weights[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        scale, shift, mean, var = (weights[f"{name}.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        return F.relu(F.batch_norm(x, mean, var, scale, shift))

    def resized(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    laterals = [conv_norm_relu(x, f"lateral_convs.{i}") for i, x in enumerate(maps[:-1])]
    pyramid = [maps[-1]]
    for i, size in enumerate(pool_sizes):
        pyramid.append(resized(conv_norm_relu(F.adaptive_avg_pool2d(maps[-1], size), f"psp_modules.{i}.1"), maps[-1]))
    laterals.append(conv_norm_relu(torch.cat(pyramid, 1), "bottleneck"))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + resized(laterals[i], laterals[i - 1])
    outputs = [conv_norm_relu(laterals[i], f"fpn_convs.{i}") for i in range(3)] + [laterals[3]]
    fused = conv_norm_relu(torch.cat([resized(x, outputs[0]) for x in outputs], 1), "fpn_bottleneck")
    return F.conv2d(fused, weights["conv_seg.weight"], weights["conv_seg.bias"])


def test_decoder_is_the_definition():
    sizes = [(24, 15), (12, 8), (6, 4), (3, 2)]
    maps = [torch.randn(2, 3 + i, *size, dtype=torch.float64) for i, size in enumerate(sizes)]
    head = randomise(UPerHead([3, 4, 5, 6], 7, 4, pool_sizes=(1, 2, 3, 6), dropout=0.1).double())
    with torch.no_grad():
        torch.testing.assert_close(head(maps), by_definition(head.state_dict(), maps, (1, 2, 3, 6)))


def test_names_are_those_of_mmsegmentation():
    head = UPerHead([3, 4, 5, 6], 7, 4, pool_sizes=(1, 2, 3, 6), dropout=0.1).state_dict()
    convs = ["bottleneck", "fpn_bottleneck", *(f"psp_modules.{i}.1" for i in range(4))]
    convs += [f"{stem}.{i}" for stem in ("lateral_convs", "fpn_convs") for i in range(3)]
    parts = [
        "conv.weight",
        *(f"bn.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    assert set(head) == {f"{c}.{p}" for c in convs for p in parts} | {"conv_seg.weight", "conv_seg.bias"}
    auxiliary = FCNHead(5, 6, 4, dropout=0.1).state_dict()
    assert set(auxiliary) == {f"convs.0.{p}" for p in parts} | {"conv_seg.weight", "conv_seg.bias"}


@pytest.mark.parametrize(
    ("backbone", "norm", "options"),
    [
        ("dwnet_nano", nn.BatchNorm2d, {}),
        ("i_dynamic_dwnet_nano", nn.BatchNorm2d, {}),
        ("localswin_nano", nn.LayerNorm, {}),
        ("localmlp_nano", nn.BatchNorm2d, {}),
        ("resnet10t", nn.Identity, {}),
        (
            "swin_tiny_patch4_window7_224",
            nn.LayerNorm,
            {"img_size": (97, 61), "embed_dim": 12, "depths": (1,) * 4, "num_heads": (1,) * 4},
        ),
    ],
)
def test_any_backbone_at_an_odd_size(backbone, norm, options):
    net = upernet(backbone, **SMALL, **options)
    assert {type(feature_norm.norm) for feature_norm in net.feature_norms} == {norm}
    image = torch.randn(2, 3, 97, 61)
    logits, auxiliary = net(image)
    assert logits.shape == auxiliary.shape == (2, 5, 97, 61)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    with torch.no_grad():
        assert net.eval()(image).shape == (2, 5, 97, 61)


def test_feature_norm_can_be_chosen():
    net = upernet("dwnet_nano", feature_norm="none", **SMALL)
    assert all(isinstance(norm.norm, nn.Identity) for norm in net.feature_norms)
    with pytest.raises(ValueError, match="feature_norm: expected"):
        upernet("dwnet_nano", feature_norm="group", **SMALL)


@pytest.mark.parametrize("name", ["num_classes", "channels", "auxiliary_channels"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        upernet("dwnet_nano", **{**SMALL, name: 0})


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="the nearest are dwnet_tiny"):
        upernet("dwnet_tny", **SMALL)


def test_layer_norm_is_over_channels():
    net = upernet("localswin_nano", **SMALL).eval()
    seen = []
    net.decode_head.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    assert len(seen) == 4
    for x in seen:
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x[:, 0]), atol=1e-5, rtol=0)


def gradients(net, image):
    net.zero_grad()
    torch.manual_seed(0)  # of drop path
    logits, auxiliary = net(image)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("backbone", ["dwnet_nano", "localswin_nano", "resnet10t"])
def test_recomputed_blocks_give_the_same_gradients(backbone):
    net = upernet(backbone, dropout=0.0, **SMALL).double()
    image, calls = torch.randn(2, 3, 64, 48, dtype=torch.float64), []
    expected = gradients(net, image)
    kinds = ("Block", "BasicBlock", "DWNetBlock", "SwinBlock")
    for module in net.backbone.modules():
        if type(module).__name__ in kinds:
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    once = len(gradients(net, image)) and len(calls)
    assert once > 3
    calls.clear()
    net.set_grad_checkpointing()
    found = gradients(net, image)
    assert 2 * once >= len(calls) > 1.5 * once  # timm leaves out the last stage of a ResNet
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    net.set_grad_checkpointing(False)
    calls.clear()
    gradients(net, image)
    assert len(calls) == once


def test_logits_are_enlarged_in_float32_under_autocast():
    net, image = upernet("dwnet_nano", **SMALL), torch.randn(2, 3, 64, 48)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [*net(image), net.eval()(image)]
    for logits in outputs:
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


def test_tables_of_positions_do_not_decay():
    net = upernet("localswin_nano", **SMALL)
    tables = {name for name, _ in net.named_parameters() if name.endswith("relative_position_bias_table")}
    assert net.no_weight_decay() == tables != set()
    assert upernet("resnet10t", **SMALL).no_weight_decay() == set()


@pytest.mark.parametrize("backbone", ["localswin_nano", "dwnet_nano", "resnet10t"])
def test_heads_learn_at_the_full_rate_and_the_backbone_as_in_a_classifier(backbone):
    def scales(net):
        rates = {
            id(p): group["lr_scale"]
            for group in param_groups_layer_decay(net, layer_decay=0.5)
            for p in group["params"]
        }
        return {name: rates[id(p)] for name, p in net.named_parameters()}

    net = upernet(backbone, **SMALL)
    found = scales(net)
    inside = {name.removeprefix(net.prefix): rate for name, rate in found.items() if name.startswith(net.prefix)}
    assert {rate for name, rate in found.items() if not name.startswith("backbone.")} == {1.0}
    assert max(inside.values()) == 0.5
    if backbone == "resnet10t":
        assert list(inside.values()) == sorted(inside.values())
    else:
        classifier = scales(create_model(backbone))
        assert inside == {name: classifier[name] for name in inside}
