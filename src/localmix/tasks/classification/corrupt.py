"""Images that turn out to be corrupt while a net trains: named, counted, replaced, and too many of them refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from PIL import Image

from localmix.tasks.classification.loading import Pairs
from localmix.tasks.images import CorruptImage


class ReplacedImages:
    """Pairs in which a corrupt image is replaced by the next whole one.

    So what stands at an index depends on the files alone. Each corrupt image is logged when it is met first, and
    counted once, whichever processes load it: which images are known to be corrupt lies in memory that the training
    process shares with its loader's workers.

    Args:
        images: pairs that raise `CorruptImage`.
        limit: how many corrupt images are borne with.
        name: of an image, by its index.
    """

    def __init__(self, images: Pairs, limit: int, name: Callable[[int], str]) -> None:
        self.images, self.limit, self.name = images, limit, name
        self.known = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self.images[place]
            except CorruptImage as error:
                self._note(place, str(error))
        raise CorruptImage(f"data: none of the {len(self)} images can be decoded")

    @property
    def corrupt(self) -> list[str]:
        """Names of the images that were found corrupt so far."""
        # Of a copy: PyTorch counts, then lists, and another process may write in between.
        return [self.name(index) for index in self.known.clone().nonzero().flatten().tolist()]

    def _note(self, index: int, reason: str) -> None:
        if self.known[index]:
            return
        self.known[index] = True
        corrupt = self.corrupt
        if len(corrupt) > self.limit:
            more = f" and {len(corrupt) - 20} more" if len(corrupt) > 20 else ""
            raise CorruptImage(
                f"data: more than max_corrupt = {self.limit} corrupt images: {', '.join(corrupt[:20])}{more}; "
                f"the last of them: {reason}"
            )
        logging.getLogger(__name__).warning(
            "corrupt image %d of at most %d, the next one takes its place: %s", len(corrupt), self.limit, reason
        )
