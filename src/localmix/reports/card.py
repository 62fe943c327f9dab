"""The model card of a published network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmix import __version__
from localmix.axes import MIXERS
from localmix.models import Hierarchy
from localmix.reports.environment import commit
from localmix.reports.evaluation.classification import lines
from localmix.reports.evaluation.trained import Trained
from localmix.tasks.images import MODES

MEASURED = {
    "val_top1": ("raw", "top-1", "{:.2%}"),
    "val_top5": ("raw", "top-5", "{:.2%}"),
    "val_loss": ("raw", "loss", "{:.4f}"),
    "val_ema_top1": ("ema", "top-1", "{:.2%}"),
    "val_ema_top5": ("ema", "top-5", "{:.2%}"),
    "val_ema_loss": ("ema", "loss", "{:.4f}"),
}
"""Columns of metrics.csv: of which weights, their name and form for people."""
CITATION = """@inproceedings{han2022connection,
  title     = {On the Connection between Local Attention and Dynamic Depth-wise Convolution},
  author    = {Qi Han and Zejia Fan and Qi Dai and Lei Sun and Ming-Ming Cheng and Jiaying Liu and Jingdong Wang},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""


def card(
    trained: Trained,
    *,
    folder: str,
    license: str,
    measured: Mapping[str, float],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> str:
    """Markdown with the Hub's header.

    Args:
        folder: what the network is published as.
        license: of the weights.
        measured: the run's own validation at the step of the checkpoint, by the columns of metrics.csv.
        evaluations: the content of results.json, by the file's name in the folder.
    """
    ours = isinstance(trained.net, Hierarchy)
    root, _ = trained.data
    data = Path(root).name if root else None
    tags = ["image-classification", "timm", "localmix"]
    header = ["---", "library_name: timm", f"license: {json.dumps(license)}", "pipeline_tag: image-classification"]
    header += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    parts = [
        "\n".join(header),
        f"# {folder}",
        _what(trained, data),
        "## Use",
        _use(folder, ours, MODES[trained.view.channels]),
        "## Results",
        *_results(trained, measured, evaluations),
        "## Training",
        *_training(trained),
        "## Licence",
        f"The weights: `{license}`. The images they were trained on have licences of their own.",
    ]
    if ours:
        parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def _what(trained: Trained, data: str | None) -> str:
    parameters = sum(p.numel() for p in trained.net.parameters())
    stem = trained.name.rsplit("_", 1)[0]
    mixer = next((row.title for row in MIXERS.values() if row.network == stem), None)
    view = trained.view
    return (
        f"`{trained.name}`{f' ({mixer})' if mixer else ''}, an image classifier with {parameters / 1e6:,.2f} M "
        f"parameters and {trained.num_classes} classes{f', trained on {data}' if data else ''}, on "
        f"{'grey' if view.channels == 1 else 'RGB'} images of {view.size[0]} x {view.size[1]} pixels."
    )


def _use(folder: str, ours: bool, mode: str) -> str:
    register = "import localmix.models  # registers the network with timm\n" if ours else ""
    return f"""```python
import timm
from PIL import Image
{register}
net = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # on the Hub: "hf-hub:OWNER/{folder}"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
probabilities = net(transform(Image.open("photo.jpg").convert("{mode}"))[None]).softmax(1)[0]
print(net.pretrained_cfg["label_names"][probabilities.argmax()])
```"""


def _results(
    trained: Trained, measured: Mapping[str, float], evaluations: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    parts = []
    for name, content in evaluations.items():
        settings = content["settings"]
        parts.append(
            f"On {Path(content['data']['name']).name}, {content['split']}, by `localmix`, {settings['precision']} "
            f"([everything]({name})):"
        )
        parts.append(_table(lines(dict(content))))
    kind = trained.source["weights"]
    own = [
        (name, form.format(measured[column]))
        for column, (of, name, form) in MEASURED.items()
        if of == kind and column in measured
    ]
    if own:
        parts.append(f"As the training run itself validated (`metrics.csv` of the run, step {trained.source['step']}):")
        parts.append(_table(own))
    return parts or ["None were given."]


def _training(trained: Trained) -> list[str]:
    source = trained.source
    facts = {
        name: value
        for name, value in trained.training.items()
        if name not in ("data", "model", "classes", "in_chans", "mean", "std", "run") and value is not None
    }
    parts = [
        f"Trained by `localmix` to step {source['step']}; these are its "
        + ("weights." if source["weights"] == "raw" else "weights' moving average.")
        + f" SHA-256 of the checkpoint: `{source['sha256']}`."
    ]
    if facts:
        parts.append(_table([(name, json.dumps(value)) for name, value in facts.items()]))
    if "run" in trained.training:
        run = json.dumps(trained.training["run"], indent=2, default=str)
        parts.append(f"<details><summary>What the run noted of itself</summary>\n\n```json\n{run}\n```\n\n</details>")
    revision = commit()
    parts.append(f"Published by `localmix` {__version__}{f', commit `{revision}`' if revision else ''}.")
    return parts


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])
