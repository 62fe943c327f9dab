import copy
import json

import pytest
import torch
from torch import nn

from localmix import models
from localmix.cli import main
from localmix.layers import InhomogeneousDynamicConv
from localmix.reports.benchmarks import limits
from localmix.reports.benchmarks import models as module
from localmix.reports.benchmarks.limits import Work
from localmix.reports.benchmarks.models import Task
from localmix.reports.benchmarks.peers_convolution import official

SMALL = {"batch_size": 3, "img_size": 24, "device": "cpu", "modes": ["eager"], "rounds": 2, "seconds": 0.0}


@pytest.fixture(autouse=True, scope="module")
def quickly_measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "COPY_BYTES", {"cpu": 2**16})
        patch.setattr(limits, "MATRIX_SIZE", {"cpu": 32})
        yield


def task(name, direction, dtype=torch.float32):
    return Task(name, 3, 24, dtype, "cpu", direction)


def test_rows(tmp_path):
    nets = ["i_dynamic_dwnet_nano", "test_resnet"]
    results = module.bench_models(nets=nets, output=tmp_path, **SMALL)
    assert results == json.loads((tmp_path / "results.json").read_text())
    labels = [
        "i_dynamic_dwnet_nano eager",
        "i_dynamic_dwnet_nano by unfold eager",
        "test_resnet eager",
        "test_resnet channels-last eager",
    ]
    assert [row["label"] for row in results["rows"]] == 2 * labels
    assert [row["is_ours"] for row in results["rows"]] == 2 * [True, False, False, False]
    assert [row["direction"] for row in results["rows"]] == 4 * ["inference"] + 4 * ["training"]
    for row in results["rows"]:
        assert row["refused"] is None
        assert row["shape"] == [3, 3, 24, 24]
        assert row["ms"]["p50"] > 0
        assert row["peak_bytes"] > 1000
        assert set(row["times_as_fast_as"]) == set(labels) - {row["label"]}
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_does_not_train_the_network_of_another(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: net)  # which takes long, and is not what could go wrong
    nets, modes = ["i_dynamic_dwnet_nano", "test_resnet"], ["eager", "compiled"]
    results = module.bench_models(nets=nets, **{**SMALL, "modes": modes, "direction": ["training"], "rounds": 1})
    assert [row["implementation"] for row in results["rows"]] == 4 * modes
    assert [row["refused"] for row in results["rows"]] == 8 * [None]


def scaled_head(net):
    wrong = copy.deepcopy(net).eval()
    nn.init.constant_(wrong.head.fc.bias, 1e-3)
    return wrong


def test_wrong_fold_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(models, "fold", scaled_head)
    sizes = "--batch-size 3 --img-size 24 --device cpu --modes eager --rounds 1 --seconds 0 --direction inference"
    assert main(["bench", "models", "--nets", "dwnet_nano", *sizes.split()]) == 1
    assert "refused: dwnet_nano eager: logits: error 1.00e-03 is over the budget" in capsys.readouterr().out


def test_wrong_gradient_is_refused():
    this = task("dwnet_nano", "training")
    net = copy.deepcopy(this.net)
    module._check(net, this.images, this)
    net.patch_embed.proj.weight.register_hook(lambda gradient: gradient * 1.001)
    with pytest.raises(AssertionError, match="gradient of the first parameter"):
        module._check(net, this.images, this)


def test_nothing_is_dropped_at_random():
    for name in ("dwnet_nano", "test_efficientnet"):
        net, images = module._create(name).train(), torch.randn(2, 3, 24, 24)
        assert torch.equal(net(images), net(images))


def test_batch_norms_are_not_those_of_a_new_network():
    norms = [m for m in task("dwnet_nano", "inference").net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len({float(norm.running_mean[0]) for norm in norms}) == len(norms)


def test_the_official_way_is_the_same_network():
    net = task("i_dynamic_dwnet_nano", "inference").net.eval()
    images = torch.randn(2, 3, 24, 24)
    by_unfold = official(copy.deepcopy(net))
    mixers = [m for m in by_unfold.modules() if isinstance(m, InhomogeneousDynamicConv)]
    assert mixers
    assert all("mix" in vars(mixer) for mixer in mixers)
    assert not torch.equal(by_unfold(images), net(images))
    torch.testing.assert_close(by_unfold(images), net(images))


def test_training_in_a_lower_dtype_is_under_autocast():
    this = task("localmlp_nano", "training", torch.bfloat16)
    (form,) = this.forms()
    assert next(form.module.parameters()).dtype == torch.float32
    module._check(form.module, this.images, this)
    inference = task("localmlp_nano", "inference", torch.bfloat16)
    (form,) = inference.forms()
    assert next(form.module.parameters()).dtype == torch.bfloat16
    module._check(form.module, inference.images, inference)


def test_work_of_known_numbers():
    costs = module.Cost(parameters=10, macs=100)
    image = 3 * 24 * 24
    assert task("", "inference", torch.bfloat16).work(costs) == Work(2 * (10 + 3 * image), 300)
    assert task("", "training").work(costs) == Work(4 * (80 + 3 * image), 900)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nets": ["dwnet_tinny"]}, "model: .* got 'dwnet_tinny'; the nearest are dwnet_tiny"),
        ({"modes": ["lazy"]}, "modes: expected one of 'eager', 'compiled', got 'lazy'"),
        ({"direction": ["forward"]}, "direction: expected one of 'inference', 'training', got 'forward'"),
        ({"nets": ["test_vit"]}, "nets: test_vit does not take images of 24 px"),
        ({"batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
        ({"img_size": 0}, "img_size: expected an int of at least 1, got 0"),
        ({"dtype": "int8"}, "dtype: expected one of 'float32'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        module.bench_models(**{**SMALL, **arguments})
