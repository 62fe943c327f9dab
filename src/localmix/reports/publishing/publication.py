"""What `localmix publish` has to know of a network of any task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.reports.evaluation.published import CONFIG
from localmix.reports.publishing.card import Content


@dataclass(frozen=True)
class Publication:
    """A network that is to be published.

    Args:
        name: of the network, for people.
        source: where its weights come from, with "checkpoint", "sha256", "step" and "weights".
        evaluation: "kind" in the results.json of its task.
        save: writes weights and configuration into a folder, given that and the licence.
        content: what the card says, given what metrics.csv has of the step, by its columns.
    """

    name: str
    source: Mapping[str, Any]
    evaluation: str
    save: Callable[[Path, str], None]
    content: Callable[[Mapping[str, float]], Content]


def write_config(folder: Path, facts: Mapping[str, Any]) -> None:
    """config.json, for people and the Hub; what is loaded is what the file of weights says of itself."""
    (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n")


def chosen(facts: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """The settings of a training that are set, without those that the card says otherwise."""
    return {name: value for name, value in facts.items() if name not in left_out and value is not None}
