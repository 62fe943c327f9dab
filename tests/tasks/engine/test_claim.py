import signal
import subprocess
import sys
import time

import pytest

from localmix.tasks.engine.claim import claim

HOLDER = """
import os, sys, time
from pathlib import Path
from localmix.tasks.engine.claim import claim
with claim(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)  # as a process that loads images, which outlives its parent
        os._exit(0)
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline() == b"claimed\n"
    yield process
    process.kill()
    process.wait()
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    process.stdout.close()


def test_a_folder_in_use_is_refused(holder, tmp_path):
    with (
        pytest.raises(ValueError, match=r"^output: another process is at work in .*; wait for it or end it$"),
        claim(tmp_path),
    ):
        pass


def test_a_killed_process_leaves_no_claim_nor_do_its_children(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    with claim(tmp_path):  # or the claim is refused
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("kept")
    with (
        pytest.raises(ValueError, match=r"^output: expected a folder, got .*run, a file$"),
        claim(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run").read_text() == "kept"


def test_patience(holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="another process"), claim(tmp_path, patience=0.3):
        pass
    assert time.monotonic() - began >= 0.3
    holder.terminate()
    with claim(tmp_path, patience=60):
        pass


ANOTHER = """
import sys
from pathlib import Path
from localmix.tasks.engine.claim import claim
with claim(Path(sys.argv[1])):
    pass
"""


def hold(folder):
    """Whether another process gets the claim."""
    process = subprocess.run([sys.executable, "-c", ANOTHER, folder], capture_output=True, text=True)
    assert process.returncode == 0 or "another process is at work" in process.stderr, process.stderr
    return process.returncode == 0


def test_a_claim_holds_within_its_block_and_ends_with_it(tmp_path):
    folder = tmp_path / "new"
    with claim(folder):
        assert not hold(folder)
    assert hold(folder)


@pytest.mark.parametrize("name", ["new", "a/b/new"])
def test_what_fails_at_once_leaves_nothing(tmp_path, name):
    with pytest.raises(ValueError, match="refused"), claim(tmp_path / name):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_was_written_stays(tmp_path):
    (tmp_path / "before").touch()
    with pytest.raises(ValueError, match="refused"), claim(tmp_path):
        (tmp_path / "within").touch()
        raise ValueError("refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "within"]


def test_who_waited_for_one_that_failed_has_a_claim_of_its_own(holder, tmp_path):
    """The file that it waited for is no more."""
    (tmp_path / ".claim").unlink()
    holder.send_signal(signal.SIGKILL)
    with claim(tmp_path, patience=10):
        assert not hold(tmp_path)
