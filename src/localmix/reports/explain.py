"""Where a mixer or a network stands on the axes of the paper, its shapes and its cost, as text."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor

from localmix import kernels
from localmix.axes import MIXERS, MixerRow
from localmix.layers import LocalMixer, Mixer
from localmix.models import NAMES, Hierarchy
from localmix.models.local_mixer import DEFAULT_MIXER
from localmix.point import Point
from localmix.reports.ablation.studies import Net
from localmix.reports.cost import cost_by_module


def explain(name: str) -> str:
    """Text on a mixer or on a network of localmix.

    A mixer is named by its function, its layer, or as a point of the space, also with what `localmix ablate` puts
    around it ("swin/sliding7/..."). It is shown in the stages of its tiny network.

    Raises:
        ValueError: neither a mixer nor a network; the nearest names are shown.

    >>> print(explain("local_mlp").splitlines()[0])
    local MLP: local_mlp, LocalMLP, networks localmlp_*
    """
    if "/" in name:
        net = Net.parse(name)
        return f"{_axes_of_point(net.point)}\n\n{_stages('localmixer_tiny', **net.arguments)}"
    row = next((row for row in MIXERS.values() if name in (row.function, row.layer)), None)
    network = name
    if row is not None:
        network = f"{row.network}_tiny"
    elif name in NAMES:
        row = next((row for row in MIXERS.values() if row.network == name.rsplit("_", 1)[0]), None)
    else:
        known = [*MIXERS, *(row.layer for row in MIXERS.values()), *NAMES]
        nearest = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else f"mixers are {', '.join(MIXERS)}"
        raise ValueError(f"name: expected a mixer or a network, got {name!r}; {hint}")
    axes = f"any mixer by its name, here {DEFAULT_MIXER}" if row is None else _axes(row)
    return f"{axes}\n\n{_stages(network)}"


def _axes(row: MixerRow) -> str:
    lines = [f"{row.title}: {row.function}, {row.layer}, networks {row.network}_*", "", f"  {row.equation}", ""]
    facts = {
        "connectivity": row.connectivity.value,
        "shared over positions": row.sharing_positions.value,
        "shared over channels": row.sharing_channels.value,
        "weights come from": row.dynamics.value,
        "weight": f"{row.weight} in y[b,p,c] = sum_k weight[b,p,g(c),k] x[b,N(p,k),c]",
        "implementation here": kernels.choose(row.function),
    }
    return "\n".join([*lines, *_aligned(facts)])


def _axes_of_point(point: Point) -> str:
    groups = point.num_groups if isinstance(point.num_groups, tuple) else (point.num_groups or 0,)
    with torch.device("meta"):
        operator = LocalMixer(max(1, groups[0]), point.in_block(0, 0)).operator
    sharing = f"within groups, {', '.join(map(str, groups))} of them" if groups != (0,) else "none"
    weights = point.weights.value.removeprefix("softmax of ") if point.free else point.weights.value
    facts = {
        "connectivity": f"{point.connectivity.value}, {' x '.join(map(str, point.size))}",
        "shared over positions": point.positions.value,
        "shared over channels": "all" if groups == (1,) else sharing,
        "weights come from": f"{weights}{', normalised by a softmax' if point.softmax else ''}",
        "operator": operator,
        "implementation here": kernels.choose(operator),
    }
    return "\n".join([f"{point.name}: LocalMixer, networks localmixer_*", "", *_aligned(facts)])


def _aligned(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"  {fact:{width}}  {value}" for fact, value in facts.items()]


def _stages(network: str, **options: Any) -> str:
    with torch.device("meta"):
        model = timm.create_model(network, **options)
    assert isinstance(model, Hierarchy)
    model.eval()  # a batch norm behind a global pool has one value per image
    size = model.pretrained_cfg["input_size"][1:]
    costs = cost_by_module(model, size)
    image = torch.empty(1, model.in_chans, *size, device="meta")
    maps = model.forward_intermediates(image, output_fmt="NHWC", intermediates_only=True)
    header = ("stage", "blocks", "map", "channels", "weight of one mixer", "its params", "its MACs", "params", "MACs")
    rows = [header]
    for index, x in enumerate(maps):
        assert isinstance(x, Tensor)
        mixers = [module for module in model.stages[index].modules() if isinstance(module, Mixer)]
        padded = mixers[0].connectivity.pad(torch.empty_like(x))  # the weights of its cost, see cost_by_module
        _, weight = mixers[0].source(padded, mixers[0].connectivity)
        one, whole = costs[f"stages.{index}.blocks.0.mixer"], costs[f"stages.{index}"]
        rows.append(
            (
                str(index + 1),
                str(len(mixers)),
                f"{x.shape[1]} x {x.shape[2]}",
                str(x.shape[3]),
                str(list(weight.shape)),
                *map(_short, (one.parameters, one.macs, whole.parameters, whole.macs)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join("  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)
    total = f"{_short(costs[''].parameters)} parameters, {_short(costs[''].macs)} MACs"
    return f"{network} at {size[0]} x {size[1]}: {total}\n\n{table}"


def _short(count: int) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3f}{unit}"
    return str(count)
