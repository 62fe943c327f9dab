"""One axis at a time, away from depth-wise convolution: parameters and operator of each point on the way.

python examples/local_mixer.py
"""

from __future__ import annotations

import timm
import torch

import localmix.models  # noqa: F401 -- registers the networks with timm
from localmix.layers import LocalMixer

WAY = {
    "depth-wise convolution": "sliding7/shared-positions/unshared-channels/static",
    "channels share": "sliding7/shared-positions/groups8/static",
    "positive weights that sum to one": "sliding7/shared-positions/groups8/static/softmax",
    "weights of each image": "sliding7/shared-positions/groups8/homogeneous",
    "a mixture instead": "sliding7/shared-positions/groups8/mixture4",
    "weights of each position": "sliding7/unshared-positions/groups8/inhomogeneous",
    "windows instead": "window7-shift3/unshared-positions/groups8/inhomogeneous",
    "static, shared by windows": "window7-shift3/shared-windows/groups8/static",
    "static, shared by all positions": "window7-shift3/shared-positions/groups8/static",
    "dot products": "window7-shift3/unshared-positions/groups8/dot-product",
    "no softmax of them": "window7-shift3/unshared-positions/groups8/dot-product/free",
    "that in a kernel that slides": "sliding7/unshared-positions/groups8/dot-product/free",
}


def main() -> None:
    """A line for each network."""
    images = torch.rand(2, 3, 36, 52)
    for what, name in WAY.items():
        net = timm.create_model("localmixer_nano", mixer=name, num_classes=10).eval()
        mixer = next(module for module in net.modules() if isinstance(module, LocalMixer))
        with torch.no_grad():
            logits = net(images)
        parameters = sum(p.numel() for p in net.parameters())
        print(f"{what:34}{parameters / 1e6:6.3f}M  {mixer.operator:37}{name}  {tuple(logits.shape)}")


if __name__ == "__main__":
    main()
