import re

import numpy as np
import pytest
import torch
from PIL import Image

from localmix.cli import main
from localmix.reports import predict_detection, predict_segmentation
from localmix.reports.predict import Classifier
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.training import train
from localmix.tasks.engine.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def images(few_images):
    return load_images()


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train({"model": "localmlp_nano"}, images, folder, epochs=1, batch_size=8, seed=0)
    return folder / "checkpoint.ckpt"


@pytest.fixture
def shoe(images, tmp_path):
    Image.fromarray(images.validation.images[0, 0].numpy()).save(tmp_path / "shoe.png")
    return tmp_path / "shoe.png"


def test_probabilities_are_those_of_the_trained_net(checkpoint, images, shoe):
    from localmix.tasks.classification.task import Classification

    content = load_checkpoint(checkpoint)
    task = Classification(**content["hyper_parameters"]).eval()
    task.load_state_dict(content["state_dict"])
    with torch.inference_mode():
        expected = task(images.validation[None, 0, [0]][0])[0].softmax(0)
    ranking = Classifier(checkpoint)(shoe, top=10)
    assert [name for name, _ in ranking] == [images.classes[i] for i in expected.argsort(descending=True)]
    assert [p for _, p in ranking] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-6)


def test_prints_top_classes_of_each_image(checkpoint, shoe, capsys):
    assert main(["predict", str(checkpoint), str(shoe), str(shoe), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0] == lines[4] == str(shoe)
    shares = [float(re.fullmatch(r"  .+?  +([\d.]+)%", line)[1]) for line in lines[1:4]]
    assert sorted(shares, reverse=True) == shares


def test_top_beyond_the_classes_shows_all(checkpoint, shoe, capsys):
    assert main(["predict", str(checkpoint), str(shoe), "--top", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "1"])
def test_takes_images_of_every_mode(checkpoint, tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "image.png")
    assert sum(p for _, p in Classifier(checkpoint)(tmp_path / "image.png", top=10)) == pytest.approx(1, abs=1e-5)


def test_corrupt_image_is_named_and_the_others_are_done(checkpoint, shoe, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(shoe.read_bytes()[:100])
    arguments = [str(tmp_path / name) for name in ("broken.png", "missing.png", "shoe.png")]
    assert main(["predict", str(checkpoint), *arguments]) == 1
    captured = capsys.readouterr()
    assert "broken.png: cannot be decoded" in captured.err
    assert "missing.png: no such file" in captured.err
    assert captured.out.startswith(str(shoe))


def damage(path, checkpoint, how):
    content = load_checkpoint(checkpoint)
    if how == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    elif how == "foreign":
        torch.save({"model": {}}, path)
    elif how == "unknown net":
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "model": "dwnet_zepto"}}, path)
    elif how == "other net":
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "model": "dwnet_nano"}}, path)
    elif how == "no classes":
        torch.save({**content, "hyper_parameters": {}}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "found nothing"),
        ("truncated", "is truncated"),
        ("foreign", "was not written by localmix"),
        ("unknown net", "does not fit a net of localmix: .* got 'dwnet_zepto'"),
        ("other net", "does not fit a net of localmix: .*state_dict"),
        ("no classes", "does not fit a net of localmix: .*'classes'"),
    ],
)
def test_wrong_checkpoint_is_refused(checkpoint, shoe, tmp_path, capsys, how, message):
    path = tmp_path / "wrong.ckpt"
    damage(path, checkpoint, how)
    assert main(["predict", str(path), str(shoe)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)
    assert "wrong.ckpt" in captured.err


def test_a_name_alone_is_refused_as_it_has_no_weights(shoe, capsys):
    assert main(["predict", "dwnet_nano", str(shoe)]) == 2
    expected = "model: expected a checkpoint, the folder of a run or a published folder, found nothing: dwnet_nano"
    assert capsys.readouterr().err == f"localmix: error: {expected}\n"


def test_weights_are_those_that_are_asked_for(checkpoint, shoe, tmp_path, capsys):
    content = load_checkpoint(checkpoint)
    average = {f"ema.module.{name.removeprefix('net.')}": value for name, value in content["state_dict"].items()}
    average = {name: torch.zeros_like(value) for name, value in average.items()}  # it knows nothing: 10% each
    torch.save({**content, "state_dict": {**content["state_dict"], **average}}, tmp_path / "averaged.ckpt")

    def printed(path, *options):
        assert main(["predict", str(path), str(shoe), *options]) == 0
        return capsys.readouterr().out

    assert printed(tmp_path / "averaged.ckpt").count(" 10.00%") == 5
    assert printed(tmp_path / "averaged.ckpt", "--weights", "raw") == printed(checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "ema"], "weights: expected"),
        (["--device", "tpu"], "device: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        *(
            ([f"--{name}", value], f"{name.replace('-', '_')}: expected nothing, since the network is one of class")
            for name, value in {"output": "drawn", "tta": "flip", "scales": "2", "min-score": "0.1"}.items()
        ),
    ],
)
def test_option_that_cannot_be_followed_is_refused(checkpoint, shoe, capsys, options, message):
    assert main(["predict", str(checkpoint), str(shoe), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_top_of_none_is_refused(checkpoint, shoe, capsys):
    assert main(["predict", str(checkpoint), str(shoe), "--top", "0"]) == 2
    assert "top: expected an int of at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("predict", [predict_detection.predict, predict_segmentation.predict])
def test_an_output_that_takes_no_pictures_is_refused_before_the_network_is_read(tmp_path, predict):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: expected a folder, got .*file, a file$"):
        predict(tmp_path / "none", [tmp_path / "none.png"], output=tmp_path / "file")
