"""A network for a task at a size, and what it costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localmix.models import create_model
from localmix.reports.benchmarks.timing import peak_bytes
from localmix.reports.cost import cost
from localmix.reports.cost_memory import layer_weights, saved_bytes
from localmix.reports.evaluation.outcome import computed_in
from localmix.reports.paper import NUM_CLASSES, SIZES, PaperRow, paper_row
from localmix.reports.throughput import Loss, training_step


class Subject:
    """A network for a task at a size."""

    def __init__(self, name: str, task: str, size: tuple[int, int] | None, num_classes: int) -> None:
        self.name, self.task, self.num_classes = name, task, num_classes
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        native = config.input_size[1:] if config else None
        self.size: tuple[int, int] = size or (native if task == "classification" and native else SIZES[task])
        # a network of one size is told another one when it is made
        is_told = bool(config and config.fixed_input_size and self.size != native)
        self.options: dict[str, Any] = {"img_size": self.size} if is_told else {}

    def new(self) -> nn.Module:
        """The network [B, 3, H, W] -> what a loss takes."""
        try:
            return self._new()
        except (TypeError, AssertionError, RuntimeError) as error:
            raise self._refused(error) from error

    def _new(self) -> nn.Module:
        if self.task == "classification":
            return create_model(self.name, num_classes=self.num_classes, **self.options)
        if self.task == "segmentation":
            from localmix.tasks.segmentation.upernet import upernet

            return upernet(self.name, num_classes=self.num_classes, **self.options)
        from localmix.reports.detector_cost import DetectorParts
        from localmix.tasks.detection.cascade_mask_rcnn import cascade_mask_rcnn

        return DetectorParts(
            cascade_mask_rcnn(self.name, num_classes=self.num_classes, backbone_kwargs=self.options or None)
        )

    def on_meta(self) -> nn.Module:
        """The network without numbers; one that needs numbers to be made is made with them."""
        try:
            with torch.device("meta"):
                return self._new()
        except (RuntimeError, TypeError, AssertionError):
            return self.new()

    def loss(self) -> Loss:
        """What a training step makes small."""
        if self.task == "classification":
            return F.cross_entropy
        if self.task == "segmentation":
            from localmix.tasks.segmentation.objective import segmentation_loss

            return segmentation_loss
        return lambda outputs, _: torch.stack([output.float().square().mean() for output in outputs]).sum()

    def images(self, batch_size: int, device: str) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        shape = (batch_size, *self.size) if self.task == "segmentation" else (batch_size,)
        return torch.rand(batch_size, 3, *self.size, device=device), torch.zeros(shape, dtype=torch.long, device=device)

    def row(self, batch_size: int, precision: str, device: str) -> dict[str, Any]:
        """What is counted of it."""
        net, shape = self.on_meta(), (batch_size, 3, *self.size)
        try:
            counted = cost(net, self.size, in_chans=3)
            weights = layer_weights(net, shape, precision=precision)
        except (TypeError, AssertionError, RuntimeError) as error:
            raise self._refused(error) from error
        try:
            saved = saved_bytes(net, shape, precision=precision)
        except ValueError as error:
            raise ValueError(
                f"batch_size: {self.name} cannot be trained with {batch_size} of {self.size}: {error}"
            ) from error
        dynamic = [layer.num_bytes for layer in weights if layer.is_dynamic]
        paper = paper_row(self.task, self.name)
        is_papers = self.size == SIZES[self.task] and self.num_classes == NUM_CLASSES[self.task]
        return {
            "model": self.name,
            "img_size": list(self.size),
            "parameters": counted.parameters,
            "macs": counted.macs,
            "saved_bytes": saved,
            "dynamic_weight_bytes": sum(dynamic) if weights else None,
            "peak_bytes": self._peak_bytes(batch_size, precision) if device == "cuda" else None,
            "training_images_per_second": None,
            "inference_images_per_second": None,
            "layers": [asdict(layer) for layer in weights],
            "paper": _beside(paper, counted.parameters, counted.macs) if paper and is_papers else None,
        }

    def _peak_bytes(self, batch_size: int, precision: str) -> int:
        """Of a training step, above the network, its gradients and the state of its optimiser."""
        net = InPrecision(self.new(), precision, "cuda").cuda()
        step = training_step(net, *self.images(batch_size, "cuda"), self.loss())
        step()
        return peak_bytes(step, "cuda")

    def _refused(self, error: Exception) -> ValueError:
        height, width = self.size
        return ValueError(f"img_size: {self.name} does not take images of {height} x {width} pixels: {error}")


class InPrecision(nn.Module):
    """A network that computes in a precision."""

    def __init__(self, net: nn.Module, precision: str, device: str) -> None:
        super().__init__()
        self.net, self.precision, self.device = net, precision, device

    def forward(self, images: Tensor) -> Any:
        with computed_in(self.precision, self.device):
            return self.net(images)


def _beside(row: PaperRow, parameters: int, macs: int) -> dict[str, Any]:
    """The paper's figures, and how much more ours are."""
    counts = {
        "parameters": (row.parameters, parameters),
        "macs": (row.macs, macs),
        "parameters_counted": (row.parameters_counted, parameters),
        "macs_counted": (row.macs_counted, macs),
    }
    return {
        "title": row.title,
        **{
            name: figure
            and {
                "text": figure.text,
                "origin": figure.origin.value,
                "agrees": figure.agrees(count),
                "difference": figure.difference(count),
            }
            for name, (figure, count) in counts.items()
        },
    }
