import errno
import multiprocessing
import resource
import signal

import pytest
import torch

from localmix.tasks.engine import checkpoint as checkpoints
from localmix.tasks.engine.checkpoint import load_checkpoint, save_checkpoint

OLD = {"state_dict": {"weight": torch.arange(3.0)}, "hyper_parameters": {"model": "dwnet_nano"}}
LARGE = {"state_dict": {"weight": torch.zeros(200_000)}, "hyper_parameters": {}}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(OLD, tmp_path / "checkpoint.ckpt")
    return tmp_path / "checkpoint.ckpt"


def assert_old(path):
    assert load_checkpoint(path)["hyper_parameters"] == OLD["hyper_parameters"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_full_disk_leaves_the_old_checkpoint(path, monkeypatch):
    def fill(checkpoint, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", fill)
    with pytest.raises(OSError, match=r"No space left on device while writing; .* is kept") as caught:
        save_checkpoint(LARGE, path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert_old(path)


def write_beyond_a_limit(path, connection):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(LARGE, path)
    except OSError as error:
        connection.send((error.errno, str(error)))
    else:
        connection.send(None)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_write_that_the_system_refuses_leaves_the_old_checkpoint(path):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=write_beyond_a_limit, args=(path, there))
    process.start()
    assert here.poll(60)
    number, text = here.recv()
    process.join()
    assert number == errno.EFBIG
    assert "File too large while writing; the file that was there before is kept" in text
    assert_old(path)


def test_interruption_leaves_the_old_checkpoint(path, monkeypatch):
    def interrupt(checkpoint, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(LARGE, path)
    assert_old(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(path, share):
    save_checkpoint(LARGE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is truncated"):
        load_checkpoint(path)


def test_flipped_bit_is_refused(path):
    save_checkpoint(LARGE, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is damaged \(wrong checksum of .*data/0\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a, not a checkpoint"])
def test_other_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is not a PyTorch checkpoint"):
        load_checkpoint(path)


def test_foreign_checkpoint_is_refused(path):
    torch.save({"model": {"weight": torch.zeros(1)}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"not written by .* got \['epoch', 'model'\]"):
        load_checkpoint(path)


class Mischief:
    def __reduce__(self):
        return print, ("code has run",)


def test_checkpoint_that_would_run_code_is_refused(path, capsys):
    torch.save({**OLD, "callbacks": Mischief()}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt holds more than tensors .* refused"):
        load_checkpoint(path)
    assert "code has run" not in capsys.readouterr().out
