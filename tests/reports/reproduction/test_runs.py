import json
from pathlib import Path

import pytest

from localmix.cli import main
from localmix.reports.reproduction import paper_tables, runs
from localmix.reports.reproduction.page import Cell, Grid, Heading, Mark, Paragraph, Picture, html
from localmix.reports.reproduction.runs import find, score, scores

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def run(few_images, fit, tmp_path_factory):
    """A run of `fit` on few images."""
    output = tmp_path_factory.mktemp("runs") / "dwnet"
    assert fit(output, **{"model.name": "dwnet_nano", "trainer.max_epochs": 2}) == 0
    return output


@pytest.fixture(scope="module")
def evaluation(run, tmp_path_factory):
    """Its evaluation."""
    output = tmp_path_factory.mktemp("evaluation")
    assert main(["validate", str(run), "--output", str(output), "--workers", "0"]) == 0
    return output


def blocks(path):
    (found,), left = find([path])
    assert left == []
    content = runs.blocks(found)
    html(content)
    return content


def grids(content):
    return [block for block in content if isinstance(block, Grid)]


def test_a_run_of_fit(run):
    content = blocks(run)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in grids(content)[0].rows}
    metrics = (run / "metrics.csv").read_text().splitlines()
    names, last = metrics[0].split(","), metrics[-1].split(",")
    assert rows["steps"] == [last[names.index("step")], "-"]
    assert rows["val_top1"][0] == f"{100 * float(last[names.index('val_top1')]):.2f} %"
    assert rows["val_loss"][0] == f"{float(last[names.index('val_loss')]):.4f}"
    assert content[0] == Heading("Training of `dwnet_nano` on fashion_mnist", 3)
    assert any(isinstance(block, Picture) and block.source[:4] == b"\x89PNG" for block in content)


def test_best_is_the_highest_share_and_the_lowest_loss(tmp_path):
    rows = ["epoch,step,lr,loss,val_loss,val_top1", "0,1,0.1,3,2,0.5", "1,2,0.1,1,4,0.25"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "1,3,0."]))  # the last is being written
    (grid,) = grids(blocks(tmp_path))
    assert [[cell.text for cell in row] for row in grid.rows] == [
        ["steps", "2", "-"],
        ["loss", "1.0000", "1.0000"],
        ["val_loss", "4.0000", "2.0000"],
        ["val_top1", "25.00 %", "50.00 %"],
    ]


def test_an_evaluation(evaluation):
    content, written = blocks(evaluation), json.loads((evaluation / "results.json").read_text())
    rows = {row[0].text: row[1] for row in grids(content)[0].rows}
    assert rows["top-1 %"].text == f"{100 * written['top1']:.2f}" and rows["top-1 %"].mark is Mark.HERE
    assert rows["images"].text == "8"
    assert any(isinstance(block, Picture) for block in content)
    ((found,), _) = find([evaluation])
    assert score(found) is None


def test_an_evaluation_on_imagenet_has_a_place_in_the_papers_table(evaluation, tmp_path):
    content = json.loads((evaluation / "results.json").read_text())
    content["model"]["name"] = "swin_tiny_patch4_window7_224"
    content["data"]["classes"], content["images"], content["top1"] = 1000, 50_000, 0.8139

    def place(size, tta):
        content["view"]["size"], content["settings"]["tta"] = size, tta
        (tmp_path / "results.json").write_text(json.dumps(content))
        ((found,), _) = find([tmp_path])
        return score(found)

    key, (reached,) = place([224, 224], "none")
    assert key == ("classification", "localswin_tiny") and reached == pytest.approx(81.39)
    # the paper's figures are of one view of 224 pixels
    assert place([384, 384], "none") is None and place([224, 224], "flip") is None


def test_several_evaluations_of_one_network_are_all_shown(evaluation, tmp_path):
    content = json.loads((evaluation / "results.json").read_text())
    content["model"]["name"], content["view"]["size"] = "dwnet_tiny", [224, 224]
    content["data"]["classes"], content["images"] = 1000, 50_000
    for name, top1 in (("a/raw", 0.81), ("a/ema", 0.8126), ("b/ema", 0.8)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps({**content, "top1": top1}))
    reached = scores(find([tmp_path / "a", tmp_path / "a/ema"])[0])["classification", "dwnet_tiny"]
    assert reached == {"raw": pytest.approx((81.0,)), "ema": pytest.approx((81.26,))}
    cell = paper_tables._reached({run: value for run, (value,) in reached.items()})
    assert (cell.text, cell.why) == ("81.3, 81.0", "of several evaluations: 81.3 of `ema`, 81.0 of `raw`")
    both = scores(find([tmp_path / "a", tmp_path / "b"])[0])["classification", "dwnet_tiny"]
    assert list(both) == [f"{tmp_path.as_posix()}/a/ema", "raw", f"{tmp_path.as_posix()}/b/ema"]
    assert paper_tables._reached({"run": 81.0}).why is None


