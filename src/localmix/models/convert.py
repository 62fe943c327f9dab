"""Published checkpoints as checkpoints of these networks: the authors' DWNets, and Swin's in either set of names.

What a weight is called there and here stands in layouts.py. Nothing is left out silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from localmix import __version__, arguments
from localmix.layers import Mixer, WindowAttention
from localmix.models.checkpoint_reading import read_checkpoint, unwrap
from localmix.models.layouts import LAYOUTS, Layout, Weights
from localmix.writing import write_atomically


@dataclass(frozen=True)
class Report:
    """What a conversion has done."""

    model: str
    layout: str
    num_classes: int
    num_parameters: int
    output: Path

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.model}, {self.num_parameters:,} parameters, {self.num_classes} classes, "
            f"from a checkpoint of {self.layout}"
        )


def convert_file(
    checkpoint: Path, *, model: str, output: Path, config: bool = False, img_size: int | None = None, **options: Any
) -> Report:
    """Write the weights of a published checkpoint as a safetensors file of the network `model`.

    Args:
        checkpoint: of a layout in `LAYOUTS`, written by `torch.save` or as safetensors. Nothing in it can run code.
        model: name of the network. Its number of classes is that of the checkpoint.
        output: ends in ".safetensors". The file is there wholly or not at all; one that was there before is replaced.
        config: write "config.json" next to it too, so that timm loads the folder as "local-dir:FOLDER".
        img_size: side of the square images it was trained on [pixels], to be noted; by default what a Swin tells.
        options: further arguments of the network, such as `depths`. The `window_size` of a Swin is its own.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is damaged, foreign or wants to run code, or its weights are not those of the network.
        OSError: the output cannot be written.
    """
    # these import this module
    from localmix.models import create_model
    from localmix.models.hierarchy import Hierarchy

    checkpoint, output = Path(checkpoint), Path(output)
    if img_size is not None:
        arguments.positive("img_size", img_size)
    if output.suffix != ".safetensors":
        raise ValueError(f"output: expected a name that ends in .safetensors, got {output}")
    weights = unwrap(read_checkpoint(checkpoint))
    layout = _layout_of(weights)
    num_classes = _num_classes(weights, layout)
    window = _only_window(weights) if layout.mixer is WindowAttention else None
    if window and model.rpartition("_")[0] == layout.network:
        options = {"window_size": window, **options}
    with torch.device("meta"):  # shapes are all that is needed
        network = create_model(model, num_classes=num_classes, **options)
    if not isinstance(network, Hierarchy):
        raise ValueError(f"model: expected a network of localmix, got {model!r}")
    converted = convert_state_dict(weights, network)
    if img_size is None and window:
        img_size = _masked_side(weights, window) or network.feature_info[-1]["reduction"] * window
    seen = {} if img_size is None else {"input_size": [network.in_chans, img_size, img_size]}

    metadata = {
        "format": "pt",
        "architecture": model,
        "num_classes": str(num_classes),
        "model_args": json.dumps(options),
        "source": layout.name,
        "localmix": __version__,
        **{key: json.dumps(value) for key, value in seen.items()},
    }
    tensors = {key: value.contiguous() for key, value in converted.items()}
    content = safetensors.torch.save(tensors, metadata=metadata)
    write_atomically(output, lambda file: file.write(content))
    if config:
        description = json.dumps(_config(network, model, num_classes, options, seen), indent=2)
        write_atomically(output.with_name("config.json"), lambda file: file.write(description.encode()))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return Report(model, layout.name, num_classes, num_parameters, output)


def convert_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a published checkpoint under the names and in the shapes of `model`, for `load_state_dict`.

    Wrappers are taken off: {"model": ...}, {"state_dict": ...}, "module." and "_orig_mod." in front of every name.

    Raises:
        ValueError: unless every weight of the checkpoint has its place, every parameter and buffer of the model is set
            and every shape is right; it lists all that is left over, missing and misshapen.
    """
    weights = unwrap(state_dict)
    return _convert(weights, _layout_of(weights), model)


