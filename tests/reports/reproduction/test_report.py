import re
from pathlib import Path

import pytest

from localmix.cli import main
from localmix.cli import report as cli
from localmix.reports.paper import DATA, PAPER, TASKS
from localmix.reports.reproduction import paper_tables, report
from localmix.reports.reproduction.page import Cell, Grid, Mark, Paragraph

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def counted():
    """What each network costs, counted once."""
    names = [row.networks[0] for row in PAPER["classification"]]
    return {(task, name): paper_tables.counted(task, name) for task in TASKS for name in names}


@pytest.mark.parametrize(
    ("page", "parts"), [("reproduction.md", ["paper", "speed", "cost"]), ("results.md", ["accuracy"])]
)
def test_the_pages_are_made_from_the_committed_results(counted, monkeypatch, page, parts):
    """Run `localmix report benchmarks/results --parts PARTS --markdown docs/PAGE` if they are not."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(paper_tables, "counted", lambda task, network: counted[task, network])
    # beside the page, so that its links are the same
    copy = Path("docs", f".{page}")
    try:
        assert main(["report", "benchmarks/results", "--parts", *parts, "--markdown", str(copy)]) == 0
        made = copy.read_text().replace(str(copy), f"docs/{page}")
        assert (ROOT / "docs" / page).read_text() == made
    finally:
        copy.unlink(missing_ok=True)


def test_what_the_tables_say(counted, monkeypatch):
    monkeypatch.setattr(paper_tables, "counted", lambda task, network: counted[task, network])
    scores = {("classification", "dwnet_tiny"): {"run": (81.23,)}}
    for task in TASKS:
        _, about, grid = paper_tables.paper_table(task, scores)
        assert isinstance(about, Paragraph) and isinstance(grid, Grid)
        rows = {row[1].text: row for row in grid.rows}
        assert list(rows) == [f"`{row.networks[0]}`" for row in PAPER["classification"]]
        dwnet, inhomogeneous = rows["`dwnet_tiny`"], rows["`i_dynamic_dwnet_base`"]
        cost = counted[task, "dwnet_tiny"]
        assert dwnet[2] == Cell(f"{cost.parameters / 1e6:.3f} M", Mark.HERE)
        assert dwnet[5] == Cell(f"{cost.macs / 1e9:.3f} G", Mark.HERE)
        paper = next(row for row in PAPER[task] if row.title == "DWNet-T")
        assert dwnet[3] == Cell(paper.parameters.text, Mark.PAPER) and dwnet[6].text == paper.macs.text
        assert dwnet[9] == Cell(paper.scores[0].text, Mark.PAPER)
        if task == "classification":
            assert dwnet[8] == Cell("81.2", Mark.HERE)
        else:
            assert dwnet[8].mark is Mark.MISSING and DATA[task] in dwnet[8].why
        # its accuracies were not read in a public source
        assert inhomogeneous[9] == Cell("-", None, paper_tables.UNREAD)


@pytest.fixture
def no_tables(monkeypatch):
    """A page without the paper's tables, which take seconds to count."""
    monkeypatch.setattr(report, "paper_table", lambda task, scores: [])


def test_one_file_with_its_pictures(no_tables, tmp_path, capsys):
    file = tmp_path / "page.html"
    results = ROOT / "benchmarks" / "results"
    assert main(["report", str(results / "compare_fashion_mnist"), str(results), "--output", str(file)]) == 0
    text = file.read_text()
    assert len(re.findall(r'<img src="data:image/png;base64,iVBOR', text)) >= 4
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert str(file) in capsys.readouterr().out
    titles = re.findall(r"<h[12]>(.*?)</h[12]>", text)
    assert titles == [report.PARTS[part] for part in ("paper", "accuracy", "speed", "cost")]


def test_a_part(no_tables, tmp_path, capsys):
    file = tmp_path / "page.html"
    results = ROOT / "benchmarks" / "results"
    assert main(["report", str(results), "--parts", "cost", "--output", str(file)]) == 0
    text = file.read_text()
    assert re.findall(r"<h[123]>(.*?)</h[123]>", text) == ["Cost", "How the cost of a mixer grows"]
    assert "Not on this page: what is reproduced of the paper, accuracy on the data at hand, speed." in text
    assert "from the paper" not in text, "a mark that is not used is not explained"
    assert "cost; 1 run(s)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="parts: expected some of paper, accuracy, speed, cost, got \\['speeds'\\]"):
        report.report([results], output=file, parts=["speeds"])


def test_the_command_knows_the_parts():
    assert tuple(report.PARTS) == cli.PARTS


def test_without_runs(no_tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    assert "No run of it was given." in Path("report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.pdf"], "output: expected a name that ends in .html, got a.pdf"),
        (["--markdown", "a.html"], "markdown: expected a name that ends in .md, got a.html"),
    ],
)
def test_wrong_outputs(arguments, message, capsys):
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
