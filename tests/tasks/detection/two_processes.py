"""The part of test_two_processes.py that runs under torchrun, in each of two processes."""

import os
import shutil
import sys
from pathlib import Path

import torch
from torch import distributed

from localmix.cli import main

ROOT, DATA = Path(sys.argv[1]), Path(sys.argv[2])
OPTIONS = {
    "task": "detection",
    "model.name": "dwnet_nano",
    "model.channels": 16,
    "model.model_kwargs": '{"depths": [1, 1, 1, 1]}',
    "model.detector_kwargs": '{"num_samples": 16, "min_score": 0.0}',
    "model.drop_path_rate": 0.2,
    "model.warmup_steps": 2,
    "model.lr": 1e-3,
    "data.root": DATA,
    "data.sizes": "[32, 40, 48]",
    "data.max_size": 64,
    "data.crop_from": "[40]",
    "data.crop_size": "[24, 40]",
    "data.batch_size": 1,
    "data.workers": 0,
    "data.empty": "true",
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "save.every": 1,
    "save.keep": 100,
    "log.tensorboard": "false",
}
torch.set_num_threads(1)


def fit(name):
    words = [f"--{key}={value}" for key, value in {**OPTIONS, "output": ROOT / name}.items()]
    assert main(["fit", *words]) == 0


fit("whole")
if int(os.environ["RANK"]) == 0:
    shutil.copytree(ROOT / "whole", ROOT / "resumed")
    for path in (ROOT / "resumed").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > 2:
            path.unlink()
distributed.barrier()
fit("resumed")
