import json

from localmix.reports.results import write_json


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_loss_that_is_not_a_number_is_null(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [float("nan"), float("inf"), 1.5]})
    assert strict((tmp_path / "a.json").read_text()) == {"loss": [None, None, 1.5]}
