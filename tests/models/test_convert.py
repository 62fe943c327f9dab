import errno
import json
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file, save_file

import localmix
from localmix.cli import main
from localmix.models import create_model
from localmix.models.convert import checkpoint_filter, convert_file, convert_state_dict
from localmix.models.layouts import LAYOUTS, Row
from localmix.reports.evaluation.trained import load_trained

FAMILIES = ["dwnet", "dynamic_dwnet", "i_dynamic_dwnet"]
SWIN = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 24, "depths": (2, 2, 2, 2)}


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def refusal(state_dict, model):
    with pytest.raises(ValueError, match=r"^checkpoint: ") as caught:
        convert_state_dict(state_dict, model)
    return str(caught.value)


def section(message, title):
    """Entries below a title such as "missing" of an error message: one for each weight."""
    found = re.search(rf"^{title} \((\d+)\):\n((?:  .*(?:\n|\Z))*)", message, re.MULTILINE)
    if not found:
        return set()
    entries = set()
    for line in found[2].splitlines():
        before, numbers, after = re.fullmatch(r"  (\w+\.\d+\.blocks\.)?([\d,-]*)(.*)", line).groups()
        if not before:
            entries.add(numbers + after)
            continue
        for run in numbers.split(","):
            first, _, last = run.partition("-")
            entries |= {f"{before}{block}{after}" for block in range(int(first), int(last or first) + 1)}
    assert len(entries) == int(found[1])
    return entries


# Names


@pytest.mark.parametrize(
    ("row", "key", "name"),
    [
        (Row("norm.*", "norm.*"), "norm.weight", "norm.weight"),
        (Row("a.#.b.#.bn.*", "s.#.c.#.norm.*"), "a.1.b.12.bn.running_mean", "s.1.c.12.norm.running_mean"),
        (Row("layers.#.down.*", "stages.#+1.down.*"), "layers.9.down.bias", "stages.10.down.bias"),
        (Row("layers.#.mask", None), "layers.0.mask", None),
    ],
)
def test_row_renames(row, key, name):
    assert row.rename(row.match(key)) == name


@pytest.mark.parametrize("key", ["norm", "norm.a.weight", "xnorm.weight", "norm.weight.", "normXweight"])
def test_row_matches_whole_names_only(key):
    assert Row("norm.*", "norm.*").match(key) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_arrives_once(official, family):
    weights = official(family, "nano")
    net = on_meta(f"{family}_nano")
    converted = convert_state_dict(weights, net)
    assert converted.keys() == net.state_dict().keys()
    assert all(converted[key].shape == like.shape for key, like in net.state_dict().items())
    assert {float(v.double().sum()) for v in weights.values()} == {float(v.double().sum()) for v in converted.values()}


def test_merging_moves_to_the_next_stage(official):
    weights = official("dwnet", "nano")
    converted = convert_state_dict(weights, on_meta("dwnet_nano"))
    for stage in range(3):
        there, here = f"layers.{stage}.downsample.reduction.weight", f"stages.{stage + 1}.downsample.reduction.weight"
        assert torch.equal(converted[here], weights[there])


def test_counts_of_batches_arrive(official):
    weights = official("i_dynamic_dwnet", "nano")
    converted = convert_state_dict(weights, on_meta("i_dynamic_dwnet_nano"))
    there = "layers.2.blocks.3.attn2conv.conv.conv1.1.num_batches_tracked"
    here = "stages.2.blocks.3.mixer.source.norm.num_batches_tracked"
    assert converted[here].dtype == torch.int64
    assert converted[here] == weights[there] > 0


def test_conversion_leaves_the_checkpoint_alone(official):
    weights = official("dwnet", "nano")
    before = {key: value.clone() for key, value in weights.items()}
    convert_state_dict(weights, on_meta("dwnet_nano"))
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], value) for key, value in before.items())


def test_own_names_pass_through(randomised):
    weights = randomised(create_model("localmlp_nano")).state_dict()
    converted = checkpoint_filter(weights, on_meta("localmlp_nano"))
    assert converted.keys() == weights.keys()
    assert all(converted[key] is value for key, value in weights.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights, "epoch": 299},
        lambda weights: {"state_dict": weights, "optimizer": {"state": {}}},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"model": {f"module._orig_mod.{key}": value for key, value in weights.items()}},
    ],
)
def test_wrappers_are_taken_off(official, wrap):
    weights = official("dwnet", "nano")
    net = on_meta("dwnet_nano")
    assert convert_state_dict(wrap(weights), net).keys() == net.state_dict().keys()


# What does not fit


