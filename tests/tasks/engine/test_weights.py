import pytest
import safetensors.torch
import torch

from localmix.models import create_model
from localmix.tasks.classification.task import Classification
from localmix.tasks.engine.checkpoint import save_checkpoint
from localmix.tasks.engine.weights import load_weights

FACTS = {"classes": ["a", "b", "c"], "img_size": 16, "in_chans": 3, "mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture
def swin(tmp_path):
    torch.manual_seed(1)
    net = create_model("localswin_nano", num_classes=3)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "swin.safetensors")
    return net, str(tmp_path / "swin.safetensors")


def test_weights_are_taken_over(swin):
    source, file = swin
    net = create_model("localswin_nano", num_classes=3)
    load_weights(net, file, "localswin_nano")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), source.eval()(images))


def test_classifier_and_window_may_differ(swin):
    source, file = swin
    net = create_model("localswin_nano", num_classes=5, window_size=9)
    head = net.head.fc.weight.clone()
    assert load_weights(net, file, "localswin_nano").endswith("without head.fc.bias, head.fc.weight")
    assert torch.equal(net.head.fc.weight, head)
    table, original = (n.stages[0].blocks[0].mixer.source.relative_position_bias_table for n in (net, source))
    assert table.shape == (3, 17, 17)
    assert original.min() < table.mean() < original.max()
    torch.testing.assert_close(table[:, 8, 8], original[:, 6, 6])


def test_averaged_weights_of_a_run_come_first(tmp_path):
    task = Classification(model="dwnet_nano", ema_decay=0.9, **FACTS)
    task.ema.module.head.fc.bias.fill_(7.0)
    save_checkpoint({"state_dict": task.state_dict(), "hyper_parameters": {}}, tmp_path / "run.ckpt")
    net = create_model("dwnet_nano", num_classes=3)
    load_weights(net, str(tmp_path / "run.ckpt"), "dwnet_nano")
    assert (net.head.fc.bias == 7).all()


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        (
            "dwnet_nano",
            None,
            r"weights: .* does not belong to dwnet_nano|checkpoint: expected the weights of dwnet_nano",
        ),
        ("localswin_nano", "pretrained", "timm has no weights of localswin_nano"),
    ],
)
def test_weights_of_another_network_are_refused(swin, model, source, message):
    with pytest.raises(ValueError, match=message):
        load_weights(create_model(model, num_classes=3), source or swin[1], model)
