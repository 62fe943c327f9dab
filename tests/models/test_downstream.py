"""The networks in other libraries: encoder of segmentation-models-pytorch, backbone of torchvision's detectors."""

import runpy
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

import localmix.models  # noqa: F401 -- registers the networks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["dwnet_tiny", "localswin_tiny"])
def test_encoder_of_segmentation_models(name):
    net = smp.Unet(f"tu-{name}", encoder_weights=None, encoder_depth=5, classes=4, depths=(1, 1, 1, 1))
    logits = net(torch.randn(2, 3, 96, 128))
    assert logits.shape == (2, 4, 96, 128)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in net.encoder.parameters())


def test_backbone_of_a_detector():
    detector = runpy.run_path(str(ROOT / "examples" / "backbone.py"))["detector"]
    torch.manual_seed(0)
    net = detector("localswin_nano", num_classes=3)
    images = [torch.rand(3, 97, 130), torch.rand(3, 120, 80)]
    boxes = torch.tensor([[10.0, 10.0, 60.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])}, {"boxes": boxes + 5, "labels": torch.tensor([2])}]
    losses = net(images, targets)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    gradient = net.backbone.body.model.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        predictions = net.eval()(images)
    assert len(predictions) == 2
    assert all(set(p) == {"boxes", "labels", "scores"} for p in predictions)