def test_all_that_does_not_fit_is_listed(official):
    weights = official("dwnet", "nano")
    gone = [
        "layers.0.blocks.1.attn2conv.bn.running_var",
        "layers.2.blocks.3.bn.num_batches_tracked",
        "layers.1.downsample.norm.bias",
    ]
    for key in gone:
        del weights[key]
    added = {"layers.2.blocks.3.attn2conv.bn9.weight": torch.ones(3), "ema": torch.ones(3), "epoch": 3}
    weights |= added
    weights["layers.2.blocks.0.mlp.fc1.weight"] = torch.ones(5, 5)
    weights["layers.2.blocks.1.mlp.fc1.weight"] = torch.ones(5, 5)
    weights["norm.weight"] = torch.ones(192, dtype=torch.int8)
    message = refusal(weights, on_meta("dwnet_nano"))
    assert section(message, "left over") == {*added.keys() - {"epoch"}, "epoch (int, not a tensor)"}
    assert section(message, "missing") == {
        "stages.0.blocks.1.norm2.running_var",
        "stages.2.blocks.3.norm4.num_batches_tracked",
        "stages.2.downsample.norm.bias",
    }
    assert section(message, "misshapen") == {
        "layers.2.blocks.0.mlp.fc1.weight: expected [384, 96] as stages.2.blocks.#.mlp.fc1.weight, got [5, 5]",
        "layers.2.blocks.1.mlp.fc1.weight: expected [384, 96] as stages.2.blocks.#.mlp.fc1.weight, got [5, 5]",
        "norm.weight: expected [192], got int8 [192]",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_can_be_absent(official, family):
    weights = official(family, dim=8, depths=(1, 1, 1, 1), groups=8)
    net = on_meta(f"{family}_tiny", embed_dim=8, depths=(1, 1, 1, 1), **({"num_groups": 8} if family[0] == "i" else {}))
    assert convert_state_dict(weights, net)
    for key in weights:
        message = refusal({name: value for name, value in weights.items() if name != key}, net)
        assert len(section(message, "missing")) == 1, key


@pytest.mark.parametrize(
    ("source", "target", "hint"),
    [
        (("dwnet", "nano"), "i_dynamic_dwnet_nano", "got those of dwnet_nano (official DWNet)"),
        (("dynamic_dwnet", "nano"), "dwnet_nano", "got those of dynamic_dwnet_nano (official dynamic DWNet)"),
        (("i_dynamic_dwnet", "nano"), "dynamic_dwnet_nano", "got those of i_dynamic_dwnet_nano (official inhomog"),
        (("dwnet", "tiny"), "dwnet_base", "got those of dwnet_tiny (official DWNet)"),
        (("dwnet", "tiny"), "localswin_tiny", "got those of dwnet_tiny (official DWNet)"),
        (("dwnet", "nano"), "localmlp_nano", "got those of dwnet_nano (official DWNet)"),
    ],
)
def test_wrong_network_is_named(official, source, target, hint):
    message = refusal(official(*source), on_meta(target))
    assert f"expected the weights of {target}, {hint}" in message
    assert section(message, "left over") | section(message, "misshapen")
    assert section(message, "missing") | section(message, "misshapen")


@pytest.mark.parametrize("target", ["dwnet_tiny", "localswin_base"])
def test_swin_in_the_wrong_network_is_named(target):
    message = refusal(timm.create_model(SWIN).state_dict(), on_meta(target))
    assert f"expected the weights of {target}, got those of localswin_tiny (Swin with timm's names)" in message


def test_network_with_the_same_shapes_is_refused():
    """Neighborhood attention has the parameters of window attention, name by name."""
    weights = timm.create_model(SWIN).state_dict()
    assert "got those of localswin_tiny" in refusal(weights, on_meta("localnat_tiny"))
    assert convert_state_dict(weights, on_meta("localswin_tiny"))


def test_networks_of_other_sizes_are_described(official):
    message = refusal(official("dwnet", dim=8, depths=(1, 2)), on_meta("dwnet_nano"))
    assert "got those of official DWNet with embed_dim=8, depths=(1, 2), patch_size=4" in message


@pytest.mark.parametrize(("window_size", "hint"), [(12, "windows of 12: give the network window_size="), (7, None)])
def test_windows_of_another_size_name_the_option(window_size, hint):
    source = timm.create_model(SWIN, window_size=window_size, img_size=384, **SMALL)
    net = on_meta("localswin_tiny", **SMALL)
    if hint is None:
        assert convert_state_dict(source.state_dict(), net)
        return
    for attempt in (convert_state_dict, checkpoint_filter):
        with pytest.raises(ValueError, match=hint):
            attempt(source.state_dict(), net)
    convert_state_dict(source.state_dict(), on_meta("localswin_tiny", window_size=window_size, **SMALL))


@pytest.mark.parametrize(
    "state_dict",
    [{}, {"fc.weight": torch.ones(2)}, {1: torch.ones(2)}, {"model": {"conv1.weight": torch.ones(2)}}],
)
def test_foreign_names_are_refused(state_dict):
    message = refusal(state_dict, on_meta("dwnet_nano"))
    assert "expected one of these layouts: localmix, official DWNet, " in message or "expected names" in message


def test_every_layout_has_marks_of_its_own(official):
    timms = dict.fromkeys(timm.create_model(SWIN, **SMALL).state_dict())
    microsofts = {key.replace("head.fc", "head"): None for key in timms}
    checkpoints = [on_meta("dwnet_nano").state_dict(), *(official(f, "nano") for f in FAMILIES), microsofts, timms]
    found = [next(layout.name for layout in LAYOUTS if layout.fits(keys)) for keys in checkpoints]
    assert found == [layout.name for layout in LAYOUTS]


# timm's loading


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_loads_an_official_checkpoint(official, tmp_path, family):
    weights = official(family, "nano")
    torch.save({"model": weights}, tmp_path / "official.pth")
    source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "official.pth")}}
    net = timm.create_model(f"{family}_nano", **source)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in convert_state_dict(weights, net).items())

    tuned = timm.create_model(f"{family}_nano", num_classes=3, in_chans=1, **source).state_dict()
    assert tuned["head.fc.weight"].shape == (3, 192)
    assert tuned["patch_embed.proj.weight"].shape == (24, 1, 2, 2)
    own = {"head.fc.weight", "head.fc.bias", "patch_embed.proj.weight"}
    assert all(torch.equal(tuned[k], v) for k, v in net.state_dict().items() if k not in own)

    features = timm.create_model(f"{family}_nano", features_only=True, **source)
    assert torch.equal(features.model.stages[1].blocks[0].mlp.fc1.weight, weights["layers.1.blocks.0.mlp.fc1.weight"])


