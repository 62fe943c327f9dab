"""Teach a nano detector eight photographs of COCO by heart: mask AP50 above 0.9 on them, or something is broken.

    python examples/overfit_detection.py DIR [OUTPUT]

DIR is COCO, or any data set in its format, with annotations/instances_val*.json and the images beside it.
"""

import json
import shutil
import sys
from pathlib import Path

from localmix.cli import main
from localmix.tasks.detection.data import split_of

RECIPE = Path(__file__).parents[1] / "recipes" / "coco" / "overfit8.yaml"


def few(content, number=8):
    """The first images with one to four objects, all of them a tenth of the image or more, and none of them a crowd."""
    objects = {}
    for item in content["annotations"]:
        objects.setdefault(item["image_id"], []).append(item)

    def good(image):
        found = objects.get(image["id"], [])
        least = image["width"] * image["height"] / 10
        return 0 < len(found) <= 4 and all(item["area"] >= least and not item["iscrowd"] for item in found)

    images = [image for image in content["images"] if good(image)][:number]
    annotations = [item for image in images for item in objects[image["id"]]]
    return {"images": images, "annotations": annotations, "categories": content["categories"]}


def run(root, output):
    """Choose the images, copy them into `output`, and train there."""
    file, folder = split_of(root, "val")
    content = few(json.loads(file.read_text()))
    target = output / "images"
    for place in (target / "annotations", target / "few"):
        place.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        shutil.copy(folder / image["file_name"], target / "few")
    (target / "annotations" / "instances_few.json").write_text(json.dumps(content))
    print(f"{len(content['images'])} images with {len(content['annotations'])} objects")
    return main(["fit", "--config", str(RECIPE), "--data.root", str(target), "--output", str(output / "run")])


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/overfit_detection")))
