"""The heads of Cascade Mask R-CNN: what each stage computes from the regions it is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


class PyramidAlign(nn.Module):
    """Each region of an image as a square map, averaged from the level of the pyramid that suits its size.

    A region of area a goes to level floor(log2(sqrt(a) / (14 * stride of the finest level))), cut to the levels there
    are: at strides 4 to 32 all below 112 pixels goes to the finest.

    Args:
        output_size: side of the square maps.
        strides: of the levels [pixels], finest first.

    Shapes: maps of the levels [B, C, h, w], boxes of each image [n, 4] -> [sum of n, C, output_size, output_size].
    """

    def __init__(self, output_size: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.output_size, self.strides = output_size, strides

    def forward(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        image = torch.cat([box.new_full((len(box), 1), index) for index, box in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], 1)
        x0, y0, x1, y1 = regions[:, 1:].unbind(1)
        scale = ((x1 - x0) * (y1 - y0)).sqrt() / (14 * self.strides[0])
        level = torch.log2(scale + 1e-6).floor().clamp(0, len(self.strides) - 1)
        size = self.output_size
        aligned = maps[0].new_zeros(len(regions), maps[0].shape[1], size, size)
        for index, (m, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = torch.where(level == index)[0]
            found = roi_align(m, regions[rows], size, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
            aligned = aligned.index_put((rows,), found.to(aligned.dtype))
        return aligned


class BoxHead(nn.Module):
    """Four convolutions with batch norms, a hidden layer four times as wide, then what a region shows and where it is.

    Args:
        channels: of the maps.
        num_classes: without the ground.
        size: side of the maps.

    Shapes: [N, channels, size, size] -> logits [N, 1 + num_classes], the ground first, and offsets
    [N, num_classes, 4] of the box, for each class its own; both float32.
    """

    def __init__(self, channels: int, num_classes: int, *, size: int = 7) -> None:
        super().__init__()
        hidden = 4 * channels
        blocks = []
        for _ in range(4):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        self.convs = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels * size * size, hidden)
        self.classifier = nn.Linear(hidden, 1 + num_classes)
        self.regressor = nn.Linear(hidden, 4 * num_classes)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)
        for layer in (self.fc, self.classifier, self.regressor):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.fc(self.convs(x).flatten(1)))
        return self.classifier(x).float(), self.regressor(x).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Four convolutions, then one that doubles the map, then a mask of each class.

    Shapes: [N, channels, size, size] -> logits [N, num_classes, 2 size, 2 size], float32.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)]
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU(inplace=True))))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        for layer in (*convs, self.upsample, self.predictor):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(torch.relu(self.upsample(self.convs(x)))).float()