@pytest.mark.parametrize("name", ["compare_fashion_mnist", "networks_cpu", "operators_cpu", "mixer_scaling"])
def test_committed_results(name):
    content = blocks(RESULTS / name)
    written = json.loads((RESULTS / name / "results.json").read_text())
    assert Picture(RESULTS / name / "figure.png", content[-1].caption) == content[-1]
    if name == "compare_fashion_mnist":
        (grid,) = grids(content)
        assert [row[-1].text for row in grid.rows] == [f"{100 * row['top1_mean']:.2f}" for row in written["rows"]]
    if name == "networks_cpu":
        row = next(row for row in written["rows"] if row["direction"] == "training")
        line = next(line for line in grids(content)[0].rows if line[0].text == f"`{row['label']}`")
        assert line[2].text == f"{row['images_per_second']:,.1f}"


def test_costs_and_their_growth(tmp_path):
    assert main(["cost", "dwnet_nano", "resnet18", "--img-size", "32", "--output", str(tmp_path / "cost.json")]) == 0
    (grid,) = grids(blocks(tmp_path / "cost.json"))
    assert [row[0].text for row in grid.rows] == ["`dwnet_nano`", "`resnet18`"]
    assert grid.rows[1][-1].text == "-"


def test_loaders(tmp_path):
    settings = {"images": 512, "img_size": 224, "plain": False, "workers": 1}
    rows = [{"label": "localmix", "images_per_second": 123.45}]
    (tmp_path / "results.json").write_text(
        json.dumps({**ablation(), "kind": "loader", "settings": settings, "rows": rows})
    )
    (grid,) = grids(blocks(tmp_path))
    assert [cell.text for cell in grid.rows[0]] == ["localmix", "123.5"]


@pytest.mark.parametrize(
    ("kind", "settings", "figure", "rows"),
    [
        ("views", {"plain": False, "img_size": 64, "images": 4}, {"times_as_fast_as_timm": 1.5}, ["500", "750"]),
        (
            "epoch",
            {"model": "dwnet_nano", "img_size": 64, "images": 4, "batch": 2, "workers": 1},
            {"times_as_long_as_timm": 1.5},
            ["0.00", "0.00"],
        ),
    ],
)
def test_what_was_timed_beside_timm(tmp_path, kind, settings, figure, rows):
    seconds = {"localmix": [0.001, 0.002, 0.003], "timm": [0.003, 0.003, 0.003]}
    content = {**ablation(), "kind": kind, "settings": {"data": "images", "rounds": 3, **settings}, **figure}
    (tmp_path / "results.json").write_text(json.dumps({**content, "seconds": seconds}))
    (grid,) = grids(blocks(tmp_path))
    assert [row[0].text for row in grid.rows] == ["localmix", "timm"]
    assert [row[1].text for row in grid.rows] == rows
    assert any("1.50 times" in block.text for block in blocks(tmp_path) if isinstance(block, Paragraph))


def ablation():
    point = {"parameters": 10**6, "macs": 10**7, "top1_mean": 0.5, "top1_interval": [0.4, 0.6]}
    point["runs"] = [{"folder": f"runs/a/seed-{seed}", "seconds": 600.0} for seed in range(3)]
    other = {**point, "label": "8 groups", "difference": 0.01, "difference_interval": [-0.01, 0.03], "p_holm": 0.25}
    base = {**point, "label": "1 group", "difference": 0, "difference_interval": None, "p_holm": None}
    about = {"name": "groups", "title": "Groups", "question": "How many?"}
    study = {**about, "baseline": "1 group", "points": [base, other]}
    environment = json.loads((RESULTS / "compare_fashion_mnist" / "results.json").read_text())["environment"]
    settings = {"model": "dwnet_nano", "data": "fashion_mnist", "img_size": 28, "epochs": 2, "seeds": [0, 1, 2]}
    facts = {"settings": settings, "missing": ["heads"], "command": "localmix ablate", "commit": None}
    return {"studies": [study], "environment": environment, **facts}


