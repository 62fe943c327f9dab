import os
import re
import signal
import subprocess
import sys
import types

import pytest
import torch

import localmix
from localmix.cli import main


@pytest.fixture
def worker(monkeypatch):
    """Puts a function in the place of the one that `localmix explain` calls."""

    def replace(explain):
        module = types.ModuleType("localmix.reports.explain")
        vars(module)["explain"] = explain
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return replace


def raising(error):
    def explain(name):
        raise error

    return explain


def test_worker_gets_the_arguments_and_its_text_is_printed(worker, capsys):
    worker(lambda name: f"about {name}")
    assert main(["explain", "local_mlp"]) == 0
    assert capsys.readouterr().out == "about local_mlp\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("name: expected a mixer, got 'x'"), "name: expected a mixer, got 'x'"),
        (FileNotFoundError(2, "No such file or directory", "x.pth"), "No such file or directory: x.pth"),
        (OSError("cannot identify image file"), "cannot identify image file"),
        (
            ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch"),
            'lightning is not installed: pip install "localmix[train]"',
        ),
    ],
)
def test_error_is_told_without_a_traceback(worker, capsys, error, line):
    worker(raising(error))
    assert main(["explain", "x"]) == 2
    assert capsys.readouterr().err == f"localmix: error: {line}\n"


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("typo", name="localmix.layer"), ImportError("typo"), KeyError(1)]
)
def test_defect_keeps_its_traceback(worker, error):
    worker(raising(error))
    with pytest.raises(type(error)) as caught:
        main(["explain", "x"])
    assert caught.value is error


def test_traceback_on_request(worker):
    worker(raising(ValueError("why")))
    with pytest.raises(ValueError, match="why"):
        main(["--traceback", "explain", "x"])


