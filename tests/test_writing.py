import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from localmix import writing
from localmix.writing import write_atomically

WAITING = """
import sys, time
from pathlib import Path
from localmix.writing import write_atomically

def write(file):
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), write)
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.json").write_bytes(b"old")
    return tmp_path / "a.json"


@pytest.fixture
def half_written(path):
    """A process that has written a half of the file."""
    with subprocess.Popen([sys.executable, "-c", WAITING, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def names(path):
    return sorted(name.name for name in path.parent.iterdir())


def test_what_fails_leaves_the_old_file_and_nothing_else(path):
    def fail(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device while writing; the file .* is kept") as caught:
        write_atomically(path, fail)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert names(path) == ["a.json"]


def test_of_two_that_write_at_the_same_time_each_writes_its_own(path):
    """The second begins and ends within the first, which then ends, too."""

    def write(file):
        file.write(b"of the ")
        write_atomically(path, lambda other: other.write(b"of the second"))
        assert path.read_bytes() == b"of the second"
        file.write(b"first")

    write_atomically(path, write)
    assert path.read_bytes() == b"of the first"
    assert names(path) == ["a.json"]


def test_threads_that_write_one_file_all_succeed(path):
    contents = {bytes([65 + number]) * 100_000 for number in range(8)}
    failures = []

    def write(content):
        try:
            for _ in range(5):
                write_atomically(path, lambda file: file.write(content))
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_bytes() in contents
    assert names(path) == ["a.json"]


def test_what_another_process_is_writing_is_left_to_it(path, half_written):
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert len(names(path)) == 2


def test_what_a_killed_process_left_is_removed(path, half_written):
    half_written.kill()
    half_written.wait()
    assert len(names(path)) == 2
    # also if it was of another file
    write_atomically(path.with_name("b.json"), lambda file: file.write(b"new"))
    assert names(path) == ["a.json", "b.json"]


def test_one_that_is_removed_before_it_is_locked_is_made_anew(path, monkeypatch):
    """As by a process that takes it for one that was left, in the moment before its lock."""
    lock, removed = writing.fcntl.flock, []

    def remove_first(file, kind):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        lock(file, kind)

    monkeypatch.setattr(writing.fcntl, "flock", remove_first)
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert len(removed) == 1
    assert names(path) == ["a.json"]


def test_without_locks_nothing_is_removed(path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writing.fcntl, "flock", refuse)
    other = path.with_name(".b.json.0123abcd.partial")
    other.touch()
    write_atomically(path, lambda file: file.write(b"new"))
    assert names(path) == [other.name, "a.json"]


def test_content_reaches_the_disk_before_the_name(path, monkeypatch):
    """The order is write, fsync, rename: a power cut in between must not leave a name without its content."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(writing.os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_atomically(path, lambda file: file.write(b"new"))
    assert calls == ["fsync", "rename", "fsync"]
    assert path.read_bytes() == b"new"


def test_a_file_may_be_read_by_those_whom_the_umask_lets(path):
    before = os.umask(0o027)
    try:
        write_atomically(path, lambda file: file.write(b"new"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
