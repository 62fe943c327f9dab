"""The text on a network: shapes and costs are those that other reports count."""

import re

import pytest

from localmix.axes import MIXERS
from localmix.models import create_model
from localmix.point import MIXER_POINTS
from localmix.reports.cost_memory import layer_weights
from localmix.reports.explain import explain


@pytest.mark.parametrize("row", MIXERS.values(), ids=lambda row: row.network)
def test_weights_are_those_that_cost_writes_out(row):
    """Also where windows pad the map: 32 positions to 35."""
    name = f"{row.network}_nano"
    shapes = {layer.layer: layer.shape for layer in layer_weights(create_model(name), (1, 3, 64, 64))}
    told = [tuple(map(int, found.split(", "))) for found in re.findall(r"\[(\d[\d, ]*)\]", explain(name))]
    assert told == [shapes[f"stages.{stage}.blocks.0.mixer"] for stage in range(4)]


@pytest.mark.parametrize("function", MIXERS)
def test_a_point_is_told_as_the_mixer_that_it_is(function):
    row, point = MIXERS[function], MIXER_POINTS[function]
    by_name, by_point = explain(function), explain(point.name)
    assert by_point.startswith(f"{point.name}: LocalMixer")
    for fact in (row.connectivity.value, row.sharing_positions.value, row.dynamics.value):
        assert fact in by_name and fact in by_point
    assert _stages_of(by_point) == _stages_of(by_name)


def test_a_point_may_have_a_block_around_it():
    told = explain("dwnet/window7/unshared-positions/shared-channels/dot-product/free")
    assert re.search("shared over channels +all", told)
    assert re.search("weights come from +dot products", told)
    assert re.search("operator +local_mlp", told)


def test_what_is_no_point_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"^positions: expected unshared-positions for dot-product weights"):
        explain("sliding7/shared-positions/groups8/dot-product")


def _stages_of(text):
    """The table, and what stands in front of it but for the name of the network."""
    return text[text.index(" at 224 x 224") :]
