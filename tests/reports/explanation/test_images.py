"""The command from end to end: pictures, page, numbers, and what it refuses."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from localmix.cli import main
from localmix.reports.compare import compare
from localmix.reports.explanation.images import explain_images
from localmix.reports.explanation.selection import parse_position, shares
from localmix.tasks.fashion_mnist import load as load_all  # as it is now, whatever a fixture cuts later


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three images of several sizes, one in colour."""
    folder = tmp_path_factory.mktemp("images")
    images, _ = load_all("test")
    for index, size in enumerate([(28, 28), (40, 30), (31, 50)]):
        mode = "RGB" if index == 1 else "L"
        Image.fromarray(images[index]).convert(mode).resize(size).save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(3)]


def test_all_parts_of_two_networks(photographs, tmp_path, capsys):
    command = ["explain", "--image", *map(str, photographs), "--model", "dynamic_dwnet_nano", "localswin_nano"]
    options = ["--img-size", "30", "--positions", "0.9,0.2", "3,29", "--layers", "1", "stages.2.blocks.1.mixer"]
    assert main([*command, *options, "--draw", "1", "--probes", "1", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "dynamic_dwnet_nano: random weights: it is not trained" in out
    facts = json.loads((tmp_path / "explain.json").read_text())
    assert {model["weights"] for model in facts["models"]} == {"random"}
    names = [f"weights_1_{position}_{group}.png" for position in (1, 2) for group in ("mean", 0)]
    assert facts["pictures"] == [*names, "connections.png", "receptive_field.png", "variation.png"]
    page = (tmp_path / "index.html").read_text()
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture) for picture in shown] == [
        (tmp_path / name).read_bytes() for name in facts["pictures"]
    ]
    assert not re.search(r'src="(?!data:)|https?://', page), "the page needs no other file"
    assert "Random weights, as before training: dynamic_dwnet_nano, localswin_nano" in page
    for where in ("x = 27, y = 6", "x = 3, y = 29"):  # a pixel is called what it was asked for
        assert f"{where} of 30 × 30 pixels" in page
    for name in facts["pictures"]:
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"), float)
        assert pixels.shape[1] > 500
        assert pixels.std() > 10

    assert len(facts["weights"]) == 2 * 2 * 2 * 2  # positions, groups, layers, networks
    for one in facts["weights"]:
        if one["normalised"]:
            assert one["model"] == "localswin_nano"
            assert 0 < np.nansum(np.array(one["weight"], float)) <= 1 + 1e-5
    # x = 0.9 of 30 on a map of 15 x 15: a kernel of 7 x 7 that the border cuts
    first = facts["weights"][0]
    assert (first["map"], first["row"], first["column"]) == ([15, 15], 3, 13)
    assert first["box"] == [20, 0, 30, 14]
    # three numbers for each of the 9 mixers of each network
    assert len(facts["variation"]) == 18
    assert all(0 < row["images"] <= 1 for row in facts["variation"])
    assert {row["positions"] == 0 for row in facts["variation"] if row["model"] == "dynamic_dwnet_nano"} == {True}
    assert {row["stage"] for row in facts["receptive_field"]} == {1}
    assert all(row["images"] == 3 for row in facts["receptive_field"])


def test_a_run_and_whole_images(few_images, photographs, tmp_path):
    compare(mixers=["local_mlp"], img_size=16, epochs=1, batch_size=12, processes=1, output=tmp_path / "runs")
    run = tmp_path / "runs/localmlp_nano/seed-0"
    said = []
    facts = explain_images(
        photographs,
        [run],
        whole=True,
        show=["weights", "variation"],
        layers=[1],
        groups=["mean"],
        output=tmp_path / "out",
        announce=said.append,
    )
    assert said[0] == f"localmlp_nano: {run / 'checkpoint.ckpt'}"
    assert facts["models"][0]["weights"]["checkpoint"] == str(run / "checkpoint.ckpt")
    assert "Random weights" not in (tmp_path / "out/index.html").read_text()
    assert [image["size"] for image in facts["images"]] == [[28, 28], [30, 40], [50, 31]]
    assert all(row["images"] is None for row in facts["variation"]), "sizes differ"


