import runpy
from pathlib import Path

import pytest
import torch

from localmix.cli import main
from localmix.tasks.detection.checkpoints import convert_official, load_converted
from localmix.tasks.detection.detectors import detector

OFFICIAL = runpy.run_path(str(Path(__file__).parents[2] / "models" / "conftest.py"))
SMALL = {"channels": 16, "num_classes": 5}


def conv(name, outputs, inputs, size, bias=True):
    return {f"{name}.weight": (outputs, inputs, size, size)} | ({f"{name}.bias": (outputs,)} if bias else {})


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def shapes_of_heads(name, dims, channels=16, classes=5):
    """Names and shapes of mmdetection, written out here."""
    shapes = {}
    for index, dim in enumerate(dims):
        shapes |= conv(f"neck.lateral_convs.{index}.conv", channels, dim, 1)
        shapes |= conv(f"neck.fpn_convs.{index}.conv", channels, channels, 3)
    shapes |= conv("rpn_head.rpn_conv", channels, channels, 3)
    shapes |= conv("rpn_head.rpn_cls", 3, channels, 1) | conv("rpn_head.rpn_reg", 12, channels, 1)
    hidden = 4 * channels
    for stage in (".0", ".1", ".2") if name == "cascade_mask_rcnn" else ("",):
        box, mask = f"roi_head.bbox_head{stage}", f"roi_head.mask_head{stage}"
        shapes |= linear(f"{box}.fc_cls", classes + 1, hidden) | linear(f"{box}.fc_reg", 4 * classes, hidden)
        shapes |= linear(f"{box}.shared_fcs.0", hidden, channels * 49)
        if name == "mask_rcnn":
            shapes |= linear(f"{box}.shared_fcs.1", hidden, hidden)
        for index in range(4):
            if name == "cascade_mask_rcnn":
                shapes |= conv(f"{box}.shared_convs.{index}.conv", channels, channels, 3, bias=False)
                shapes |= {
                    f"{box}.shared_convs.{index}.bn.{part}": () if part == "num_batches_tracked" else (channels,)
                    for part in OFFICIAL["NORM"]
                }
            shapes |= conv(f"{mask}.convs.{index}.conv", channels, channels, 3)
        shapes |= conv(f"{mask}.upsample", channels, channels, 2) | conv(f"{mask}.conv_logits", classes, channels, 1)
    return shapes


def official_checkpoint(name="cascade_mask_rcnn", family="dwnet", patch=2):
    dim, depths, _, groups = OFFICIAL["SIZES"]["nano"]
    shapes = OFFICIAL["shapes_of_official"](family, dim=dim, depths=depths, patch=patch, groups=groups, classes=0)
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("norm.")}
    dims = [dim * 2**stage for stage in range(4)]
    for stage, width in enumerate(dims):
        for part in OFFICIAL["NORM"]:
            shapes[f"norm{stage}.{part}"] = (width,) if part != "num_batches_tracked" else ()
    shapes = {f"backbone.{key}": shape for key, shape in shapes.items()} | shapes_of_heads(name, dims)
    return OFFICIAL["random_weights"]({key: torch.Size(shape) for key, shape in shapes.items()})


@pytest.mark.parametrize("family", ["dwnet", "dynamic_dwnet", "i_dynamic_dwnet"])
@pytest.mark.parametrize("name", ["cascade_mask_rcnn", "mask_rcnn"])
def test_every_value_arrives_once(name, family):
    net, weights = detector(name, f"{family}_nano", **SMALL), official_checkpoint(name, family)
    net.load_state_dict(convert_official({"meta": {}, "state_dict": weights}, net))
    ours, theirs = net.state_dict(), weights.values()
    assert sum(v.numel() for v in ours.values()) - sum(v.numel() for v in theirs) == (
        0 if name == "cascade_mask_rcnn" else 4 * 64 + 4 + 16 + 1  # zeros for the ground
    )
    sums = [sorted(round(float(v.double().sum()), 6) for v in values) for values in (ours.values(), theirs)]
    assert sums[0] == sums[1]


