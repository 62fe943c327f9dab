import copy

import pytest
import torch
from timm.utils import freeze
from torch import nn

from localmix.models import NAMES, create_model, fold
from localmix.models.folding import Affine

NANO = [name for name in NAMES if name.endswith("_nano")]


def with_random_statistics(model):
    """No scale is one, no shift zero, some scales are negative."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_outputs_without_a_batch_norm(name, dtype):
    model = with_random_statistics(create_model(name, in_chans=3)).eval().to(dtype)
    image = torch.randn(2, 3, 30, 41, dtype=dtype)
    with torch.no_grad():
        folded, expected = fold(model), model(image)
        error = (folded(image) - expected).abs().max() / expected.abs().max()
    assert error <= (1e-5 if dtype == torch.float32 else 1e-13)
    assert not norms(folded)
    assert bool(norms(model)) == (not name.startswith(("localswin", "localnat")))


@pytest.mark.parametrize("name", NANO)
def test_frozen_batch_norms_give_and_fold_to_the_same_outputs(name):
    """timm's `freeze` puts torchvision's class in the place of PyTorch's; 48 pixels make a map of 24 x 24 x 24."""
    model = with_random_statistics(create_model(name, in_chans=3)).eval()
    frozen, image = copy.deepcopy(model), torch.randn(2, 3, 48, 48)
    freeze(frozen)
    assert not norms(frozen)
    with torch.no_grad():
        expected = model(image)
        for other in (frozen, fold(frozen)):
            assert (other(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not [m for m in fold(frozen).modules() if hasattr(m, "running_mean")]


@pytest.mark.parametrize(
    ("mixer", "left"),
    [
        ("sliding3/shared-positions/unshared-channels/static", 0),
        ("sliding3/shared-windows4/unshared-channels/mixture2", 0),
        ("sliding3/shared-positions/unshared-channels/homogeneous", 0),
        ("window3-shift1/shared-windows/unshared-channels/static", 0),
        ("window3/shared-positions/unshared-channels/homogeneous", 0),
        ("sliding3/unshared-positions/groups8/dot-product", 0),
        ("window3-shift1/unshared-positions/groups8/dot-product/free", 0),
        # what a group of channels shares, or a softmax normalises, has no place for a factor per channel
        ("sliding3/shared-positions/groups8/static", 1),
        ("sliding3/shared-positions/unshared-channels/static/softmax", 1),
        ("sliding3/unshared-positions/unshared-channels/inhomogeneous", 1),
    ],
)
def test_every_point_of_the_space(mixer, left):
    model = create_model("localmixer_nano", mixer=mixer, in_chans=3)
    model = with_random_statistics(model).eval().double()
    for block in (m for m in model.modules() if hasattr(m, "mixer")):
        if block.mixer.bias is not None:
            nn.init.normal_(block.mixer.bias)
    image = torch.randn(2, 3, 30, 41, dtype=torch.float64)
    with torch.no_grad():
        folded, expected = fold(model), model(image)
        assert (folded(image) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert not norms(folded)
    blocks = [m for m in folded.modules() if hasattr(m, "mixer")]
    assert [isinstance(block.norm2, Affine) for block in blocks] == [bool(left)] * len(blocks)


def test_model_is_left_as_it_is():
    model = with_random_statistics(create_model("dynamic_dwnet_nano")).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_folded_twice_is_folded_once():
    model = with_random_statistics(create_model("i_dynamic_dwnet_nano")).eval()
    once = fold(model)
    twice, image = fold(once), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twice(image), once(image))


def test_without_bias_or_gain():
    model = with_random_statistics(create_model("dwnet_nano")).eval()
    for block in (m for m in model.modules() if hasattr(m, "mixer")):
        block.mixer.bias = None
        block.norm3 = nn.BatchNorm2d(block.conv2.out_features, affine=False).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(image), model(image), rtol=1e-5, atol=1e-5)


def test_synchronised_norms_and_compiled_and_part_of_another_net():
    backbone = with_random_statistics(create_model("dwnet_nano", features_only=True)).eval()
    image = torch.randn(1, 3, 32, 32)
    expected = backbone(image)
    folded = fold(nn.SyncBatchNorm.convert_sync_batchnorm(backbone))
    assert not norms(folded)
    for actual, map_ in zip(folded(image), expected, strict=True):
        torch.testing.assert_close(actual, map_, rtol=1e-5, atol=1e-5)


def test_norm_of_the_batch_itself_cannot_be_folded():
    model = create_model("dwnet_nano")
    model.stages[0].blocks[0].norm1 = nn.BatchNorm2d(24, track_running_stats=False)
    with pytest.raises(ValueError, match=r"^model: expected batch norms with running statistics, got BatchNorm2d\(24"):
        fold(model)


def test_no_module():
    with pytest.raises(TypeError, match=r"^model: expected a module, got str$"):
        fold("dwnet_nano")
