import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import localmix

ROOT = Path(__file__).parents[1]
HEAVY = {"lightning", "timm", "torchvision", "triton"}


def loaded_by(statement):
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def lint_imports(source):
    """Checks the contracts of this project on the package in `source`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


def repository(*options):
    """Files that git lists, relative to the root."""
    command = ["git", "ls-files", *options, "-z"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [file for file in files if file and (ROOT / file).is_file()]


def test_submodules_are_loaded_on_first_use():
    assert not loaded_by("import localmix") & {*HEAVY, "torch"}
    assert "torch" in loaded_by("import localmix; localmix.functional")
    assert "torch" in loaded_by("import localmix; localmix.testing.check_operator")
    assert "torch" not in loaded_by("import localmix; localmix.point.Point")


def test_command_line_answers_without_torch():
    help = "import localmix.cli\ntry:\n    localmix.cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_by(help) & {*HEAVY, "torch", "numpy"}


def test_equation_needs_neither_timm_nor_an_engine():
    assert not loaded_by("import localmix.functional") & {"lightning", "timm", "torchvision"}


def test_public_names():
    names = ["axes", "functional", "kernels", "layers", "models", "point", "reports", "tasks", "testing"]
    assert localmix.__all__ == names
    assert set(names) <= set(dir(localmix))
    with pytest.raises(AttributeError, match="no attribute 'convolution'"):
        _ = localmix.convolution


def test_versions_agree():
    citation = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation == [localmix.__version__]
    assert newest is not None
    assert newest[1] == localmix.__version__


def test_imports_go_one_way():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "complaint"),
    [
        ("axes.py", "import localmix.layers", "localmix.axes is not allowed to import localmix.layers"),
        ("kernels/aten/__init__.py", "import localmix.functional", "localmix.kernels.aten is not allowed to import"),
        ("surprise.py", "", "localmix.surprise"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path, file, statement, complaint):
    shutil.copytree(ROOT / "src/localmix", tmp_path / "localmix", ignore=shutil.ignore_patterns("*.npz", "__pycache__"))
    with (tmp_path / "localmix" / file).open("a") as source:
        source.write(f"\n{statement}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout


def test_a_source_distribution_is_the_repository(tmp_path):
    files = [file for file in repository("--cached") if not file.startswith(".")]
    for file in files:  # a copy, since it is packed from a folder beside them
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    subprocess.run([sys.executable, "setup.py", "--quiet", "sdist"], cwd=tmp_path, capture_output=True, check=True)
    (archive,) = tmp_path.glob("dist/*.tar.gz")
    with tarfile.open(archive) as content:
        packed = {name.partition("/")[2] for name in content.getnames()}
    assert "setup.py" in files
    assert not set(files) - packed


def test_no_file_names_a_machine_or_a_registry():
    host = r"\b(?:pypi|pythonhosted|npmjs|debian|ubuntu)\.(?:org|com)\b"
    path = r"(?<![\w.~/])/(?:home|root|opt|work|mnt|Users)/\w"
    files = [ROOT / file for file in repository("--cached", "--others", "--exclude-standard")]
    assert Path(__file__) in files
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files
        for match in re.finditer(f"{host}|{path}", file.read_bytes().decode("utf-8", "ignore"))
    ]
    assert not found
