import json

import pytest

from localmix.reports.results import write_json


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_loss_that_is_not_a_number_is_null(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [float("nan"), float("inf"), 1.5]})
    assert strict((tmp_path / "a.json").read_text()) == {"loss": [None, None, 1.5]}


def test_a_full_disk_leaves_the_results_that_were_there(tmp_path, full_disk):
    write_json(tmp_path / "results.json", {"top1": 0.5})
    before = (tmp_path / "results.json").read_text()
    expected = r"File too large while writing; the file that was there before is kept: '.*results\.json'"
    with full_disk(1000), pytest.raises(OSError, match=expected):
        write_json(tmp_path / "results.json", {"rows": [0.5] * 1000})
    assert (tmp_path / "results.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1
