import pytest

from localmix.tasks.engine import workers
from localmix.tasks.engine.workers import default_workers


@pytest.mark.parametrize(
    ("cores", "options", "expected"),
    [
        (16, {}, 15),
        (16, {"processes": 4}, 3),
        (2, {"processes": 4}, 1),
        (256, {}, 32),
        (16, {"device": "cpu"}, 1),
        (16, {"in_memory": True}, 0),
    ],
)
def test_default_workers(monkeypatch, cores, options, expected):
    monkeypatch.setattr(workers, "cpu_cores", lambda: cores)
    assert default_workers(**options) == expected
