"""What the readme of a set of scenes says."""

from __future__ import annotations

from typing import Any

from localmix.tasks.scenes import CLASSES, GROUND


def readme(content: dict[str, Any]) -> str:
    """The text, for the content of `scenes.json`."""
    settings, scenes, objects = content["settings"], content["scenes"], content["objects"]
    height, width = settings["size"]
    rows = "\n".join(
        f"| {label} | {name} | " + " | ".join(f"{objects[split][name]:,}" for split in scenes) + " |"
        for label, name in enumerate(CLASSES)
        if label
    )
    plain = " --plain" if settings["plain"] else ""
    return f"""# Scenes

{scenes["train"]:,} scenes for training and {scenes["val"]:,} for validation, {width} x {height} pixels, of garments
that occlude one another. Composed of Fashion-MNIST by

    localmix scenes DIR --num-train {settings["num_train"]} --num-val {settings["num_val"]} \\
        --size {height} {width} --max-objects {settings["max_objects"]} --seed {settings["seed"]}{plain}

The garments for training are from Fashion-MNIST's training images, those for validation from its test images.

| file | what it is |
|---|---|
| `images/SPLIT/*.jpg` | the scenes |
| `annotations/instances_SPLIT.json` | COCO's json: masks of what is seen, as run lengths, their boxes and areas |
| `annotations/SPLIT/*.png` | label maps: 0 is {GROUND}, then the classes below |
| `scenes.json` | the settings, and how many there are of each |
| `scenes.png` | some of them |

| id | class | {" | ".join(scenes)} |
|---|---|{"---|" * len(scenes)}
{rows}

Fashion-MNIST: Copyright (c) 2017 Zalando SE, MIT licence, https://github.com/zalandoresearch/fashion-mnist
"""
