import subprocess
import sys

from localmix import kernels
from localmix.cli import main
from localmix.kernels import native, triton
from localmix.reports.benchmarks.info import info


def test_says_what_was_built_and_what_each_operator_takes(capsys):
    assert main(["bench", "--info"]) == 0
    text = capsys.readouterr().out
    assert text == info() + "\n"
    assert native.description() in text
    lines = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("  ")}
    assert lines == {operator: kernels.choose(operator) for operator in kernels.OPERATORS}


def test_says_why_a_preferred_implementation_was_passed_over(monkeypatch):
    monkeypatch.setattr(native.library, "MISSING", "the kernels were not compiled: no compiler")
    monkeypatch.setattr(triton, "MISSING", "Triton is not installed")
    text = info()
    assert "GPU kernels: none (Triton is not installed)" in text
    assert "CPU kernels: none (the kernels were not compiled: no compiler)" in text
    line = next(line for line in text.splitlines() if line.startswith("  inhomogeneous_convolution"))
    assert "aten       not native: the kernels were not compiled: no compiler; triton: " in line


def test_needs_nothing_of_the_extra_for_training():
    absent = ("lightning", "matplotlib", "rich", "torchmetrics", "timm")
    script = f"""
import sys
for name in {absent}:
    sys.modules[name] = None
from localmix.cli import main
sys.exit(main(["bench", "--info"]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "local_mlp" in result.stdout
