"""Every recipe can be run as its header says, and those of ImageNet have the numbers of the paper's official code."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from localmix.models import NAMES
from localmix.reports.training.options import parse

ROOT = Path(__file__).parents[1]
WHOLE = [path for path in sorted(ROOT.glob("recipes/*/*.yaml")) if not path.name.startswith("recipe")]
SEGMENTERS = [
    path for path in WHOLE if path.parent.name in ("ade20k", "camvid") or path.stem.startswith("segmentation_")
]
RECIPES = [path for path in WHOLE if path.parent.name in ("imagenet", "imagenette", "cifar10")]
PAPER = [path for path in RECIPES if path.parent.name == "imagenet" and not path.stem.startswith("finetune")]
SKELETONS = ("dwnet", "dynamic_dwnet", "i_dynamic_dwnet", "localswin")
DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.5}


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/*.yaml")), ids=name)
def test_every_file_says_what_it_comes_to(path):
    """Also those that others build on."""
    settings, text = parse(["--config", str(path)])
    assert settings.model.name in NAMES and f"name: {settings.model.name}" in text


def test_every_row_has_a_recipe():
    expected = {f"{stem}_{size}" for stem in SKELETONS for size in DROP_PATH} | {"localmlp_tiny", "localnat_tiny"}
    assert {path.stem for path in PAPER} == expected
    for folder in ("imagenette", "cifar10"):
        nets = {path.stem for path in RECIPES if path.parent.name == folder}
        assert nets == {f"{stem}_nano" for stem in (*SKELETONS, "localmlp", "localnat")}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_header_and_settings(path):
    header = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in ("Source: ", "Command: ", "Hardware: ", "Top-1: "):
        assert sum(line.startswith(entry) for line in header) == 1, entry
    commands = [line.removeprefix("Command:").strip() for line in header if "localmix fit" in line]
    words = next(command for command in commands if name(path) in command).split()
    settings, _ = parse([str(ROOT / word) if word == name(path) else word for word in words[2:]])
    assert settings.model.name in NAMES
    if not path.stem.startswith("finetune"):
        assert settings.model.name == path.stem
    assert settings.data.views == "imagenet"
    assert (settings.data.img_size >= 224) == (path.parent.name == "imagenet")


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_numbers_of_the_paper(path):
    settings, _ = parse(["--config", str(path)])
    model, data, trainer = settings.model, settings.data, settings.trainer
    assert model.drop_path_rate == DROP_PATH[path.stem.rsplit("_", 1)[1]]
    assert (trainer.max_epochs, model.warmup_epochs, trainer.gradient_clip_val) == (300, 20, 5.0)
    assert (model.weight_decay, model.label_smoothing, model.mixup, model.cutmix) == (0.05, 0.1, 0.8, 1.0)
    assert (model.layer_decay, model.ema_decay) == (None, None)
    images = 8 * data.batch_size * trainer.accumulate_grad_batches
    assert images == 1024
    assert (model.lr * images / model.lr_batch_size, model.min_lr * images / model.lr_batch_size) == (1e-3, 1e-5)
    assert (data.auto_augment, data.color_jitter, data.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert (data.img_size, data.interpolation, round(data.img_size / data.crop_pct)) == (224, "bicubic", 256)
    assert trainer.precision == "bf16-mixed"


def test_fine_tuning_on_other_classes_mixes_no_images():
    """Without mixup alone, every batch would be cut and pasted."""
    settings, _ = parse(["--config", str(ROOT / "recipes/imagenet/finetune_classes.yaml")])
    assert (settings.model.mixup, settings.model.cutmix) == (0.0, 0.0)


def test_every_row_has_a_segmenter():
    """Those of the paper's table, and of CamVid a nano net of each mixer and five nets for a GPU."""
    stems = {
        folder: {path.stem for path in SEGMENTERS if path.parent.name == folder} for folder in ("ade20k", "camvid")
    }
    assert stems["ade20k"] == {f"{stem}_{size}" for stem in SKELETONS for size in ("tiny", "base")}
    nano = {f"{stem}_nano" for stem in (*SKELETONS, "localmlp", "localnat")}
    assert stems["camvid"] == nano | {f"{stem}_tiny" for stem in (*SKELETONS, "localmlp")}


