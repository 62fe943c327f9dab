"""The text on a network: shapes and costs are those that other reports count."""

import re

import pytest

from localmix.axes import MIXERS
from localmix.models import create_model
from localmix.reports.cost_memory import layer_weights
from localmix.reports.explain import explain


@pytest.mark.parametrize("row", MIXERS.values(), ids=lambda row: row.network)
def test_weights_are_those_that_cost_writes_out(row):
    """Also where windows pad the map: 32 positions to 35."""
    name = f"{row.network}_nano"
    shapes = {layer.layer: layer.shape for layer in layer_weights(create_model(name), (1, 3, 64, 64))}
    told = [tuple(map(int, found.split(", "))) for found in re.findall(r"\[(\d[\d, ]*)\]", explain(name))]
    assert told == [shapes[f"stages.{stage}.blocks.0.mixer"] for stage in range(4)]