def test_points_of_the_space_and_other_networks(photographs, tmp_path):
    points = ["sliding3/shared-positions/groups4/mixture2", "window4/shared-windows/shared-channels/static"]
    facts = explain_images(
        photographs[:2], points, img_size=16, show=["variation", "connections"], output=tmp_path / "points"
    )
    assert [model["label"] for model in facts["models"]] == points
    first, second = (next(row for row in facts["variation"] if row["model"] == point) for point in points)
    assert (first["positions"], second["channels"], second["images"]) == (0, 0, 0)
    assert first["images"] > 0
    facts = explain_images(
        photographs[:1], ["test_resnet"], img_size=32, show=["receptive_field"], num_probes=1, output=tmp_path / "other"
    )
    assert facts["pictures"] == ["receptive_field.png"]
    assert "variation" not in facts


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"models": ["test_resnet"]}, r"model: expected a network of local mixers.*test_resnet is one; its receptive"),
        ({"models": ["dwnet_nano", "dwnet_tiny"]}, r"img_size: expected one size.*dwnet_nano 64 x 64.*--img-size"),
        ({"models": ["dwnet_nano", "dwnet_nano"]}, r"model: expected each once"),
        ({"models": ["dwnet_nona"]}, r"model: expected the name of a network.*dwnet_nano"),
        ({"models": ["sliding3/shared-positions/groups4/dot-product"]}, r"^positions: "),
        ({"models": ["dwnet_nano"], "weights": "ema"}, r"weights: expected nothing, since dwnet_nano is the name"),
        ({"output": __file__}, r"output: expected a folder, got .*, a file"),
        ({"layers": [5]}, r"layers: expected a stage of 1 \.\.\. 4 in dwnet_nano, got 5"),
        ({"layers": ["head"]}, r"layers: expected a stage from 1, or one of stages.0.blocks.0.mixer"),
        ({"groups": [24], "layers": [1]}, r"groups: expected mean or one of 0 \.\.\. 23 in stages.0.blocks.1.mixer"),
        ({"positions": [(64, 0)]}, r"positions: expected x, y within 64 x 64 pixels, got 64,0"),
        ({"positions": [(1.5, 0.0)]}, r"positions: expected x, y as shares"),
        ({"images": []}, r"images: expected one or more, got none"),
        ({"show": ["pictures"]}, r"show: expected"),
        ({"draw": 0}, r"draw: expected"),
        ({"checkpoint": "a.pth", "models": ["dwnet_nano", "dwnet_tiny"]}, r"checkpoint: expected a single model"),
    ],
)
def test_what_is_refused(photographs, tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        explain_images(**{"images": photographs[:1], "models": ["dwnet_nano"], "output": tmp_path, **options})
    assert not list(tmp_path.iterdir())


def test_the_command_wants_a_name_or_images(photographs, capsys):
    for arguments in ([], ["local_mlp", "--image", str(photographs[0])]):
        with pytest.raises(SystemExit):
            main(["explain", *arguments])
        assert "expected NAME (for text), or --image FILE" in capsys.readouterr().err


def test_positions():
    assert parse_position("0.5,0.25") == (0.5, 0.25)
    assert parse_position("112,80") == (112, 80)
    assert shares((112, 80), 100, 200) == (112.5 / 200, 80.5 / 100)
    for wrong in ("1", "a,b", "1,2,3"):
        with pytest.raises(ValueError, match="positions: expected x,y such as"):
            parse_position(wrong)


def test_pictures_can_be_read():
    """A PNG of the smallest grid: one network, one layer."""
    from localmix.reports.explanation.weights_figure import Laid, draw

    laid = Laid(np.array([[0.5, np.nan], [-1.0, 0.25]]), (0, 0), (4.0, 4.0), False)
    assert (laid.box, laid.largest) == ((0, 0, 8, 8), 1)
    png = draw([np.zeros((8, 8, 3), np.uint8)], ["*net"], [("stage 1", [laid])], (1, 1), title="t", note="n")
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
    blue = (picture[:, 2] > picture[:, 0] + 60).sum()
    red = (picture[:, 0] > picture[:, 2] + 60).sum()
    assert min(blue, red) > 1000, "weights below and above zero have colours of their own"
