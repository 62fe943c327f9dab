import pytest
import torch
from torch import nn

from localmix.models import create_model
from localmix.tasks.engine.checkpoint import save_checkpoint
from localmix.tasks.segmentation.labels import IGNORED, Labelling
from localmix.tasks.segmentation.task import Segmentation, labelling_of

FACTS = {
    "classes": ["a", "b"],
    "colours": [[1, 2, 3], [4, 5, 6]],
    "first": 1,
    "void": [0],
    "short_side": 32,
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
}
SMALL = {"channels": 8, "auxiliary_channels": 4}


def task(model="dwnet_nano", **options):
    kwargs = {"depths": (1, 1, 1, 1)} if model.endswith("_nano") else {}
    return Segmentation(**{"model": model, "model_kwargs": kwargs, **FACTS, **SMALL, **options})


def test_the_labelling_survives_a_checkpoint():
    assert labelling_of(FACTS) == Labelling(("a", "b"), ((1, 2, 3), (4, 5, 6)), 1, (0,))


@pytest.mark.parametrize("steps", [20, 160_000])
def test_schedule(steps):
    """Warm-up over a tenth of a short run, over 1500 steps of the paper's; to zero at the end."""
    segmentation = task(lr=0.5)
    optimizer = torch.optim.SGD(segmentation.parameters(), lr=0.5)
    schedule = segmentation.schedule(optimizer, steps)
    warmup = min(1500, steps // 10)
    for step in (0, warmup // 2, warmup, steps // 2, steps):
        schedule.step_update(step)
        ramp = min(1, 1e-6 + (1 - 1e-6) * step / warmup)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * ramp * (1 - step / steps), abs=1e-12)


def test_a_class_that_is_nowhere_is_left_out_of_the_mean(monkeypatch):
    logged = {}
    segmentation = task().eval()
    monkeypatch.setattr(segmentation, "log", lambda name, value: logged.setdefault(name, value))
    for label in (0, IGNORED):
        labels = torch.full((1, 33, 40), label)
        segmentation.validation_step((torch.randn(1, 3, 32, 39), labels), 0)
    segmentation.on_validation_epoch_end()
    assert logged.keys() == {"val_loss", "val_miou", "val_pixel_accuracy", "val_mean_accuracy"}
    assert logged["val_miou"] == logged["val_pixel_accuracy"] == logged["val_mean_accuracy"]
    assert 0 <= logged["val_miou"] <= 1
    assert logged["val_loss"].compute().isfinite()
    assert not segmentation.scores["val_"].confusion.any()


def differs(a, b):
    return {name for name, value in a.state_dict().items() if not torch.equal(value, b.state_dict()[name])}


def test_begins_with_a_classifiers_backbone(tmp_path):
    torch.manual_seed(1)
    classifier = create_model("dwnet_nano", num_classes=7, depths=(1, 1, 1, 1))
    torch.save(classifier.state_dict(), tmp_path / "net.pth")
    segmentation = task(ema_decay=0.5)
    before = task(ema_decay=0.5)
    before.load_state_dict(segmentation.state_dict())
    assert "backbone: " in segmentation.begin_with(str(tmp_path / "net.pth"))
    for name, value in segmentation.net.network.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])
    assert all("backbone" in name for name in differs(segmentation, before))
    assert not differs(segmentation.net, segmentation.ema.module)


def test_begins_with_a_segmenter_of_other_classes(tmp_path):
    torch.manual_seed(1)
    other = task(classes=["a", "b", "c"], colours=[[0, 0, 0]] * 3, first=0, void=[255])
    for buffer in other.buffers():
        buffer.add_(1)
    checkpoint = {"state_dict": other.state_dict(), "hyper_parameters": dict(other.hparams)}
    save_checkpoint(checkpoint, tmp_path / "other.ckpt")
    segmentation = task()
    done = segmentation.begin_with(str(tmp_path / "other.ckpt"))
    assert "without" in done and "decode_head.conv_seg.bias" in done
    held = other.net.state_dict()
    for name, value in segmentation.net.state_dict().items():
        assert torch.equal(value, held[name]) == (".conv_seg." not in name) or not value.any(), name


def test_wrong_weights_are_refused(tmp_path):
    torch.save(create_model("i_dynamic_dwnet_nano", depths=(1, 1, 1, 1)).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="checkpoint: expected the weights of dwnet_nano"):
        task().begin_with(str(tmp_path / "net.pth"))
    with pytest.raises(ValueError, match="timm has no weights of dwnet_nano"):
        task().begin_with("pretrained")
    with pytest.raises(
        ValueError, match="weights: expected a segmenter, or 'pretrained', for a backbone that is timm's"
    ):
        task("resnet10t").begin_with(str(tmp_path / "net.pth"))


def test_a_single_image_is_no_batch():
    with pytest.raises(ValueError, match=r"data.batch_size: expected at least 2, .* got 1"):
        task().check_batch_size(1)
    task().check_batch_size(2)


def test_decay_spares_norms_biases_and_tables():
    segmentation = task("localswin_nano")
    segmentation.trainer = type("", (), {"precision_plugin": None, "estimated_stepping_batches": 10})()
    (optimizer,), _ = segmentation.configure_optimizers()
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for module in segmentation.net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = parameter.ndim == 1 or name.endswith(("bias", "relative_position_bias_table"))
            assert decays[id(parameter)] == (0 if spared else 0.01)
    assert any(isinstance(module, nn.LayerNorm) for module in segmentation.net.modules())
