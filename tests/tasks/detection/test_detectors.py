import pytest
import torch
import torchvision
from timm.optim import param_groups_weight_decay
from torch import nn
from torchvision.models.detection.image_list import ImageList

from localmix.tasks.detection.detectors import DETECTORS, detector
from localmix.tasks.detection.instance_masks import paste_masks

SMALL = {"num_classes": 3, "channels": 16, "min_size": 64, "max_size": 96}


@pytest.fixture
def net():
    """net(name): a detector of a few channels."""

    def build(name, backbone="dwnet_nano", **options):
        kwargs = {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0} if backbone.endswith("_nano") else {}
        few = {"cascade_mask_rcnn": {"num_samples": 32}, "mask_rcnn": {"box_batch_size_per_image": 32}}
        return detector(name, backbone, backbone_kwargs=kwargs, **{**SMALL, **few.get(name, {}), **options})

    return build


def scene(height, width, *boxes):
    image, masks = torch.rand(3, height, width) / 4, torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        image[index % 3, y0:y1, x0:x1] = 1
        masks[index, y0:y1, x0:x1] = 1
    labels = torch.tensor([1 + index % 3 for index in range(len(boxes))], dtype=torch.long)
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels, "masks": masks}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_learns_and_answers(net, name):
    net = net(name)
    scenes = [scene(64, 96, (8, 15, 45, 52)), scene(80, 64, (5, 5, 40, 40), (20, 46, 56, 74)), scene(64, 64)]
    images, targets = [image for image, _ in scenes], [target for _, target in scenes]
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    history = []
    for _ in range(30):
        loss = sum(net(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.6 * sum(history[:5])
    with torch.no_grad():
        found = net.eval()(images)
    for image, target, detection in zip(images, targets, found, strict=True):
        assert len(detection["boxes"]) <= 100
        assert set(detection["labels"].tolist()) <= {1, 2, 3}
        assert ("masks" in detection) == (name != "retinanet")
        if "masks" in detection:
            assert detection["masks"].shape[2:] == image.shape[1:]
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            iou = torchvision.ops.box_iou(box[None], detection["boxes"])[0]
            assert (iou[detection["labels"] == label] > 0.5).any()


@pytest.mark.parametrize("name", DETECTORS)
def test_images_without_objects_are_trained_on(net, name):
    net = net(name)
    (image, target), (other, empty) = scene(64, 80), scene(80, 64)
    loss = sum(net([image, other], [target, empty]).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_large_and_a_small_image_are_one_batch(net, name):
    net = net(name, resize_in_training=False)
    large, small = scene(800, 1333, (100, 100, 700, 600), (900, 50, 1300, 790)), scene(61, 97, (5, 10, 40, 50))
    losses = net([large[0], small[0]], [large[1], small[1]])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        found = net.eval()([large[0], small[0]])
    for detection, (image, _) in zip(found, (large, small), strict=True):
        x0, y0, x1, y1 = detection["boxes"].unbind(1)
        assert (x0 >= 0).all() and (y0 >= 0).all()
        assert (x1 <= image.shape[2] + 1e-3).all() and (y1 <= image.shape[1] + 1e-3).all()


@pytest.mark.parametrize("name", ["cascade_mask_rcnn", "mask_rcnn"])
def test_as_many_proposals_as_are_asked_for(net, name):
    net = net(name, num_proposals=(30, 7))
    counts = []
    net.rpn.register_forward_hook(lambda module, inputs, output: counts.append(len(output[0][0])))
    image, target = scene(64, 96, (8, 15, 45, 52))
    net([image], [target])
    with torch.no_grad():
        net.eval()([image])
    assert counts[1] == 7 < counts[0] <= 30


@pytest.mark.parametrize("name", DETECTORS)
def test_masks_are_put_back_without_rounding(net, name):
    """A mask that is 1 everywhere covers the pixels whose centres its box covers."""
    net = net(name)
    found = {"boxes": torch.tensor([[10.2, 5.7, 30.2, 25.7]]), "masks": torch.ones(1, 1, 28, 28)}
    (found,) = net.eval().transform.postprocess([found], [(64, 80)], [(64, 80)])
    (mask,) = found["masks"][0] >= 0.5
    assert mask.sum() == 20 * 20 and mask[6:26, 10:30].all()


@pytest.mark.parametrize("name", ["cascade_mask_rcnn", "mask_rcnn"])
def test_masks_are_taught_where_they_are_put(net, name, monkeypatch):
    """The cells that a mask head is to answer with, put into the box of a small disc, are that disc."""
    net = net(name)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    disc = (x + 0.5 - 30) ** 2 + (y + 0.5 - 26) ** 2 < 8**2
    box = torch.tensor([[22.0, 18, 38, 34]])
    target = {"boxes": box, "labels": torch.tensor([2]), "masks": disc[None].byte()}
    taught = []

    def keep(logits, cells):
        taught.append(cells)
        return logits.sum()

    monkeypatch.setattr(nn.functional, "binary_cross_entropy_with_logits", keep)
    maps = {str(level): torch.randn(1, 16, 64 // s, 96 // s) for level, s in enumerate(net.backbone.strides)}
    # without a proposal all regions are the box of the object itself
    nothing = [torch.zeros(0, 4)]
    if name == "mask_rcnn":
        net.roi_heads(maps, nothing, [(64, 96)], [target])
    else:
        net.roi_heads.losses(list(maps.values())[:-1], nothing, [(64, 96)], [target])
    for cells in taught:
        again = paste_masks(cells, box, 64, 96)[0] >= 0.5
        assert (again & disc).sum() > 0.98 * (again | disc).sum()
    assert len(taught) == (1 if name == "mask_rcnn" else 3)


@pytest.mark.parametrize("name", DETECTORS)
def test_more_objects_than_detections(net, name):
    boxes = [(x, y, x + 5, y + 6) for x in range(0, 90, 6) for y in range(0, 60, 7)]
    assert len(boxes) == 135
    image, target = scene(64, 96, *boxes)
    net = net(name, num_classes=3)
    loss = sum(net([image], [target]).values())
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", DETECTORS)
def test_bfloat16_rounds_no_box(net, name):
    options = {"retinanet": {"score_thresh": 0.0}, "mask_rcnn": {"box_score_thresh": 0.0}}
    net = net(name, **options.get(name, {"min_score": 0.0}))
    image, target = scene(64, 80, (11, 13, 57, 51))
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(net([image], [target]).values())
        with torch.no_grad():
            (detection,) = net.eval()([image])
    assert loss.dtype == torch.float32
    assert detection["boxes"].dtype == torch.float32
    assert not torch.equal(detection["boxes"], detection["boxes"].bfloat16().float())


@pytest.mark.parametrize("backbone", ["dwnet_nano", "localswin_nano", "resnet10t"])
@pytest.mark.parametrize("name", DETECTORS)
def test_norms_biases_and_tables_do_not_decay(net, name, backbone):
    net = net(name, backbone)
    free, decays = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    assert (free["weight_decay"], decays["weight_decay"]) == (0.0, 0.05)
    names = {id(p): name for name, p in net.named_parameters()}
    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    expected = {id(p) for m in net.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    expected |= {id(p) for p in net.parameters() if p.ndim == 1}
    expected |= {id(p) for name, p in net.named_parameters() if name.endswith("relative_position_bias_table")}
    assert {names[id(p)] for p in free["params"]} == {names[i] for i in expected}
    assert len(free["params"]) + len(decays["params"]) == len(list(net.parameters()))
    if backbone == "localswin_nano":
        assert any(name.endswith("relative_position_bias_table") for name in net.no_weight_decay())


@pytest.mark.parametrize("backbone", ["dwnet_nano", "resnet10t"])
def test_recomputation_gives_the_same_gradients(net, backbone):
    net = net("retinanet", backbone)
    image, target = scene(64, 80, (11, 13, 57, 51))
    gradients = []
    for enable in (False, True):
        net.zero_grad()
        net.set_grad_checkpointing(enable)
        sum(net([image], [target]).values()).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cascade_mask_rcnn", "mask_rcnn"])
def test_losses_do_not_depend_on_what_a_batch_is_padded_to(net, name):
    """With the same maps in the image and nothing beyond it; nothing is drawn at random, since all regions count."""
    net = net(name)
    _, target = scene(64, 64, (8, 15, 45, 52), (30, 40, 60, 58))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    net.rpn.fg_bg_sampler.batch_size_per_image = 10_000
    inside = [torch.randn(1, 16, 64 // stride, 64 // stride) for stride in net.backbone.strides]
    # a region at the border is interpolated with what is beyond it
    proposals = (target["boxes"].repeat(20, 1) + 2 * torch.randn(40, 4)).clamp(max=61)
    losses = []
    for padded in (64, 160):
        maps = [
            nn.functional.pad(m, (0, padded // s - 64 // s) * 2)
            for m, s in zip(inside, net.backbone.strides, strict=True)
        ]
        images = ImageList(torch.zeros(1, 3, padded, padded), [(64, 64)])
        _, found = net.rpn(images, dict(enumerate(maps)), [target])
        if name == "cascade_mask_rcnn":
            net.roi_heads.sampler.batch_size_per_image = 10_000
            found |= net.roi_heads.losses(maps[:-1], [proposals], [(64, 64)], [target])
        losses.append(found)
    assert len(losses[0]) == (11 if name == "cascade_mask_rcnn" else 2)
    for part, loss in losses[0].items():
        torch.testing.assert_close(losses[1][part], loss, rtol=1e-5, atol=1e-6, msg=part)


def test_wrong_arguments_are_refused(net):
    with pytest.raises(ValueError, match="name: expected one of 'cascade_mask_rcnn'"):
        net("yolo")
    with pytest.raises(ValueError, match="num_classes: expected an int of at least 1"):
        net("retinanet", num_classes=0)
    with pytest.raises(ValueError, match="channels: expected an int of at least 1"):
        net("retinanet", channels=0)
    with pytest.raises(
        ValueError, match="num_samples: expected one of the arguments of mask_rcnn, num_proposals, anchor"
    ):
        net("mask_rcnn", num_samples=8)
    for numbers in ((3,), (0, 5), (2.5, 3)):
        with pytest.raises(ValueError, match="num_proposals: expected two ints of at least 1, got"):
            net("mask_rcnn", num_proposals=numbers)
    with pytest.raises(ValueError, match=r"backbone_kwargs: expected arguments of dwnet_nano, got .*'depth'"):
        detector("retinanet", "dwnet_nano", backbone_kwargs={"depth": 3})
    net = net("retinanet")
    image, target = scene(64, 80, (11, 13, 57, 51))
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]: expected 1 to 3, got \[4\]"):
        net([image], [{**target, "labels": torch.tensor([4])}])
    sum(net([image], [{name: target[name] for name in ("boxes", "labels")}]).values()).backward()
