import json

import pytest

from localmix.cli import main
from localmix.models import create_model
from localmix.reports import detector_cost
from localmix.reports.cost import cost
from localmix.reports.cost_memory import saved_bytes
from localmix.reports.cost_subject import Subject
from localmix.reports.cost_table import cost_table, stated


def run(capsys, *arguments):
    status = main(["cost", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_table_and_its_file(tmp_path, capsys):
    file = tmp_path / "cost.json"
    nets = ("localswin_nano", "resnet18", "swin_tiny_patch4_window7_224")
    status, out, _ = run(capsys, *nets, "--img-size", 48, 32, "--batch-size", 3, "--layers", "--output", file)
    assert status == 0
    results = json.loads(file.read_text())
    assert [row["model"] for row in results["rows"]] == list(nets)
    swin = results["rows"][0]
    net = create_model("localswin_nano")
    assert (swin["parameters"], swin["macs"]) == tuple(vars(cost(net, (48, 32))).values())
    assert swin["saved_bytes"] == saved_bytes(net, (3, 3, 48, 32))
    # maps of 24 x 16, padded to windows of 7; one of 6 x 4 is within a window, and one of 3 x 2
    first, last = swin["layers"][0], swin["layers"][-1]
    assert (first["shape"], last["shape"]) == ([3, 28, 21, 3, 49], [3, 3, 2, 24, 49])
    assert swin["dynamic_weight_bytes"] == sum(layer["num_bytes"] for layer in swin["layers"])
    assert first["num_bytes"] == 4 * 3 * 28 * 21 * 3 * 49
    assert results["rows"][1]["dynamic_weight_bytes"] is None
    assert all(row["paper"] is None and row["peak_bytes"] is None for row in results["rows"])
    assert "48 x 32" in out and "[3, 28, 21, 3, 49]" in out and f"{swin['parameters'] / 1e6:.3f} M" in out


def test_beside_the_paper(capsys):
    (row,) = cost_table(["dwnet_tiny"])["rows"]
    assert stated(row, "parameters") == "24M (equal)"
    assert stated(row, "macs") == "3.8G (-1.92%)"
    assert stated(row, "macs_counted") == "3.727G (equal)"
    out = capsys.readouterr().out
    assert "DWNet-T" in out and "3.8G (-1.92%)" in out


@pytest.mark.parametrize("options", [{"img_size": 256}, {"num_classes": 10}])
def test_the_paper_says_nothing_of_other_sizes_and_classes(options):
    assert cost_table(["dwnet_tiny"], **options)["rows"][0]["paper"] is None


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_other_tasks(task, capsys):
    status, out, _ = run(capsys, "dwnet_nano", "--task", task, "--img-size", 64, "--num-classes", 3)
    assert status == 0 and f"{task}; MACs of one image" in out


def test_static_weights_are_not_counted_as_dynamic():
    rows = cost_table(["localmlp_nano", "dynamic_dwnet_nano"], img_size=32)["rows"]
    assert rows[0]["dynamic_weight_bytes"] == 0 and rows[0]["layers"][0]["shape"][0] == 1
    assert rows[1]["dynamic_weight_bytes"] == 2 * 4 * 49 * (2 * 24 + 2 * 48 + 4 * 96 + 192)


def test_throughput():
    (row,) = cost_table(["dwnet_nano"], img_size=32, num_classes=2, timed=True, rounds=1)["rows"]
    assert row["training_images_per_second"] > 0 and row["inference_images_per_second"] > 0


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_training_step_of_other_tasks_reaches_every_weight(task, monkeypatch):
    few = {"in_test": (3, 2), "in_training": (3, 2)}
    monkeypatch.setattr(detector_cost.DetectorParts.__init__, "__kwdefaults__", few)
    subject = Subject("localswin_nano", task, (32, 32), 2)
    net = subject.new().train()
    images, labels = subject.images(2, "cpu")
    subject.loss()(net(images), labels).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "models: expected one or more names of networks, got none"),
        (["dwnet_tony"], "the nearest are"),
        (["dwnet_nano", "--img-size", 0], "img_size: expected at least 1"),
        (["dwnet_nano", "--img-size", 8, 8, 8], "img_size: expected an int or a pair of ints"),
        (["dwnet_nano", "--output", f"{__file__}/cost.json"], "output: expected a folder, got"),
        (["dwnet_nano", "--batch-size", 0], "batch_size: expected an int of at least 1, got 0"),
        (["dynamic_dwnet_nano", "--batch-size", 1], "batch_size: dynamic_dwnet_nano cannot be trained with 1"),
        (["dwnet_nano", "--output", "cost.txt"], "output: expected a name that ends in .json, got cost.txt"),
        (["dwnet_nano", "--mixers", "local_mlp"], "mixers: expected with --scaling only"),
        (["dwnet_nano", "--scaling"], "scaling: expected neither networks nor their options, got ['dwnet_nano']"),
        (["levit_128", "--img-size", 65], "img_size: levit_128 does not take images of 65 x 65 pixels"),
    ],
)
def test_wrong_requests(arguments, message, capsys):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err
