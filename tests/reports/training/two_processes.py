"""The part of test_fit_distributed.py that runs under torchrun, in each of two processes."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from torch import distributed

from localmix.cli import main
from localmix.tasks import fashion_mnist
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.task import Classification

ROOT, RANK, ATTEMPT = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
COMMON = {
    "data.img_size": 16,
    "data.workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "log.tensorboard": "false",
}
RICH = {
    "save.every": 1,
    "save.keep": 100,
    "data.batch_size": 2,
    "model.drop_path_rate": 0.3,
    "model.mixup": 0.8,
    "model.ema_decay": 0.9,
}
RICH |= {"trainer.accumulate_grad_batches": 2}
PLAIN = {
    "save.keep": 100,
    "data.batch_size": 4,
    "data.augment": "false",
    "trainer.gradient_clip_val": 1.0,
    "model.lr": 1e-4,
}


def few(split):
    images, labels = whole[split]
    return images[: NUMBERS[split]], labels[: NUMBERS[split]]


NUMBERS = {"train": 24, "test": 7}
whole = {split: fashion_mnist.load(split) for split in NUMBERS}
fashion_mnist.load = few
torch.set_num_threads(1)


def fit(name, **settings):
    words = [f"--{key}={value}" for key, value in {**COMMON, **settings, "output": ROOT / name}.items()]
    return main(["fit", *words])


def continued(source, name, step):
    """A copy of a run as it was at a step."""
    if RANK == 0:
        shutil.copytree(ROOT / source, ROOT / name)
        for path in (ROOT / name).glob("checkpoints/*"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
    distributed.barrier()


def at(step, act):
    """Do something in front of a step of the run."""
    original = Classification.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            act(batch)
        return original(self, batch, batch_idx)

    Classification.training_step = training_step
    return original


def seen_images():
    """Write down which images each step has seen."""
    images = load_images(img_size=16).train.images
    known = {image.numpy().tobytes(): index for index, image in enumerate(images)}
    original = Classification.training_step
    file = (ROOT / f"seen-{RANK}.jsonl").open("a")

    def training_step(self, batch, batch_idx):
        mean, std = self.hparams["mean"][0], self.hparams["std"][0]
        pixels = (batch[0] * std + mean).mul(255).round().byte()
        indices = [known[image.numpy().tobytes()] for image in pixels]
        file.write(json.dumps([self.current_epoch, self.global_step, indices]) + "\n")
        file.flush()
        return original(self, batch, batch_idx)

    Classification.training_step = training_step


if ATTEMPT == 0:
    status = {"rich": fit("rich", **RICH)}
    continued("rich", "rich-resumed", 2)
    status["rich-resumed"] = fit("rich-resumed", **RICH)

    status["plain"] = fit("plain", **PLAIN)
    sharded = {**PLAIN, "trainer.strategy": "fsdp", "model.ema_decay": 0.9, "save.every": 4}
    status["fsdp"] = fit("fsdp", **sharded)
    continued("fsdp", "fsdp-resumed", 4)
    status["fsdp-resumed"] = fit("fsdp-resumed", **sharded)

    local = {**RICH, "model.sync_batch_norm": "false"}
    status["local"] = fit("local", **local)
    continued("local", "local-resumed", 2)
    status["local-resumed"] = fit("local-resumed", **local)

    # one of the processes sees what is not finite, both skip the step
    original = at(2, lambda batch: batch[0].fill_(torch.nan) if RANK == 1 else None)
    status["poisoned"] = fit("poisoned", **RICH)
    Classification.training_step = original

    # one of the processes hears the signal, both stop
    original = at(1, lambda batch: RANK == 1 and os.kill(os.getpid(), signal.SIGTERM))
    status["stopped"] = fit("stopped", **RICH)
    Classification.training_step = original
    status["stopped-resumed"] = fit("stopped", **RICH)
    (ROOT / f"status-{RANK}.json").write_text(json.dumps(status))

seen_images()
if ATTEMPT == 0:
    at(5, lambda batch: RANK == 1 and os.kill(os.getpid(), signal.SIGKILL))
assert fit("elastic", **PLAIN, **{"save.every": 2}) == 0
