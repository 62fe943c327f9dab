import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from localmix.axes import MIXERS
from localmix.cli import main
from localmix.reports import runs
from localmix.reports.compare import compare
from localmix.reports.evaluation.classification import evaluate
from localmix.tasks.engine.checkpoint import load_checkpoint

SMALL = {"img_size": 16, "batch_size": 8, "processes": 1}
MIXER_NAMES = ["depthwise_convolution", "window_attention"]


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_an_interruption_while_speeds_are_measured_gives_the_threads_back(few_images, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("localmix.reports.compare.throughput", interrupted)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(mixers=MIXER_NAMES[:1], epochs=1, output=tmp_path, **SMALL)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compared(few_images, tmp_path_factory):
    output = tmp_path_factory.mktemp("compare")
    return output, compare(mixers=MIXER_NAMES, seeds=[0, 1], output=output, **SMALL)


def test_results(compared):
    output, returned = compared
    results = strict((output / "results.json").read_text())
    assert results == returned
    assert results.keys() == {
        "rows", "settings", "images", "throughput", "environment", "command", "commit",
    }  # fmt: skip
    assert [row["mixer"] for row in results["rows"]] == MIXER_NAMES
    for row in results["rows"]:
        axes = MIXERS[row["mixer"]]
        assert row["model"] == f"{axes.network}_nano"
        assert (row["title"], row["connectivity"]) == (axes.title, axes.connectivity.value)
        assert row["sharing_positions"] == axes.sharing_positions.value
        assert row["sharing_channels"] == axes.sharing_channels.value
        assert row["parameters"] > 500_000
        assert row["macs"] > 1_000_000
        assert row["training_images_per_second"] > 1
        assert row["inference_images_per_second"] > 1
        top1 = [run["top1"] for run in row["runs"]]
        assert row["top1_mean"] == pytest.approx(sum(top1) / 2)
        assert row["top1_std"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    assert [row["dynamics"] for row in results["rows"]] == ["static", "dot product"]
    assert results["settings"]["seeds"] == [0, 1]
    assert results["settings"]["epochs"] == 2
    assert results["images"] == {"train": 24, "validation": 8, "skipped": []}
    assert results["environment"]["versions"].keys() >= {"localmix", "python", "torch", "timm", "lightning"}
    assert results["environment"]["hardware"]["device"] == "cpu"


def test_each_run_has_its_folder(compared):
    output, results = compared
    for row in results["rows"]:
        for run in row["runs"]:
            folder = output / run["folder"]
            end = strict((folder / "result.json").read_text())
            assert (end["model"], end["seed"], end["top1"]) == (row["model"], run["seed"], run["top1"])
            assert (folder / "metrics.csv").read_text().count("\n") == 1 + 2 * 3
            facts = load_checkpoint(folder / "checkpoint.ckpt")["hyper_parameters"]
            assert facts["model"] == row["model"]


def test_checkpoints_are_evaluated_as_they_were_validated(compared):
    output, results = compared
    for run in results["rows"][0]["runs"] + results["rows"][1]["runs"]:
        evaluated = evaluate(output / run["folder"], batch_size=3, workers=0, device="cpu")
        assert evaluated["top1"] == pytest.approx(run["top1"], abs=1e-6)
        assert evaluated["loss"] == pytest.approx(run["val_loss"], abs=1e-5)


def test_table(compared):
    output, results = compared
    lines = (output / "table.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert rows[0][:3] == ["mixer", "connectivity", "shared over positions"]
    assert len(rows) == 3
    for cells, row in zip(rows[1:], results["rows"], strict=True):
        assert cells[:2] == [row["title"], row["connectivity"]]
        assert cells[5] == f"{row['parameters'] / 1e6:.2f} M"
        assert cells[-1] == f"{100 * row['top1_mean']:.2f} ± {100 * row['top1_std']:.2f}"


def test_figure(compared):
    with Image.open(compared[0] / "figure.png") as image:
        assert min(image.size) > 600
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_finished_runs_are_kept(compared, monkeypatch, capsys):
    output, before = compared
    monkeypatch.setattr(runs, "train_all", lambda jobs, *args, **kwargs: pytest.fail("trains") if jobs else None)
    after = compare(mixers=MIXER_NAMES, seeds=[0, 1], output=output, **SMALL)
    assert [row["runs"] for row in after["rows"]] == [row["runs"] for row in before["rows"]]
    assert capsys.readouterr().err.count("finished before") == 4


def test_other_settings_in_the_same_output_are_refused(compared):
    output, _ = compared
    with pytest.raises(ValueError, match=r"output: .*seed-0 holds .*: epochs 2 \(now 3\), lr 0\.002 \(now 0\.1\); "):
        compare(mixers=MIXER_NAMES, output=output, epochs=3, lr=0.1, **SMALL)


def test_one_seed_has_no_deviation_and_a_new_seed_is_added(few_images, tmp_path, capsys):
    alone = compare(mixers=["local_mlp"], seeds=[3], output=tmp_path, **SMALL)
    assert alone["rows"][0]["top1_std"] is None
    assert "1 seed: no standard deviation" in capsys.readouterr().out
    both = compare(mixers=["local_mlp"], seeds=[3, 4], output=tmp_path, **SMALL)
    assert both["rows"][0]["runs"][0] == alone["rows"][0]["runs"][0]
    assert both["rows"][0]["top1_std"] is not None


def test_nets_of_timm_stand_beside_those_of_the_mixers(few_images, tmp_path):
    results = compare(models=["dwnet_nano", "test_resnet"], output=tmp_path, **SMALL)
    assert [row["mixer"] for row in results["rows"]] == ["depthwise_convolution", None]
    assert results["rows"][1]["title"] == "test_resnet"
    assert results["rows"][1]["connectivity"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixers": ["depthwise"]}, r"mixers: expected one of 'depthwise_convolution', .*, got 'depthwise'"),
        ({"models": ["dwnet_nanoo"]}, r"model: .* got 'dwnet_nanoo'.* dwnet_nano"),
        ({"models": ["dwnet_nano"], "mixers": ["local_mlp"]}, r"models: expected either mixers or models, got both"),
        ({"models": ["dwnet_nano", "dwnet_nano"]}, r"models: expected one or more different values"),
        ({"models": ["test_vit"]}, r"models: test_vit does not take images of 28 px"),
        ({"size": "huge"}, r"size: expected one of 'nano', .*, got 'huge'"),
        ({"seeds": []}, r"seeds: expected one or more different values, got \[\]"),
        ({"seeds": [-1]}, r"seeds: expected an int of at least 0 and below 2\*\*63, got -1"),
        ({"seeds": [2**63]}, r"seeds: expected an int of at least 0 and below 2\*\*63, got 9223372036854775808"),
        ({"epochs": 0}, r"epochs: expected an int of at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size: expected an int of at least 1, got 0"),
        ({"processes": 0}, r"processes: expected an int of at least 1, got 0"),
        ({"lr": 0.0}, r"lr: expected more than 0, got 0.0"),
        ({"lr": float("inf")}, r"lr: expected more than 0, got inf"),
        ({"weight_decay": -0.1}, r"weight_decay: expected at least 0, got -0\.1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: expected at least 0 and below 1, got 1\.0"),
        ({"workers": -1}, r"workers: expected at least 0, got -1"),
        ({"device": "tpu"}, r"device: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
    ],
)
def test_wrong_arguments_are_refused(few_images, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(output=tmp_path / "output", **arguments)
    assert not (tmp_path / "output").exists()


def test_corrupt_image_on_the_command_line(image_folder, tmp_path, capsys):
    (image_folder / "train/shoe/broken.jpg").write_bytes(b"no image")
    arguments = ["compare", "--data", str(image_folder), "--output", str(tmp_path), "--mixers", "local_mlp"]
    arguments += ["--epochs", "1", "--img-size", "16", "--batch-size", "16", "--processes", "1", "--workers", "0"]
    try:
        assert main(arguments) == 2
        assert "broken.jpg" in capsys.readouterr().err
        assert main([*arguments, "--on-corrupt", "skip"]) == 0
        assert "left out 1 corrupt image(s)" in capsys.readouterr().err
        assert strict((tmp_path / "results.json").read_text())["images"]["skipped"] == ["train/shoe/broken.jpg"]
    finally:
        (image_folder / "train/shoe/broken.jpg").unlink()


def start(arguments, output, stderr=subprocess.PIPE):
    command = [sys.executable, "-m", "localmix", "compare", *arguments, "--output", str(output)]

    def heed_interrupts():
        # a shell lets what it starts in the background ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=heed_interrupts)


def wait_until(condition, process=None):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, "nothing happened for 200 s"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def descendants(pid):
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks at processes in /proc")
def test_interrupted_comparison_ends_as_an_uninterrupted_one(image_folder, tmp_path, monkeypatch):
    """Ctrl-C, then kill -9, each while two processes train; the third call brings it to the end."""
    arguments = ["--data", str(image_folder), "--mixers", "depthwise_convolution", "local_mlp"]
    arguments += ["--epochs", "12", "--img-size", "16", "--batch-size", "16", "--workers", "0"]
    output = tmp_path / "parts"

    def epochs():
        rows = [path.read_text().splitlines() for path in output.glob("*/*/metrics.csv")]
        return min((sum(not line.endswith(",") for line in lines) - 1 for lines in rows), default=0) if rows else 0

    shown = tmp_path / "stderr"
    with shown.open("w") as stderr:
        process = start([*arguments, "--processes", "2"], output, stderr)
    # by then each has a checkpoint: it is saved before the line is shown
    nets = ("dwnet_nano", "localmlp_nano")
    wait_until(lambda: all(f"{net}  seed 0  epoch 1/12  loss" in shown.read_text() for net in nets), process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    text = shown.read_text()
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in text
    assert len(list(output.glob("*/*/checkpoint.ckpt"))) == 2
    assert "Traceback" not in text and "Warning" not in text
    assert not (output / "results.json").exists()

    done = epochs()
    process = start([*arguments, "--processes", "2"], output)
    wait_until(lambda: epochs() > done, process)
    helpers = descendants(process.pid)
    assert len(helpers) >= 3, "the server and two processes that train"
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, helpers)))
    assert 1 <= epochs() < 12

    monkeypatch.setattr(runs, "cpu_cores", lambda: 1)
    options = {"data": str(image_folder), "mixers": ["depthwise_convolution", "local_mlp"], "epochs": 12, "workers": 0}
    options |= {"img_size": 16, "batch_size": 16, "processes": 1}
    parts, whole = (compare(output=folder, **options) for folder in (output, tmp_path / "whole"))
    for a, b in zip(parts["rows"], whole["rows"], strict=True):
        assert {k: v for k, v in a["runs"][0].items() if k != "seconds"} == {
            k: v for k, v in b["runs"][0].items() if k != "seconds"
        }
        metrics = [(f / a["runs"][0]["folder"] / "metrics.csv").read_text() for f in (output, tmp_path / "whole")]
        assert metrics[0] == metrics[1]
