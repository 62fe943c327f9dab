"""What a detector is told to find in each image, checked."""

from __future__ import annotations

from torch import Tensor

Target = dict[str, Tensor]


def check_targets(
    images: list[Tensor], targets: list[Target] | None, num_classes: int, *, masks: bool = True
) -> list[Target]:
    """The targets, if they fit the images; see `CascadeMaskRCNN` for what they are.

    Args:
        masks: whether they are needed.

    Raises:
        ValueError: with what is wrong, and in which target.
    """
    if targets is None or len(targets) != len(images):
        got = None if targets is None else len(targets)
        raise ValueError(f"targets: expected one for each of {len(images)} images in training, got {got}")
    needed = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        missing = set(needed) - target.keys()
        if missing:
            wanted = f"{', '.join(needed[:-1])} and {needed[-1]}"
            raise ValueError(f"targets[{index}]: expected {wanted}, without {', '.join(sorted(missing))}")
        boxes, labels = target["boxes"], target["labels"]
        count = len(labels)
        shapes = {"boxes": (count, 4), "masks": (count, *image.shape[1:])}
        for name in set(needed) - {"labels"}:
            found = tuple(target[name].shape)
            if found != shapes[name]:
                raise ValueError(f"targets[{index}][{name!r}]: expected {list(shapes[name])}, got {list(found)}")
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise ValueError(f"targets[{index}]['boxes']: expected x0 < x1 and y0 < y1, got {boxes.tolist()}")
        if not bool(((labels > 0) & (labels <= num_classes)).all()):
            raise ValueError(
                f"targets[{index}]['labels']: expected 1 to {num_classes}, got {sorted(set(labels.tolist()))}"
            )
    return targets
