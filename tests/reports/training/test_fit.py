import errno
import gc
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import weakref

import pytest
import torch
import yaml
from PIL import Image

from localmix.cli import main
from localmix.reports.training.options import parse
from localmix.reports.training.watch import Watch
from localmix.tasks.classification.task import Classification
from localmix.tasks.engine import saving, stopping
from localmix.tasks.engine.checkpoint import load_checkpoint

RICH = {
    "model.drop_path_rate": 0.3,
    "model.mixup": 0.8,
    "model.cutmix": 1.0,
    "model.ema_decay": 0.9,
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_epochs": 3,
    "save.every": 1,
    "save.keep": 100,
}


@pytest.fixture(scope="module")
def whole(fit, few_images, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert fit(output, **RICH) == 0
    return output


@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_run_goes_on_from_any_step(fit, assert_same_runs, whole, tmp_path, step, capsys):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    assert fit(tmp_path / "run", **RICH) == 0
    assert_same_runs(whole, tmp_path / "run")
    said = dict(re.findall(r"^epoch (\d+)  loss (\S+)", capsys.readouterr().err, re.MULTILINE))
    means = [f"{sum(losses(whole)[epoch * 3 : epoch * 3 + 3]) / 3:.3f}" for epoch in range(3)]
    # also of the epoch that it went on within, all steps count
    assert said == {str(epoch + 1): means[epoch] for epoch in range(step // 3, 3)}


def test_a_checkpoint_does_not_stay_in_memory_while_the_run_goes_on_from_it(fit, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    read, held = [], []

    def load(path, **options):
        checkpoint = load_checkpoint(path, **options)
        read.append([weakref.ref(value) for value in checkpoint["state_dict"].values()])
        return checkpoint

    def look(record, trainer, module):
        gc.collect()
        held.append(sum(value() is not None for value in read[0]))

    monkeypatch.setattr(saving, "load_checkpoint", load)
    monkeypatch.setattr(Watch, "on_train_start", look)
    for path in (tmp_path / "run").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > 4:
            path.unlink()
    assert fit(tmp_path / "run", **RICH) == 0
    assert held == [0] and read[0]


@pytest.mark.parametrize(("model", "says"), [("dynamic_dwnet_nano", True), ("dwnet_nano", False)])
def test_batches_that_are_too_small_for_a_norm_are_named(fit, few_images, tmp_path, capsys, model, says):
    assert fit(tmp_path, **{"model.name": model, "trainer.max_epochs": 1}) == 0
    assert ("a batch norm behind a mean over the whole image sees 4 values" in capsys.readouterr().err) == says


@pytest.fixture
def in_front_of(monkeypatch):
    """Lets something happen in front of each batch: in_front_of(act), act(task, batch, batch_idx) -> batch or None."""

    def let(act):
        step = Classification.training_step

        def training_step(self, batch, batch_idx):
            return step(self, act(self, batch, batch_idx) or batch, batch_idx)

        monkeypatch.setattr(Classification, "training_step", training_step)

    return let


def losses(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [float(line.split(",")[3]) for line in lines[1:]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_at_the_end_of_the_step(fit, assert_same_runs, whole, tmp_path, in_front_of, number, capfd):
    sent = []

    def send(task, batch, index):
        if task.global_step == 4 and not sent:
            sent.append(os.kill(os.getpid(), number))

    in_front_of(send)
    before = signal.getsignal(number)
    assert fit(tmp_path, **RICH) == 75
    assert "asked to stop: saving" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.ckpt")["global_step"] == 5
    assert signal.getsignal(number) == before
    if number == signal.SIGTERM:
        assert fit(tmp_path, **RICH) == 0
        assert_same_runs(whole, tmp_path)


def test_a_second_signal_ends_the_process_unless_it_comes_with_the_first(monkeypatch):
    killed, handlers, clock = [], [], iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(stopping.os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(stopping.signal, "signal", lambda number, handler: handlers.append(handler))
    heard = stopping.Stopping()
    for expected in ([], [], [(os.getpid(), signal.SIGTERM)]):
        heard.hear(signal.SIGTERM, None)
        assert killed == expected
    assert handlers == [signal.SIG_DFL]


def poison(batch):
    return torch.full_like(batch[0], math.nan), batch[1]


def test_a_step_that_is_not_finite_leaves_no_trace(fit, assert_same, few_images, tmp_path, in_front_of, capsys):
    in_front_of(lambda task, batch, index: poison(batch) if index == 5 else None)
    assert fit(tmp_path, **RICH) == 0
    assert "step 3: loss nan, norm of the gradient nan; step skipped (1 failures in a row)" in capsys.readouterr().err
    before, after = (load_checkpoint(tmp_path / f"checkpoints/step-0000000{step}.ckpt") for step in (2, 3))
    assert_same(before["state_dict"], after["state_dict"])
    assert_same(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    assert [math.isnan(loss) for loss in losses(tmp_path)] == [step % 3 == 2 for step in range(9)]
    assert load_checkpoint(tmp_path / "checkpoint.ckpt")["callbacks"]["Guard"] == {"failures": 1, "skipped": 3}


def test_too_many_steps_that_are_not_finite_end_the_run_and_keep_the_batch(
    fit, few_images, tmp_path, in_front_of, capsys
):
    in_front_of(lambda task, batch, index: poison(batch) if task.global_step >= 2 else None)
    assert fit(tmp_path, max_non_finite=3, **{"trainer.max_epochs": 2}) == 1
    error = capsys.readouterr().err
    assert "localmix: error: loss or gradient were not finite 3 times in a row, up to step 5" in error
    kept = load_checkpoint(tmp_path / "non-finite-0.ckpt")
    images, labels = kept["batch"]
    assert images.shape == (4, 1, 16, 16) and labels.shape == (4,)
    task = Classification(**kept["hyper_parameters"])
    task.load_state_dict(kept["state_dict"])
    assert all(value.isfinite().all() for value in task.state_dict().values())


def test_without_any_argument_the_settings_are_those_by_default():
    settings, text = parse([])
    assert (settings.task, settings.model.name, settings.data.root) == ("classification", "dwnet_nano", "fashion_mnist")
    assert parse(["--task", "classification"])[1] == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lrr", "0.1"], "unrecognized arguments: --model.lrr 0.1; did you mean model.lr?"),
        (["--model.lr", "fast"], "model.lr: expected float, got 'fast'"),
        (["--trainer.devices", "all"], "trainer.devices: expected int or Literal['auto'], got 'all'"),
        (["--data.img_size="], "data.img_size: expected int or null, got ''"),
        (["--data.img_size=99999999999"], "data.img_size: expected at most 2147483647, got 99999999999"),
        (["--data.workers=1000000"], "data.workers: expected a number of at most 1024, got 1000000"),
        (["--trainer.devices=1000000"], "trainer.devices: expected a number of at most 1024, got 1000000"),
        (["--data.max_cache_gb=-1"], "data.max_cache_gb: expected a number above 0, got -1.0"),
        (["--data.root="], "data.root: expected a name, got ''"),
        (["--weights="], "weights: expected a name, got ''"),
        (["--trainer.device=8"], "unrecognized arguments: --trainer.device=8; did you mean trainer.devices?"),
        (
            ["--trainer.precision=bf16"],
            "trainer.precision: expected Literal['32-true', 'bf16-mixed', '16-mixed'], got 'bf16'",
        ),
        (["--data.batch_size", "1.5"], "data.batch_size: expected int, got '1.5'"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs: expected an int of at least 1, got 0"),
        (["--save.keep=0"], "save.keep: expected an int of at least 1, got 0"),
        (["--log.wandb=project"], "log.wandb: wandb is not installed"),
        (["--model.mixup=0.8", "--data.batch_size=3"], "data.batch_size: expected an even number"),
        (["photos"], "unrecognized arguments: photos"),
        (["--epochs=3"], "unrecognized arguments: --epochs=3; did you mean trainer.max_epochs?"),
        (["--lr=3"], "unrecognized arguments: --lr=3; did you mean model.lr?"),
        (["--batch-size", "3"], "unrecognized arguments: --batch-size 3; did you mean data.batch_size?"),
        (["--data=photos"], "data: expected a file of settings, got 'photos'; did you mean data.root?"),
        (["--model", "dwnet_tiny"], "model: expected a file of settings, got 'dwnet_tiny'; did you mean model.name?"),
        (["--model.name=dwnet_nanoo"], "the nearest are dwnet_nano"),
        (["--resume=never.ckpt"], "resume: expected a file, found nothing"),
        (["--weights=none.pth"], "weights: expected a file, found nothing"),
        (["--data.views=imagenet"], "data.root: expected images in files or shards, of which data.views"),
        (["--seed=-1"], "seed: expected an int of at least 0 and below 2**63, got -1"),
        ([f"--seed={2**63}"], "seed: expected an int of at least 0 and below 2**63"),
        (["--data.workers=-1"], "data.workers: expected a number at least 0, got -1"),
        (["--model.lr=-1"], "model.lr: expected a number at least 0, got -1.0"),
        (["--model.warmup=1.5"], "model.warmup: expected a number from 0 to 1, got 1.5"),
        (["--model.ema_decay=1"], "model.ema_decay: expected a number at least 0 and below 1, got 1.0"),
        (["--data.crop_pct=0"], "data.crop_pct: expected a number above 0 and at most 1, got 0.0"),
        (["--model.lr=.nan"], "model.lr: expected a number at least 0, got nan"),
        (["--model.model_kwargs.window=5"], "model.name: dwnet_nano has no argument 'window'"),
        (["--trainer.precision=16-mixed"], "trainer.precision: 16-mixed needs a GPU"),
        (["--trainer.accelerator=cuda"], "trainer.accelerator: expected a GPU that PyTorch sees, found none"),
    ],
)
def test_wrong_settings_are_refused(few_images, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["fit", f"--output={tmp_path / 'run'}", *arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("localmix: error: ") or "localmix: error: " in error
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lrs: 0.1}", "Group 'model' does not accept option 'lrs'; did you mean model.lr?"),
        ("modle: {lr: 0.1}", "did you mean"),
        ("base: recipe.yaml", "recipe.yaml go round in a circle"),
        ("- 3", "config: expected settings in"),
        ("a: [", "is no YAML"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "recipe.yaml")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_build_on_others_and_arguments_win(tmp_path, capsys):
    (tmp_path / "base.yaml").write_text("model: {lr: 5e-4, ema_decay: 0.9}\ndata: {batch_size: 2}\nseed: 1")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nmodel: {lr: 1e-3}\nseed: 2")
    settings, text = parse(
        ["--config", str(tmp_path / "own.yaml"), "--seed", "3", "--model.model_kwargs.window_size=5"]
    )
    assert (settings.model.lr, settings.model.ema_decay, settings.data.batch_size, settings.seed) == (1e-3, 0.9, 2, 3)
    assert settings.model.model_kwargs == {"window_size": 5}
    (tmp_path / "resolved").mkdir()
    (tmp_path / "resolved/config.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "resolved/config.yaml")])[1] == text
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(tmp_path / "own.yaml"), "--print_config"])
    assert exit.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["lr"] == 1e-3


def test_the_folder_and_the_checkpoint_say_where_they_come_from(whole):
    facts = json.loads((whole / "run.json").read_text())
    assert facts["settings"]["model.mixup"] == 0.8
    assert facts["versions"].keys() >= {"localmix", "torch", "lightning", "timm"}
    assert facts.keys() >= {"command", "commit", "hardware", "fingerprint"}
    for name in ("checkpoint.ckpt", "best.ckpt"):
        assert load_checkpoint(whole / name)["run"] == facts
    assert yaml.safe_load((whole / "config.yaml").read_text())["trainer"]["accumulate_grad_batches"] == 2


def test_the_last_checkpoints_and_the_best_stay(fit, few_images, tmp_path):
    assert fit(tmp_path, **{"trainer.max_epochs": 3, "save.every": 4, "save.keep": 2, "data.batch_size": 8}) == 0
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["step-00000008.ckpt", "step-00000009.ckpt"]
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    scores = {int(row[1]): float(row[5]) for row in rows if row[5]}
    best = load_checkpoint(tmp_path / "best.ckpt")
    assert best["global_step"] == max(scores, key=lambda step: scores[step])
    assert best["callbacks"]["Saving"]["best"] == max(scores.values())


def test_a_damaged_checkpoint_is_passed_over(fit, assert_same_runs, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    newest, second, *_ = sorted(tmp_path.glob("run/checkpoints/*"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-100])
    torch.save({"weights": torch.zeros(1)}, second)
    assert fit(tmp_path / "run", **RICH) == 0
    error = capsys.readouterr().err
    assert f"{newest.name} is truncated" in error
    assert f"{second.name} was not written by localmix" in error
    assert "goes on from" in error and "step-00000007.ckpt" in error
    assert_same_runs(whole, tmp_path / "run")
    for path in tmp_path.glob("run/checkpoints/*"):
        path.write_bytes(b"")
    assert fit(tmp_path / "run", **RICH) == 2
    assert "is whole: " in capsys.readouterr().err


def test_a_finished_run_says_so_and_names_its_best_checkpoint(fit, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    best = (whole / "best.ckpt").read_bytes()
    # killed when the checkpoint of the last epoch was saved, but not yet named
    (tmp_path / "run/best.ckpt").write_bytes(b"of an epoch before")
    assert fit(tmp_path / "run", **RICH) == 0
    assert "holds the whole run of 9 steps, nothing is left to do" in capsys.readouterr().err
    assert (tmp_path / "run/best.ckpt").read_bytes() == best


def test_another_run_in_the_same_folder_is_refused(fit, whole, few_images, tmp_path, capsys):
    assert fit(whole, **{**RICH, "model.lr": 0.1, "seed": 3}) == 2
    error = capsys.readouterr().err
    assert "seed 0 (now 3)" in error and "model.lr 0.002 (now 0.1)" in error
    assert fit(whole, resume="never", **RICH) == 2
    assert "output: " in capsys.readouterr().err
    assert fit(whole, **{**RICH, "trainer.accumulate_grad_batches": 1}) == 2
    assert "images_per_step 8 (now 4)" in capsys.readouterr().err


def test_full_disk_stops_a_run_that_then_goes_on(fit, assert_same_runs, whole, tmp_path, monkeypatch, capsys):
    save = torch.save

    def fill(checkpoint, file):
        if checkpoint["global_step"] > 4:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        assert fit(tmp_path, **RICH) == 2
    assert "No space left on device while writing" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.ckpt")["global_step"] == 4
    assert fit(tmp_path, **RICH) == 0
    assert_same_runs(whole, tmp_path)


def test_ways_to_compute_the_same(fit, whole, few_images, tmp_path):
    ways = {"model.grad_checkpointing": "true", "model.channels_last": "true", "model.compile": "true"}
    with torch.compiler.set_stance("force_eager"):
        assert fit(tmp_path, **{**RICH, **ways, "trainer.max_epochs": 3, "model.drop_path_rate": 0.0}) == 0
    keys = load_checkpoint(tmp_path / "checkpoint.ckpt")["state_dict"].keys()
    assert keys == load_checkpoint(whole / "checkpoint.ckpt")["state_dict"].keys()
    assert losses(tmp_path)[0] == pytest.approx(losses(whole)[0], rel=0.1)


def test_a_checkpoint_may_be_named_and_settings_changed_on_the_way(fit, whole, tmp_path):
    longer = {**RICH, "trainer.max_epochs": 4, "model.lr": 1e-3, "model.mixup": 0.0}
    assert fit(tmp_path, resume=whole / "checkpoints/step-00000005.ckpt", **longer) == 0
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == list(range(6, 13))
    assert load_checkpoint(tmp_path / "checkpoint.ckpt")["run"]["settings"]["model.lr"] == 1e-3


def test_tensorboard_shows_each_step_once(fit, few_images, tmp_path, in_front_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"log.tensorboard": "true", "trainer.max_epochs": 2, "save.every": 4}
    killed = []

    def kill(task, batch, index):
        if task.global_step == 7 and not killed:
            killed.append(True)
            raise KeyboardInterrupt

    in_front_of(kill)
    assert fit(tmp_path, **settings) == 130
    assert fit(tmp_path, **settings) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path))
    assert len(events.Scalars("val_top1")) == 2


def kill_the_worker():
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
# PyTorch's handler raises wherever Python is, which may be what hypothesis does at each garbage collection
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function gc_cumulative_time:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("when", ["a step", "a checkpoint"])
def test_a_worker_that_is_killed_ends_the_run_which_goes_on(
    fit, few_images, tmp_path, in_front_of, monkeypatch, capsys, when
):
    folders(tmp_path / "images", few_images["train"][0])
    settings = {"data.root": tmp_path / "images", "data.workers": 1, "trainer.max_epochs": 2, "save.every": 1}
    killed = []

    def kill(task, batch, index):
        if task.global_step == 3 and not killed:
            killed.append(kill_the_worker())

    def save(checkpoint, file, *args):
        if checkpoint["global_step"] == 3 and not killed:
            killed.append(True)
            file = Killing(file)
        return write(checkpoint, file, *args)

    write = torch.save
    if when == "a step":
        in_front_of(kill)
    else:
        monkeypatch.setattr(torch, "save", save)
    assert fit(tmp_path / "run", **settings) == 1
    assert "data.workers: a process that loads images has ended" in capsys.readouterr().err
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert fit(tmp_path / "run", **settings) == 0
    assert len(losses(tmp_path / "run")) == 12


class Killing:
    """A file within whose third write the worker is killed and PyTorch's handler of that is run."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.writes += 1
        if self.writes == 3:
            kill_the_worker()
            time.sleep(10)
        return self.file.write(content)


def folders(root, images):
    for index in range(28):
        name = f"{'train' if index < 24 else 'val'}/{'shoe' if index % 2 else 'other'}/{index}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index % 24]).save(root / name)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing_when_a_run_goes_on(fit, assert_same_runs, few_images, tmp_path):
    folders(tmp_path / "images", few_images["train"][0])
    settings = {"data.root": tmp_path / "images", "data.views": "imagenet", "trainer.max_epochs": 2, "save.every": 1}
    settings |= {"model.name": "localmlp_nano", "save.keep": 100}
    assert fit(tmp_path / "whole", **settings) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts").glob("checkpoints/*"):
        if int(path.stem.removeprefix("step-")) > 4:
            path.unlink()
    assert fit(tmp_path / "parts", **{**settings, "data.workers": 2}) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_of_another_net_is_refused_before_anything_is_written(tmp_path):
    from localmix.reports.training.fit import _refuse_other_net

    task = torch.nn.Linear(2, 3)
    _refuse_other_net(task, (tmp_path, {"state_dict": task.state_dict()}), "net")
    other = {"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}
    message = (
        r"^resume: expected a checkpoint of net, .*missing \(1\) bias; left over \(1\) extra; misshapen \(1\) weight"
    )
    with pytest.raises(ValueError, match=message):
        _refuse_other_net(task, (tmp_path, {"state_dict": other}), "net")
