"""What timm, and what is built on it, expects of a network."""

import copy
import re
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import group_parameters, load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3

from localmix import models

NANO = [name for name in models.NAMES if name.endswith("_nano")]
WIDTHS = {"nano": 24, "tiny": 96, "small": 96, "base": 128}
SHALLOW = (2, 1, 2, 1)  # blocks of each stage, where time matters


@pytest.fixture
def network(randomised):
    """Makes a network in eval mode, of 10 classes, all of whose weights and statistics are drawn."""

    def make(name, **options):
        return randomised(timm.create_model(name, **{"num_classes": 10, **options})).eval()

    return make


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The registry.


def test_names_are_added_and_none_is_replaced():
    script = """
import timm
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
configurations = {name: timm.models.get_pretrained_cfg(name) for name in before}
import localmix.models
after = timm.list_models()
assert len(before) > 1000
assert sorted(after) == sorted([*before, *localmix.models.NAMES])
assert all(timm.model_entrypoint(name) is entrypoint for name, entrypoint in before.items())
assert all(timm.models.get_pretrained_cfg(name) == kept for name, kept in configurations.items())
assert not set(timm.list_pretrained()) & set(localmix.models.NAMES)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.parametrize("name", models.NAMES)
def test_configuration(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    side = 64 if name.endswith("_nano") else 224
    config = timm.data.resolve_model_data_config(net)
    assert config["input_size"] == (3, side, side)
    image = timm.data.create_transform(**config)(Image.new("RGB", (300, 200)))
    assert image.shape == (3, side, side)
    cfg = net.pretrained_cfg
    assert cfg["architecture"] == name
    assert net.get_submodule(cfg["first_conv"]) is net.patch_embed.proj
    assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
    assert net.num_features == net.head_hidden_size == 8 * WIDTHS[name.rpartition("_")[2]]
    # the map that the head pools
    assert tuple(cfg["pool_size"]) == (side // net.feature_info[-1]["reduction"],) * 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dwnet_tny", "dwnet_tiny"),
        ("dwnet-tiny", "dwnet_tiny"),
        ("LocalSwin_base", "localswin_base"),
        ("resnet5", "resnet50"),
        ("?", "those of localmix are dwnet_nano, "),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"^model: expected the name of a network, got {re.escape(repr(name))}; ") as e:
        models.create_model(name)
    assert nearest in str(e.value).partition(";")[2]


def test_create_model_is_that_of_timm():
    net = models.create_model("dwnet_nano", num_classes=7, depths=(1,))
    assert isinstance(net, models.Hierarchy)
    assert net.num_classes == 7
    assert not isinstance(models.create_model("resnet10t"), models.Hierarchy)


def test_there_are_no_pretrained_weights_yet():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for dwnet_nano"):
        timm.create_model("dwnet_nano", pretrained=True)


# Features.


@pytest.mark.parametrize("name", models.NAMES)
def test_features(name):
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True, depths=(1, 1, 1, 1))
        maps = net(torch.empty(2, 3, 70, 45))
    first = 2 if name.endswith("_nano") else 4
    strides = [first * 2**i for i in range(4)]
    channels = [WIDTHS[name.rpartition("_")[2]] * 2**i for i in range(4)]
    assert net.feature_info.reduction() == strides
    assert net.feature_info.channels() == channels
    assert net.feature_info.module_name() == [f"stages.{i}" for i in range(4)]
    assert net.in_chans == 3
    expected = [(2, c, -(-70 // s), -(-45 // s)) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(y.shape) for y in maps] == expected
    # nothing is left over that no map depends on
    assert not any(part in key for key, _ in net.named_parameters() for part in ("head", "model.norm"))


@pytest.mark.parametrize(
    ("out_indices", "expected"),
    [((0,), [0]), ((1, 3), [1, 3]), ((-1,), [3]), ((-3, -1), [1, 3]), ((-2,), [2]), (2, [2, 3]), ((0, 1), [0, 1])],
)
def test_out_indices(network, out_indices, expected):
    whole = network("dwnet_nano", depths=SHALLOW)
    some = timm.create_model("dwnet_nano", depths=SHALLOW, features_only=True, out_indices=out_indices).eval()
    kept = {key: whole.state_dict()[key.removeprefix("model.")] for key in some.state_dict()}
    some.load_state_dict(kept)
    assert some.feature_info.channels() == [24 * 2**i for i in expected]
    assert some.feature_info.reduction() == [2 * 2**i for i in expected]
    assert max(int(key.split(".")[2]) for key in kept if "stages" in key) == max(expected)
    x = images(2, 3, 21, 34)
    with torch.no_grad():
        maps, all_maps = some(x), whole.forward_intermediates(x, intermediates_only=True)
    assert len(maps) == len(expected)
    assert all(torch.equal(y, all_maps[i]) for y, i in zip(maps, expected, strict=True))


@pytest.mark.parametrize("feature_cls", ["getter", "hook"])
def test_feature_classes(feature_cls):
    options = {"features_only": True, "feature_cls": feature_cls, "out_indices": (1, 2), "depths": SHALLOW}
    net = timm.create_model("dwnet_nano", **options)
    channels_last = net.output_fmt.value == "NHWC"
    assert channels_last == (feature_cls == "hook")
    shapes = [tuple((y.permute(0, 3, 1, 2) if channels_last else y).shape) for y in net(images(2, 3, 24, 32))]
    assert shapes == [(2, 48, 6, 8), (2, 96, 3, 4)]


@pytest.mark.parametrize("name", NANO)
def test_forward_intermediates(network, name):
    net = network(name, depths=SHALLOW)
    x = images(2, 3, 21, 34)
    with torch.no_grad():
        features = net.forward_features(x)
        final, maps = net.forward_intermediates(x)
        assert torch.equal(final, features)
        assert torch.equal(net.forward_head(final), net(x))
        assert [tuple(y.shape[1:]) for y in maps] == [(24, 11, 17), (48, 6, 9), (96, 3, 5), (192, 2, 3)]
        assert torch.equal(net.norm(maps[-1].permute(0, 2, 3, 1)), final)

        last = net.forward_intermediates(x, indices=1, norm=True, output_fmt="NHWC", intermediates_only=True)
        assert len(last) == 1
        assert torch.equal(last[0], features)

        only = net.forward_intermediates(x, indices=[-3, 0], intermediates_only=True)
        assert [torch.equal(y, maps[i]) for y, i in zip(only, (0, 1), strict=True)] == [True, True]

        early, some = net.forward_intermediates(x, indices=[1], stop_early=True)
        assert torch.equal(early.permute(0, 3, 1, 2), some[0])
        assert torch.equal(some[0], maps[1])
    with pytest.raises(ValueError, match=r"^output_fmt: expected one of 'NCHW', 'NHWC', got 'NLC'"):
        net.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        net.forward_intermediates(x, indices=[4])
    with pytest.raises(ValueError, match=r"^image: "):
        net.forward_intermediates(x[:, :2])


def test_stop_early_runs_no_later_stage(network):
    net = network("dwnet_nano", depths=SHALLOW)
    net.stages[2].register_forward_pre_hook(lambda *_: pytest.fail("stage 2 ran"))
    assert len(net.forward_intermediates(images(1, 3, 8, 8), indices=[0, 1], stop_early=True)[1]) == 2


def test_prune_intermediate_layers(network):
    x = images(2, 3, 21, 34)
    whole = network("i_dynamic_dwnet_nano", depths=SHALLOW)
    maps = whole.forward_intermediates(x, intermediates_only=True)

    net = copy.deepcopy(whole)
    assert net.prune_intermediate_layers([0, -2]) == [0, 2]
    assert len(net.stages) == 3
    assert net.num_features == 96
    assert isinstance(net.norm, torch.nn.Identity)
    assert torch.equal(net(x).permute(0, 3, 1, 2), maps[2])
    net.reset_classifier(5, "avg")
    assert net(x).shape == (2, 5)

    net = copy.deepcopy(whole)
    assert net.prune_intermediate_layers(1, prune_head=False) == [3]
    assert torch.equal(net(x), whole(x))
    assert net.prune_intermediate_layers(1, prune_norm=True) == [3]
    assert torch.equal(net(x).permute(0, 3, 1, 2), maps[3])


# The head.


def test_classifier(network):
    net = network("localmlp_nano", depths=SHALLOW)
    x = images(2, 3, 20, 28)
    features = net.forward_features(x)
    pooled = net.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((1, 2)))
    classifier = net.get_classifier()
    assert (classifier.in_features, classifier.out_features) == (192, 10)
    torch.testing.assert_close(net(x), classifier(pooled))

    net.reset_classifier(3)
    assert net.num_classes == net.get_classifier().out_features == 3
    assert net.get_classifier().weight.std() < 0.03
    assert net(x).shape == (2, 3)
    net.reset_classifier(3, global_pool="max")
    torch.testing.assert_close(net.forward_head(features, pre_logits=True), features.amax((1, 2)))
    net.reset_classifier(0)
    torch.testing.assert_close(net(x), features.amax((1, 2)))
    net.reset_classifier(0, "")
    assert net.global_pool == ""
    torch.testing.assert_close(net(x), features)
    net.double().reset_classifier(4, "avg")
    assert net(x.double()).shape == (2, 4)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_global_pool_of_a_new_network(pool):
    net = timm.create_model("dwnet_nano", num_classes=5, global_pool=pool, depths=SHALLOW)
    assert net(images(2, 3, 20, 28)).shape == ((2, 2, 2, 5) if pool == "" else (2, 5))


# Groups of parameters.


@pytest.mark.parametrize("name", NANO)
def test_layer_decay(name):
    net = timm.create_model(name)
    names = {id(p): key for key, p in net.named_parameters()}
    groups = param_groups_layer_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay(), layer_decay=0.5)
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    blocks = [(stage, block) for stage, depth in enumerate((2, 2, 4, 1)) for block in range(depth)]
    of_blocks = [{v for k, v in scale.items() if k.startswith(f"stages.{s}.blocks.{b}.")} for s, b in blocks]
    assert [len(scales) for scales in of_blocks] == [1] * 9
    depths = [scales.pop() for scales in of_blocks]
    assert depths == [0.5**i for i in range(9, 0, -1)]
    assert {v for k, v in scale.items() if k.startswith("patch_embed")} == {0.5**10}
    for stage in (1, 2, 3):  # a merging belongs to the block behind it
        merging = {v for k, v in scale.items() if k.startswith(f"stages.{stage}.downsample")}
        assert merging == {scale[next(k for k in scale if k.startswith(f"stages.{stage}.blocks.0."))]}
    assert {v for k, v in scale.items() if k.startswith("norm.")} == {depths[-1]}
    assert {v for k, v in scale.items() if k.startswith("head.")} == {1.0}

    for key, parameter in net.named_parameters():
        is_bias = key.endswith(("bias", "relative_position_bias_table"))
        assert decay[key] == (0.0 if is_bias or parameter.ndim == 1 else 0.05), key


@pytest.mark.parametrize("name", NANO)
def test_weight_decay(name):
    net = timm.create_model(name)
    spared, decayed = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    by_layer = param_groups_layer_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    expected = {id(p) for group in by_layer if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(p) for p in spared["params"]} == expected
    optimizer = create_optimizer_v2(net, "adamw", lr=1e-3, weight_decay=0.05)
    assert {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]} == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


def test_coarse_groups_are_stages():
    net = timm.create_model("localswin_nano")
    groups = group_parameters(net, net.group_matcher(coarse=True))
    roots = {number: {re.match(r"stages\.\d|\w+", key)[0] for key in keys} for number, keys in groups.items()}
    assert [roots[i] for i in range(5)] == [{"patch_embed"}, *({f"stages.{i}"} for i in range(4))]
    assert set().union(*(roots[i] for i in roots if i > 4)) == {"norm", "head"}


# Training.


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_checkpointing_changes_nothing_but_memory(network, name, mode):
    plain = network(name, depths=SHALLOW, drop_path_rate=0.3, drop_rate=0.1, proj_drop_rate=0.1)
    nets = {"plain": plain.train(mode == "train"), "checkpointed": copy.deepcopy(plain)}
    nets["checkpointed"].set_grad_checkpointing()
    outputs, gradients, memory = {}, {}, {}
    for kind, net in nets.items():
        kept = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            for seed in range(2):
                outputs[kind] = net(images(2, 3, 21, 34, seed=seed))
                outputs[kind].square().sum().backward()
        memory[kind] = sum(kept)
        gradients[kind] = {key: p.grad for key, p in net.named_parameters()}
    assert torch.equal(outputs["plain"], outputs["checkpointed"])
    for key, gradient in gradients["plain"].items():
        assert gradient.any(), key
        assert torch.equal(gradients["checkpointed"][key], gradient), key
    for key, value in nets["plain"].state_dict().items():
        assert torch.equal(nets["checkpointed"].state_dict()[key], value), key
    assert memory["checkpointed"] < memory["plain"] / 4
    nets["checkpointed"].set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in nets["checkpointed"].stages)


def test_checkpointing_of_a_backbone():
    net = timm.create_model("dwnet_nano", features_only=True, depths=SHALLOW)
    net.model.set_grad_checkpointing()
    runs = []
    net.model.stages[0].blocks[0].mixer.register_forward_hook(lambda *_: runs.append(1))
    sum(y.sum() for y in net(images(2, 3, 16, 16))).backward()
    assert len(runs) == 2


@pytest.mark.parametrize("name", NANO)
def test_drop_path(network, name):
    net = network(name, drop_path_rate=0.3)
    blocks = [block for stage in net.stages for block in stage.blocks]
    rates = [[getattr(b.drop_path1, "drop_prob", 0.0), getattr(b.drop_path2, "drop_prob", 0.0)] for b in blocks]
    linear = torch.linspace(0, 0.3, len(blocks))
    torch.testing.assert_close(torch.tensor(rates), linear[:, None].expand(-1, 2))
    x = images(4, 3, 20, 20)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.allclose(net(x), net(x), rtol=1e-3, atol=1e-3)
    net = network(name, drop_path_rate=0.0).train()
    assert torch.equal(net(x), net(x))


def test_dropout():
    net = timm.create_model("localswin_nano", depths=SHALLOW, drop_rate=0.25, proj_drop_rate=0.125)
    rates = {m.p for m in net.stages.modules() if isinstance(m, torch.nn.Dropout)}
    assert (rates, net.head.drop.p) == ({0.125}, 0.25)


def test_exponential_moving_average(network):
    net = network("dynamic_dwnet_nano", depths=SHALLOW)
    first = copy.deepcopy(net.state_dict())
    average = ModelEmaV3(net, decay=0.75)
    for parameter in net.parameters():
        parameter.data.add_(0.01)
    average.update(net)
    for key, _ in net.named_parameters():
        torch.testing.assert_close(average.module.state_dict()[key], first[key] + 0.0025)
    x = images(2, 3, 20, 20)
    assert average(x).isfinite().all()
    assert not torch.allclose(average(x), net(x))


# Sizes that are announced, weights that are loaded.


@pytest.mark.parametrize("name", NANO)
def test_announced_size_changes_nothing(network, name):
    net = network(name, depths=SHALLOW)
    x = images(1, 3, 21, 34)
    y = net(x)
    assert torch.equal(network(name, depths=SHALLOW, img_size=(48, 40))(x), y)
    net.set_input_size(img_size=(48, 40))
    net.set_input_size((48, 40))
    assert torch.equal(net(x), y)


def test_local_directory(network, tmp_path):
    net = network("i_dynamic_dwnet_nano")
    save_for_hf(net, tmp_path, safe_serialization=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(2, 3, 20, 20)
    assert loaded.num_classes == 10
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(models.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), net(x))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_checkpoint_file(network, tmp_path, kind):
    net = network("localnat_nano")
    file = str(tmp_path / f"weights.{kind}")
    if kind == "safetensors":
        save_file(net.state_dict(), file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, file)
    x = images(2, 3, 20, 20)
    other = timm.create_model("localnat_nano", num_classes=10).eval()
    assert not torch.allclose(other(x), net(x))
    load_checkpoint(other, file)
    assert torch.equal(other(x), net(x))
    assert torch.equal(timm.create_model("localnat_nano", num_classes=10, checkpoint_path=file).eval()(x), net(x))


def test_file_as_pretrained_weights(network, tmp_path):
    """Other classes leave the head as it is new, other channels take the sum of the filters for colours."""
    net = network("dwnet_nano", num_classes=1000)
    file = str(tmp_path / "weights.safetensors")
    save_file(net.state_dict(), file)
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    gray = images(2, 1, 20, 20)
    loaded = timm.create_model("dwnet_nano", num_classes=3, in_chans=1, **options).eval()
    assert loaded(gray).shape == (2, 3)
    expected = net.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(loaded.forward_features(gray), expected, rtol=1e-4, atol=1e-4)
    features = timm.create_model("dwnet_nano", features_only=True, out_indices=(0, 2), **options).eval()
    x = images(2, 3, 20, 20)
    for y, i in zip(features(x), (0, 2), strict=True):
        assert torch.equal(y, net.forward_intermediates(x, intermediates_only=True)[i])


def test_weights_of_another_network_are_refused(network, tmp_path):
    file = str(tmp_path / "weights.safetensors")
    save_file(network("dwnet_nano").state_dict(), file)
    for name in ("dynamic_dwnet_nano", "localswin_nano"):
        with pytest.raises(RuntimeError, match="Missing key"):
            load_checkpoint(timm.create_model(name, num_classes=10), file)
