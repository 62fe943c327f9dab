"""The model card of a published network, whatever its task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix import __version__
from localmix.axes import MIXERS
from localmix.reports.environment import commit

CITATION = """@inproceedings{han2022connection,
  title     = {On the Connection between Local Attention and Dynamic Depth-wise Convolution},
  author    = {Qi Han and Zejia Fan and Qi Dai and Lei Sun and Ming-Ming Cheng and Jiaying Liu and Jingdong Wang},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""

Rows = list[tuple[str, str]]
"""Names and values of a table."""


@dataclass(frozen=True)
class Content:
    """What a card says.

    Args:
        library: that loads the network, as the Hub calls it.
        pipeline: the task, as the Hub calls it.
        what: a sentence on what it is.
        use: a program that uses the folder of the name that is given.
        source: where the weights come from, with "sha256", "step" and "weights".
        settings: of the training, plain values.
        noted: what the run has noted of itself; None where it has nothing.
        measured: what the run itself measured at the step of the checkpoint.
        rows: the figures of an evaluation, of the content of its results.json.
        ours: whether the network is one of the paper's.
    """

    library: str
    pipeline: str
    what: str
    use: Callable[[str], str]
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    noted: Mapping[str, Any] | None
    measured: Rows
    rows: Callable[[Mapping[str, Any]], Rows]
    ours: bool


def card(content: Content, *, folder: str, license: str, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown with the Hub's header.

    Args:
        folder: what the network is published as.
        license: of the weights.
        evaluations: the content of results.json, by the file's name in the folder.
    """
    tags = dict.fromkeys([content.pipeline, content.library, "localmix"])
    header = ["---", f"library_name: {content.library}", f"license: {json.dumps(license)}"]
    header += [f"pipeline_tag: {content.pipeline}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    parts = [
        "\n".join(header),
        f"# {folder}",
        content.what,
        "## Use",
        f"```python\n{content.use(folder)}\n```",
        "## Results",
        *_results(content, evaluations),
        "## Training",
        *_training(content),
        "## Licence",
        f"The weights: `{license}`. The images they were trained on have licences of their own.",
    ]
    if content.ours:
        parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def with_mixer(network: str) -> str:
    """The name of a network and, if it is one of the paper's, what its mixer is called."""
    stem = network.rsplit("_", 1)[0]
    mixer = next((row.title for row in MIXERS.values() if row.network == stem), None)
    return f"`{network}`" + (f" ({mixer})" if mixer else "")


def measured(columns: Mapping[str, float], kind: str, forms: Mapping[str, tuple[str, Callable[[float], str]]]) -> Rows:
    """Of the columns of metrics.csv those of the weights of a kind, "ema" or "raw", by their names for people.

    Args:
        forms: by the name of a column without "val_" or "val_ema_", its name and its form for people.
    """
    prefix = "val_ema_" if kind == "ema" else "val_"
    found = {name: columns.get(prefix + name) for name in forms}
    return [(forms[name][0], forms[name][1](value)) for name, value in found.items() if value is not None]


def _results(content: Content, evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    parts = []
    for name, found in evaluations.items():
        data, precision = Path(found["data"]["name"]).name, found["settings"]["precision"]
        parts.append(f"On {data}, {found['split']}, by `localmix`, {precision} ([everything]({name})):")
        parts.append(_table(content.rows(found)))
    if content.measured:
        step = content.source["step"]
        parts.append(f"As the training run itself validated (`metrics.csv` of the run, step {step}):")
        parts.append(_table(content.measured))
    return parts or ["None were given."]


def _training(content: Content) -> list[str]:
    source = content.source
    parts = [
        f"Trained by `localmix` to step {source['step']}; these are its "
        + ("weights." if source["weights"] == "raw" else "weights' moving average.")
        + f" SHA-256 of the checkpoint: `{source['sha256']}`."
    ]
    if content.settings:
        parts.append(_table([(name, json.dumps(value)) for name, value in content.settings.items()]))
    if content.noted:
        run = json.dumps(content.noted, indent=2, default=str)
        parts.append(f"<details><summary>What the run noted of itself</summary>\n\n```json\n{run}\n```\n\n</details>")
    revision = commit()
    parts.append(f"Published by `localmix` {__version__}{f', commit `{revision}`' if revision else ''}.")
    return parts


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])
