import os

import pytest

from localmix.tasks.engine.output import made_folder, output_file, output_folder


def test_a_folder_is_given_back_and_none_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path, tmp_path / "a/b", "a/b", "."):
        assert str(output_folder(name)) == str(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("file", r"^output: expected a folder, got .*file, a file$"), ("file/a/b", r"got .*file/a/b in .*file, a file$")],
)
def test_a_file_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=message):
        output_folder(tmp_path / name)


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who is root may write anywhere
    with pytest.raises(ValueError, match=r"^output: expected a folder that may be written into, got .*new$"):
        output_folder(tmp_path / "new")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files from anyone")
def test_a_folder_that_takes_no_files_is_refused():
    with pytest.raises(ValueError, match=r"^to: expected a folder that takes files, got /proc/x: No such file"):
        output_folder("/proc/x", name="to")


def test_a_folder_that_stays_empty_is_gone_when_it_fails(tmp_path):
    with pytest.raises(ValueError, match="why"), made_folder(tmp_path / "a/b") as folder:
        assert folder.is_dir()
        raise ValueError("why")
    assert list(tmp_path.iterdir()) == []
    with made_folder(tmp_path / "a/b"):
        pass
    assert (tmp_path / "a/b").is_dir()


def test_a_file_is_given_back_and_none_is_made(tmp_path):
    assert output_file(tmp_path / "a/b.HTM", ".html", ".htm") == tmp_path / "a/b.HTM"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", r"^to: expected a name that ends in .md, got .*a.txt$"),
        ("folder.md", r"^to: expected a file, got .*folder.md, a folder$"),
        ("file/a.md", r"^to: expected a folder, got .*file, a file$"),
    ],
)
def test_what_is_no_name_for_a_file_is_refused(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(ValueError, match=message):
        output_file(tmp_path / name, ".md", name="to")