def test_timm_takes_the_weights_of_its_own_swin_from_the_hub(monkeypatch):
    theirs, fetched = timm.create_model(SWIN, **SMALL).eval(), []
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda place, *_, **__: fetched.append(place) or theirs.state_dict(),
    )
    source = {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_id": f"timm/{SWIN}.ms_in1k"}}
    ours = timm.create_model("localswin_tiny", **source, **SMALL).eval()
    assert fetched == [f"timm/{SWIN}.ms_in1k"]
    image = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-5)


def test_timm_refuses_another_network_even_with_a_new_head(official, tmp_path):
    torch.save(official("dwnet", "nano"), tmp_path / "official.pth")
    source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "official.pth")}}
    with pytest.raises(ValueError, match="got those of dwnet_nano"):
        timm.create_model("i_dynamic_dwnet_nano", num_classes=3, **source)


# Files


@pytest.fixture
def checkpoint(official, tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"model": official("dwnet", "nano", classes=5)}, path)
    return path


def convert(checkpoint, model="dwnet_nano", **options):
    return convert_file(checkpoint, model=model, output=checkpoint.parent / "out" / "model.safetensors", **options)


def test_file_is_one_that_timm_loads(official, checkpoint):
    report = convert(checkpoint)
    net = timm.create_model("dwnet_nano", num_classes=5, checkpoint_path=str(report.output))
    expected = convert_state_dict(official("dwnet", "nano", classes=5), net)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in expected.items())
    assert (report.model, report.layout, report.num_classes) == ("dwnet_nano", "official DWNet", 5)
    assert report.num_parameters == sum(p.numel() for p in net.parameters())
    assert f"dwnet_nano, {report.num_parameters:,} parameters, 5 classes, from a checkpoint of" in str(report)


def test_metadata_says_what_the_file_is(checkpoint):
    with safetensors.safe_open(convert(checkpoint).output, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "architecture": "dwnet_nano",
            "num_classes": "5",
            "model_args": "{}",
            "source": "official DWNet",
            "localmix": localmix.__version__,
        }


def test_file_may_be_read_by_whoever_may_read_the_folder(checkpoint):
    (checkpoint.parent / "plain").touch()
    assert convert(checkpoint).output.stat().st_mode == (checkpoint.parent / "plain").stat().st_mode


def test_folder_is_one_that_timm_loads(tmp_path):
    source = timm.create_model(SWIN, img_size=128, window_size=4, num_classes=3, **SMALL).eval()
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    report = convert(tmp_path / "swin.pth", "localswin_tiny", config=True, window_size=4, **SMALL)
    folder = report.output.parent
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(net(image), source(image))
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 3


