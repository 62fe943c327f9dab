import os

import pytest

from localmix.tasks.engine.output import output_folder


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