def test_the_ground_is_first_and_masks_skip_activations():
    net, weights = detector("cascade_mask_rcnn", "dwnet_nano", **SMALL), official_checkpoint()
    found = convert_official(weights, net)
    theirs = weights["roi_head.bbox_head.1.fc_cls.bias"]
    assert found["roi_heads.box_heads.1.classifier.bias"].tolist() == [theirs[5], *theirs[:5]]
    key = "roi_heads.box_heads.1.regressor.weight"
    assert torch.equal(found[key], weights["roi_head.bbox_head.1.fc_reg.weight"])
    key = "roi_head.mask_head.2.convs.3.conv.weight"
    assert torch.equal(found["roi_heads.mask_heads.2.convs.6.weight"], weights[key])
    key = "roi_head.bbox_head.0.shared_convs.2.bn.running_var"
    assert torch.equal(found["roi_heads.box_heads.0.convs.2.1.running_var"], weights[key])


def test_names_of_swin():
    """Microsoft's names: of windows, merging at the end of a stage, and layer norms on the maps."""
    net, weights = detector("cascade_mask_rcnn", "localswin_nano", **SMALL), {}
    for key, value in net.backbone.network.state_dict().items():
        key = key.replace("stages", "layers").replace("mixer.source.qkv", "attn.qkv")
        key = key.replace("mixer.output", "attn.proj")
        if key.endswith("relative_position_bias_table"):
            key, value = key.replace("mixer.source", "attn"), value.flatten(1).flip(1).t()
        if ".downsample." in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}", f"layers.{stage - 1}")
        weights[f"backbone.{key}"] = value
    for index, norm in enumerate(net.backbone.norms):
        weights |= {f"backbone.norm{index}.{part}": value for part, value in norm.state_dict().items()}
    heads = {k: v for k, v in official_checkpoint().items() if not k.startswith("backbone.")}
    converted = convert_official(weights | heads, net)
    assert converted.keys() == net.state_dict().keys()
    own = {k: v for k, v in net.state_dict().items() if k.startswith(("backbone.body.", "backbone.norms."))}
    assert all(torch.equal(converted[key], value) for key, value in own.items())


def test_all_that_is_wrong_is_listed_at_once():
    net, weights = detector("cascade_mask_rcnn", "dwnet_nano", **SMALL), official_checkpoint()
    del weights["backbone.layers.1.blocks.0.mlp.fc1.bias"], weights["backbone.norm2.weight"]
    weights["neck.lateral_convs.0.conv.weight"] = torch.zeros(16, 7, 1, 1)
    weights["roi_head.surprise"] = torch.zeros(1)
    weights["rpn_head.rpn_cls.bias"] = "text"
    with pytest.raises(ValueError, match=r"^checkpoint: expected") as caught:
        convert_official(weights, net)
    for line in (
        "stages.1.blocks.0.mlp.fc1.bias",
        "missing: backbone.norms.2.weight",
        "misshapen: backbone.fpn.inner_blocks.0.0.weight: expected [16, 24, 1, 1], got [16, 7, 1, 1]",
        "left over: roi_head.surprise",
        "misshapen: rpn.head.cls_logits.bias: expected [3], got no tensor",
    ):
        assert line in str(caught.value)
    with pytest.raises(ValueError, match="expected one of mmdetection's Cascade Mask R-CNN or Mask R-CNN"):
        convert_official({"backbone.x": torch.zeros(1)}, net)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_by_command(tmp_path, capsys):
    weights, file = official_checkpoint(), tmp_path / "official.pth"
    names = tuple("abcde")
    torch.save({"meta": {"CLASSES": names, "epoch": 36}, "state_dict": weights}, file)
    command = ["convert", str(file), "--task", "detection", "--model"]
    output = ["--output", str(tmp_path / "net.safetensors")]
    assert main([*command, "dwnet_nano", *output]) == 0
    assert "cascade_mask_rcnn on dwnet_nano" in capsys.readouterr().out
    net, classes, backbone = load_converted(tmp_path / "net.safetensors")
    assert (classes, backbone) == (list(names), "dwnet_nano")
    assert torch.equal(net.backbone.norms[0].running_mean, weights["backbone.norm0.running_mean"])
    # the authors' detectors pad the maps in front of each block
    assert {block.pad_to for stage in net.backbone.network.stages for block in stage.blocks} == {7}
    with torch.no_grad():
        (found,) = net([torch.rand(3, 64, 64)])
    assert found["boxes"].isfinite().all()
    assert main([*command, "i_dynamic_dwnet_nano", *output]) == 2
    torch.save({"state_dict": weights, "hook": Evil()}, file)
    assert main([*command, "dwnet_nano", *output]) == 2
    captured = capsys.readouterr()
    assert "could run code: refused" in captured.err and "run" not in captured.out