def of_microsoft_at_448(weights):
    """With the original names, and the masks of the shifted windows of 7: one for each window of a map of 112."""
    renamed = {"layers.0.blocks.1.attn_mask": torch.zeros(16**2, 49, 49)}
    for key, value in weights.items():
        key = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        renamed[key.replace("head.fc.", "head.")] = value
    return renamed


@pytest.mark.parametrize(
    ("window", "change", "options", "side"),
    [
        (12, dict, {}, 384),  # whose last map is one window, as Swin's are
        (7, dict, {}, 224),
        (7, of_microsoft_at_448, {}, 448),
        (12, dict, {"img_size": 320}, 320),
    ],
    ids=["384", "224", "masks tell", "said"],
)
def test_window_and_size_of_images_of_a_swin_are_kept(tmp_path, window, change, options, side):
    source = timm.create_model(SWIN, img_size=32 * window, window_size=window, num_classes=3, **SMALL)
    torch.save(change(source.state_dict()), tmp_path / "swin.pth")
    report = convert(tmp_path / "swin.pth", "localswin_tiny", config=True, **options, **SMALL)
    net = timm.create_model(f"local-dir:{report.output.parent}", pretrained=True)
    assert net.stages[0].blocks[0].mixer.connectivity.window_size == (window, window)
    assert tuple(timm.data.resolve_model_data_config(net)["input_size"]) == (3, side, side)
    trained = load_trained("localswin_tiny", checkpoint=report.output)
    assert trained.view.size == (side, side)
    assert trained.net.stages[0].blocks[0].mixer.connectivity.window_size == (window, window)


def test_size_of_images_may_be_said(official, tmp_path):
    torch.save(official("dwnet", "nano"), tmp_path / "published.pth")
    report = convert(tmp_path / "published.pth", img_size=96, config=True)
    net = timm.create_model(f"local-dir:{report.output.parent}", pretrained=True)
    assert tuple(net.pretrained_cfg["input_size"]) == (3, 96, 96)
    with pytest.raises(ValueError, match="img_size: expected an int of at least 1, got 0"):
        convert(tmp_path / "published.pth", img_size=0)


def test_size_of_images_may_be_said_on_the_command_line(official, tmp_path, capsys):
    torch.save(official("dwnet", "nano"), tmp_path / "published.pth")
    words = ["convert", str(tmp_path / "published.pth"), "--model=dwnet_nano", f"--output={tmp_path / 'a.safetensors'}"]
    for task, size in (("detection", 96), ("segmentation", 96), ("classification", 0)):
        assert main([*words, f"--task={task}", f"--img-size={size}"]) == 2
        assert capsys.readouterr().err.startswith("localmix: error: img_size: expected ")
    assert not (tmp_path / "a.safetensors").exists()
    assert main([*words, "--img-size=96"]) == 0
    assert load_trained("dwnet_nano", checkpoint=tmp_path / "a.safetensors").view.size == (96, 96)


def test_size_of_images_of_a_net_of_localmix_is_its_own(tmp_path):
    torch.save(create_model("localswin_nano").state_dict(), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", "localswin_nano", config=True)
    net = timm.create_model(f"local-dir:{report.output.parent}", pretrained=True)
    assert tuple(net.pretrained_cfg["input_size"]) == (3, 64, 64)


@pytest.mark.parametrize("classes", [0, 1, 7])
def test_number_of_classes_is_that_of_the_head(official, tmp_path, classes):
    torch.save(official("dwnet", "nano", classes=classes), tmp_path / "published.pth")
    report = convert(tmp_path / "published.pth")
    assert report.num_classes == classes
    assert load_file(report.output).get("head.fc.weight", torch.ones(0)).shape[0] == classes


def test_head_without_its_weight_is_incomplete(official, tmp_path):
    weights = official("dwnet", "nano", classes=7)
    del weights["head.weight"]
    torch.save(weights, tmp_path / "published.pth")
    with pytest.raises(ValueError, match=r"missing \(1\):\n  head.fc.weight"):
        convert(tmp_path / "published.pth")


def test_every_kind_of_file_is_read(official, tmp_path):
    weights = official("dwnet", "nano")
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "safe.bin")
    expected = convert_state_dict(weights, on_meta("dwnet_nano"))
    for name in ("zip.pth", "old.pth", "safe.bin"):
        converted = load_file(convert(tmp_path / name).output)
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], value) for key, value in expected.items())