def checkpoint_filter(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """What timm calls between reading pretrained weights and loading them: `convert_state_dict`, with two freedoms.

    timm itself leaves out a classifier that does not fit, and adapts the first convolution to another number of input
    channels: these two may differ here. Since timm then ignores whatever else does not fit, all of it is refused here.
    """
    weights = unwrap(state_dict)
    return _convert(weights, _layout_of(weights), model, adaptable=("head.fc.", "patch_embed.proj.weight"))


def _layout_of(weights: Weights) -> Layout:
    for layout in LAYOUTS:
        if layout.fits(weights):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    names = ", ".join(map(repr, list(weights)[:5])) or "no names at all"
    raise ValueError(f"checkpoint: expected one of these layouts: {known}; got names such as {names}")


def padding_of(weights: Weights, **options: Any) -> dict[str, Any]:
    """Arguments of a backbone that pads as that of a published detector or segmenter does.

    The authors' nets pad the map in front of each block to a multiple of the kernel there, and not as classifiers,
    whose maps 7 divides at 224 pixels. Swin's windows pad in any case.

    Args:
        weights: of the whole checkpoint.
        options: other arguments of the backbone.
    """
    of_authors = any(".attn2conv." in key for key in weights)
    return {"pad_to": options.get("kernel_size", 7)} if of_authors and "pad_to" not in options else {}


def _num_classes(weights: Weights, layout: Layout) -> int:
    """Outputs of the classifier; 0 if there is none."""
    for key, value in weights.items():
        if layout.place(key)[1] in ("head.fc.weight", "head.fc.bias") and getattr(value, "ndim", 0):
            return value.shape[0]
    return 0


def _convert(
    weights: Weights, layout: Layout, model: nn.Module, *, adaptable: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """`convert_state_dict`; keys that begin with one of `adaptable` may be left over, missing and misshapen."""
    expected = model.state_dict()
    converted: dict[str, Tensor] = {}
    left_over: list[tuple[str, str]] = []
    misshapen: list[tuple[str, str]] = []
    windows: set[int | None] = set()
    for key, value in weights.items():
        row, target = layout.place(key)
        if row is not None and target is None:
            continue
        if target is None or not isinstance(value, Tensor) or target in converted:
            left_over.append((key, "" if isinstance(value, Tensor) else f" ({type(value).__name__}, not a tensor)"))
        elif target not in expected:
            if not target.startswith(adaptable):
                left_over.append((key, ""))
        else:
            like = expected[target]
            changed = value if row is None else row.change(value, tuple(like.shape))
            if not _alike(changed, like) and not target.startswith(adaptable):
                place = "" if target == key else f" as {target}"
                misshapen.append((key, f": expected {_described(like)}{place}, got {_described(value)}"))
                if target.endswith("relative_position_bias_table"):
                    windows.add(_window_of(value))
            converted[target] = changed
    missing = [(key, "") for key in expected if key not in converted and not key.startswith(adaptable)]
    other_mixer = layout.mixer is not None and _mixers(model) != {layout.mixer}
    if not (left_over or missing or misshapen or other_mixer):
        return converted

    name = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
    lines = [f"checkpoint: expected the weights of {name}, got those of {_network_of(weights, layout)}"]
    if len(windows) == 1 and None not in windows:
        lines.append(
            f"its tables of relative positions are those of windows of {windows.pop()}: give the network window_size="
        )
    elif windows:
        lines.append("its tables of relative positions are those of other windows: see window_size= of the network")
    for title, entries in (("left over", left_over), ("missing", missing), ("misshapen", misshapen)):
        if entries:
            lines += [f"{title} ({len(entries)}):", *(f"  {line}" for line in _collected(entries))]
    raise ValueError("\n".join(lines))


def _alike(value: Tensor, like: Tensor) -> bool:
    return value.shape == like.shape and value.is_floating_point() == like.is_floating_point()


def _described(value: Tensor) -> str:
    kind = "" if value.is_floating_point() else f"{value.dtype} "
    return f"{kind}{list(value.shape)}".replace("torch.", "")


def _mixers(model: nn.Module) -> set[type[Mixer]]:
    return {type(module) for module in model.modules() if isinstance(module, Mixer)}


def _window_of(table: Tensor) -> int | None:
    """Side of the square window that a table of relative positions belongs to; None if it is of no square window."""
    entries = table.shape[0] if table.ndim == 2 else math.prod(table.shape[1:])
    side = math.isqrt(entries)
    return (side + 1) // 2 if side**2 == entries and side % 2 else None


def _only_window(weights: Weights) -> int | None:
    """Side of the windows that all tables of relative positions belong to; None where they differ or are of none."""
    tables = [t for key, t in weights.items() if key.endswith("relative_position_bias_table") and isinstance(t, Tensor)]
    sides = {_window_of(table) for table in tables}
    return sides.pop() if len(sides) == 1 else None


def _masked_side(weights: Weights, window: int) -> int | None:
    """Side of the images [pixels] by the mask of shifted windows in the first stage, which Microsoft's files hold."""
    mask, patches = weights.get("layers.0.blocks.1.attn_mask"), weights.get("patch_embed.proj.weight")
    if not isinstance(mask, Tensor) or not isinstance(patches, Tensor):
        return None
    return math.isqrt(len(mask)) * window * patches.shape[-1]


def _network_of(weights: Weights, layout: Layout) -> str:
    """What the checkpoint belongs to, in words: the name of a network here if one has its width and depths."""
    from localmix.models.registry import SIZES  # it imports this module

    depths: dict[int, int] = {}
    for key in weights:
        match = re.match(r"(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.", key)
        if match:
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    shape = getattr(weights.get("patch_embed.proj.weight"), "shape", ())
    found = {
        "embed_dim": shape[0] if shape else None,
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "patch_size": shape[-1] if shape else None,
    }
    size = next((size for size, sizes in SIZES.items() if sizes == found), None)
    if size and layout.network:
        return f"{layout.network}_{size} ({layout.name})"
    return f"{layout.name} with " + ", ".join(f"{key}={value}" for key, value in found.items())


def _collected(entries: list[tuple[str, str]]) -> list[str]:
    """One line for the same weight of neighboring blocks: "layers.2.blocks.0-5.norm1.bias"."""
    lines: dict[tuple[str, str, str], list[int]] = {}
    for key, note in entries:
        before, block, after = re.findall(r"\A(?:(.*?\.blocks\.)(\d+))?(.*)\Z", key, re.DOTALL)[0]
        # the block stands in the note too if that names what the weight is here
        note = re.sub(r"(\.blocks\.)\d+", r"\1#", note)
        lines.setdefault((before, after, note), []).append(int(block or -1))
    return [
        f"{before}{','.join(_runs(blocks)) if before else ''}{after}{note}"
        for (before, after, note), blocks in lines.items()
    ]


def _runs(numbers: list[int]) -> list[str]:
    """[0, 1, 2, 5] as ["0-2", "5"]."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _config(
    network: Any, model: str, num_classes: int, options: dict[str, Any], seen: dict[str, Any]
) -> dict[str, Any]:
    """What timm reads from the "config.json" of a folder; `seen` says what images the network was trained on."""
    pretrained_cfg = {key: value for key, value in network.pretrained_cfg.items() if value not in (None, "")}
    return {
        "architecture": model,
        "num_classes": num_classes,
        "num_features": network.num_features,
        "global_pool": network.global_pool,
        "model_args": options,
        "pretrained_cfg": {**pretrained_cfg, "num_classes": num_classes, **seen},
    }
