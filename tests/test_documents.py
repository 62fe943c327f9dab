"""What the documents show works: code blocks run, links lead somewhere, examples are there and find their imports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from localmix import kernels

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_lead_to_files_and_headings(document):
    text = document.read_text()
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, document.name, "exec"), namespace)
    assert "import" in "".join(blocks) or not blocks


@pytest.mark.parametrize("name", ["kernels.md", "mixers.md"])
def test_every_implementation_has_a_row(name):
    rows = re.findall(r'^\| `"?(\w+)"?` \|', (ROOT / "docs" / name).read_text(), re.MULTILINE)
    assert [row for row in rows if row not in ("impl", "auto")] == list(kernels.IMPLEMENTATIONS)


def test_every_example_is_named_and_finds_what_it_imports():
    examples = sorted((ROOT / "examples").glob("*.py"))
    text = "".join(document.read_text() for document in DOCUMENTS)
    assert not [example.name for example in examples if f"examples/{example.name}" not in text]
    script = "import runpy, sys\nfor file in sys.argv[1:]:\n    runpy.run_path(file, run_name='example')"
    subprocess.run([sys.executable, "-c", script, *map(str, examples)], check=True, capture_output=True)


def test_the_mixer_of_the_example_equals_its_definition():
    command = [sys.executable, str(ROOT / "examples" / "own_mixer.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[1] == "gaussian_nano: 905,098 parameters, logits (1, 10)"


def test_the_figure_of_the_readme_is_drawn_by_its_example(tmp_path):
    figure = tmp_path / "mixers.png"
    command = [sys.executable, str(ROOT / "examples" / "connection_matrices.py"), str(figure)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert figure.read_bytes().startswith(b"\x89PNG")


def _anchors(path: Path) -> set[str]:
    text = path.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
