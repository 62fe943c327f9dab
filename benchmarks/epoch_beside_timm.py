"""Times an epoch of training by `localmix fit` beside one by timm's own loop, for the same network and images.

    python benchmarks/epoch_beside_timm.py [DIR] [--model dwnet_nano] [--img-size 64] [--batch-size 64] [--images 512]
        [--workers 1] [--rounds 5] [--output FOLDER]

DIR is an image folder; without it, images that the package ships are written as JPEGs of 96 pixels. The two take turns
in one process on the CPU: after each epoch of `localmix fit`, with all that it does to go on exactly, one of timm's is
timed: its loader, mixup, optimiser, clipping and schedule, in the order of its training script. Both have the paper's
RandAugment, random erasing, mixup, cutmix and AdamW. Validation and the saving of checkpoints count for neither. The
first epoch of both is a warm-up. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import AverageMeter, dispatch_clip_grad

from localmix.models import create_model
from localmix.reports.benchmarks.timing import times_as_fast
from localmix.reports.environment import command, commit, environment
from localmix.reports.results import write_json
from localmix.reports.training import fit
from localmix.reports.training.watch import Watch
from localmix.tasks import fashion_mnist
from localmix.tasks.classification.folders import read_tree
from localmix.tasks.classification.views import mend_posterize

LR, WEIGHT_DECAY, CLIP, SMOOTHING, MIXUP, CUTMIX = 1e-3, 0.05, 5.0, 0.1, 0.8, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Prints the seconds of each epoch and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", nargs="?", type=Path, metavar="DIR")
    add("--model", default="dwnet_nano", metavar="NAME")
    for name, value in {"img-size": 64, "batch-size": 64, "images": 512, "workers": 1, "rounds": 5}.items():
        add(f"--{name}", type=int, default=value, metavar="N")
    add("--output", type=Path, metavar="FOLDER", help="for results.json")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        images = _some_images(args.data or _embedded(Path(folder) / "embedded"), Path(folder) / "images", args.images)
        times = _take_turns(args, images, Path(folder) / "run")
    ratio = times_as_fast(times["timm"], times["localmix"])
    for name, seconds in times.items():
        print(f"{name:10}{median(seconds):8.2f} s an epoch   ({', '.join(f'{s:.2f}' for s in seconds)})")
    print(f"an epoch of localmix takes {ratio:.3f} times as long as one of timm (median of {args.rounds} rounds)")
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("data", "output")}
        results = {"kind": "epoch", "settings": {"data": args.data.name if args.data else "embedded", **settings}}
        results |= {"seconds": times, "times_as_long_as_timm": ratio}
        write_json(
            args.output / "results.json",
            {**results, "environment": environment("cpu"), "command": command(), "commit": commit()},
        )


def _take_turns(args: argparse.Namespace, images: Path, output: Path) -> dict[str, list[float]]:
    epochs = args.rounds + 1
    theirs = TimmEpochs(args, images, epochs)
    times: dict[str, list[float]] = {"localmix": [], "timm": []}

    class Turns(Watch):
        """What shows a run; it is told of the epochs behind all others."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_start(trainer, pl_module)
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if batch_idx + 1 == trainer.num_training_batches:
                times["localmix"].append(time.perf_counter() - self.start)
                times["timm"].append(theirs.epoch())

    fit.Watch = Turns  # ty: ignore[invalid-assignment] -- a subclass of it
    settings = {
        "model.name": args.model,
        "model.lr": LR,
        "model.weight_decay": WEIGHT_DECAY,
        "model.label_smoothing": SMOOTHING,
        "model.mixup": MIXUP,
        "model.cutmix": CUTMIX,
        "data.root": images,
        "data.img_size": args.img_size,
        "data.batch_size": args.batch_size,
        "data.workers": args.workers,
        "data.views": "imagenet",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "trainer.gradient_clip_val": CLIP,
        "trainer.check_val_every_n_epoch": epochs,
        "output": output,
    }
    if status := fit.main([f"--{name}={value}" for name, value in settings.items()]):
        raise SystemExit(status)
    return {name: seconds[1:] for name, seconds in times.items()}


class TimmEpochs:
    """timm's loader and its loop."""

    def __init__(self, args: argparse.Namespace, images: Path, epochs: int) -> None:
        dataset = create_dataset("", root=str(read_tree(images).train_folder))
        num_classes = len(dataset.reader.class_to_idx)
        self.loader: Any = create_loader(
            dataset,
            (3, args.img_size, args.img_size),
            args.batch_size,
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
            mean=MEAN,
            std=STD,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            use_prefetcher=False,
            device=torch.device("cpu"),
        )
        mend_posterize(dataset.transform)
        self.net = create_model(args.model, num_classes=num_classes, in_chans=3)
        self.mixup = Mixup(MIXUP, CUTMIX, label_smoothing=SMOOTHING, num_classes=num_classes)
        self.loss = SoftTargetCrossEntropy()
        self.optimizer = create_optimizer_v2(self.net, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
        steps = epochs * len(self.loader)
        self.schedule = CosineLRScheduler(self.optimizer, t_initial=steps, warmup_t=steps // 10, t_in_epochs=False)
        self.updates = 0

    def epoch(self) -> float:
        """Train an epoch; gives its seconds."""
        # `localmix fit` asks for a fixed order of sums, which timm's loop does not
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        start = time.perf_counter()
        self.net.train()
        losses = AverageMeter()
        with torch.enable_grad():
            for images, labels in self.loader:
                images, targets = self.mixup(images, labels)
                loss = self.loss(self.net(images), targets)
                loss.backward()
                dispatch_clip_grad(self.net.parameters(), value=CLIP)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates += 1
                losses.update(loss.item(), len(images))
                self.schedule.step_update(num_updates=self.updates, metric=losses.avg)
        seconds = time.perf_counter() - start
        torch.use_deterministic_algorithms(deterministic)
        return seconds


def _some_images(data: Path, folder: Path, number: int) -> Path:
    """Links to so many training images, evenly chosen, and to one of each class for validation."""
    tree = read_tree(data)
    names, labels = tree.items(tree.train)
    chosen = np.linspace(0, len(names) - 1, min(number, len(names)), dtype=int)
    first = {label: place for place, label in reversed([*enumerate(labels)])}
    for split, places in (("train", {*chosen.tolist(), *first.values()}), ("val", first.values())):
        for place in places:
            source = (tree.root / names[place]).absolute()
            target = folder / split / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    return folder


def _embedded(folder: Path) -> Path:
    images, labels = fashion_mnist.load("train")
    for index in range(2048):
        path = folder / f"class-{labels[index]}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).resize((96, 96), Image.Resampling.BICUBIC).convert("RGB").save(path)
    return folder


if __name__ == "__main__":
    main()
