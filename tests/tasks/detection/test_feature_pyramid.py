import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from localmix.tasks.detection.feature_pyramid import FeaturePyramid


@pytest.mark.parametrize(
    ("backbone", "norm", "strides"),
    [
        ("dwnet_tiny", nn.BatchNorm2d, (4, 8, 16, 32, 64)),
        ("i_dynamic_dwnet_nano", nn.BatchNorm2d, (2, 4, 8, 16, 32)),
        ("localswin_tiny", LayerNorm2d, (4, 8, 16, 32, 64)),
        ("localnat_nano", LayerNorm2d, (2, 4, 8, 16, 32)),
        ("convnext_atto", LayerNorm2d, (4, 8, 16, 32, 64)),
        # channels last, and a map as high as the channels of another
        ("swin_tiny_patch4_window7_224", LayerNorm2d, (4, 8, 16, 32, 64)),
        ("resnet10t", nn.Identity, (4, 8, 16, 32, 64)),
    ],
)
def test_five_levels_of_any_backbone(backbone, norm, strides):
    with torch.device("meta"):
        pyramid = FeaturePyramid(backbone, out_channels=24)
        levels = pyramid(torch.empty(2, 3, 224, 224))
    assert {type(module) for module in pyramid.norms} == {norm}
    assert pyramid.strides == strides
    assert [tuple(level.shape) for level in levels.values()] == [(2, 24, -(-224 // s), -(-224 // s)) for s in strides]


def test_norms_are_on_the_maps_and_the_fifth_level_is_every_second_position():
    pyramid = FeaturePyramid("localswin_nano", out_channels=8, backbone_kwargs={"depths": (1, 1, 1, 1)}).eval()
    image = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        levels = pyramid(image)
        coarsest = pyramid.body(image)[-1]
        normed = nn.functional.layer_norm(coarsest.permute(0, 2, 3, 1), (coarsest.shape[1],), eps=1e-6)
        fpn = pyramid.fpn
        expected = fpn.layer_blocks[3](fpn.inner_blocks[3](normed.permute(0, 3, 1, 2)))
    torch.testing.assert_close(levels["3"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(levels["pool"], levels["3"][:, :, ::2, ::2])


def test_blocks_are_computed_again_where_memory_is_dear():
    options = {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0}
    pyramid = FeaturePyramid("dwnet_nano", out_channels=8, backbone_kwargs=options)
    image = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        pyramid.zero_grad()
        pyramid.set_grad_checkpointing(enable)
        assert any(getattr(module, "grad_checkpointing", None) is enable for module in pyramid.body.modules())
        pyramid(image)["3"].square().sum().backward()
        gradients.append([p.grad.clone() for p in pyramid.body.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-4)


def test_three_maps_and_two_convolutions_for_retinanet():
    with torch.device("meta"):
        pyramid = FeaturePyramid("dwnet_tiny", out_channels=24, num_maps=3)
        levels = pyramid(torch.empty(2, 3, 256, 256))
    assert pyramid.strides == (8, 16, 32, 64, 128)
    assert [tuple(level.shape) for level in levels.values()] == [(2, 24, 256 // s, 256 // s) for s in pyramid.strides]
    with pytest.raises(ValueError, match="num_maps: expected 3 or 4, got 5"):
        FeaturePyramid("dwnet_tiny", num_maps=5)


def test_is_exported_for_images_of_any_size():
    pyramid = FeaturePyramid("dwnet_nano", out_channels=8, backbone_kwargs={"depths": (1, 1, 1, 1)}).eval()
    open_axis = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        shapes = ({2: open_axis, 3: open_axis},)
        exported = torch.export.export(pyramid, (torch.randn(1, 3, 66, 84),), dynamic_shapes=shapes).module()
        for size in ((66, 84), (97, 61)):
            image = torch.randn(1, 3, *size)
            ours, theirs = pyramid(image), exported(image)
            assert ours.keys() == theirs.keys()
            for name, level in ours.items():
                torch.testing.assert_close(theirs[name], level, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["dwnet_nano", "localswin_nano"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_runs_in_onnxruntime(backbone, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pyramid = FeaturePyramid(backbone, out_channels=8, backbone_kwargs={"depths": (1, 1, 1, 1)}).eval()
    image, file = torch.randn(1, 3, 64, 96), tmp_path / "pyramid.onnx"
    with torch.no_grad():
        torch.onnx.export(pyramid, (image,), file, dynamo=True, verbose=False)
        expected = pyramid(image)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for ours, theirs in zip(expected.values(), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-3)
