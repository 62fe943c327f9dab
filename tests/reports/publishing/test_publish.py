import json
import re
import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError

import localmix.reports.publishing.publish as module
from localmix.cli import main
from localmix.models import create_model
from localmix.reports.evaluation.classification import evaluate
from localmix.reports.publishing.publish import publish
from localmix.tasks import fashion_mnist
from localmix.tasks.engine.checkpoint import load_checkpoint, save_checkpoint
from localmix.tasks.fashion_mnist import load as load_all  # as it is now, whatever a fixture cuts later

CLASSES = list(fashion_mnist.CLASSES)
METRICS = """epoch,step,lr,loss,val_loss,val_top1,val_ema_top1
0,6,0.1,2.5,,,
0,7,0.1,2.0,1.25,0.875,0.8125
"""


def net_of(name, **options):
    """A net that does not answer the same to everything, as one that was just made does."""
    net = create_model(name, **options).eval()
    torch.nn.init.normal_(net.get_classifier().weight, std=0.5)
    return net


@pytest.fixture(params=["localmlp_nano", "dwnet_nano", "localswin_nano with windows of 4", "test_resnet"])
def run(request, tmp_path):
    """A run's folder, and its two nets: the weights and their moving average."""
    name, *rest = request.param.split(" ")
    channels = 1 if name != "localmlp_nano" else 3
    options = {"window_size": 4} if rest else {}
    raw, ema = (net_of(name, num_classes=10, in_chans=channels, **options) for _ in range(2))
    facts = {"model": name, "classes": CLASSES, "img_size": 28, "in_chans": channels, "lr": 0.002}
    facts |= {"mean": [0.25] * channels, "std": [0.5] * channels, "model_kwargs": options}
    state = {
        f"{prefix}{k}": v for prefix, net in (("net.", raw), ("ema.module.", ema)) for k, v in net.state_dict().items()
    }
    save_checkpoint(
        {"hyper_parameters": facts, "state_dict": state, "epoch": 0, "global_step": 7, "run": {"seed": 3}},
        tmp_path / "run/checkpoint.ckpt",
    )
    (tmp_path / "run/metrics.csv").write_text(METRICS)
    (tmp_path / "run/settings.json").write_text(json.dumps({"data": "somewhere/garments", "epochs": 1}))
    return tmp_path / "run", raw, ema


@pytest.fixture
def small_run(tmp_path):
    net = net_of("localmlp_nano", num_classes=10, in_chans=1)
    facts = {"model": "localmlp_nano", "classes": CLASSES, "img_size": 28, "in_chans": 1, "mean": [0.25], "std": [0.5]}
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    save_checkpoint(
        {"hyper_parameters": facts, "state_dict": state, "epoch": 0, "global_step": 7}, tmp_path / "run/checkpoint.ckpt"
    )
    return tmp_path / "run"


@pytest.mark.parametrize("weights", ["ema", "raw", None])
def test_timm_loads_the_same_net(run, tmp_path, weights):
    folder, raw, ema = run
    publish(folder, tmp_path / "net", weights=weights)
    net = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    channels = load_checkpoint(folder / "checkpoint.ckpt")["hyper_parameters"]["in_chans"]
    images = torch.rand(2, channels, 28, 28)
    with torch.inference_mode():
        assert torch.equal(net(images), (raw if weights == "raw" else ema)(images))
    config = timm.data.resolve_model_data_config(net)
    assert config["input_size"] == (channels, 28, 28)
    assert tuple(config["mean"]) == (0.25,) * channels
    assert (config["crop_pct"], config["interpolation"]) == (1.0, "bicubic")
    assert list(net.pretrained_cfg["label_names"]) == CLASSES


def test_weights_that_training_began_with_are_not_fetched_again(small_run, tmp_path):
    """`model_kwargs: {pretrained: true}` stands in the checkpoint: what is loaded is in it, too."""
    content = load_checkpoint(small_run / "checkpoint.ckpt")
    content["hyper_parameters"]["model_kwargs"] = {"pretrained": True, "window_size": 7}
    save_checkpoint(content, small_run / "checkpoint.ckpt")
    publish(small_run, tmp_path / "net")
    arguments = json.loads((tmp_path / "net/config.json").read_text())["model_args"]
    assert arguments["window_size"] == 7 and "pretrained" not in arguments
    net = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    assert torch.equal(net.state_dict()["norm.bias"], content["state_dict"]["net.norm.bias"])


def test_card_says_what_the_net_is(run, tmp_path):
    folder, raw, _ = run
    publish(folder, tmp_path / "net", license="cc-by-4.0")
    card = ModelCard((tmp_path / "net/README.md").read_text())
    assert (card.data.library_name, card.data.license) == ("timm", "cc-by-4.0")
    name = load_checkpoint(folder / "checkpoint.ckpt")["hyper_parameters"]["model"]
    parameters = sum(p.numel() for p in raw.parameters()) / 1e6
    assert f"`{name}`" in card.text
    assert f"{parameters:.2f} M parameters and 10 classes, trained on garments" in card.text
    # of the moving average only, at the step of the checkpoint
    assert "| top-1 | 81.25% |" in card.text
    assert "87.50%" not in card.text and "1.2500" not in card.text
    assert "| lr | 0.002 |" in card.text and "| epochs | 1 |" in card.text and '"seed": 3' in card.text
    assert ("Local Attention" in card.text) == (name != "test_resnet")


