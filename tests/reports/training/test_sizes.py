import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from localmix.cli import main
from localmix.reports.training import sizes
from localmix.tasks.scenes.writing import write_scenes

TIMMS = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.name": "vit_tiny_patch16_224"},
            "data.img_size: vit_tiny_patch16_224 does not take images of 16 x 16 pixels: Input height (16) doesn't "
            "match model (224); model.model_kwargs.img_size builds it for another size",
        ),
        ({"model.name": "levit_128", "data.img_size": 65}, "data.img_size: levit_128 does not take images of 65 x 65"),
        (
            {"model.name": "test_resnet", "data.batch_size": 1},
            "data.batch_size: test_resnet cannot be trained on 1 image of 16 x 16 pixels at a time: Expected more than",
        ),
        ({"model.name": "dynamic_dwnet_nano", "data.batch_size": 1}, "data.batch_size: dynamic_dwnet_nano cannot be"),
    ],
)
def test_a_size_that_a_classifier_does_not_take(fit, few_images, tmp_path, capsys, settings, message):
    assert fit(tmp_path / "run", **settings) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_size_that_a_segmenter_does_not_take(fit_segmenter, tmp_path, capsys):
    """Neither of the crops, nor, where those fit, of a whole image in the validation."""
    assert fit_segmenter(tmp_path / "run", **{"model.name": TIMMS, "model.model_kwargs": "{}"}) == 2
    assert f"data.size: {TIMMS} does not take images of" in capsys.readouterr().err
    fits = {"data.size": 64, "data.short_side": 30, "model.model_kwargs": '{"img_size": 64, "strict_img_size": false}'}
    assert fit_segmenter(tmp_path / "run", **{"model.name": TIMMS, **fits}) == 2
    assert f"data.short_side: {TIMMS} does not take images of 30 x " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_size_that_a_detector_does_not_take(tmp_path, capsys):
    write_scenes(tmp_path / "scenes", num_train=2, num_val=1, size=(48, 64), max_objects=2, workers=1)
    settings = {
        "task": "detection",
        "model.name": TIMMS,
        "data.root": tmp_path / "scenes",
        "data.sizes": "[40,48]",
        "data.max_size": 64,
        "output": tmp_path / "run",
    }
    assert main(["fit", *(f"--{name}={value}" for name, value in settings.items())]) == 2
    # as a batch is padded
    assert f"data.sizes: {TIMMS} does not take images of 64 x 64 pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_batch_that_no_memory_holds(fit, fit_segmenter, few_images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sizes, "_memory", lambda: 4 * 4 * 16 * 16)
    assert fit(tmp_path / "run", **{"trainer.max_epochs": 1}) == 0  # exactly as much as there is
    assert fit(tmp_path / "more", **{"data.img_size": 17}) == 2
    assert "data.img_size: expected images of which a batch fits into the memory of" in capsys.readouterr().err
    monkeypatch.setattr(sizes, "_memory", lambda: 10**9)
    assert fit_segmenter(tmp_path / "more", **{"data.short_side": 10**5}) == 2
    assert "data.short_side: expected images of which a batch fits" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


class Undecided(nn.Module):
    """What it computes depends on numbers, which nets without numbers cannot say."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x):
        x = x.mean((1, 2, 3))[:, None]
        return self.head(x if x.sum().item() > 0 else -x)


def test_a_net_that_cannot_be_asked_without_numbers_is_asked_with_some():
    with pytest.raises(DataDependentOutputException):
        sizes.saved_bytes(Undecided(10), (2, 1, 16, 16))
    assert sizes._refusal(Undecided(10), (2, 1, 16, 16)) is None


def test_memory_is_known_or_not(monkeypatch):
    assert sizes._memory() > torch.zeros(1).nbytes
    monkeypatch.setattr(sizes.os, "sysconf", lambda name: int("?"))
    assert sizes._memory() is None
