"""The networks: counts of the paper, any size, the contract of timm, and what PyTorch does with a network."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import localmix.models
from localmix.models import NAMES, create_model
from localmix.models.hierarchy import PatchEmbed, pad
from localmix.reports.cost import cost, cost_by_module
from localmix.tasks import fashion_mnist
from localmix.testing import assert_within_budget

NANO = [name for name in NAMES if name.endswith("_nano")]
SHALLOW = {"depths": (2, 1, 1, 1), "drop_path_rate": 0.0}

# PAPER: millions of parameters, billions of multiply-adds at 224
PAPER = {
    "localswin_tiny": (28.288, 4.491),
    "dwnet_tiny": (24.173, 3.727),
    "dynamic_dwnet_tiny": (51.132, 3.754),
    "i_dynamic_dwnet_tiny": (26.244, 4.374),
    "localswin_base": (87.768, 15.431),
    "dwnet_base": (74.347, 12.812),
    "dynamic_dwnet_base": (161.598, 12.900),
    "i_dynamic_dwnet_base": (80.254, 14.340),
}


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def nano(name, **options):
    torch.manual_seed(0)
    return create_model(name, num_classes=10, **{**SHALLOW, **options}).eval()


def small_graph(name):
    """A net of few nodes: each tap of an inhomogeneous convolution is three, and a second block repeats the first."""
    options = {"kernel_size": 3} if name.startswith("i_dynamic") else {}
    if name not in ("localswin_nano", "localmlp_nano"):  # every second block of those shifts its windows
        options["depths"] = (1, 1, 1, 1)
    return nano(name, **options)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_macs_are_those_of_the_paper(name):
    counted = cost(on_meta(name), 224)
    parameters, macs = PAPER[name]
    assert f"{counted.parameters / 1e6:.3f}" == f"{parameters:.3f}"
    assert abs(counted.macs / 1e9 / macs - 1) < 0.005


def test_dwnet_tiny_to_the_last_parameter():
    assert sum(p.numel() for p in on_meta("dwnet_tiny").parameters()) == 24_172_744


def test_cost_leaves_the_network_as_it_is():
    net = create_model("dynamic_dwnet_nano", num_classes=10).train()
    net.stages[0].eval()
    modes = [module.training for module in net.modules()]
    parts = cost_by_module(net, (28, 36))
    assert [module.training for module in net.modules()] == modes
    assert all(p.device.type == "cpu" for p in net.parameters())
    assert parts[""].macs > sum(parts[f"stages.{i}"].macs for i in range(4)) > 0


def test_networks_of_one_size_differ():
    for size in ("nano", "tiny"):
        named = [name for name in NAMES if name.endswith(size) and not name.startswith("localmixer")]
        counts = {name: cost(on_meta(name), 64) for name in named}
        assert len({(c.parameters, c.macs) for c in counts.values()}) == len(counts) == 6


def test_nano_nets_are_small():
    for name in NANO:
        parameters = sum(p.numel() for p in on_meta(name, num_classes=10).parameters())
        assert 0.8e6 < parameters < 2e6, name


def test_no_name_of_timm_is_registered_again():
    code = (
        "import timm; before = {n: timm.model_entrypoint(n) for n in timm.list_models()}; import localmix.models; "
        "assert all(timm.model_entrypoint(n) is f for n, f in before.items()); "
        "print(*sorted(set(timm.list_models()) - set(before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("localswin_nano", {"num_heads": 3}, r"^num_heads: expected a number for each of the 4 stages, got 3$"),
        ("localnat_nano", {"num_heads": (3, 6)}, r"^num_heads: expected a number .* 4 stages, got \(3, 6\)$"),
        ("dwnet_nano", {"depths": ()}, r"^depths: expected the blocks of one or more stages, got \(\)$"),
        ("dwnet_nano", {"num_classes": -1}, r"^num_classes: expected at least 0, got -1$"),
        ("dwnet_nano", {"mlp_ratio": 0}, r"^mlp_ratio: expected one hidden channel or more of \d+ channels, got 0$"),
        ("dwnet_nano", {"drop_path_rate": 1.5}, r"^drop_path_rate: expected at least 0 and below 1, got 1\.5$"),
    ],
)
def test_wrong_arguments_of_a_network_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'dwnet_tinny'; the nearest are dwnet_tiny"):
        create_model("dwnet_tinny")


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (29, 28)])
def test_any_size_and_batch(name, size):
    net = nano(name, in_chans=2)
    images = torch.randn(3, 2, *size)
    with torch.no_grad():
        together = net(images)
        assert together.shape == (3, 10)
        assert together.isfinite().all()
        torch.testing.assert_close(net(images[1:2]), together[1:2], rtol=1e-4, atol=1e-4)
        assert net(images[:0]).shape == (0, 10)


@pytest.mark.parametrize("size", [(250, 333), (32, 32)])
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_tiny")])
def test_tiny_nets_at_odd_sizes(name, size):
    with torch.no_grad():
        maps = timm.create_model(name, features_only=True, depths=(1, 1, 1, 1)).eval()(torch.randn(1, 3, *size))
    expected = [(-(-size[0] // r), -(-size[1] // r)) for r in (4, 8, 16, 32)]
    assert [tuple(m.shape[2:]) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", NANO)
def test_bad_images_are_named(name):
    net = nano(name)
    with pytest.raises(ValueError, match=r"image: expected \[B, 3, H, W\], got shape \(1, 1, 8, 8\)"):
        net(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"image: expected a floating point tensor, got torch\.uint8"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@torch.no_grad()
def test_a_map_that_is_whole_is_not_copied():
    x = torch.randn(2, 3, 5, 4)
    assert pad(x, (0, 0, 0, 0, 0, 0)) is x
    for sizes in ((0, 0, 0, 1, 0, 2), (0, 0, 0, -1, 0, 0)):
        torch.testing.assert_close(pad(x, sizes), F.pad(x, sizes), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_patches_are_embedded_as_a_convolution_does(dtype):
    """In whatever layout: of the float types, those that gain from it are convolved channels-last."""
    embed, image, maps = PatchEmbed(3, 8, 4).to(dtype), torch.randn(2, 3, 13, 16).to(dtype), []
    embed.proj.register_forward_hook(lambda module, inputs, output: maps.append(output))
    embed.norm = torch.nn.Identity()
    convolved = [
        F.conv2d(F.pad(image.to(t), (0, 0, 0, 3)), embed.proj.weight.to(t), embed.proj.bias.to(t), stride=4)
        for t in (torch.float64, dtype)
    ]
    reference, eager = (y.permute(0, 2, 3, 1) for y in convolved)
    assert_within_budget(embed(image), reference, eager)
    assert maps[0].is_contiguous(memory_format=torch.channels_last) == (dtype != torch.float16)


class TestContractOfTimm:
    def test_features(self):
        net = timm.create_model("localswin_nano", features_only=True, out_indices=(0, -1), **SHALLOW).eval()
        assert net.feature_info.channels() == [24, 192]
        assert net.feature_info.reduction() == [2, 16]
        maps = net(torch.randn(2, 3, 30, 46))
        assert [tuple(m.shape) for m in maps] == [(2, 24, 15, 23), (2, 192, 2, 3)]

    @pytest.mark.parametrize("depths", [(1, 1), (1, 1, 1, 1, 1)], ids=len)
    def test_features_of_every_stage_however_many_there_are(self, depths):
        net = timm.create_model("dwnet_nano", features_only=True, depths=depths).eval()
        assert net.feature_info.channels() == [24 * 2**stage for stage in range(len(depths))]
        assert [m.shape[1] for m in net(torch.randn(1, 3, 64, 64))] == net.feature_info.channels()

    def test_intermediates(self):
        net, image = nano("dwnet_nano"), torch.randn(1, 3, 28, 20)
        final, maps = net.forward_intermediates(image)
        torch.testing.assert_close(final, net.forward_features(image))
        assert len(maps) == 4
        normed = net.forward_intermediates(image, [3], norm=True, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(normed[0], final)
        early, some = net.forward_intermediates(image, [0, 1], stop_early=True)
        torch.testing.assert_close(some[1], maps[1])
        torch.testing.assert_close(early, maps[1].permute(0, 2, 3, 1))
        assert net.prune_intermediate_layers([1]) == [1]
        torch.testing.assert_close(net(image).permute(0, 3, 1, 2), maps[1])

    def test_classifier(self):
        net, image = nano("dwnet_nano"), torch.randn(2, 3, 28, 28)
        assert net.get_classifier().out_features == 10
        pooled = net.forward_head(net.forward_features(image), pre_logits=True)
        torch.testing.assert_close(net.get_classifier()(pooled), net(image))
        net.double().reset_classifier(7)
        assert net(image.double()).shape == (2, 7)
        net.reset_classifier(0, "")
        assert net(image.double()).shape == (2, 2, 2, 192)

    @pytest.mark.parametrize("name", NANO)
    def test_parameter_groups(self, name):
        net = nano(name)
        groups = param_groups_layer_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay(), layer_decay=0.5)
        assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
        scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        along = [net.patch_embed.proj, *(s.blocks[0].mlp.fc1 for s in net.stages), net.head.fc]
        scales = [scale[id(module.weight)] for module in along]
        assert scales == sorted(set(scales))
        decayed = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
        free = {id(p) for group in decayed if not group["weight_decay"] for p in group["params"]}
        names = {key for key, p in net.named_parameters() if id(p) in free}
        assert names == {key for key, p in net.named_parameters() if p.ndim == 1 or key.endswith(("bias", "table"))}

    @pytest.mark.parametrize("name", NANO)
    def test_checkpointing_changes_nothing(self, name):
        images = torch.randn(4, 3, 28, 28)
        plain, saving = nano(name).train(), nano(name).train()
        saving.set_grad_checkpointing()
        results = []
        for net in (plain, saving):
            y = net(images)
            y.square().sum().backward()
            results.append([y, *(p.grad for p in net.parameters()), *net.buffers()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)

    def test_size_needs_no_call(self):
        net = timm.create_model("localswin_nano", img_size=96, num_classes=3)
        net.set_input_size(img_size=(50, 70))
        assert net(torch.randn(1, 3, 33, 40)).shape == (1, 3)
        assert resolve_model_data_config(net)["input_size"] == (3, 64, 64)

    def test_drop_path_grows_to_the_rate(self):
        net = timm.create_model("dwnet_nano", drop_path_rate=0.8)
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in net.stages for block in stage.blocks]
        assert rates == pytest.approx([0.1 * i for i in range(9)])
        images = torch.randn(2, 3, 28, 28)
        assert not torch.equal(net(images), net(images))

    def test_pretrained_weights_are_not_promised(self):
        with pytest.raises(RuntimeError, match=r"[Nn]o pretrained"):
            timm.create_model("dwnet_nano", pretrained=True)


@pytest.mark.parametrize("name", NANO)
class TestPyTorch:
    def test_every_parameter_gets_a_gradient_under_autocast(self, name):
        net = nano(name).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(torch.randn(4, 3, 28, 28)).float().square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    def test_compiles_whole(self, name):
        net, images = small_graph(name), torch.randn(2, 3, 28, 20)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), net(images), rtol=1e-4, atol=1e-4)

    def test_exports_with_open_batch_and_size(self, name):
        net = small_graph(name)
        open_axis = torch.export.Dim.DYNAMIC
        shapes = {"x": {0: open_axis, 2: open_axis, 3: open_axis}}
        program = torch.export.export(net, (torch.randn(3, 3, 66, 84),), dynamic_shapes=shapes)
        for size in ((2, 3, 66, 84), (4, 3, 70, 56), (1, 3, 90, 121)):
            images = torch.randn(size)
            torch.testing.assert_close(program.module()(images), net(images), rtol=1e-4, atol=1e-4)

    def test_exports_for_one_image_with_a_range_of_batches(self, name):
        """Of axes with a range PyTorch excludes what it cannot see through; one image is what most programs are for."""
        net = nano(name, depths=(1, 1), **({"kernel_size": 3} if name.startswith("i_dynamic") else {}))
        dims = {axis: torch.export.Dim(f"axis{axis}", min=low, max=512) for axis, low in ((0, 1), (2, 32), (3, 32))}
        program = torch.export.export(net, (torch.randn(2, 3, 60, 64),), dynamic_shapes={"x": dims}).module()
        for size in ((1, 3, 60, 64), (1, 3, 96, 40), (5, 3, 64, 64)):
            images = torch.randn(size)
            torch.testing.assert_close(program(images), net(images), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ["hook", "pre-hook", "hook of all modules"])
    def test_what_a_hook_has_kept_stays_as_it_was(self, name, kind):
        """Without gradients activations overwrite their input, but not under the eyes of a hook."""
        kept, copies = [], []

        def keep(module, inputs, output=None):
            seen = inputs[0] if output is None else output
            kept.append(seen)
            copies.append(seen.clone())

        net = nano(name, depths=(1, 1))
        if kind == "hook of all modules":
            handles = [torch.nn.modules.module.register_module_forward_hook(keep)]
        else:
            register = "register_forward_hook" if kind == "hook" else "register_forward_pre_hook"
            handles = [getattr(module, register)(keep) for module in net.modules()]
        with torch.no_grad():
            net(torch.randn(2, 3, 20, 24))
        for handle in handles:
            handle.remove()
        assert len(kept) > 40
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))

    def test_copies(self, name):
        net, images = nano(name), torch.randn(1, 3, 28, 28)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(images), net(images))
        synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
        assert torch.equal(synchronised(images), net(images))
        with torch.device("meta"):
            empty = create_model(name, num_classes=10, **SHALLOW)
        empty.to_empty(device="cpu").load_state_dict(net.state_dict())
        assert torch.equal(empty.eval()(images), net(images))

    def test_other_dtypes_and_layouts(self, name):
        net, images = nano(name), torch.randn(2, 3, 28, 28)
        expected = net.double()(images.double())
        torch.testing.assert_close(net.float()(images).double(), expected, rtol=1e-4, atol=1e-4)
        laid_out = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(laid_out).double(), expected, rtol=1e-4, atol=1e-4)
        low = net.bfloat16()(images.bfloat16())
        assert low.dtype == torch.bfloat16
        assert (low.double() - expected).abs().max() < 0.1 * expected.abs().max()

    def test_overfits_a_real_batch(self, name):
        pixels, labels = fashion_mnist.load("train")
        images = torch.from_numpy(pixels[:16]).float()[:, None] / 255 - 0.3
        labels = torch.from_numpy(labels[:16]).long()
        net = nano(name, in_chans=1).train()
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        losses = []
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if losses[-1] < 0.05:
                break
        assert losses[0] > 1.5
        assert losses[-1] < 0.05


@pytest.mark.parametrize("traced", [(46, 58), (56, 28)], ids=["padded", "7 divides it"])
def test_a_backbone_that_pads_exports_for_sizes_with_and_without_padding(traced):
    net, open_axis = nano("dwnet_nano", depths=(1, 1), pad_to=7), torch.export.Dim.DYNAMIC
    shapes = {"x": {0: open_axis, 2: open_axis, 3: open_axis}}
    program = torch.export.export(net, (torch.randn(2, 3, *traced),), dynamic_shapes=shapes).module()
    for size in ((1, 3, 33, 57), (2, 3, 28, 41), (3, 3, 20, 112), (1, 3, 28, 28)):
        images = torch.randn(size)
        torch.testing.assert_close(program(images), net(images), rtol=1e-4, atol=1e-4)


def test_every_network_is_exported_by_name():
    assert set(NAMES) <= set(timm.list_models())
    assert localmix.models.Hierarchy is type(create_model("localnat_nano"))
