"""Images of any sizes as one batch: scaled as detectors are tested, and padded."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from localmix.tasks.detection.instance_masks import paste_masks


def fitted(height: int, width: int, shorter: float, longer: float) -> tuple[int, int]:
    """Height and width with their ratio kept, the shorter one `shorter`, unless the longer one then exceeds `longer`.

    >>> fitted(480, 640, 800, 1333), fitted(300, 900, 800, 1333)
    ((800, 1067), (444, 1333))
    """
    scale = min(shorter / min(height, width), longer / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class Resizing(GeneralizedRCNNTransform):
    """torchvision's transform, with sizes rounded to the nearest pixel, and large images averaged where they shrink.

    Without the averaging a photograph that shrinks to a half looks different from one that Pillow has resized, as
    `DetectionViews` does for training. Masks are put back by `paste_masks`: torchvision rounds their boxes to pixels.

    Args:
        min_size: shorter side [pixels]; of several, one is drawn for each image in training, and the last one counts
            in test.
        max_size: what the longer side is at most [pixels].
        mean: of the channels.
        std: of the channels.
        in_training: whether training images are resized, too; those that `DetectionViews` has made are not to be.
    """

    def __init__(
        self,
        min_size: int | tuple[int, ...],
        max_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        in_training: bool = True,
    ) -> None:
        sizes: Any = min_size
        super().__init__(sizes, max_size, list(mean), list(std))
        self.sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        self.in_training = in_training

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.training and not self.in_training:
            return image, target
        before = image.shape[-2], image.shape[-1]
        shorter = self.torch_choice(list(self.sizes)) if self.training else self.sizes[-1]
        size = fitted(*before, shorter, self.max_size)
        if size != before:
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        if target is not None:
            target = {**target, "boxes": resize_boxes(target["boxes"], list(before), list(size))}
            if "masks" in target:
                masks = F.interpolate(target["masks"][:, None].float(), size, mode="nearest-exact")
                target["masks"] = masks[:, 0].byte()
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in the images that were given, with masks [n, 1, H, W]; in training nothing is done."""
        if self.training:
            return result
        pairs = zip(result, image_shapes, original_image_sizes, strict=True)
        return [_in_image(*detection) for detection in pairs]


def _in_image(found: dict[str, Tensor], size: tuple[int, int], original: tuple[int, int]) -> dict[str, Tensor]:
    """Detections in an image of `size`, with masks [n, 28, 28] or [n, 1, 28, 28], as such in the original image."""
    found = {**found, "boxes": resize_boxes(found["boxes"], list(size), list(original))}
    if "masks" in found:
        masks = found["masks"].reshape(-1, *found["masks"].shape[-2:])
        found["masks"] = paste_masks(masks, found["boxes"], *original)[:, None]
    return found
