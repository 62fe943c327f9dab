import csv
import shutil
import subprocess
import sys

import pytest

from localmix.tasks.engine.checkpoint import load_checkpoint

RICH = {
    "model.drop_path_rate": 0.3,
    "model.ema_decay": 0.9,
    "data.batch_size": 2,
    "trainer.accumulate_grad_batches": 2,
    "save.every": 1,
    "save.keep": 100,
}


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(fit_segmenter, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert fit_segmenter(output, **RICH) == 0
    return output


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_goes_on_from_within_an_epoch(fit_segmenter, assert_same_runs, whole, tmp_path, step):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    assert fit_segmenter(tmp_path / "run", **RICH) == 0
    assert_same_runs(whole, tmp_path / "run")


def test_what_is_written_down(whole):
    """An epoch is a stretch of steps, not a pass through the nine images; the schedule falls to the end of the run."""
    metrics = rows(whole)
    names = ("loss", "miou", "pixel_accuracy", "mean_accuracy")
    assert list(metrics[2])[4:] == [f"{prefix}{name}" for prefix in ("val_", "val_ema_") for name in names]
    assert [row["epoch"] for row in metrics] == [0, 0, 0, 1, 1, 1]
    assert [len(row) > 4 for row in metrics] == [False, False, True, False, False, True]
    assert [row["lr"] / 6e-5 for row in metrics] == pytest.approx([1 - step / 6 for step in range(6)])
    facts = load_checkpoint(whole / "checkpoint.ckpt")
    assert facts["task"] == "segmentation"
    assert facts["hyper_parameters"]["classes"] == ["red", "green", "blue", "never"]


def test_colours_are_learned(segmenter):
    """Far better than taking all for one class, and the best checkpoint is the one of the highest mIoU."""
    last = rows(segmenter)[-1]
    assert last["val_miou"] > 0.5
    assert last["val_pixel_accuracy"] > 0.7
    assert last["val_loss"] < 1
    best = max(row["val_ema_miou"] for row in rows(segmenter) if "val_ema_miou" in row)
    assert load_checkpoint(segmenter / "best.ckpt")["callbacks"]["Saving"]["best"] == best


# two starts, of which each takes a minute where others use the cores too
@pytest.mark.timeout(900)
def test_two_processes_train_as_one_does(fit_segmenter, small_scenes, tmp_path):
    """Batch norms look at both; three images of validation are shared by two without one counting twice."""
    settings = {
        "save.keep": 1,
        "data.distort": "false",
        "data.steps_per_epoch": 3,
        "trainer.max_epochs": 1,
        "model.dropout": 0.0,
        "model.lr": 1e-4,
    }
    assert fit_segmenter(tmp_path / "one", **settings) == 0
    alone = load_checkpoint(tmp_path / "one" / "checkpoint.ckpt")["run"]["settings"]
    words = [
        f"--{name}={alone[name]}" for name in alone if name not in ("output", "data.batch_size", "trainer.devices")
    ]
    words = [word.replace("=None", "=null") for word in words if "model_kwargs" not in word]
    command = [*words, "--model.model_kwargs={depths: [1, 1, 1, 1]}", "--data.batch_size=2", "--trainer.devices=2"]
    program = [sys.executable, "-m", "localmix", "fit", f"--output={tmp_path / 'two'}"]
    done = subprocess.run([*program, *command], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        if "val_loss" in a:
            assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)
            assert a["val_pixel_accuracy"] == pytest.approx(b["val_pixel_accuracy"], abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.root": "nowhere"}, "data.root: expected a folder of images and label maps, got nowhere"),
        ({"data.batch_size": 1}, "data.batch_size: expected at least 2"),
        ({"data.classes": "cityscapes"}, "classes: expected one of"),
        ({"data.scale": "[1.0]"}, "data.scale: expected two factors"),
        ({"data.void": "[1]"}, "void: expected values that no class has, got [1]"),
        ({"data.void": "[254]"}, "problems:"),
        ({"data.steps_per_epoch": 0}, "data.steps_per_epoch: expected an int of at least 1"),
        ({"model.feature_norm": "group"}, "feature_norm: expected one of"),
        ({"data.img_size": 32}, "unrecognized arguments: --data.img_size=32"),
    ],
)
def test_wrong_settings_are_refused(fit_segmenter, tmp_path, settings, message, capsys):
    assert fit_segmenter(tmp_path / "run", **settings) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run/metrics.csv").exists()
