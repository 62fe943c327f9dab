import csv
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from timm.utils import accuracy
from torch import nn
from torch.nn import functional as F

from localmix.cli import main
from localmix.models import create_model
from localmix.reports.evaluation import classification
from localmix.reports.evaluation.classification import evaluate
from localmix.reports.evaluation.outcome import Outcome
from localmix.tasks import fashion_mnist
from localmix.tasks.engine.checkpoint import save_checkpoint
from localmix.tasks.fashion_mnist import load as load_all  # as it is now, whatever a fixture cuts later
from localmix.tasks.images import CorruptImage

CLASSES = list(fashion_mnist.CLASSES)
PLAIN = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def garments():
    """garments(root, {"bag": 3, ...}): a folder of real images, of other sizes than any net wants."""
    images, labels = load_all("test")

    def write(root, numbers):
        for name, number in numbers.items():
            (root / name).mkdir(parents=True)
            for index in (labels == CLASSES.index(name)).nonzero()[0][:number]:
                pixels = np.stack([images[index], images[index + 1], images[index]], axis=-1)
                Image.fromarray(pixels).resize((40, 31 + index % 7)).save(root / name / f"{index}.png")
        return root

    return write


@pytest.fixture(scope="module")
def seven(garments, tmp_path_factory):
    names = ("Bag", "Coat", "Dress", "Pullover", "Sandal", "Shirt", "Sneaker")
    return garments(tmp_path_factory.mktemp("seven"), dict(zip(names, (1, 2, 3, 3, 2, 4, 4), strict=True)))


def weights(path, name, **options):
    """Weights that answer differently to different images, as a file."""
    torch.manual_seed(1)
    net = timm.create_model(name, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.0)
    nn.init.normal_(net.get_classifier().weight, std=0.5)
    save_file(net.state_dict(), path)
    return net


def saved(path, net, *, classes=CLASSES, size=28, in_chans=1, model="dwnet_nano", ema=None):
    facts = {"model": model, "classes": list(classes), "img_size": size, "in_chans": in_chans}
    facts |= {"mean": [0.3] * in_chans, "std": [0.4] * in_chans}
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    if ema is not None:
        state |= {f"ema.module.{name}": value for name, value in ema.state_dict().items()}
    content = {"hyper_parameters": facts, "state_dict": state, "epoch": 1, "global_step": 7}
    save_checkpoint(content, path)
    return path


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A checkpoint of a net for grey images, and the net."""
    path = tmp_path_factory.mktemp("grey") / "weights.safetensors"
    net = weights(path, "localmlp_nano", num_classes=10, in_chans=1)
    return saved(path.with_name("checkpoint.ckpt"), net, model="localmlp_nano"), net


def plain_loop(net, root, transform, flip=False):
    """An independent evaluation of class folders: an image at a time, with timm's own transform and accuracy."""
    names = sorted(path.name for path in root.iterdir())
    logits, labels = [], []
    for path in sorted(root.glob("*/*"), key=lambda path: (path.parent.name, path)):
        image = transform(Image.open(path).convert("RGB"))[None]
        with torch.inference_mode():
            probabilities = net(image).softmax(1)
            if flip:
                probabilities = (probabilities + net(image.flip(3)).softmax(1)) / 2
        logits.append(probabilities.log())
        labels.append(names.index(path.parent.name))
    logits, labels = torch.cat(logits), torch.tensor(labels)
    top1, top5 = accuracy(logits, labels, topk=(1, 5))
    return {
        "top1": top1.item() / 100,
        "top5": top5.item() / 100,
        "loss": F.cross_entropy(logits, labels).item(),
    }, (logits.argmax(1), labels)


