"""Runs of two processes, all started by one torchrun, since a start costs more than what it runs."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localmix.tasks.engine.checkpoint import load_checkpoint

# One start of torchrun takes a minute and a half of two cores, more where others use them too.
pytestmark = pytest.mark.timeout(900)
PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*torchrun, PROGRAM, folder], capture_output=True, text=True, env=environment, timeout=800)
    assert result.returncode == 0, result.stderr
    return folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_statuses(runs):
    for process in range(2):
        status = json.loads((runs / f"status-{process}.json").read_text())
        assert status.pop("stopped") == 75
        assert len(status) == 9 and set(status.values()) == {0}


def test_both_processes_skip_a_step_that_is_not_finite_in_one(runs):
    kept = load_checkpoint(runs / "poisoned/checkpoint.ckpt")
    assert kept["callbacks"]["Guard"] == {"failures": 0, "skipped": 1}
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    whole, poisoned = rows(runs / "rich"), rows(runs / "poisoned")
    assert [row["loss"] for row in poisoned[:2]] == [row["loss"] for row in whole[:2]]
    assert [math.isnan(row["loss"]) for row in poisoned] == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("whole", "resumed"), [("rich", "rich-resumed"), ("fsdp", "fsdp-resumed"), ("local", "local-resumed")]
)
def test_two_processes_go_on_from_within_an_epoch(assert_same_runs, runs, whole, resumed):
    assert_same_runs(runs / whole, runs / resumed)


def test_a_signal_to_one_process_stops_both_and_loses_nothing(assert_same_runs, runs):
    assert_same_runs(runs / "rich", runs / "stopped")


@pytest.mark.parametrize("name", ["plain", "fsdp"])
def test_two_processes_train_as_one_does_with_the_same_steps(fit, runs, few_images, tmp_path, name, monkeypatch):
    train, validation = few_images["train"], few_images["test"]
    monkeypatch.setattr(
        "localmix.tasks.fashion_mnist.load",
        lambda split: tuple(array[:24] for array in train) if split == "train" else tuple(a[:7] for a in validation),
    )
    settings = {"data.batch_size": 8, "data.augment": "false", "trainer.max_epochs": 2}
    settings |= {"trainer.gradient_clip_val": 1.0, "model.lr": 1e-4}
    assert fit(tmp_path, **settings) == 0
    one, two = rows(tmp_path), rows(runs / name)
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        # Sums in another order differ in float32's last place. Adam turns that into whole steps for the biases in front
        # of batch norms, whose gradient is zero but for it; they change nothing but the running means. What changes the
        # loss is a ReLU that is on the verge of zero and falls to the other side.
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5 if a["step"] <= 3 else 2e-4)
        assert a["lr"] == b["lr"]
        if "val_loss" in a:
            assert a["val_loss"] == pytest.approx(b["val_loss"], rel=2e-4)
            # 7 images on two processes: each counts once
            assert b["val_top1"] * 7 == pytest.approx(round(b["val_top1"] * 7), abs=1e-5)


def test_a_killed_process_is_started_again_and_each_image_is_seen_once(runs):
    seen, attempts = {}, []
    for process in range(2):
        for line in (runs / f"seen-{process}.jsonl").read_text().splitlines():
            epoch, step, images = json.loads(line)
            attempts.append((process, step))
            assert seen.setdefault((epoch, step, process), images) == images, "a repeated step sees the same images"
    assert attempts.count((0, 4)) == 2, "the step behind the last checkpoint is repeated"
    assert attempts.count((0, 3)) == 1, "the steps in front of it are not"
    for epoch in range(2):
        images = [index for (e, _, _), indices in seen.items() if e == epoch for index in indices]
        assert sorted(images) == list(range(24))
    assert [row["step"] for row in rows(runs / "elastic")] == [1, 2, 3, 4, 5, 6]
    assert load_checkpoint(runs / "elastic/checkpoint.ckpt")["global_step"] == 6
    assert rows(runs / "elastic") == rows(runs / "plain"), "as if nothing had happened"
