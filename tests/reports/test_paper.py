import pytest

from localmix.models import NAMES
from localmix.reports.paper import PAPER, SCORES, TASKS, Figure, Origin, paper_row


@pytest.mark.parametrize(
    ("text", "value", "agrees"),
    [("24M", 24_172_744, True), ("24.173M", 24_172_744, True), ("24.2M", 24_099_999, False), ("3.8G", 3.727e9, False)],
)
def test_a_figure_agrees_in_the_digits_it_has(text, value, agrees):
    figure = Figure(text, Origin.READ)
    assert figure.agrees(value) == agrees
    assert figure.agrees(figure.value)
    assert figure.difference(2 * figure.value) == pytest.approx(1)


def test_every_row_is_of_a_network_here_and_has_its_scores():
    for task in TASKS:
        for row in PAPER[task]:
            assert row.networks[0] in NAMES
            assert len(row.scores) == len(SCORES[task])
            assert row is paper_row(task, row.networks[-1])
            assert row.macs or row.macs_counted
    assert paper_row("detection", "resnet50") is None


def test_what_the_paper_says_of_inhomogeneous_nets_was_not_read_and_is_not_stated():
    for task in TASKS:
        for row in PAPER[task]:
            if row.title.startswith("inhomogeneous"):
                figures = (row.parameters, row.macs, *row.scores)
                assert not any(figures)
