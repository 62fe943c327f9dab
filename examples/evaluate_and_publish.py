"""From a run to a published network: train a little, evaluate, draw the curves, publish, load with timm.

    python examples/evaluate_and_publish.py [OUTPUT]

The images are those that the package ships; one epoch takes a minute on a CPU core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

import timm
import torch

from localmix.reports.compare import compare
from localmix.reports.curves import curves
from localmix.reports.evaluation.classification import evaluate
from localmix.reports.publishing.publish import publish


def main() -> None:
    """Writes runs, results, a picture and the published folder into OUTPUT."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(mkdtemp())
    compare(mixers=["local_mlp"], img_size=16, epochs=1, batch_size=64, processes=1, output=output / "runs")
    run = output / "runs/localmlp_nano/seed-0"

    evaluate(run, output=output / "results")
    print(curves([run], output / "curves.png"))
    print(publish(run, output / "garments", results=[output / "results/results.json"], overwrite=True))

    net = timm.create_model(f"local-dir:{output / 'garments'}", pretrained=True).eval()
    with torch.inference_mode():
        print(net(torch.zeros(1, 1, 16, 16)).shape)


if __name__ == "__main__":
    main()
