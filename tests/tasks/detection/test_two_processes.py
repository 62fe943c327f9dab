"""A run of two processes, started by torchrun."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from localmix.cli import main
from localmix.tasks.engine.checkpoint import load_checkpoint

# a start takes a minute where others use the cores, too
pytestmark = pytest.mark.timeout(900)
PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rectangles):
    folder = tmp_path_factory.mktemp("runs")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, PROGRAM, folder, rectangles]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_go_on_from_within_an_epoch(runs):
    whole, resumed = ((runs / name / "metrics.csv").read_text() for name in ("whole", "resumed"))
    assert len(whole.splitlines()) == 6, "ten images, two a step"
    assert whole == resumed
    ours, theirs = (load_checkpoint(runs / name / "checkpoint.ckpt")["state_dict"] for name in ("whole", "resumed"))
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_their_score_is_that_of_one_process(runs, tmp_path):
    """Five images on two processes: each counts once."""
    command = ["validate", str(runs / "whole"), "--workers", "0", "--output", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    last = list(csv.DictReader((runs / "whole" / "metrics.csv").read_text().splitlines()))[-1]
    for kind in ("box", "mask"):
        for name in ("AP", "AP50"):
            assert float(last[f"val_{kind}_{name.lower()}"]) == pytest.approx(results[kind][name], abs=1e-6)
