"""The equation of the paper: the channel-wise locally-connected layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix import arguments


def aggregate(x: Tensor, weight: Tensor, neighborhood: Tensor) -> Tensor:
    """Each output is the weighted sum of its neighborhood, channel by channel.

        y[b, p, c] = sum_k weight[b, p, c // (C // G), k] * x[b, neighborhood[p, k], c]

    The shape of the weight is the paper: B or 1 images (dynamic or static), H, W or 1 positions (own or shared), G
    groups of channels that share a weight. This definition gathers [B, H, W, K, C]; it is not meant to be fast.

    Args:
        x: [B, H, W, C].
        weight: [B|1, H|1, W|1, G, K], G divides C.
        neighborhood: int64 [H, W, K], indices into the flattened H * W positions; -1 reads nothing (zero).

    Returns:
        [B, H, W, C], accumulated in at least the dtype of x.

    Raises:
        ValueError: wrong ranks or sizes, groups that do not divide C, dtypes or devices that differ, indices outside
            of the map (on the CPU; elsewhere PyTorch's own index check applies).

    Source: equation 1 of the paper.

    >>> from localmix.functional import sliding
    >>> x = torch.tensor([1., 2., 3., 4.]).reshape(1, 1, 4, 1)
    >>> box = torch.ones(1, 1, 1, 1, 3)
    >>> aggregate(x, box, sliding(1, 4, (1, 3))).flatten()
    tensor([3., 6., 9., 7.])
    """
    x, weight = arguments.autocast(x, weight)
    arguments.aggregate(x, weight, neighborhood)
    groups = weight.shape[3]
    inputs = gather(x, neighborhood).unflatten(4, (groups, x.shape[3] // groups))
    return torch.einsum("bhwkgd,bhwgk->bhwgd", inputs, weight).flatten(3)


def gather(x: Tensor, neighborhood: Tensor) -> Tensor:
    """The K inputs of each position: x [B, H, W, C] to [B, H, W, K, C], zero where there is no input."""
    # the zero row stands last, which is where the index -1 points
    rows = F.pad(x.flatten(1, 2), (0, 0, 0, 1))
    return rows[:, neighborhood]
