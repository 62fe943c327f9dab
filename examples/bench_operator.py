"""Times one operator at a size of your own, beside every other way to compute it, and says what to use.

python examples/bench_operator.py inhomogeneous_convolution 28 28 64
"""

from __future__ import annotations

import sys

from localmix.reports.benchmarks.operators import bench_operators


def fastest(operator: str, height: int, width: int, channels: int) -> str:
    """The fastest implementation and how far it is from the floor; peers that need a compiler are left out."""
    results = bench_operators(
        ops=[operator],
        shape=(height, width, channels),
        batch_size=2,
        impls=["native", "triton", "aten", "conv2d", "grouped-conv2d", "unfold", "partition-sdpa", "grouped-conv1d"],
        direction=["forward"],
        rounds=5,
    )
    row = min((row for row in results["rows"] if row["ms"]), key=lambda row: row["ms"]["p50"])
    return f"{row['implementation']}: {row['ms']['p50']:.3f} ms, {row['over_floor']:.1f} times the floor"


if __name__ == "__main__":
    operator, *sizes = sys.argv[1:] or ["inhomogeneous_convolution", "28", "28", "64"]
    height, width, channels = map(int, sizes)
    print(fastest(operator, height, width, channels))
