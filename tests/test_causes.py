import pytest

from localmix.causes import causes


def test_what_is_behind_an_error_comes_one_by_one():
    with pytest.raises(RuntimeError) as raised:
        try:
            try:
                raise OSError("disk")
            except OSError as disk:
                raise ValueError("row") from disk
        except ValueError:
            # as a library that hides its cause
            raise RuntimeError("file")  # noqa: B904
    assert [str(error) for error in causes(raised.value)] == ["file", "row", "disk"]
    assert list(causes(None)) == []


def test_errors_behind_each_other_come_once():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]
