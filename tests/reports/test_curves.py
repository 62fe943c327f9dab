import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from localmix.cli import main
from localmix.reports.curves import POINTS, _outline, curves, moving_mean
from localmix.reports.metrics import read_metrics, short_names

HEADER = "epoch,step,lr,loss,val_loss,val_top1,val_top5,val_ema_top1,note"


def run(folder, steps=30, *, per_epoch=10, tail="", scale=1.0):
    """A folder with the metrics of a run; `tail` is what a process has written of the next row."""
    folder.mkdir(parents=True)
    lines = [HEADER]
    for step in range(1, steps + 1):
        loss = scale * (0.01 + 2 * 0.8**step)
        validation = f"{loss * 1.1},{1 - loss / 3},0.9,{1 - loss / 4}" if step % per_epoch == 0 else ",,,"
        lines.append(f"{(step - 1) // per_epoch},{step},{0.1 / step},{loss!r},{validation},any text")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n" + tail)
    return folder


def number_of_colours(path):
    """Saturated ones: of lines, not of text and grid."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    pixels = pixels[pixels.max(1) - pixels.min(1) > 60]
    return (np.unique(pixels, axis=0, return_counts=True)[1] > 300).sum()


def test_metrics_are_read(tmp_path):
    metrics = read_metrics(run(tmp_path / "run"))
    steps, losses = metrics.points("loss")
    assert steps.tolist() == list(range(1, 31))
    assert losses == pytest.approx([0.01 + 2 * 0.8**step for step in range(1, 31)])
    steps, top1 = metrics.points("val_ema_top1")
    assert steps.tolist() == [10, 20, 30]
    assert top1 == pytest.approx([1 - (0.01 + 2 * 0.8**step) / 4 for step in (10, 20, 30)])
    assert metrics.at(20).keys() == {"epoch", "step", "lr", "loss", "val_loss", "val_top1", "val_top5", "val_ema_top1"}
    assert "val_top1" not in metrics.at(21)
    assert metrics.at(31) == {}
    assert len(metrics.points("val_top7")[0]) == 0


@pytest.mark.parametrize("tail", ["3,31,0.0", "3,31,0.001,0.5,,,,,", "3"])
def test_half_a_line_at_the_end_is_left_out(tmp_path, tail):
    assert read_metrics(run(tmp_path / "run", tail=tail)).points("loss")[0][-1] == 30


def test_steps_that_diverged_are_left_out(tmp_path):
    folder = run(tmp_path / "run", tail="3,31,0.1,nan,,,,,\n3,32,0.1,inf,,,,,\n3,33,0.1,0.5,,,,,\n")
    assert read_metrics(folder).points("loss")[0][-2:].tolist() == [30, 33]


def test_short_names_tell_runs_apart(tmp_path):
    def names(*paths):
        return short_names([tmp_path / path for path in paths])

    assert names("runs/a/seed-0", "runs/b/seed-0") == ["a", "b"]
    assert names("runs/a/seed-0", "runs/a/seed-1") == ["seed-0", "seed-1"]
    assert names("runs/a/seed-0", "runs/b/seed-1") == ["a/seed-0", "b/seed-1"]
    assert names("runs/net/seed-0") == ["net/seed-0"]
    assert names("x/a", "x/a/again", "x/b") == ["a", "a/again", "b"]
    assert names("x/a/a", "x/a") == ["a/a", "a"]


def test_moving_mean_is_the_mean_of_a_window():
    values = np.random.default_rng(0).random(40)
    for window in (1, 2, 5, 100):
        before, after = (window - 1) // 2, window // 2
        expected = [values[max(0, i - before) : i + after + 1].mean() for i in range(40)]
        assert moving_mean(values, window) == pytest.approx(expected)


def test_outline_of_a_long_run_keeps_its_extremes():
    values = np.random.default_rng(0).random(123_457)
    values[[777, 99_999]] = 5, -5
    steps, drawn = _outline(np.arange(len(values)), values)
    assert len(steps) == len(drawn) <= POINTS
    assert (drawn.min(), drawn.max()) == (-5, 5)
    assert abs(steps[drawn.argmax()] - 777) < 200
    short = values[:POINTS]
    assert _outline(np.arange(POINTS), short)[1] is short


@pytest.mark.parametrize("number", [1, 5])
def test_each_run_is_drawn(tmp_path, number):
    folders = [run(tmp_path / f"runs/net-{i}", tail="3,3", scale=1 + i) for i in range(number)]
    assert curves(folders, tmp_path / "curves.png") == f"{tmp_path}/curves.png: {number} run{'s' if number > 1 else ''}"
    assert number_of_colours(tmp_path / "curves.png") >= number


def test_runs_that_have_hardly_begun(tmp_path, capsys):
    begun, empty = run(tmp_path / "begun", steps=1), run(tmp_path / "empty", steps=0)
    assert main(["curves", str(begun), str(empty), str(begun), "--output", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a.png: 2 runs; no step yet in {empty}\n"
    assert main(["curves", str(empty), "--output", str(tmp_path / "b.png")]) == 2
    assert "expected a step at least, found none yet" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_constant_and_negative_losses(tmp_path):
    lines = ["epoch,step,lr,loss", *(f"0,{step},0.1,{value}" for step, value in enumerate((-1, -1, -1), 1))]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    curves([tmp_path], tmp_path / "curves.png", smooth=2)
    assert number_of_colours(tmp_path / "curves.png") >= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"runs: expected folders with metrics.csv, got .*run$"),
        ("", "expected columns step and loss in .*, got nothing"),
        ("a,b\n1,2\n", "expected columns step and loss in .*, got a, b"),
        ("step,loss\n1,2,3\n", "expected 2 cells in line 2 of .*, got 3"),
        ("step,loss\n1,2\n2,low\n", "expected a number as loss in line 3 of .*, got 'low'"),
    ],
)
def test_folders_without_metrics_are_refused(tmp_path, content, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        curves([folder], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_folder_of_runs_is_answered_with_the_runs(tmp_path):
    run(tmp_path / "runs/net/seed-0")
    with pytest.raises(ValueError, match=r"got .*runs; there are some in .*runs/net/seed-0"):
        curves([tmp_path / "runs"], tmp_path / "curves.png")


@pytest.mark.parametrize(("options", "message"), [({"smooth": 0}, "smooth: "), ({"output": "a.jpg"}, "output: ")])
def test_wrong_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        curves([run(tmp_path / "run")], **{"output": tmp_path / "curves.png", **options})


def test_runs_are_told_apart_without_colours(tmp_path, monkeypatch):
    figures = []
    save = FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda self, file: (figures.append(self.figure), save(self, file))
    )
    curves([run(tmp_path / f"net{i}", 60) for i in range(8)], tmp_path / "curves.png")
    loss, score, _ = figures[0].axes
    (legend,) = figures[0].legends
    for lines in (
        [line for line in loss.lines if line.get_alpha() is None and line.get_linestyle() == "-"],
        [line for line in score.lines if line.get_linestyle() == "-"],
        legend.get_lines(),
    ):
        assert len({line.get_marker() for line in lines}) == len(lines) == 8
