import copy
import pickle

import pytest
import torch
import torchvision

from localmix.tasks.detection.cascade_mask_rcnn import cascade_mask_rcnn
from localmix.tasks.detection.coco import CocoImages


@pytest.fixture
def detector():
    """detector(): a net of a few channels, which are enough to see what it does."""

    def build(backbone="dwnet_nano", **options):
        kwargs = {"depths": (1, 1, 1, 1)} if backbone.endswith("_nano") else {}
        options = {"num_classes": 3, "min_size": 96, "max_size": 128, "num_samples": 32, **options}
        return cascade_mask_rcnn(backbone, channels=16, backbone_kwargs=kwargs, **options)

    return build


def scene(height, width, *boxes):
    """An image of noise and rectangles, each of its class's colour, and its target."""
    image, masks = torch.rand(3, height, width) / 4, torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        image[index % 3, y0:y1, x0:x1] = 1
        masks[index, y0:y1, x0:x1] = 1
    labels = torch.tensor([1 + index % 3 for index in range(len(boxes))], dtype=torch.long)
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels, "masks": masks}


def total(net, *scenes):
    losses = net([image for image, _ in scenes], [target for _, target in scenes])
    assert all(loss.isfinite() for loss in losses.values()), losses
    return sum(losses.values())


def train(net, scenes, steps):
    """Losses of so many steps on one batch."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        loss = total(net, *scenes)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        history.append(loss.item())
    return history


def test_learns_two_photographs(detector, coco_subset):
    images = CocoImages(*coco_subset(2))
    history = train(detector(num_classes=80), [images[0], images[1]], 6)
    assert sum(history[-2:]) < 0.8 * sum(history[:2])


def test_finds_the_objects_it_has_learnt(detector):
    net = detector(min_size=64, max_size=96)
    scenes = [scene(64, 96, (8, 15, 45, 52)), scene(80, 64, (5, 5, 40, 40), (20, 46, 56, 74))]
    history = train(net, scenes, 40)
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
    with torch.no_grad():
        found = net.eval()([image for image, _ in scenes])
    for detection, (_, target) in zip(found, scenes, strict=True):
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            iou = torchvision.ops.box_iou(box[None], detection["boxes"])[0]
            best = (iou * (detection["labels"] == label)).argmax()
            assert iou[best] > 0.5
            own = detection["masks"][best, 0] > 0.5
            assert (own & mask.bool()).sum() / (own | mask.bool()).sum() > 0.5


@pytest.mark.parametrize("backbone", ["localswin_nano", "resnet10t"])
def test_backbones_of_this_library_and_of_timm(detector, backbone):
    net = detector(backbone)
    total(net, scene(61, 97, (5, 10, 40, 50)), scene(97, 61, (5, 10, 40, 50))).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert not without
    assert net.backbone.body.feature_info.channels()[0] == net.backbone.fpn.inner_blocks[0][0].in_channels


def test_images_without_objects_are_trained_on(detector):
    net = detector()
    total(net, scene(64, 80), scene(80, 64)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert not any(p.grad.any() for p in net.roi_heads.mask_heads.parameters())
    assert all(head.classifier.weight.grad.any() for head in net.roi_heads.box_heads)


def test_training_goes_on_where_no_proposal_is_left(detector, monkeypatch):
    net = detector()
    monkeypatch.setattr(net.rpn, "post_nms_top_n", lambda: 0)
    loss = total(net, scene(64, 80))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_answers_as_torchvision_does(detector):
    net = detector(min_score=0.0).eval()
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=32, max_size=48, box_score_thresh=0.0
    ).eval()
    images = [torch.rand(3, 97, 61), torch.rand(3, 133, 80)]
    with torch.no_grad():
        ours, expected = net(images), theirs(images)
    assert len(ours) == 2
    for detection, other, image in zip(ours, expected, images, strict=True):
        count = len(detection["scores"])
        assert 0 < count <= 100
        assert {k: v.dtype for k, v in detection.items()} == {k: v.dtype for k, v in other.items()}
        shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count, 1, *image.shape[1:])}
        assert {k: tuple(v.shape) for k, v in detection.items()} == shapes
        assert (detection["scores"].diff() <= 0).all()
        assert set(detection["labels"].tolist()) <= {1, 2, 3}
        x0, y0, x1, y1 = detection["boxes"].unbind(1)
        assert (x0 >= 0).all() and (y0 >= 0).all()
        assert (x1 <= image.shape[2]).all() and (y1 <= image.shape[1]).all()
        assert ((detection["masks"] >= 0) & (detection["masks"] <= 1)).all()


def test_an_image_may_show_nothing(detector):
    net = detector(min_score=1.0).eval()
    with torch.no_grad():
        (detection,) = net([torch.rand(3, 50, 70)])
    assert {k: tuple(v.shape) for k, v in detection.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, 50, 70),
    }


def test_an_image_is_seen_alike_alone_and_in_a_padded_batch(detector):
    net = detector(min_score=0.0).eval()
    small, large = torch.rand(3, 96, 96), torch.rand(3, 96, 128)
    with torch.no_grad():
        alone, (together, _) = net([large])[0], net([large, small])
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-4, atol=1e-4)


def test_is_copied_pickled_and_loaded_strictly(detector):
    net = detector()
    state = net.state_dict()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.load_state_dict(state, strict=True)
    fresh = detector()
    fresh.load_state_dict(state, strict=True)
    image = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(image), fresh.eval()(image), rtol=0, atol=0)


def test_bfloat16_rounds_no_box(detector):
    """Coordinates beyond 256 are not whole numbers in bfloat16: proposals and boxes have to be computed wider."""
    net = detector()
    image, target = scene(64, 80, (11, 13, 57, 51))
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(net, (image, target))
        with torch.no_grad():
            (detection,) = net.eval()([image])
    assert loss.dtype == torch.float32
    assert {detection[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
    assert not torch.equal(detection["boxes"], detection["boxes"].bfloat16().float())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": torch.tensor([4])}, r"targets\[0\]\['labels'\]: expected 1 to 3, got \[4\]"),
        ({"labels": torch.tensor([0])}, r"targets\[0\]\['labels'\]: expected 1 to 3, got \[0\]"),
        ({"boxes": torch.tensor([[9.0, 5, 9, 8]])}, r"targets\[0\]\['boxes'\]: expected x0 < x1"),
        ({"boxes": torch.zeros(2, 4)}, r"targets\[0\]\['boxes'\]: expected \[1, 4\], got \[2, 4\]"),
        ({"masks": torch.zeros(1, 9, 9)}, r"targets\[0\]\['masks'\]: expected \[1, 64, 80\], got \[1, 9, 9\]"),
        ({"masks": None}, r"targets\[0\]: expected boxes, labels and masks, without masks"),
    ],
)
def test_targets_that_do_not_fit_are_refused(detector, change, complaint):
    image, target = scene(64, 80, (10, 10, 40, 40))
    target = {name: value for name, value in {**target, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=complaint):
        detector()([image], [target])


def test_wrong_arguments_are_refused(detector):
    with pytest.raises(ValueError, match="targets: expected one for each of 1 images in training, got None"):
        detector()([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match="num_classes: expected an int of at least 1"):
        detector(num_classes=0)
    with pytest.raises(ValueError, match="model: expected the name of a network, got 'dwnet_tinny'"):
        detector("dwnet_tinny")
    with pytest.raises(ValueError, match="backbone: expected each map to be half the one in front"):
        detector("vit_tiny_patch16_224")