@pytest.mark.parametrize(
    ("model", "options", "config"),
    [
        ("test_resnet", {"img_size": 64}, {}),
        ("test_resnet", {"img_size": 48, "crop_pct": 0.7, "tta": "flip"}, {"crop_pct": 0.7}),
        ("test_vit3", {"img_size": 96, "interpolation": "bilinear"}, {"interpolation": "bilinear"}),
        ("dwnet_nano", {}, {}),
    ],
)  # fmt: skip
def test_equals_a_plain_loop_with_the_transforms_of_timm(seven, tmp_path, model, options, config):
    size = {"img_size": 96} if model == "test_vit3" else {}
    net = weights(tmp_path / "net.safetensors", model, num_classes=7, **size)
    side = options.get("img_size", 64)
    transform = create_transform(**{**resolve_model_data_config(net), **config, "input_size": (3, side, side)})
    expected, (guesses, labels) = plain_loop(net, seven, transform, flip=options.get("tta") == "flip")
    # 19 images: the last batch holds 4
    results = evaluate(
        model, checkpoint=tmp_path / "net.safetensors", split="test", data=str(seven), batch_size=5, **options, **PLAIN
    )
    assert expected["top1"] < expected["top5"], "else there is nothing to tell apart"
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert results["images"] == 19
    for row in results["per_class"]:
        chosen = labels == row["output"]
        assert row["images"] == chosen.sum()
        assert row["top1"] == pytest.approx((guesses[chosen] == row["output"]).float().mean().item())
    assert results["mean_class_accuracy"] == pytest.approx(np.mean([row["top1"] for row in results["per_class"]]))


def test_weights_for_another_size_are_resized_as_timm_does(seven, tmp_path):
    file = tmp_path / "net.safetensors"
    weights(file, "test_vit3", num_classes=7)
    config = {"file": str(file), "num_classes": 7}
    net = timm.create_model(
        "test_vit3", pretrained=True, pretrained_cfg_overlay=config, num_classes=7, img_size=96
    ).eval()
    transform = create_transform(**{**resolve_model_data_config(net), "input_size": (3, 96, 96)})
    expected, _ = plain_loop(net, seven, transform)
    results = evaluate("test_vit3", checkpoint=file, split="test", data=str(seven), img_size=96, **PLAIN)
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_figures_do_not_depend_on_batches_and_processes(seven, tmp_path):
    weights(tmp_path / "net.safetensors", "dwnet_nano", num_classes=7)
    options = {"checkpoint": tmp_path / "net.safetensors", "split": "test", "data": str(seven), "device": "cpu"}
    first = evaluate("dwnet_nano", **options, batch_size=19, workers=0)
    second = evaluate("dwnet_nano", **options, batch_size=3, workers=1)
    assert second["per_class"] == first["per_class"]
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)