def test_program_of_the_card_runs(small_run, tmp_path, monkeypatch, capsys):
    publish(small_run, tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    images, _ = load_all("test")
    Image.fromarray(images[0]).convert("RGB").save("photo.jpg")
    program = re.search(r"```python\n(.*?)```", (tmp_path / "net/README.md").read_text(), re.DOTALL)
    assert program
    exec(program[1], {})
    assert capsys.readouterr().out.strip() in CLASSES


def test_results_stand_in_the_card(small_run, few_images, tmp_path, capsys):
    checkpoint = small_run / "checkpoint.ckpt"
    results = evaluate(checkpoint, workers=0, device="cpu", output=tmp_path / "validation")
    file = tmp_path / "validation/results.json"
    arguments = ["publish", str(small_run), "--to", str(tmp_path / "net"), "--results", str(file)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("config.json, README.md, results-1.json")
    text = (tmp_path / "net/README.md").read_text()
    assert f"| top-1 | {results['top1']:.3%} |" in text
    assert (tmp_path / "net/results-1.json").read_text() == file.read_text()
    # a published folder is evaluated by the same command
    again = evaluate(tmp_path / "net", workers=0, device="cpu")
    assert (again["top1"], again["loss"]) == (results["top1"], pytest.approx(results["loss"], abs=1e-6))

    foreign = json.loads(file.read_text())
    foreign["model"]["sha256"] = "0" * 64
    file.write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match=r"results: expected those of the raw weights in .*, whose sha256 is 000"):
        publish(small_run, tmp_path / "other", results=[file])
    file.write_text('{"kind": "operators", "model": {}}')
    with pytest.raises(ValueError, match="results: expected an evaluation, got operators"):
        publish(small_run, tmp_path / "other", results=[file])
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"results: expected a results.json of"):
        publish(small_run, tmp_path / "other", results=[file])
    assert not (tmp_path / "other").exists()


def test_folder_that_is_there_is_kept(small_run, tmp_path):
    to = tmp_path / "net"
    publish(small_run, to)
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    with pytest.raises(ValueError, match=r"to: expected a folder that does not exist, got .*; pass overwrite"):
        publish(small_run, to, license="other")
    publish(small_run, to, license="other", overwrite=True)
    assert "other" in (to / "README.md").read_text()
    assert (to / "model.safetensors").read_bytes() == before["model.safetensors"]
    (to / "thesis.tex").write_text("my own")
    with pytest.raises(ValueError, match=r"got .*, which also holds \['thesis.tex'\]"):
        publish(small_run, to, overwrite=True)
    with pytest.raises(ValueError, match="to: expected the name of a folder, got the file"):
        publish(small_run, to / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "run"]


def test_folder_is_whole_or_not_there(small_run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    publish(small_run, tmp_path / "net")
    before = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    monkeypatch.setattr(module, "card", full)
    for name in ("net", "other"):
        with pytest.raises(OSError, match="No space left"):
            publish(small_run, tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "run"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()} == before


HOLDER = """
import sys
from pathlib import Path
from localmix.tasks.engine.claim import claim
with claim(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "model.safetensors").write_text("half")
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_makes_is_left_to_it(small_run, tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / ".net.partial")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"claimed\n"
        with pytest.raises(ValueError, match=r"^to: another process is at work in .*net\.partial; wait"):
            publish(small_run, tmp_path / "net")
        assert (tmp_path / ".net.partial/model.safetensors").read_text() == "half"
        process.kill()
    # what that has left, and one that was killed while it replaced a folder
    (tmp_path / ".net.before").mkdir()
    (tmp_path / ".net.before/config.json").write_text("old")
    publish(small_run, tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "run"]
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_folder_that_another_process_has_made_meanwhile_is_kept(small_run, tmp_path, monkeypatch):
    to = tmp_path / "net"

    def of_another(*args, **kwargs):
        to.mkdir()
        (to / "README.md").write_text("theirs")

    # what is asked between the first look at the folder and its making
    monkeypatch.setattr(module, "output_folder", of_another)
    with pytest.raises(ValueError, match=r"to: expected a folder that does not exist, got .*; pass overwrite"):
        publish(small_run, to)
    assert [path.name for path in to.iterdir()] == ["README.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "run"]


def test_permissions_are_those_of_other_files(small_run, tmp_path):
    publish(small_run, tmp_path / "net")
    assert len({path.stat().st_mode for path in (tmp_path / "net").iterdir()}) == 1


def test_wrong_sources_are_refused(small_run, tmp_path, capsys):
    assert main(["publish", str(small_run), "--to", str(tmp_path / "net"), "--weights", "ema"]) == 2
    assert "weights: expected 'raw'" in capsys.readouterr().err
    assert main(["publish", str(tmp_path), "--to", str(tmp_path / "net")]) == 2
    assert "source: expected a file, found nothing" in capsys.readouterr().err
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    "words",
    ["I/O error: File too large (os error 27)", "IoError(Os { code: 27, kind: FileTooLarge })"],
)
def test_a_full_disk_is_told_however_safetensors_words_it(small_run, tmp_path, monkeypatch, words):
    def save(*args, **kwargs):
        raise SafetensorError(f"Error while serializing: {words}")

    monkeypatch.setattr("localmix.reports.publishing.classification.save_for_hf", save)
    with pytest.raises(OSError, match=r"File too large while writing: '.*net'"):
        publish(small_run, tmp_path / "net")


def test_a_full_disk_leaves_nothing_and_is_told_with_the_name_of_the_folder(small_run, tmp_path, full_disk):
    with full_disk(20_000), pytest.raises(OSError, match=r"File too large while writing: '.*net'"):
        publish(small_run, tmp_path / "net")
    assert not list(tmp_path.glob("*net*")) and not list(tmp_path.glob(".*"))
