"""`tools/check_gpu.sh` where no GPU is: a script stands for Python, writes down its calls and does as it is told."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localmix.reports.benchmarks.operators import _implementations

SCRIPT = Path(__file__).parents[1] / "tools" / "check_gpu.sh"
PARTS = ["tests", "warm_up", "operators", "projected", "networks", "info"]
CALLS = {
    "tests": "--numprocesses 2 --dist load -v tests/kernels/test_gpu.py",
    "warm_up": "--rounds 1",
    "operators": "--output operators_gpu",
    "projected": "--output projected_float32_gpu",
    "networks": "--output networks_gpu",
    "info": "bench --info",
}
"""What tells the calls of the parts apart."""
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
    *"import NAMES"*) echo mixing unmixing mixing_shifted; exit ;;
    *"torch.cuda.is_available()"*) exit ;;
esac
arguments="$*"
echo "$LOCALMIX_CACHE ${arguments//$'\n'/ }" >>"$CALLS"
echo "output of $$"
case "$*" in *"$HANGS"*) exec sleep 300 ;; esac
case "$*" in *"$FAILS"*) exit 3 ;; esac
case "$*" in *FileHandler*) echo "a tile" >>"$3/tiles.log" ;; esac
"""

pytestmark = pytest.mark.skipif(not shutil.which("bash") or not shutil.which("timeout"), reason="needs GNU's tools")


@pytest.fixture
def check(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(minutes="1", hangs="nothing", fails="nothing", **variables):
        environment = {**os.environ, "PYTHON": str(python), "MINUTES": minutes, "JOBS": "2", "CALLS": f"{python}.calls"}
        environment |= {"HANGS": hangs, "FAILS": fails, **variables}
        return subprocess.run([SCRIPT, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=100)

    return run


def calls(tmp_path):
    return (tmp_path / "python.calls").read_text()


def summary(tmp_path):
    lines = [line.split(maxsplit=3) for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()]
    return {name: status for name, _, _, status in lines}


def limits_of(done):
    return {name: int(most) for name, most in re.findall(r"^== (\w+): at most (\d+) s", done.stdout, re.MULTILINE)}


def test_all_parts_run_in_order(check, tmp_path):
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path) == dict.fromkeys(PARTS, "passed")
    text = calls(tmp_path)
    places = [text.index(call) for call in CALLS.values()]
    assert places == sorted(places)
    assert done.stdout.count("a tile\n") == 3  # operators, projected and networks
    assert re.search(r"^kernels: \d+ were there, the tests compiled 0$", done.stdout, re.MULTILINE)
    for part in PARTS:
        assert (tmp_path / "out" / f"{part}.log").read_text().startswith("output of ")


def test_the_warm_up_has_a_process_for_each_operator_and_stage_and_keeps_no_tile(check, tmp_path):
    check()
    lines = calls(tmp_path).splitlines()
    for stage in range(1, 5):
        for name in ("mixing", "unmixing", "mixing_shifted"):
            assert sum(f"--ops {name} --stages {stage} " in line for line in lines) == 1
    timed = [line for line in lines if "--output" in line]
    assert len(timed) == 3
    assert all(line.startswith(str(tmp_path / "out" / "tiles ")) for line in timed)
    assert not any(line.startswith(str(tmp_path / "out")) for line in lines if "--rounds 1" in line)


@pytest.mark.parametrize("part", ["warm_up", "tests"])
def test_a_part_that_does_not_end_takes_no_time_of_others(check, tmp_path, part):
    start = time.monotonic()
    done = check(minutes="0.7", hangs=CALLS[part])
    assert time.monotonic() - start < 60
    expected = "done in part" if part == "warm_up" else "stopped at its limit"
    assert summary(tmp_path) == {**dict.fromkeys(PARTS, "passed"), part: expected}
    assert done.returncode == (part != "warm_up")
    limits = limits_of(done)
    assert limits["operators"] >= 10 and limits["networks"] >= 5


def test_a_part_that_fails_is_named_and_the_others_run(check, tmp_path):
    done = check(fails=CALLS["tests"])
    assert done.returncode == 1
    assert summary(tmp_path) == {**dict.fromkeys(PARTS, "passed"), "tests": "failed (3)"}


def test_a_dry_run_tells_the_limits_which_fill_the_minutes(check, tmp_path):
    done = check(minutes="10", DRY_RUN="1")
    limits = limits_of(done)
    assert list(limits) == PARTS
    # each part has ten seconds to end in
    assert 590 <= sum(limits.values()) + 10 * len(PARTS) <= 600
    assert not (tmp_path / "python.calls").exists()


def test_it_compares_with_peers_that_there_are(check):
    done = check(DRY_RUN="1")
    lists = re.findall(r"--impls ([^-]\S*(?: [^-]\S*)*)", done.stdout)
    assert len(lists) == 2 + 3 * 4  # for the warm-up of three operators in each stage
    for impls in lists:
        assert _implementations(impls.split()) == impls.split()


def test_without_a_gpu_it_says_so(check):
    done = check(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "sees no GPU" in done.stderr


def test_files_of_another_run_are_not_mixed_with_its_own(check, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiles.log").write_text("")
    done = check()
    assert done.returncode == 1
    assert "expected an empty folder" in done.stderr
