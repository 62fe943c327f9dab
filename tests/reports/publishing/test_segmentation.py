import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from localmix.cli import main
from localmix.reports.evaluation.segmenter import load_segmenter
from localmix.reports.evaluation.tasks import task_of
from localmix.reports.publishing.publish import publish

HELD = ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_same_net_is_loaded(segmenter, tmp_path, capsys, weights):
    assert main(["publish", str(segmenter), "--to", str(tmp_path / "net"), "--weights", weights]) == 0
    assert f", {weights} weights" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    expected = load_segmenter(segmenter, weights)
    image = Image.effect_noise((41, 33), 90)
    for model in (tmp_path / "net", tmp_path / "net/model.safetensors"):
        assert task_of(model) == "segmentation"
        found = load_segmenter(model)
        for name, value in expected.net.state_dict().items():
            assert torch.equal(found.net.state_dict()[name], value), name
        assert found.labelling == expected.labelling
        assert (found.short_side, found.mean, found.std) == (32, expected.mean, expected.std)
        assert torch.equal(found(image), expected(image))
        assert found(image).shape == (33, 41)


def test_commands_take_the_folder_and_the_card_has_its_results(segmenter, small_scenes, tmp_path, monkeypatch, capsys):
    arguments = ["--device", "cpu", "--output"]
    assert main(["validate", str(segmenter), *arguments, str(tmp_path / "out")]) == 0
    publish(segmenter, tmp_path / "net", results=[tmp_path / "out/results.json"])
    again = ["validate", str(tmp_path / "net"), *arguments, str(tmp_path / "again")]
    assert main(again) == 2
    assert "data: expected a folder of images and label maps, got none" in capsys.readouterr().err
    assert main([*again, "--data", str(small_scenes)]) == 0
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "again"))
    assert first["per_class"] == second["per_class"] and first["view"] == second["view"]
    image = str(small_scenes / "images/val/0.png")
    assert main(["predict", str(tmp_path / "net"), image, "--output", str(tmp_path / "drawn"), "--device", "cpu"]) == 0

    text = (tmp_path / "net/README.md").read_text()
    assert ModelCard(text).data.pipeline_tag == "image-segmentation"
    assert f"| mIoU | {first['miou']:.2%} |" in text
    assert "| absent classes, in no mean | never |" in text
    assert "UPerNet on `dwnet_nano` (depth-wise convolution)" in text and "4 classes, trained on scenes" in text
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.open(image).convert("RGB").save("photo.jpg")
    capsys.readouterr()
    exec(program[1], {})
    assert set(re.findall(r"^\w+", capsys.readouterr().out, re.MULTILINE)) <= {"red", "green", "blue", "never"}
