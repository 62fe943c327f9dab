"""The other ways that users have to compute each operator: what the benchmark compares with.

A peer gets its tensors in the layout that it likes best, made before the clock starts. Its output and its gradients
pass the same gate as those of localmix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from localmix.reports.benchmarks import peers_attention, peers_convolution
from localmix.reports.benchmarks.contenders import Contender, compiled
from localmix.reports.benchmarks.problems import Problem

PEERS: dict[str, dict[str, Callable[[Problem], Contender]]] = {
    "depthwise_convolution": {
        "conv2d": peers_convolution.conv2d,
        "conv2d-channels-last": peers_convolution.conv2d_channels_last,
        "conv2d-compiled": compiled(peers_convolution.conv2d),
    },
    "homogeneous_convolution": {
        "grouped-conv2d": peers_convolution.grouped_conv2d,
        "grouped-conv2d-compiled": compiled(peers_convolution.grouped_conv2d),
    },
    "inhomogeneous_convolution": {
        "unfold": peers_convolution.unfold,
        "shifted-sum": peers_convolution.shifted_sum,
        "shifted-sum-compiled": compiled(peers_convolution.shifted_sum),
    },
    "projected_inhomogeneous_convolution": {
        "unfold": peers_convolution.projected_unfold,
        "predict-then-apply": peers_convolution.predict_then_apply,
    },
    "window_attention": {
        "partition-sdpa": peers_attention.partition_sdpa,
        "partition-sdpa-compiled": compiled(peers_attention.partition_sdpa),
        "flex-attention": peers_attention.flex_attention,
        "flash-attn": peers_attention.flash_attention,
    },
    "neighborhood_attention": {
        "gather": peers_attention.gather,
        "flex-attention": peers_attention.flex_attention,
        "natten": peers_attention.natten,
    },
    "local_mlp": {"grouped-conv1d": peers_attention.grouped_conv1d},
}
"""How each peer of an operator is made for a problem, by its name."""


def peers(problem: Problem) -> list[Contender]:
    """Every peer of the operator, also those that cannot take part here."""
    return [replace(make(problem), name=name) for name, make in PEERS[problem.operator].items()]
