import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from localmix.cli import main
from localmix.tasks.segmentation.checkpoints import convert_file, convert_official, load_converted, load_official
from localmix.tasks.segmentation.upernet import upernet

OFFICIAL = runpy.run_path(str(Path(__file__).parents[2] / "models" / "conftest.py"))
SMALL = {"channels": 16, "auxiliary_channels": 8, "num_classes": 5}


def official_checkpoint(family, net):
    """What mmsegmentation stores: the network in its authors' names, a norm of each map, the heads."""
    dim, depths, patch, groups = OFFICIAL["SIZES"]["nano"]
    shapes = OFFICIAL["shapes_of_official"](family, dim=dim, depths=depths, patch=patch, groups=groups, classes=0)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("norm.")}
    for stage in range(4):
        for part in OFFICIAL["NORM"]:
            shapes[f"norm{stage}.{part}"] = (dim * 2**stage,) if part != "num_batches_tracked" else ()
    shapes = {f"backbone.{name}": torch.Size(shape) for name, shape in shapes.items()}
    heads = {k: v.shape for k, v in net.state_dict().items() if k.startswith(("decode_head.", "auxiliary_head."))}
    return OFFICIAL["random_weights"]({**shapes, **heads})


@pytest.mark.parametrize("family", ["dwnet", "dynamic_dwnet", "i_dynamic_dwnet"])
def test_every_value_arrives_once(family):
    net = upernet(f"{family}_nano", **SMALL)
    weights = official_checkpoint(family, net)
    converted = convert_official({"meta": {"CLASSES": ["a"]}, "state_dict": weights}, net)
    net.load_state_dict(converted)
    assert sorted(float(v.double().sum()) for v in weights.values()) == sorted(
        float(v.double().sum()) for v in net.state_dict().values()
    )
    for stage in range(4):
        norm = net.feature_norms[stage].norm
        assert torch.equal(norm.running_mean, weights[f"backbone.norm{stage}.running_mean"])
    assert torch.equal(net.decode_head.fpn_convs[2].bn.bias, weights["decode_head.fpn_convs.2.bn.bias"])


def test_names_of_swin():
    """Microsoft's names, of which each is written out here for the first block."""
    net = upernet("localswin_nano", **SMALL)
    weights = {}
    for key, value in net.state_dict().items():
        key = key.replace("backbone.model.", "backbone.").replace("backbone.stages", "backbone.layers")
        key = key.replace("mixer.source.qkv", "attn.qkv").replace("mixer.output", "attn.proj")
        if key.endswith("relative_position_bias_table"):
            key = key.replace("mixer.source", "attn")
            value = value.flatten(1).flip(1).t()
        if ".downsample." in key:
            stage = int(key.split(".")[2])
            key = key.replace(f"layers.{stage}", f"layers.{stage - 1}")
        if key.startswith("feature_norms."):
            _, stage, _, part = key.split(".")
            key = f"backbone.norm{stage}.{part}"
        weights[key] = value
    assert "backbone.layers.0.blocks.0.attn.relative_position_bias_table" in weights
    assert "backbone.layers.0.downsample.reduction.weight" in weights
    weights["backbone.layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    converted = convert_official(weights, net)
    assert converted.keys() == net.state_dict().keys()
    assert all(torch.equal(converted[key], value) for key, value in net.state_dict().items())


def test_all_that_is_wrong_is_listed_at_once():
    net = upernet("dwnet_nano", **SMALL)
    weights = official_checkpoint("dwnet", net)
    del weights["backbone.layers.1.blocks.0.mlp.fc1.bias"], weights["backbone.norm2.weight"]
    weights["decode_head.conv_seg.weight"] = torch.zeros(150, 16, 1, 1)
    weights["decode_head.surprise"] = torch.zeros(1)
    weights["auxiliary_head.conv_seg.bias"] = "text"
    with pytest.raises(ValueError, match=r"^checkpoint: expected") as caught:
        convert_official(weights, net)
    for line in (
        "stages.1.blocks.0.mlp.fc1.bias",
        "missing: feature_norms.2.norm.weight",
        "misshapen: decode_head.conv_seg.weight: expected [5, 16, 1, 1], got [150, 16, 1, 1]",
        "left over: decode_head.surprise",
        "misshapen: auxiliary_head.conv_seg.bias: expected [5], got no tensor",
    ):
        assert line in str(caught.value)


def test_another_network_is_refused():
    net = upernet("i_dynamic_dwnet_nano", **SMALL)
    with pytest.raises(ValueError, match="got those of dwnet_nano"):
        convert_official(official_checkpoint("dwnet", upernet("dwnet_nano", **SMALL)), net)


def test_a_file_is_loaded(tmp_path):
    net = upernet("dwnet_nano", **SMALL)
    weights = official_checkpoint("dwnet", net)
    torch.save({"meta": {"PALETTE": [[1, 2, 3]]}, "state_dict": weights}, tmp_path / "official.pth")
    load_official(tmp_path / "official.pth", net)
    assert isinstance(net.feature_norms[0].norm, nn.BatchNorm2d)
    assert torch.equal(net.feature_norms[0].norm.weight, weights["backbone.norm0.weight"])
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("family", ["dwnet", "dynamic_dwnet", "i_dynamic_dwnet"])
def test_the_command_writes_a_file_that_knows_its_net(family, tmp_path, capsys):
    """The sizes of the heads are those of the checkpoint; the loaded net computes what one filled directly does."""
    weights = official_checkpoint(family, upernet(f"{family}_nano", **SMALL))
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "official.pth")
    output = tmp_path / "below" / "net.safetensors"
    arguments = ["convert", str(tmp_path / "official.pth"), "--task", "segmentation", "--model", f"{family}_nano"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert f"UPerNet on {family}_nano" in capsys.readouterr().out
    net, facts = load_converted(output)
    name = facts["architecture"]
    assert (name, net.num_classes, net.training) == (f"{family}_nano", 5, False)
    # the authors' segmenters pad the maps in front of each block
    expected = upernet(name, pad_to=7, **SMALL).eval()
    load_official(tmp_path / "official.pth", expected)
    with torch.no_grad():
        image = torch.randn(1, 3, 40, 33)
        assert torch.equal(net(image), expected(image))


def test_what_is_no_segmenter_is_refused(tmp_path, capsys):
    torch.save({"model": {"head.weight": torch.zeros(3, 4)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"expected one of mmsegmentation's UPerNet, got one without decode_head.conv"):
        convert_file(tmp_path / "other.pth", model="dwnet_nano", output=tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"output: expected a name that ends in .safetensors, got net.pth"):
        convert_file(tmp_path / "other.pth", model="dwnet_nano", output=Path("net.pth"))
    with pytest.raises(ValueError, match="model: expected a file for segmentation that `localmix convert"):
        load_converted(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError):
        load_converted(tmp_path / "none.safetensors")
    assert not (tmp_path / "net.safetensors").exists()
