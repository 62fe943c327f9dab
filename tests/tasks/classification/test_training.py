import csv
import errno
import types

import pytest
import torch

from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.task import Classification
from localmix.tasks.classification.training import train
from localmix.tasks.engine.batches import loader
from localmix.tasks.engine.checkpoint import load_checkpoint

RECIPE = {"model": "dwnet_nano", "drop_path_rate": 0.3}
SETTINGS = {"epochs": 3, "batch_size": 8, "seed": 5}


def interrupted_at(step):
    def stop(done, total):
        if done == step:
            raise KeyboardInterrupt

    return stop


def assert_same(a, b):
    """Equal to the last bit, through all levels."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_runs(a, b):
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
    first, second = (load_checkpoint(folder / "checkpoint.ckpt") for folder in (a, b))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(first[part], second[part])


@pytest.mark.parametrize("stops", [(5,), (3, 9)], ids=["within an epoch", "at the ends of epochs"])
def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, few_images, stops):
    whole = train(RECIPE, few_images, tmp_path / "whole", **SETTINGS)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(RECIPE, few_images, tmp_path / "parts", on_step=interrupted_at(stop), **SETTINGS)
    steps = []
    parts = train(RECIPE, few_images, tmp_path / "parts", on_step=lambda done, total: steps.append(done), **SETTINGS)
    assert steps == list(range(4 if stops == (5,) else 7, 10))
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    assert {k: v for k, v in parts.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_finished_run_is_not_trained_again(tmp_path, few_images):
    first = train(RECIPE, few_images, tmp_path, **SETTINGS)
    steps = []
    again = train(RECIPE, few_images, tmp_path, on_step=lambda done, total: steps.append(done), **SETTINGS)
    assert steps == []
    assert again == first


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_interrupted_run_with_workers_ends_as_one_without(tmp_path, photographs):
    folders = {f"{split}/{name}": number for split, number in (("train", 12), ("val", 2)) for name in ("cat", "dog")}
    images = load_images(str(photographs(tmp_path / "images", folders)), img_size=16)
    train(RECIPE, images, tmp_path / "whole", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, images, tmp_path / "parts", workers=1, on_step=interrupted_at(5), **SETTINGS)
    train(RECIPE, images, tmp_path / "parts", workers=1, **SETTINGS)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_all_nets_see_the_same_batches(tmp_path, few_images, monkeypatch):
    seen = {}
    step = Classification.training_step

    def record(self, batch, index):
        seen.setdefault(self.hparams.model, []).append(batch)
        return step(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", record)
    for model, drop_path_rate in (("dwnet_nano", 0.5), ("localmlp_nano", 0.0)):
        recipe = {"model": model, "drop_path_rate": drop_path_rate}
        train(recipe, few_images, tmp_path / model, epochs=2, batch_size=8, seed=1)
    assert len(seen["dwnet_nano"]) == 6
    assert_same(seen["dwnet_nano"], seen["localmlp_nano"])


def test_another_seed_is_another_run(tmp_path, few_images):
    for seed in (0, 1):
        train(RECIPE, few_images, tmp_path / str(seed), epochs=1, batch_size=24, seed=seed)
    with pytest.raises(AssertionError):
        assert_same_runs(tmp_path / "0", tmp_path / "1")


def test_metrics_have_each_step_and_validation_at_the_ends_of_epochs(tmp_path, few_images):
    seen = []
    end = train(RECIPE, few_images, tmp_path, on_epoch=lambda row, seconds: seen.append(row), **SETTINGS)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(i // 3, i + 1) for i in range(9)]
    assert [bool(row["val_top1"]) for row in rows] == [i % 3 == 2 for i in range(9)]
    rates = [float(row["lr"]) for row in rows]
    assert max(rates) == rates[1] == 2e-3
    assert rates[0] < rates[1] and sorted(rates[1:], reverse=True) == rates[1:]
    assert [row["val_top1"] for row in seen] == [float(row["val_top1"]) for row in rows[2::3]]
    assert end["top1"] == float(rows[-1]["val_top1"])
    assert end["steps"] == 9


def test_top1_and_loss_are_those_of_the_checkpoint(tmp_path, few_images):
    end = train(RECIPE, few_images, tmp_path, **SETTINGS)
    content = load_checkpoint(tmp_path / "checkpoint.ckpt")
    task = Classification(**content["hyper_parameters"]).eval()
    task.load_state_dict(content["state_dict"])
    pixels, labels = few_images.validation[None, 0, range(8)]
    with torch.inference_mode():
        logits = task(pixels)
    assert end["top1"] == (logits.argmax(1) == labels).double().mean().item()
    assert end["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_checkpoint_has_plain_values(tmp_path, few_images):
    train(RECIPE, few_images, tmp_path, epochs=1, batch_size=24, seed=0)
    facts = load_checkpoint(tmp_path / "checkpoint.ckpt")["hyper_parameters"]
    assert facts["model"] == "dwnet_nano"
    assert facts["classes"] == few_images.classes
    assert (facts["img_size"], facts["in_chans"], facts["mean"], facts["std"]) == (16, 1, [0.286], [0.353])


def test_damaged_checkpoint_stops_the_run(tmp_path, few_images):
    (tmp_path / "checkpoint.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is truncated"):
        train(RECIPE, few_images, tmp_path, **SETTINGS)


@pytest.mark.parametrize("model", ["dwnet_nano", "localswin_nano"])
def test_overfits_one_real_batch(few_images, model):
    torch.manual_seed(0)
    task = Classification(
        model=model, classes=few_images.classes, img_size=16, in_chans=1, mean=few_images.mean, std=few_images.std
    )
    batch = next(iter(loader(few_images.train, 12, seed=0)))
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        task.training_step(batch, 0).backward()
        optimizer.step()
    task.eval()
    with torch.inference_mode():
        assert (task(batch[0]).argmax(1) == batch[1]).all()


def test_norms_and_biases_do_not_decay(few_images):
    task = Classification(
        model="dwnet_nano", classes=["a", "b"], img_size=16, in_chans=1, mean=[0.0], std=[1.0], weight_decay=0.1
    )
    task.trainer = types.SimpleNamespace(estimated_stepping_batches=10, precision_plugin=None)
    (optimizer,), _ = task.configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in task.net.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.1), name


def test_full_disk_stops_a_run_that_then_goes_on(tmp_path, few_images, monkeypatch):
    whole = train(RECIPE, few_images, tmp_path / "whole", **SETTINGS)
    save = torch.save

    def fill(checkpoint, file):
        if checkpoint["global_step"] > 3:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(OSError, match=r"No space left on device while writing; .* kept: .*checkpoint\.ckpt"):
            train(RECIPE, few_images, tmp_path / "parts", **SETTINGS)
    assert load_checkpoint(tmp_path / "parts/checkpoint.ckpt")["global_step"] == 3
    parts = train(RECIPE, few_images, tmp_path / "parts", **SETTINGS)
    assert parts["val_loss"] == whole["val_loss"]
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