def test_bfloat16_is_near_float32(seven, tmp_path):
    weights(tmp_path / "net.safetensors", "dwnet_nano", num_classes=7)
    options = {"checkpoint": tmp_path / "net.safetensors", "split": "test", "data": str(seven), **PLAIN}
    exact, rounded = (evaluate("dwnet_nano", **options, precision=p)["loss"] for p in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_grey_net_on_the_embedded_images(grey, few_images):
    checkpoint, net = grey
    images, labels = fashion_mnist.load("test")
    with torch.inference_mode():
        logits = net((torch.from_numpy(images)[:, None] / 255 - 0.3) / 0.4)
    results = evaluate(checkpoint, **PLAIN)
    assert results["images"] == 8
    assert results["top1"] == pytest.approx((logits.argmax(1).numpy() == labels).mean())
    assert results["loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item(), abs=1e-5)
    assert results["model"]["checkpoint"] == str(checkpoint)
    assert results["model"]["step"] == 7


def test_embedded_images_that_nobody_asked_for_are_announced(few_images, tmp_path, capsys):
    """A published folder does not know its images: without a word, classes that do not fit would be a riddle."""
    weights(tmp_path / "net.safetensors", "dwnet_nano", num_classes=3)
    with pytest.raises(ValueError, match="classes"):
        evaluate("dwnet_nano", checkpoint=tmp_path / "net.safetensors", img_size=16, **PLAIN)
    assert "is shown the embedded images; --data names others" in " ".join(capsys.readouterr().err.split())


def test_grey_net_on_files_in_colour_and_colour_net_on_grey_images(grey, garments, few_images, tmp_path):
    root = garments(tmp_path / "files", {"Bag": 2, "Coat": 2})
    assert evaluate(grey[0], data=str(root), split="test", **PLAIN)["view"]["channels"] == 1
    net = create_model("localmlp_nano", num_classes=10)
    path = saved(tmp_path / "net.ckpt", net, in_chans=3, model="localmlp_nano")
    assert evaluate(path, **PLAIN)["view"]["channels"] == 3


def test_files_are_written_where_nobody_reads_the_table(grey, tmp_path, monkeypatch):
    def cut(*_):
        raise SystemExit(1)

    monkeypatch.setattr(classification, "_print", cut)
    with pytest.raises(SystemExit):
        evaluate(grey[0], output=tmp_path / "out", **PLAIN)
    assert (tmp_path / "out/results.json").is_file()


def test_absent_classes_are_absent_and_not_zero(grey, garments, tmp_path):
    root = garments(tmp_path / "files", {"Coat": 3, "Bag": 2})
    results = evaluate(grey[0], data=str(root), split="test", output=tmp_path / "out", **PLAIN)
    assert results["absent"] == [name for name in CLASSES if name not in ("Coat", "Bag")]
    rows = {row["class"]: row for row in results["per_class"]}
    assert rows["Trouser"] == {
        "class": "Trouser", "output": 1, "images": 0, "top1": None, "top5": None, "most_often_taken_for": None,
    }  # fmt: skip
    assert rows["Coat"]["output"] == CLASSES.index("Coat"), "by name, though the folders are in another order"
    assert (rows["Coat"]["images"], rows["Bag"]["images"]) == (3, 2)
    mean = (rows["Coat"]["top1"] + rows["Bag"]["top1"]) / 2
    assert results["mean_class_accuracy"] == pytest.approx(mean)
    lines = list(csv.DictReader((tmp_path / "out/per_class.csv").read_text().splitlines()))
    assert [line["top1"] for line in lines if line["class"] == "Trouser"] == [""]


def test_moving_average_by_default_and_the_weights_on_request(grey, few_images, tmp_path):
    _, net = grey
    torch.manual_seed(5)
    other = create_model("localmlp_nano", num_classes=10, in_chans=1)
    both = saved(tmp_path / "both.ckpt", net, model="localmlp_nano", ema=other)
    alone = saved(tmp_path / "other.ckpt", other, model="localmlp_nano")
    raw, ema = (evaluate(both, weights=kind, **PLAIN)["loss"] for kind in ("raw", "ema"))
    assert raw == evaluate(grey[0], **PLAIN)["loss"]
    assert ema == evaluate(alone, **PLAIN)["loss"] != raw
    default = evaluate(both, **PLAIN)
    assert (default["loss"], default["model"]["weights"]) == (ema, "ema")
    with pytest.raises(ValueError, match=r"weights: expected 'raw' for .*other.ckpt, got 'ema'"):
        evaluate(alone, weights="ema", **PLAIN)


@pytest.mark.parametrize("among", ["net", "data"])
def test_imagenet_net_on_some_classes_of_imagenet(garments, tmp_path, among):
    root = garments(tmp_path / "files", {"Bag": 3, "Coat": 3})
    ids = {"Bag": "n01440764", "Coat": "n03888257"}
    for name, synset in ids.items():
        (root / name).rename(root / synset)
    outputs = [ImageNetInfo().label_names().index(synset) for synset in ids.values()]
    net = weights(tmp_path / "net.safetensors", "test_resnet")
    transform = create_transform(**resolve_model_data_config(net))
    with torch.inference_mode():
        logits = torch.cat([net(transform(Image.open(p).convert("RGB"))[None]) for p in sorted(root.glob("*/*"))])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    logits, labels = (logits, torch.tensor(outputs)[labels]) if among == "net" else (logits[:, outputs], labels)
    results = evaluate(
        "test_resnet", checkpoint=tmp_path / "net.safetensors", split="test", data=str(root), among=among, **PLAIN
    )
    assert results["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
    assert results["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert len(results["per_class"]) == (1000 if among == "net" else 2)
    assert len(results["absent"]) == (998 if among == "net" else 0)
    assert results["per_class"][0]["class"] == "tench (n01440764)"


def test_corrupt_image_is_named_or_left_out(grey, garments, tmp_path, capsys):
    root = garments(tmp_path / "files", {"Bag": 3, "Coat": 3})
    (root / "Bag/0.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(CorruptImage, match=r"^data: .*Bag/0.png: cannot be decoded") as caught:
            evaluate(grey[0], data=str(root), split="test", workers=workers, device="cpu")
        assert "Traceback" not in str(caught.value)
    results = evaluate(grey[0], data=str(root), split="test", on_corrupt="skip", batch_size=1, **PLAIN)
    assert results["images"] == 6
    assert len(results["data"]["skipped"]) == 1
    assert "left out 1 image(s)" in capsys.readouterr().out
    for path in root.glob("*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="found none but 7 that cannot be decoded"):
        evaluate(grey[0], data=str(root), split="test", on_corrupt="skip", **PLAIN)


def test_answers_that_are_not_finite_count_as_wrong(grey, few_images, tmp_path, capsys):
    _, net = grey
    broken = create_model("localmlp_nano", num_classes=10, in_chans=1)
    broken.load_state_dict(net.state_dict())
    broken.head.fc.bias.data[3] = float("nan")
    results = evaluate(saved(tmp_path / "net.ckpt", broken, model="localmlp_nano"), output=tmp_path / "out", **PLAIN)
    assert (results["top1"], results["top5"], results["not_finite"]) == (0, 0, 8)
    assert "no finite numbers for 8 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/results.json").read_text())["loss"] is None


def test_size_that_a_net_does_not_take_is_refused(few_images, tmp_path):
    net = create_model("test_vit3", num_classes=10, in_chans=1)
    path = saved(tmp_path / "vit.ckpt", net, model="test_vit3", size=160)
    assert evaluate(path, **PLAIN)["view"]["size"] == (160, 160)
    with pytest.raises(ValueError, match="img_size: test_vit3 does not take images of 96 x 96 pixels: "):
        evaluate(path, img_size=96, **PLAIN)


def test_what_is_written(grey, few_images, tmp_path, capsys):
    assert main(["validate", str(grey[0]), "--output", str(tmp_path), "--workers", "0", "--device", "cpu"]) == 0
    assert "top-1" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() >= {
        "top1",
        "top5",
        "loss",
        "per_class",
        "view",
        "settings",
        "environment",
        "command",
        "commit",
    }
    assert results["environment"]["versions"].keys() >= {"localmix", "torch", "timm"}
    lines = list(csv.DictReader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert sum(int(line["images"]) for line in lines) == 8
    right = sum(int(line["images"]) for line in lines if line["class"] == line["prediction"])
    assert right / 8 == pytest.approx(results["top1"])
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_validation_and_test_images(grey, garments, tmp_path, capsys):
    for split, number in (("val", 1), ("test", 2)):
        garments(tmp_path / "both" / split, {"Bag": number, "Coat": number})
    data = str(tmp_path / "both")
    assert evaluate(grey[0], data=data, **PLAIN)["images"] == 2
    assert evaluate(grey[0], data=data, split="test", **PLAIN)["images"] == 4
    with pytest.raises(ValueError, match=r"expected test images in .*seen/test, found the folders \['train', 'val'\]"):
        garments(tmp_path / "seen/train", {"Bag": 1})
        garments(tmp_path / "seen/val", {"Bag": 1})
        evaluate(grey[0], data=str(tmp_path / "seen"), split="test", **PLAIN)


def test_throughput_by_the_protocol(grey, few_images, monkeypatch):
    calls = []
    forward = nn.Module.__call__

    def count(module, *args, **kwargs):
        if type(module).__name__ == "Hierarchy":
            calls.append((module.training, args[0].shape))
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", count)
    results = evaluate(grey[0], throughput=2, img_size=16, **PLAIN)
    assert results["images_per_second"] > 1
    assert calls[2:] == [(False, (2, 1, 16, 16))] * 80, "50 to warm up and 30 that are timed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dwnet_nano"], "model: expected weights for 'dwnet_nano', either pretrained .* got neither"),
        (["dwnet_nano", "--pretrained"], "model: cannot load the weights of 'dwnet_nano': No pretrained weights exist"),
        (["dwnet_nanoo", "--pretrained"], "model: .* got 'dwnet_nanoo'.*dwnet_nano"),
        (["resnet50.none", "--pretrained"], r"model: Invalid pretrained tag \(none\) for resnet50"),
        (["runs/none"], "model: no such checkpoint or folder: runs/none"),
        (["none.ckpt"], "model: expected a file, found nothing: none.ckpt"),
        (["WEIGHTS"], "model: expected a checkpoint .*NAME --checkpoint"),
        (["dwnet_nano", "--checkpoint", "WEIGHTS"], "checkpoint: expected the weights of dwnet_nano"),
        (["test_resnet", "--checkpoint", "WEIGHTS"], "checkpoint: expected the weights of test_resnet"),
        (["GREY", "--pretrained"], "pretrained: expected nothing, since .* is a checkpoint"),
        (["GREY", "--data", "FOREIGN"], r"data: expected classes that the network knows .* got 1 of 2 .*: \['hat'\]"),
        (["test_vit", "--checkpoint", "VIT", "--data", "FOREIGN"], r"data: expected 5 classes .*: \['Bag', 'hat'\]"),
        (["GREY", "--crop-pct", "1.5"], "crop_pct: expected more than 0 and at most 1, got 1.5"),
        (["GREY", "--interpolation", "cubic"], "interpolation: expected one of .* got 'cubic'"),
        (["GREY", "--img-size", "0"], "img_size: expected an int of at least 1, got 0"),
        (["GREY", "--batch-size", "0"], "batch_size: expected an int of at least 1, got 0"),
        (["GREY", "--data", "nowhere"], "data: expected .*got 'nowhere', which does not exist"),
        (["GREY", "--output", __file__], "output: expected a folder, got .*test_classification.py, a file"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(grey, garments, few_images, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "VIT" in arguments:
        weights(tmp_path / "vit.safetensors", "test_vit", num_classes=5)
    root = garments(tmp_path / "foreign", {"Bag": 1, "Coat": 1})
    (root / "Coat").rename(root / "hat")
    places = {"GREY": grey[0], "WEIGHTS": grey[0].with_name("weights.safetensors"), "FOREIGN": root}
    places["VIT"] = tmp_path / "vit.safetensors"
    assert main(["test", *(str(places.get(word, word)) for word in arguments), "--workers", "0"]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err.replace("\n", " ")), captured.err
    assert captured.out == ""


def test_a_number_of_workers_below_none_is_refused(grey):
    with pytest.raises(ValueError, match=r"^workers: expected at least 0, got -1"):
        evaluate(grey[0], workers=-1)


def test_figures_of_a_known_outcome():
    outcome = Outcome(
        labels=np.array([0, 0, 0, 2, 2, 3]),
        predictions=np.array([0, 2, 2, 2, 0, -1]),
        in_top5=np.array([True, True, False, True, True, False]),
        losses=np.array([0.1, 1.0, 2.0, 0.2, 1.5, np.nan]),
        corrupt=[],
    )
    figures = outcome.figures()
    assert figures.pop("loss") != figures["top1"]
    assert figures == {
        "top1": pytest.approx(2 / 6),
        "top5": pytest.approx(4 / 6),
        "mean_class_accuracy": pytest.approx((1 / 3 + 1 / 2 + 0) / 3),
        "images": 6,
        "not_finite": 1,
    }
    assert outcome.confusion() == [(0, 0, 1), (0, 2, 2), (2, 0, 1), (2, 2, 1), (3, -1, 1)]
    taken_for = [row["most_often_taken_for"] for row in outcome.per_class("abcd")]
    assert taken_for == ["c", None, "a", None]
