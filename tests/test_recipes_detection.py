"""Recipes of detectors can be run as their headers say, and those of COCO have the numbers of the paper's code."""

import re
from pathlib import Path

import pytest
import torch

from localmix.reports.training.options import parse
from localmix.tasks.detection.detectors import detector

ROOT = Path(__file__).parents[1]
COCO = [path for path in sorted(ROOT.glob("recipes/coco/*.yaml")) if path.name != "recipe.yaml"]
SCENES = sorted(ROOT.glob("recipes/scenes/detection_*.yaml"))
PAPER = [path for path in COCO if path.stem not in ("schedule_1x", "overfit8")]
SKELETONS = ("dwnet", "dynamic_dwnet", "i_dynamic_dwnet", "localswin")
PUBLISHED = {
    "localswin_tiny": "50.4 / 43.7",
    "dwnet_tiny": "49.9 / 43.4",
    "dynamic_dwnet_tiny": "50.5 / 43.7",
    "localswin_base": "51.9 / 45.0",
    "dwnet_base": "51.0 / 44.1",
    "dynamic_dwnet_base": "51.2 / 44.4",
}


def name(path):
    return str(path.relative_to(ROOT))


def test_every_row_has_a_recipe():
    assert {path.stem for path in PAPER} == {f"{stem}_{size}" for stem in SKELETONS for size in ("tiny", "base")}
    assert "detection_dwnet_nano" in {path.stem for path in SCENES}


@pytest.mark.parametrize("path", [*COCO, *SCENES], ids=name)
def test_header_and_settings(path):
    header = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in ("Source: ", "Command: ", "Hardware: ", "Box / mask AP: "):
        assert sum(line.startswith(entry) for line in header) == 1, entry
    commands = [line.removeprefix("Command:").strip() for line in header if "localmix fit" in line]
    words = next(command for command in commands if name(path) in command).split()
    settings, _ = parse([str(ROOT / word) if word.startswith("recipes/") else word for word in words[2:]])
    assert settings.task == "detection"
    if path in PAPER or path in SCENES:
        assert settings.model.name == path.stem.removeprefix("detection_")
    assert settings.trainer.max_epochs > max(settings.model.drop_epochs)
    (line,) = (line for line in header if line.startswith("Box / mask AP: "))
    if path in PAPER:
        published = [PUBLISHED[path.stem]] if path.stem in PUBLISHED else []
        assert re.findall(r"\d+\.\d / \d+\.\d", line) == published


@pytest.mark.parametrize("path", [*SCENES, ROOT / "recipes/coco/overfit8.yaml"], ids=name)
def test_arguments_of_the_detector_are_known(path):
    settings, _ = parse(["--config", str(path)])
    model = settings.model
    backbone = {"depths": (1, 1, 1, 1), **(model.model_kwargs or {})}
    with torch.device("meta"):
        net = detector(model.detector, model.name, backbone_kwargs=backbone, **(model.detector_kwargs or {}))
    assert net.num_classes == 80


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_numbers_of_the_paper(path):
    settings, _ = parse(["--config", str(path)])
    model, data, trainer = settings.model, settings.data, settings.trainer
    assert model.detector == "cascade_mask_rcnn"
    assert model.drop_path_rate == {"tiny": 0.2, "base": 0.3}[path.stem.rsplit("_", 1)[1]]
    assert (trainer.max_epochs, model.drop_epochs, model.warmup_steps) == (36, [27, 33], 500)
    assert (model.lr, model.weight_decay, trainer.gradient_clip_val) == (1e-4, 0.05, 0)
    assert 8 * data.batch_size * trainer.accumulate_grad_batches == model.lr_batch_size == 16
    assert data.sizes == list(range(480, 801, 32)) and data.max_size == 1333
    assert data.crop_from == [400, 500, 600] and data.crop_size == [384, 600]
    assert trainer.precision == "bf16-mixed"
    short, _ = parse(["--config", str(path), "--config", str(ROOT / "recipes/coco/schedule_1x.yaml")])
    assert (short.trainer.max_epochs, short.model.drop_epochs) == (12, [8, 11])
    assert short.model.name == path.stem
