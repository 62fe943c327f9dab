"""What trained mixers do to images: train two for a moment, then draw the weights they use, and how these vary.

    python examples/explain_image.py [OUTPUT]

The images are those that the package ships; it takes some minutes on a CPU core. The command for the same is

    localmix explain --image boot.png ... --model runs/dwnet_nano/seed-0 runs/localnat_nano/seed-0
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from PIL import Image

from localmix.layers import NeighborhoodAttention
from localmix.reports.compare import compare
from localmix.reports.explanation.images import explain_images
from localmix.reports.explanation.variation import Variance
from localmix.reports.explanation.weights import used
from localmix.tasks import fashion_mnist


def main() -> None:
    """Writes runs, images, pictures and a page into OUTPUT."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(mkdtemp())
    output.mkdir(parents=True, exist_ok=True)
    mixers = ["depthwise_convolution", "neighborhood_attention"]
    compare(mixers=mixers, epochs=1, batch_size=64, processes=1, output=output / "runs")
    pictures, _ = fashion_mnist.load("test")
    images = [output / f"garment-{index}.png" for index in range(3)]
    for index, path in enumerate(images):
        Image.fromarray(pictures[index]).save(path)

    runs = [output / f"runs/{name}_nano/seed-0" for name in ("dwnet", "localnat")]
    facts = explain_images(images, runs, positions=[(0.5, 0.5), (14, 20)], output=output / "page", announce=print)
    print(
        "the last layer of each:", *(row for row in facts["variation"] if row["layer"].startswith("stages.3")), sep="\n"
    )

    # the parts by themselves: the weights of any layer, at any position, and its three numbers
    layer = NeighborhoodAttention(8, num_heads=2, kernel_size=3).eval()
    x = torch.randn(4, 6, 5, 8)
    seen = used("layer", layer, x, layer(x))
    print(seen.on_map(2, 2, group=0))
    variance = Variance()
    variance.add(seen)
    print(variance.result())


if __name__ == "__main__":
    main()