def test_interrupt_is_quiet(worker, capsys):
    worker(raising(KeyboardInterrupt()))
    assert main(["explain", "x"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [[], ["explain"], ["train"], ["convert", "a.pth"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("usage: localmix")


@pytest.mark.parametrize(
    "command",
    [
        *("ablate", "compare", "predict", "validate", "test", "curves", "publish"),
        *("explain", "convert", "bench", "cost", "report"),
    ],
)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: localmix {command}")


def test_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "localmix", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"localmix {localmix.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["convert", "none.pth", "--model=dwnet_nano", "--output=a.safetensors"],
            "checkpoint: expected a file, found nothing",
        ),
        (
            ["convert", ".", "--model=dwnet_nano", "--output=a.safetensors"],
            "checkpoint: expected a file, found a folder",
        ),
        (
            ["convert", "none.pth", "--model=dwnet_nano", "--output=file/a.safetensors"],
            "output: expected a folder, got file",
        ),
        (["shard", "none", "--output=a"], "data: expected a folder of images, got none, which does not exist"),
        (["shard", "file", "--output=a"], "data: expected a folder of images, got file, which is a file"),
        (["publish", "none", "--to=a"], "source: expected a file, found nothing: none"),
        (["publish", "file", "--to=a"], "source: expected a run or a checkpoint of one, got file"),
        (["publish", "file", "--to=a", "--license=a\nb"], r"license: expected a name, got 'a\nb'"),
        (["cost", "--scaling", "--batch-size=0"], "batch_size: expected an int of at least 1, got 0"),
        (["bench", "docs", "run", "--output=."], "output: expected a file, got ., a folder"),
        (["curves", "run", "--output=file/a.png"], "output: expected a folder, got file"),
        (
            ["bench", "docs", "run", "--output=a.md"],
            "results: expected those of `localmix bench ops` or `models`, found none",
        ),
        (["fit", "--config=none.yaml"], "config: expected a file, found nothing: none.yaml"),
        (["fit", "--data.root=none", "--output=a/b"], "data.root: expected 'fashion_mnist', an image folder"),
        (["fit", "--data.img_size=-1", "--output=a/b"], "data.img_size: expected an int of at least 1, got -1"),
        (["fit", "--weights=none.pth", "--output=a/b"], "weights: expected a file, found nothing: none.pth"),
        (["fit", "--resume=none.ckpt", "--output=a/b"], "resume: expected a file, found nothing: none.ckpt"),
    ],
)
def test_a_wrong_path_is_named_by_its_argument_and_nothing_is_left(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.csv").write_text("epoch,step,loss\n0,1,1.0\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"localmix: error: {line}") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--data=none", "--output=file"],
        ["ablate", "positions", "--data=none", "--output=file"],
        ["shard", "none", "--output=file"],
        ["scenes", "file/a"],
        ["publish", "a.ckpt", "--to=file"],
        ["explain", "--image=none", "--output=file"],
        ["bench", "ops", "--output=file"],
        ["bench", "models", "--nets=none", "--output=file"],
        ["bench", "loader", "none", "--output=file"],
        ["bench", "docs", "none", "--output=folder.md"],
        ["cost", "none", "--output=folder.json"],
        ["cost", "--scaling", "--output=file"],
        ["report", "none", "--output=folder.html"],
        ["report", "none", "--markdown=folder.md"],
        ["curves", "none", "--output=folder.png"],
        ["convert", "none.pth", "--model=none", "--output=folder.safetensors"],
        ["fit", "--data.root=none", "--output=file"],
    ],
)
def test_an_output_that_takes_nothing_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, arguments):
    """So it is the first of the errors, and the quickest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localmix.reports.benchmarks.operators.measure", None)
    (tmp_path / "file").touch()
    (tmp_path / "a.ckpt").touch()
    for suffix in (".md", ".json", ".html", ".png", ".safetensors"):
        (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"localmix: error: (output|to|markdown): expected [^\n]+ got [^\n]*(file|folder)[^\n]*\n", error
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--output="], "argument --output: expected a name, got ''"),
        (["compare", "--data="], "argument --data: expected a name, got ''"),
        (["compare", "--processes=1000000"], "argument --processes: expected at most 1024, got 1000000"),
        (["validate", "run", "--workers=1000000"], "argument --workers: expected at most 1024, got 1000000"),
        (["shard", "images", "--workers=1000000"], "argument --workers: expected at most 1024, got 1000000"),
        (["bench", "ops", "--threads=1000000"], "argument --threads: expected at most 1024, got 1000000"),
        (["cost", "dwnet_nano", "--img-size=1e3"], "argument --img-size: expected a whole number, got '1e3'"),
        (["cost", "dwnet_nano", "--img-size=9999999999"], "argument --img-size: expected at most 2147483647, got 99"),
        (["publish", "run", "--to=a", "--license= "], "argument --license: expected a name, got ' '"),
    ],
)
def test_a_word_that_can_be_nothing_is_refused_with_the_name_of_its_option(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_wrong_number_is_named_by_its_option(tmp_path, capsys, number):
    arguments = ["explain", "--image=none", f"--output={tmp_path / 'new'}", f"--probes={number}"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"localmix: error: probes: expected an int of at least 1, got {number}\n"


def test_an_image_that_is_not_there_is_named_by_its_option(tmp_path, capsys):
    arguments = ["explain", f"--image={tmp_path / 'none'}", "--model=dwnet_nano", f"--output={tmp_path / 'new'}"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"localmix: error: image: {tmp_path / 'none'}: no such file\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(2**50), r" \(tried to allocate \d+ bytes\)"),
        (lambda: torch.empty(2**40, 2**40), ""),
        (lambda: [None] * 2**60, ""),
        (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), r" \(Tried .* 2.00 GiB\)"),
    ],
)
def test_a_memory_that_is_too_small_is_told_in_a_line(worker, capsys, allocate, asked):
    def explain(name):
        raise allocate()

    worker(explain)
    assert main(["explain", "x"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"localmix: error: not enough memory{asked}; smaller images or batches need less\n", error)


def test_any_other_error_of_pytorch_keeps_its_traceback(worker):
    worker(raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        main(["explain", "x"])


def test_an_error_of_the_system_names_the_argument(worker, capsys, tmp_path):
    worker(raising(PermissionError(13, "Permission denied", str(tmp_path / "a/b"))))
    assert main(["explain", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == f"localmix: error: name: Permission denied: {tmp_path}/a/b\n"


def test_sigterm_ends_a_command_in_order(worker, capsys):
    before = signal.getsignal(signal.SIGTERM)
    worker(lambda name: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["explain", "x"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", [["explain", "window_attention"], ["cost", "dwnet_nano", "--img-size", "32"]])
def test_output_that_nobody_reads_on_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "localmix", *command]
    ended = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_broken_pipe_that_is_not_the_output_is_an_error(worker, capsys):
    worker(raising(BrokenPipeError(32, "Broken pipe")))
    assert main(["explain", "local_mlp"]) == 2
    assert "localmix: error: Broken pipe" in capsys.readouterr().err
