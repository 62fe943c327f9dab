"""What a segmenter is trained for, and how fast: the loss of both heads, and the factor of the learning rate."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from localmix.tasks.segmentation.labels import IGNORED

AUXILIARY_WEIGHT = 0.4


def segmentation_loss(
    outputs: tuple[Tensor, Tensor], labels: Tensor, *, auxiliary_weight: float = AUXILIARY_WEIGHT
) -> Tensor:
    """Cross entropy of the decoder, plus `auxiliary_weight` times that of the auxiliary head.

    Each is the sum over labelled pixels divided by the number of all pixels, as mmsegmentation has it: a batch without
    a labelled pixel has a loss of 0 and not NaN, and labelled pixels count alike in all batches.

    Args:
        outputs: what UPerNet gives in training, two times [B, K, H, W].
        labels: int64 [B, H, W], `IGNORED` where void.
    """
    logits, auxiliary = (
        F.cross_entropy(output, labels, ignore_index=IGNORED, reduction="sum") / labels.numel() for output in outputs
    )
    return logits + auxiliary_weight * auxiliary


def poly(step: int, *, num_steps: int, warmup_steps: int = 1500, power: float = 1.0, start: float = 1e-6) -> float:
    """Factor of the learning rate at a step: (1 - step / num_steps) ** power, during warm-up times a linear ramp.

    The ramp goes from `start` to 1 over `warmup_steps`. For `torch.optim.lr_scheduler.LambdaLR`.

    >>> [round(poly(step, num_steps=10, warmup_steps=2), 3) for step in (0, 1, 2, 5, 10)]
    [0.0, 0.45, 0.8, 0.5, 0.0]
    """
    if num_steps < 1 or not 0 <= step <= num_steps:
        raise ValueError(f"step: expected 0 to num_steps = {num_steps}, got {step}")
    factor = (1 - step / num_steps) ** power
    return factor * (start + (1 - start) * step / warmup_steps) if step < warmup_steps else factor
