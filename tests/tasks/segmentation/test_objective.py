import numpy as np
import pytest
import torch

from localmix.tasks.segmentation.labels import CAMVID, IGNORED
from localmix.tasks.segmentation.objective import poly, segmentation_loss
from localmix.tasks.segmentation.pairs import splits
from localmix.tasks.segmentation.scores import Scores, confusion_matrix
from localmix.tasks.segmentation.upernet import upernet
from localmix.tasks.segmentation.views import SceneDataset, SceneViews


def test_loss_is_the_mean_over_all_pixels():
    logits, auxiliary = torch.randn(2, 2, 5, 4, 3, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 4, 3))
    labels[0, :2] = IGNORED
    expected = 0.0
    for weight, output in ((1.0, logits), (0.4, auxiliary)):
        shares = output.softmax(1)
        for b, i, j in np.ndindex(2, 4, 3):
            if labels[b, i, j] >= 0:
                expected -= weight * shares[b, labels[b, i, j], i, j].log() / 24
    torch.testing.assert_close(segmentation_loss((logits, auxiliary), labels), expected)


def test_void_changes_neither_loss_nor_gradient():
    logits = torch.randn(1, 3, 2, 2)
    labels = torch.tensor([[[0, IGNORED], [1, 2]]])
    other = logits.clone()
    other[..., 0, 1] += 5
    gradients = []
    for output in (logits, other):
        output.requires_grad_()
        loss = segmentation_loss((output, output), labels)
        loss.backward()
        gradients.append((loss.detach(), output.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert segmentation_loss((logits, logits), torch.full((1, 2, 2), IGNORED)) == 0


def test_poly():
    factors = [poly(step, num_steps=100, warmup_steps=10) for step in range(101)]
    assert factors[0] == 1e-6
    assert factors[5] == pytest.approx(0.95 * 0.5, rel=1e-4)
    assert factors[10:] == [1 - step / 100 for step in range(10, 101)]
    assert poly(50, num_steps=100, warmup_steps=0, power=2.0) == 0.25
    with pytest.raises(ValueError, match="step: expected 0 to num_steps = 100, got 101"):
        poly(101, num_steps=100)


def test_overfits_one_batch_of_camvid(camvid):
    images, labels = SceneDataset(splits(camvid, CAMVID)["train"], SceneViews(48))[(0, 0, [0, 1])]
    options = {"channels": 24, "auxiliary_channels": 16, "dropout": 0.0, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}
    net = upernet("dwnet_nano", num_classes=11, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly(step, num_steps=80, warmup_steps=4))
    for _ in range(80):
        loss = segmentation_loss(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        outputs = net(images)
    counted = labels[labels != IGNORED]
    assert counted.bincount().max() / len(counted) < 0.5
    for output, least in zip(outputs, (0.8, 0.7), strict=True):
        assert Scores.of(confusion_matrix(output.argmax(1), labels, 11)).pixel_accuracy > least