def test_an_ablation(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(ablation()))
    content = blocks(tmp_path)
    (grid,) = grids(content)
    texts = [[cell.text for cell in row] for row in grid.rows]
    assert texts[0][-3:] == ["baseline", "-", "-"]
    assert texts[1][-4:] == ["40.00 to 60.00", "+1.00", "-1.00 to +3.00", "0.250"]
    assert content[-1].text == "Not complete yet: heads."
    certain = ablation()
    certain["studies"][0]["points"][1]["p_holm"] = 0.0003
    (tmp_path / "results.json").write_text(json.dumps(certain))
    assert grids(blocks(tmp_path))[0].rows[1][-1].text == "<0.001", "a p value is not zero"
    assert "2 epochs, 3 seed(s): 3 runs, which took 30.0 minutes one after the other." in content[1].text


def committed(name):
    return blocks(RESULTS / name), json.loads((RESULTS / name / "results.json").read_text())


def test_a_detector():
    content, written = committed("overfit_detection")
    (grid,) = grids(content)
    assert grid.rows[1][0].text == "masks" and grid.rows[1][1] == Cell(f"{100 * written['mask']['AP']:.1f}", Mark.HERE)
    assert grid.rows[0][4].text == "-", "no small objects"
    # what it is worth is said in the text beside it
    assert content[-1].file == RESULTS / "overfit_detection" / "README.md"
    assert content[0] == Heading("A nano detector learns eight photographs of COCO by heart, on a CPU", 3)


def test_a_segmenter():
    content, written = committed("segmentation_camvid")
    (grid,) = grids(content)
    assert [cell.text for cell in grid.rows[0]][:2] == ["the network", f"{100 * written['miou']:.1f}"]
    assert grid.rows[1][0].text == "all taken for road"
    assert "233 images, 11 classes, 1.547 M parameters, trained for 1,200 steps" in content[1].text


def test_the_papers_order(tmp_path):
    """81.8 for the dynamic convolution, 81.2 for the depth-wise one and for Swin."""
    content = json.loads((RESULTS / "compare_fashion_mnist" / "results.json").read_text())
    reached = {"dynamic_dwnet_nano": (0.5, 0.6), "dwnet_nano": (0.4, 0.7), "localswin_nano": (0.4, 0.4)}
    for row in content["rows"]:
        row["runs"] = [{**row["runs"][0], "top1": top1} for top1 in reached.get(row["model"], (0.1, 0.1))]
    (tmp_path / "results.json").write_text(json.dumps(content))
    (text,) = (b.text for b in blocks(tmp_path) if isinstance(b, Paragraph) and "order on ImageNet" in b.text)
    assert "dynamic DWNet-T 81.8, Swin-T 81.2, DWNet-T 81.2" in text
    assert "`dynamic_dwnet_nano` less `localswin_nano` +15.00 ± 7.07" in text
    assert "`dynamic_dwnet_nano` less `dwnet_nano` +0.00 ± 14.14" in text
    assert "The paper's order shows in 1 of 2 pair(s)." in text
    content["rows"] = [row for row in content["rows"] if row["model"] != "dynamic_dwnet_nano"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert not any("order on ImageNet" in b.text for b in blocks(tmp_path) if isinstance(b, Paragraph))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"kind": "compare", "rows": [', "runs: expected whole JSON, "),
        ("results.json", "[]", "runs: expected an object in "),
        ("results.json", '{"kind": "weather"}', "'weather'"),
        ("results.json", "{}", "got another kind in "),
        ("results.json", '{"kind": "compare", "rows": []}', "runs: expected the results of compare, "),
        ("results.json", '{"kind": "evaluation", "top1": null}', "runs: expected the results of evaluation, "),
        ("metrics.csv", "", "runs: expected columns step and loss in "),
        ("metrics.csv", "epoch,step,lr,loss\n0,1\n", "runs: expected 4 cells in line 2 of "),
        ("notes.txt", "", "runs: expected a folder with results.json or metrics.csv, or a folder of such, got "),
    ],
)
def test_what_is_not_known_or_half_written_is_refused(tmp_path, name, content, message, capsys):
    (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "a.html")]) == 2
    err = capsys.readouterr().err
    assert message in err and str(tmp_path) in err
    assert not (tmp_path / "a.html").exists()


def test_a_folder_of_runs_leaves_unknown_kinds_alone(tmp_path):
    for name, content in (("a", ablation()), ("b", {"kind": "weather"}), ("c", None)):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "results.json").write_text(json.dumps(content))
    found, left = find([tmp_path])
    assert [item.path.name for item in found] == ["a"] and [path.name for path in left] == ["b"]
    with pytest.raises(ValueError, match="got another kind"):
        find([tmp_path / "b"])


def test_no_such_run(tmp_path):
    with pytest.raises(ValueError, match=r"runs: expected a folder .*none: no such file or folder"):
        find([tmp_path / "none"])
