"""`localmix explain --image`: what networks do to images, as pictures, a page and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from localmix.arguments import choice, positive
from localmix.reports.environment import command, environment
from localmix.reports.explanation import sections
from localmix.reports.explanation.look import look
from localmix.reports.explanation.page import cell
from localmix.reports.explanation.selection import Position, rows_of, shares
from localmix.reports.explanation.subjects import SHOWCASE, same_size, subjects
from localmix.reports.results import write_json
from localmix.tasks.engine.output import output_folder
from localmix.tasks.images import CorruptImage
from localmix.writing import write_atomically

PARTS = ("weights", "connections", "receptive_field", "variation")


def explain_images(
    images: Sequence[Path | str],
    models: Sequence[str | Path] = SHOWCASE,
    *,
    output: Path | str = "explanation",
    show: Sequence[str] = PARTS,
    positions: Sequence[Position] = ((0.5, 0.5),),
    layers: Sequence[str | int] | None = None,
    groups: Sequence[str | int] = ("mean", 0),
    img_size: int | None = None,
    whole: bool = False,
    draw: int = 2,
    num_probes: int = 8,
    weights: str | None = None,
    pretrained: bool = False,
    checkpoint: Path | str | None = None,
    announce: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Draw what networks do to images; writes PNGs, index.html and explain.json, and returns what the last one holds.

    Args:
        images: files of any size.
        models: checkpoints, folders of runs, published folders, or names that timm knows, whose weights are random
            unless `pretrained` or `checkpoint` says otherwise; the six mixers by default.
        output: folder to write into.
        show: which of `PARTS`.
        positions: x, y of the positions whose weights are shown: integers are pixels of what the networks see, others
            shares of its width and height. The receptive field is that of the first.
        layers: stages from 1, names of layers, or "all"; every stage by default.
        groups: numbers of groups of channels, and "mean" for the mean over them.
        img_size: side of what the networks see [pixels]; of the shorter side if `whole`.
        whole: the image is not cropped, and keeps its size unless `img_size` is given.
        draw: number of images whose weights are drawn; all count for the receptive field and the variation.
        num_probes: see `receptive_fields`.
        weights, pretrained, checkpoint: see `subjects`.
        announce: is told what is going on.

    Raises:
        OSError: a model that is not there.
        ValueError: names the argument, what was expected and what came.
    """
    for part in show:
        choice("show", part, PARTS)
    positive("draw", draw)
    positive("num_probes", num_probes)
    for name, given in (("images", images), ("positions", positions), ("groups", groups), ("show", show)):
        if not given:
            raise ValueError(f"{name}: expected one or more, got none")
    folder, files = output_folder(output), [Path(image) for image in images]
    nets = subjects(
        models, weights=weights, pretrained=pretrained, checkpoint=checkpoint, img_size=img_size, whole=whole
    )
    rows = rows_of(nets, layers) if set(show) & {"weights", "connections", "variation"} else []
    try:
        seen = {net.label: [net.see(file) for file in files] for net in nets}
    except CorruptImage as error:
        raise ValueError(f"image: {error}") from error
    sizes = [same_size({label: pixels[index] for label, pixels in seen.items()}) for index in range(len(files))]
    for position in positions:
        for size in sizes:
            shares(position, *size)
    looks = {}
    for number, net in enumerate(nets):
        announce(f"{net.label}: {net.origin}")
        if rows:
            looks[net.label] = look(net, seen[net.label], [row.names[number] for row in rows], positions, groups, draw)
    shown = sections.Shown(nets, files, sizes, seen, rows, looks, positions, groups, draw)
    sheet = sections.Sheet(folder, "What the networks do to the images")
    facts: dict[str, Any] = {
        "command": command(),
        **environment("cpu"),
        "images": [{"file": str(file), "size": list(size)} for file, size in zip(files, sizes, strict=True)],
        "models": [net.facts() for net in nets],
    }
    sections.networks(sheet, nets)
    if "weights" in show:
        facts["weights"] = sections.weights(sheet, shown)
    if "connections" in show:
        facts["connections"] = sections.connections(sheet, shown)
    if "receptive_field" in show:
        facts["receptive_field"] = sections.receptive_field(sheet, shown, layers, num_probes)
    if "variation" in show:
        facts["variation"] = sections.variation(sheet, shown)
        announce(table(facts["variation"]))
    sheet.page.heading("Made by")
    sheet.page.verbatim(facts["command"])
    facts["pictures"] = sheet.names
    write_json(folder / "explain.json", facts)
    write_atomically(folder / "index.html", lambda file: file.write(sheet.page.html().encode()))
    announce(f"{folder / 'index.html'}: {len(sheet.names)} pictures")
    return facts


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as text.

    >>> print(table([{"model": "a", "images": 0.5}, {"model": "bc", "images": None}]))
    model  images
    a       0.500
    bc          –
    """
    cells = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(value, str) for value in rows[0].values()]
    return "\n".join(
        "  ".join(f"{text:{'>' if right else '<'}{w}}" for text, right, w in zip(line, numeric, widths, strict=True))
        for line in cells
    )
