import csv
import json
import shutil

import pytest
import torch
import yaml
from timm.models import create_model

from localmix.cli import main
from localmix.tasks.detection.task import Detection
from localmix.tasks.engine.checkpoint import load_checkpoint

SETTINGS = {
    "task": "detection",
    "model": {
        "name": "dwnet_nano",
        "channels": 16,
        "model_kwargs": {"depths": [1, 1, 1, 1]},
        "detector_kwargs": {"num_samples": 16},
        "warmup_steps": 2,
        "lr": 1e-3,
        "drop_epochs": [2],
        "drop_path_rate": 0.2,
    },
    "data": {
        "sizes": [32, 40, 48],
        "max_size": 64,
        "crop_from": [40],
        "crop_size": [24, 40],
        "batch_size": 2,
        "workers": 0,
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    "save": {"every": 1, "keep": 100},
    "log": {"tensorboard": False},
}


@pytest.fixture(scope="module")
def fit(rectangles, tmp_path_factory):
    """fit(folder, option=value, ...): train the smallest detector there."""
    file = tmp_path_factory.mktemp("settings") / "nano.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "data": {**SETTINGS["data"], "root": str(rectangles)}}))

    def run(folder, **options):
        words = [f"--{name}={value}" for name, value in {**options, "output": folder}.items()]
        return main(["--traceback", "fit", "--config", str(file), *words])

    return run


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert fit(folder, **{"model.ema_decay": 0.9}) == 0
    return folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_logs_every_score(whole):
    found = rows(whole)
    assert len(found) == 8
    for prefix in ("val", "val_ema"):
        for kind in ("box", "mask"):
            for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
                assert found[3][f"{prefix}_{kind}_{name}"] and not found[2][f"{prefix}_{kind}_{name}"]
    assert [float(row["lr"]) for row in found] == pytest.approx([1e-6, 5.005e-4, *[1e-3] * 6])


def test_goes_on_from_within_an_epoch(fit, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > 5:
            path.unlink()
    assert fit(tmp_path / "run", **{"model.ema_decay": 0.9}) == 0
    assert (tmp_path / "run" / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    ours, theirs = (load_checkpoint(folder / "checkpoint.ckpt") for folder in (tmp_path / "run", whole))
    assert ours["global_step"] == theirs["global_step"] == 8
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name


def test_rates_fall_at_the_epochs_of_the_schedule():
    options = {"classes": ["a"], "min_size": 32, "max_size": 48, "channels": 8, "model_kwargs": {"depths": (1,) * 4}}
    task = Detection(model="dwnet_nano", detector="retinanet", warmup_steps=500, **options)
    task.trainer = type("Trainer", (), {"max_epochs": 36})()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    schedule = task.schedule(optimizer, 36_000)
    rates = {}
    for step in (0, 250, 500, 26_999, 27_000, 32_999, 33_000, 35_999):
        schedule.step_update(step)
        rates[step] = optimizer.param_groups[0]["lr"] / 1e-4
    expected = {0: 1e-3, 250: 0.5005, 500: 1, 26_999: 1, 27_000: 0.1, 32_999: 0.1, 33_000: 0.01, 35_999: 0.01}
    assert rates == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"model.drop_epochs: expected rising numbers of at least 1, got \[11, 8\]"):
        Detection(model="dwnet_nano", drop_epochs=[11, 8], **options)


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
def test_other_detectors_and_bfloat16(fit, tmp_path, detector):
    options = {"model.detector": detector, "model.detector_kwargs": "{}", "trainer.precision": "bf16-mixed"}
    assert fit(tmp_path, **options, **{"trainer.max_epochs": 1, "data.augment": "false"}) == 0
    last = rows(tmp_path)[-1]
    assert ("val_mask_ap" in last) == (detector == "mask_rcnn")
    assert 0 <= float(last["val_box_ap"]) <= 1


def test_begins_with_a_backbone_or_a_detector(whole, tmp_path):
    options = {"min_size": 32, "max_size": 48, "channels": 16, "model_kwargs": {"depths": (1, 1, 1, 1)}}
    options["model"] = "dwnet_nano"
    classifier = create_model("dwnet_nano", depths=(1, 1, 1, 1), num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    task = Detection(classes=["a", "b"], ema_decay=0.9, **options)
    assert "those of the backbone" in task.begin_with(str(tmp_path / "classifier.pth"))
    block = "stages.1.blocks.0.conv1.weight"
    for net in task.nets().values():
        assert torch.equal(net.state_dict()[f"backbone.body.model.{block}"], classifier.state_dict()[block])

    trained = load_checkpoint(whole / "checkpoint.ckpt")["state_dict"]
    told = task.begin_with(str(whole / "checkpoint.ckpt"))
    assert "without roi_heads.box_heads.0.classifier.weight" in told
    state = task.net.state_dict()
    for name, value in state.items():
        if f"without {name}," not in told and f", {name}" not in told:
            assert torch.equal(value, trained[f"ema.module.{name}"]), name
    same = Detection(classes=["red", "green", "blue"], **options)
    assert "without" not in same.begin_with(str(whole / "checkpoint.ckpt"))

    with pytest.raises(ValueError, match="does not belong to this detector"):
        Detection(classes=["a"], **{**options, "channels": 8}).begin_with(str(whole / "checkpoint.ckpt"))
    with pytest.raises(ValueError, match="weights: expected a file, got 'pretrained'"):
        task.begin_with("pretrained")


def test_a_net_of_timm_begins_with_its_own_weights(tmp_path):
    classifier = create_model("resnet10t", num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    task = Detection(model="resnet10t", classes=["a"], min_size=32, max_size=48, channels=8, detector="retinanet")
    task.begin_with(str(tmp_path / "classifier.pth"))
    assert torch.equal(task.net.backbone.body.state_dict()["conv1.0.weight"], classifier.state_dict()["conv1.0.weight"])


def test_wrong_settings_are_refused(fit, tmp_path, capsys):
    for options, complaint in (
        ({"data.root": tmp_path / "none"}, "data.root: expected a folder"),
        ({"model.detector": "yolo"}, "^model.detector: expected one of 'cascade_mask_rcnn'"),
        ({"data.crop_size": "[3]"}, "data.crop_size: expected two numbers"),
    ):
        with pytest.raises(ValueError, match=complaint):
            fit(tmp_path / "run", **options)
    assert not json.loads(json.dumps(capsys.readouterr().out))