@pytest.mark.parametrize("path", SEGMENTERS, ids=name)
def test_header_and_settings_of_segmenters(path):
    header = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in ("Source: ", "Command: ", "Hardware: ", "mIoU: "):
        assert sum(line.startswith(entry) for line in header) == 1, entry
    words = next(line for line in header if line.startswith("Command: localmix fit")).split()[1:]
    assert name(path) in words
    settings, _ = parse([str(ROOT / word) if word == name(path) else word for word in words[2:]])
    assert settings.task == "segmentation"
    assert settings.model.name == path.stem.removeprefix("segmentation_")
    assert settings.data.classes == {"ade20k": "ade20k", "camvid": "camvid", "scenes": "scenes"}[path.parent.name]
    published = {"44.5", "45.5", "45.7", "48.0", "48.1", "48.3"}
    if path.parent.name == "ade20k":
        (line,) = (line for line in header if line.startswith("mIoU: "))
        said = set(re.findall(r"\d+\.\d", line))
        assert said <= published
        assert bool(said) == (not path.stem.startswith("i_dynamic")), line
        numbers_of_the_paper(settings)


def numbers_of_the_paper(settings):
    model, data, trainer = settings.model, settings.data, settings.trainer
    assert (model.lr, model.weight_decay, model.warmup_steps, model.power) == (6e-5, 0.01, 1500, 1.0)
    assert (model.channels, model.auxiliary_channels, model.auxiliary_weight, model.dropout) == (512, 256, 0.4, 0.1)
    assert model.drop_path_rate == 0.3
    assert trainer.max_epochs * data.steps_per_epoch == 160_000
    assert trainer.devices * data.batch_size * trainer.accumulate_grad_batches == model.lr_batch_size == 16
    assert (data.size, data.short_side, data.scale, data.largest_share) == (512, 512, [0.5, 2.0], 0.75)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/cluster/*")), ids=name)
def test_scripts_of_clusters(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert "localmix fit" in path.read_text()
    for recipe in re.findall(r"recipes/imagenet/\S+\.yaml", path.read_text()):
        assert (ROOT / recipe).exists()


@pytest.fixture
def started(tmp_path):
    """What torchrun is told by its script: started(HEAD=...)."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)

    def start(*arguments, **environment):
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "NODES": "2", "GPUS": "4", **environment}
        command = ["bash", ROOT / "recipes/cluster/torchrun.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return start


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost"])
def test_the_machine_where_all_meet_knows_that_it_is_that(started, head):
    words = started("--config", "a b.yaml", HEAD=head).stdout.splitlines()
    assert "--rdzv-conf=is_host=1,read_timeout=600" in words and f"--local-addr={head}" in words
    assert f"--rdzv-endpoint={head}:29400" in words and "--nproc-per-node=4" in words
    assert words[-5:] == ["--module", "localmix", "fit", "--config", "a b.yaml"]


def test_other_machines_know_that_they_are_others(started):
    words = started(HEAD="127.0.0.1", IS_HEAD="0").stdout.splitlines()
    assert "--rdzv-conf=is_host=0,read_timeout=600" in words and "--local-addr=127.0.0.1" in words
    # of an address for documents, which is nobody's: no way leads there, or it is another machine's
    result = started(HEAD="192.0.2.77")
    if result.returncode:
        assert "HEAD: expected a machine that can be reached, got 192.0.2.77" in result.stderr
    else:
        assert "--rdzv-conf=is_host=0,read_timeout=600" in result.stdout.splitlines()
        assert "--local-addr=192.0.2.77" not in result.stdout.splitlines()


def test_a_machine_that_is_not_known_is_refused_at_once(started):
    result = started(HEAD="no-such-machine.invalid")
    assert result.returncode != 0 and result.stdout == ""
    assert "HEAD: expected the name or the address of a machine, got no-such-machine.invalid" in result.stderr