@pytest.mark.parametrize("as_zip", [True, False])
def test_configuration_beside_the_weights_is_no_code(official, tmp_path, monkeypatch, as_zip):
    """The authors' training script stores its configuration, an object of a package that need not be installed."""
    package = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    vars(package)["CfgNode"] = node
    config = node(MODEL=node(NAME="dwnet"))
    vars(config)["__immutable__"] = True
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", package)
        content = {"model": official("dwnet", "nano"), "config": config}
        torch.save(content, tmp_path / "published.pth", _use_new_zipfile_serialization=as_zip)
    assert b"CfgNode" in (tmp_path / "published.pth").read_bytes()
    assert convert(tmp_path / "published.pth").num_classes == 1000


class Attack:
    """An object whose pickle, once loaded, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle2", "pickle4"])
def test_a_pickle_that_wants_to_run_code_is_refused(official, tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    content = {"model": official("dwnet", "nano"), "args": Attack(victim)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="refused, and nothing in it has been run") as caught:
        convert(path)
    assert kind.startswith("pickle") or f"asks for {os.mkdir.__module__}.mkdir" in str(caught.value)
    assert not victim.exists()
    assert not (tmp_path / "out").exists()

    if kind.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert victim.exists(), "the attack is a real one"


def damaged_file(kind, official, path):
    weights = official("dwnet", "nano")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0, 1e-5, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(official, tmp_path, kind, share):
    path = tmp_path / "cut.pth"
    content = damaged_file(kind, official, path)
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"^checkpoint: .*cut\.pth is .*(truncated|damaged)"):
        convert(path)
    path.write_bytes(content)
    assert convert(path)


def test_a_changed_byte_is_seen(official, tmp_path):
    path = tmp_path / "changed.pth"
    content = bytearray(damaged_file("zip", official, path))
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="wrong checksum of changed/data/"):
        convert(path)


@pytest.mark.parametrize("content", ["a text\n", torch.ones(3), [torch.ones(3)]])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "else.pth"
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"^checkpoint: .*else\.pth"):
        convert(path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        convert(tmp_path / "absent.pth")


@pytest.mark.parametrize("model", ["dwnet_nan", "resnet18"])
def test_unknown_network(checkpoint, model):
    with pytest.raises(ValueError, match=r"^model: expected .* network"):
        convert(checkpoint, model)


def test_output_is_safetensors(checkpoint):
    with pytest.raises(ValueError, match=r"^output: expected a name that ends in \.safetensors, got .*model\.pth"):
        convert_file(checkpoint, model="dwnet_nano", output=checkpoint.with_name("model.pth"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(checkpoint, monkeypatch, step):
    output = convert(checkpoint).output
    before = output.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync" if step == "fsync" else "pathlib.Path.replace", fail)
    with pytest.raises(
        OSError, match=r"No space left on device while writing; the file .* is kept: .*model.safetensors"
    ):
        convert(checkpoint)
    assert output.read_bytes() == before
    assert os.listdir(output.parent) == ["model.safetensors"]


def test_a_refused_checkpoint_leaves_the_old_file(official, checkpoint):
    output = convert(checkpoint).output
    before = output.read_bytes()
    torch.save(official("dynamic_dwnet", "nano"), checkpoint)
    with pytest.raises(ValueError, match="got those of dynamic_dwnet_nano"):
        convert(checkpoint)
    assert output.read_bytes() == before
    assert os.listdir(output.parent) == ["model.safetensors"]


def test_a_file_replaces_itself(randomised, tmp_path):
    path = tmp_path / "own.safetensors"
    weights = randomised(create_model("localswin_nano", num_classes=2)).state_dict()
    save_file(weights, path)
    report = convert_file(path, model="localswin_nano", output=path)
    assert report.layout == "localmix"
    assert all(torch.equal(value, weights[key]) for key, value in load_file(path).items())


def test_command(checkpoint, capsys):
    output = checkpoint.with_name("model.safetensors")
    assert main(["convert", str(checkpoint), "--model", "dwnet_nano", "--output", str(output)]) == 0
    assert len(load_file(output)) == len(on_meta("dwnet_nano").state_dict())
    capsys.readouterr()
    assert main(["convert", str(checkpoint), "--model", "localswin_nano", "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "localmix: error: checkpoint: expected the weights of localswin_nano, got those of dwnet_"
    )


def test_example(official, tmp_path):
    torch.save({"model": official("i_dynamic_dwnet", "nano", classes=5)}, tmp_path / "published.pth")
    example = Path(__file__).parents[2] / "examples" / "convert_checkpoint.py"
    command = [sys.executable, str(example), "published.pth", "i_dynamic_dwnet_nano", "converted"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "logits (1, 5)" in result.stdout
    assert "map at 1 / 16 (1, 192, 13, 16)" in result.stdout
