import json
from pathlib import Path

import pytest

from localmix.cli import main
from localmix.reports.benchmarks.report import GRAPHS, markdown, setting
from localmix.reports.benchmarks.speed import page, write_page

ROOT = Path(__file__).parents[3]


def row(label, milliseconds, shape=(4, 7, 7, 64), *, is_ours=False, is_auto=False, refused=None, others=()):
    return {
        "group": "local_mlp float32, forward",
        "name": "local_mlp",
        "shape": list(shape),
        "direction": "forward",
        "label": label,
        "is_ours": is_ours,
        "is_auto": is_auto,
        "refused": refused,
        "floor_ms": 0.5,
        "ms": None if refused else {"p20": 0.0, "p50": milliseconds, "p80": 0.0},
        "over_floor": None if refused else milliseconds / 0.5,
        "times_as_fast_as": dict(others),
    }


def results(rows, device="cpu"):
    gpu = "a GPU" if device == "cuda" else None
    return {
        "kind": "operators",
        "is_complete": True,
        "settings": {"dtype": "float32", "batch": 4, "rounds": 10},
        "limits": {"bytes_per_second": 1e10, "matrix_macs_per_second": 1e11, "vector_macs_per_second": 1e10},
        "rows": rows,
        "environment": {
            "versions": {"torch": "2.11"},
            "hardware": {"cpu": "a CPU", "threads": 2, "device": device, "gpu": gpu},
        },
        "command": "localmix bench ops",
        "commit": "0123456789abcdef+",
    }


def test_the_page_is_made_from_the_committed_results(tmp_path):
    """Run `localmix bench docs benchmarks/results --output docs/speed.md` if it is not."""
    # beside the page, so that its links are the same
    copy = ROOT / "docs" / ".speed.md.made"
    try:
        write_page([ROOT / "benchmarks" / "results"], copy)
        assert (ROOT / "docs" / "speed.md").read_text() == copy.read_text()
    finally:
        copy.unlink(missing_ok=True)


def test_numbers_of_the_page():
    rows = [
        row("aten", 2.0, is_ours=True, is_auto=True, others={"grouped-conv1d": 2.0}),
        row("grouped-conv1d", 4.0),
        row("aten", 1.0, (4, 14, 14, 32), is_ours=True, is_auto=True, others={"grouped-conv1d": 8.0}),
        row("grouped-conv1d", 8.0, (4, 14, 14, 32)),
        row("other", 8.0, (4, 14, 14, 32), refused="output: error 1 is over the budget of 0"),
    ]
    text = page({Path("../benchmarks/results/ops_cpu"): results(rows)})
    for line in (
        "| operators | [a CPU, float32, batch 4](#ops_cpu) | not run yet |",
        "| networks | not run yet | not run yet |",
        "|  | 7 × 7 × 64 | 14 × 14 × 32 | geometric mean |",
        "| floor | 0.500 | 0.500 |  |",
        "| aten | 2.00 (4.00) | 1.00 (2.00) |  |",
        "| grouped-conv1d | 4.00 (8.00) | 8.00 (16.0) |  |",
        "| other | - | refused |  |",
        "| **times as fast as grouped-conv1d** | 2.00 | 8.00 | 4.00 |",
        "* local_mlp float32, forward, other: output: error 1 is over the budget of 0",
    ):
        assert line in text.splitlines()
    assert "commit `0123456789ab` with changes" in text
    assert "(../benchmarks/results/ops_cpu/figure.png)" in text


def test_a_gpu_has_a_column():
    text = page({Path("a"): results([row("aten", 1.0, is_ours=True)], device="cuda")})
    assert "| operators | not run yet | [a GPU, float32, batch 4](#a) |" in text


@pytest.mark.parametrize("graph", [True, False])
def test_graphs_say_so_in_titles_links_and_tables(graph, tmp_path):
    """Results that are older than the setting have none."""
    these = results([row("aten", 1.0, is_ours=True)], device="cuda")
    these["settings"]["graph"] = graph
    text = page({Path("a"): these})
    assert ("[a GPU, float32, batch 4, CUDA graphs](#a)" in text) == graph
    assert ("## Operators on a GPU, float32, batch 4, CUDA graphs, torch 2.11" in text) == graph
    assert (GRAPHS in text) == graph
    # the figure says it too
    assert setting(these) == "float32, batch 4" + graph * ", CUDA graphs"
    table = markdown({**these, "rows": []} | {"left_out": {}})
    assert (GRAPHS in table) == ("CUDA graphs, torch 2.11" in table) == graph
    assert page({Path("a"): results([], device="cuda")}).count("CUDA graphs") == 0


def test_interrupted_results_say_so():
    assert "**Interrupted: the rest is missing.**" in page({Path("a"): {**results([]), "is_complete": False}})


def test_results_of_other_commands_are_left_alone(tmp_path):
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "results.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(
        ValueError, match=r"^results: expected those of `localmix bench ops` or `models`, found none in"
    ):
        write_page([tmp_path], tmp_path / "speed.md")
    assert not (tmp_path / "speed.md").exists()


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "results" / "ops"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results([row("aten", 1.0, is_ours=True)])))
    for given in (folder, folder.parent):
        assert main(["bench", "docs", str(given), "--output", str(tmp_path / "speed.md")]) == 0
        assert "(results/ops/table.md)" in (tmp_path / "speed.md").read_text()
    assert main(["bench", "docs", str(tmp_path / "none"), "--output", str(tmp_path / "speed.md")]) == 2
    assert "results: expected a folder that `localmix bench --output` wrote" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["bench"]])
def test_bench_of_nothing(arguments, capsys):
    assert main(arguments) == 2
    assert "bench: expected ops, models, loader, docs or --info" in capsys.readouterr().err
