"""Semantic segmentation as a task: UPerNet on any timm net, the paper's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from localmix.models import Hierarchy, create_model
from localmix.models.checkpoint_reading import read_checkpoint
from localmix.tasks.engine.schedule import ByFactor
from localmix.tasks.engine.task import Task
from localmix.tasks.engine.weights import PRETRAINED, load_weights
from localmix.tasks.segmentation.labels import IGNORED, Labelling
from localmix.tasks.segmentation.objective import AUXILIARY_WEIGHT, poly, segmentation_loss
from localmix.tasks.segmentation.scores import SegmentationScores
from localmix.tasks.segmentation.upernet import resize, upernet

SCORES = {"miou": "mean_iou", "pixel_accuracy": "pixel_accuracy", "mean_accuracy": "mean_accuracy"}
"""Names of metrics, and what they are of `Scores`."""
LONGEST_WARMUP = 1500
"""Steps, as in the paper."""


class Segmentation(Task):
    """UPerNet with its loss, optimiser and schedule.

    Linear warm-up, and from the first step on a linear fall to 0; cross entropy of both heads. Validation looks at
    whole images and counts at their own sizes. See `Task` for what it shares with other tasks.

    Args:
        model: name of the backbone, as timm has it.
        classes: their names, in the order of the labels.
        colours: RGB of each class.
        first: stored value of the first class.
        void: stored values that count nowhere.
        short_side: shorter side of the images in validation [pixels]; their own if None.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
        lr: learning rate that the warm-up leads to.
        lr_batch_size: number of images in a step that `lr` is meant for; the rates of a run with other steps are scaled
            in proportion. By default they are not.
        weight_decay: of AdamW.
        warmup_steps: steps of warm-up; by default a tenth of the run, and at most 1500.
        power: of the fall: rates are lr * (1 - step / steps) ** power.
        layer_decay: factor of the learning rate from a layer of the backbone to the one in front of it, and from the
            heads to its last; by default all learn alike.
        drop_path_rate: stochastic depth of the last block of the backbone.
        feature_norm: norm on each map of the backbone: layer, batch or none; by default as official code has it.
        channels: of the decoder.
        auxiliary_channels: of the auxiliary head.
        auxiliary_weight: of its loss.
        dropout: share of channels that is dropped in front of each classifier.
        model_kwargs: further arguments of the backbone.
        ema_decay: of the moving average of the weights, which is validated beside them, at step n at most n / (n + 10);
            none by default.
        grad_checkpointing: recompute blocks of the backbone in the backward pass, for less memory.
        compile: by torch.compile.
        channels_last: memory format of images and convolutions.
        sync_batch_norm: whether batch norms look at the batches of all processes.
    """

    kind = "segmentation"

    def __init__(
        self,
        *,
        model: str,
        classes: list[str],
        colours: list[list[int]],
        first: int,
        void: list[int],
        short_side: int | None,
        mean: list[float],
        std: list[float],
        lr: float = 6e-5,
        lr_batch_size: int | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int | None = None,
        power: float = 1.0,
        layer_decay: float | None = None,
        drop_path_rate: float = 0.0,
        feature_norm: str | None = None,
        channels: int = 512,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = AUXILIARY_WEIGHT,
        dropout: float = 0.1,
        model_kwargs: dict[str, Any] | None = None,
        ema_decay: float | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        sync_batch_norm: bool = True,
    ) -> None:
        net = upernet(
            model,
            num_classes=len(classes),
            feature_norm=feature_norm,
            channels=channels,
            auxiliary_channels=auxiliary_channels,
            dropout=dropout,
            drop_path_rate=drop_path_rate,
            **(model_kwargs or {}),
        )
        super().__init__(
            net,
            lr=lr,
            lr_batch_size=lr_batch_size,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            ema_decay=ema_decay,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
            channels_last=channels_last,
            sync_batch_norm=sync_batch_norm,
        )
        self.save_hyperparameters(logger=False)
        self.losses: Any = nn.ModuleDict({prefix: MeanMetric() for prefix in self.nets()})
        self.scores: Any = nn.ModuleDict({prefix: SegmentationScores(len(classes)) for prefix in self.nets()})
        self.metrics = tuple(f"{prefix}{name}" for prefix in self.nets() for name in ("loss", *SCORES))
        self.shown = tuple(name for name in self.metrics if name.endswith(("miou", "pixel_accuracy")))
        self.monitor = "val_ema_miou" if self.ema else "val_miou"

    def begin_with(self, weights: str) -> str:
        """Fill the net, or its backbone alone; gives what was done, in words.

        Args:
            weights: "pretrained" for those that timm has of the backbone, or a file: of a segmenter, whose classifiers
                are left out if it has other classes, or of the backbone with or without its own classifier.
        """
        net: Any = self.net
        if weights == PRETRAINED or not _is_segmenter(weights):
            done = f"backbone: {self._fill_backbone(weights)}"
        else:
            done = load_weights(net, weights, self.hparams["model"])
        if self.ema:
            self.ema.set(net)
        return done

    def _fill_backbone(self, weights: str) -> str:
        net: Any = self.net
        name, network = self.hparams["model"], net.network
        if weights != PRETRAINED and not isinstance(network, Hierarchy):
            raise ValueError(
                f"weights: expected a segmenter, or {PRETRAINED!r}, for a backbone that is timm's own, got {weights}"
            )
        options = self.hparams["model_kwargs"] or {}
        if isinstance(network, Hierarchy):
            whole = create_model(name, **options)
            done = load_weights(whole, weights, name)
        else:
            try:
                whole = upernet(name, pretrained=True, **options).network
            except RuntimeError as error:
                raise ValueError(f"weights: timm has none of {name}: {error}") from error
            done = f"begins with those that timm has of {name}"
        held = whole.state_dict()
        network.load_state_dict({key: held[key] for key in network.state_dict()})
        return done

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size < 2:
            raise ValueError(
                "data.batch_size: expected at least 2, since a batch norm follows the mean over the whole image, "
                f"got {batch_size}"
            )

    def norms_means(self) -> bool:
        return True  # the decoder pools the last map to one position

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return segmentation_loss(
            self(self._laid_out(images)), labels, auxiliary_weight=self.hparams["auxiliary_weight"]
        )

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        images = self._laid_out(images)
        labelled = int((labels != IGNORED).sum())
        for prefix, net in self.nets().items():
            logits = resize(net(images), labels.shape[1:]).float()
            self.scores[prefix].update(logits.argmax(1), labels)
            if labelled:
                self.losses[prefix].update(F.cross_entropy(logits, labels, ignore_index=IGNORED), labelled)

    def on_validation_epoch_end(self) -> None:
        # Here and not in the steps: a process may have none, and all take part in adding up.
        for prefix in self.nets():
            self.log(f"{prefix}loss", self.losses[prefix])
            scores = self.scores[prefix].compute()
            self.scores[prefix].reset()
            for name, of_scores in SCORES.items():
                self.log(f"{prefix}{name}", getattr(scores, of_scores).float())

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> ByFactor:
        warmup = self.hparams["warmup_steps"]
        if warmup is None:
            warmup = min(LONGEST_WARMUP, steps // 10)

        def factor(step: int) -> float:
            return poly(step, num_steps=steps, warmup_steps=warmup, power=self.hparams["power"])

        return ByFactor(optimizer, factor)


def labelling_of(facts: dict[str, Any]) -> Labelling:
    """The classes of a checkpoint, from the arguments of `Segmentation` in it."""
    colours = tuple((red, green, blue) for red, green, blue in facts["colours"])
    return Labelling(tuple(facts["classes"]), colours, facts["first"], tuple(facts["void"]))


def _is_segmenter(path: str) -> bool:
    """Whether a file of weights has those of a decoder."""
    content = read_checkpoint(Path(path), name="weights")
    return any("decode_head." in key for key in content.get("state_dict", content))
