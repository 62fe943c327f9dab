"""What is compared in an ablation: networks that differ in one thing, and the studies that have names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localmix.axes import Dynamics
from localmix.models.local_mixer import BLOCKS, NORMS
from localmix.point import Point

SIZES = (3, 5, 7, 9, 11)
"""Of kernels and windows."""


@dataclass(frozen=True)
class Net:
    """A network of the space: its mixer and what stands around that. Its name parses back.

    >>> net = Net.parse("sliding7/shared-positions/unshared-channels/static/layer-norm")
    >>> net.block, net.norm, net.name
    ('dwnet', 'layer', 'dwnet/sliding7/shared-positions/unshared-channels/static/layer-norm')
    """

    point: Point
    block: str
    norm: str
    squeeze_excitation: bool = False

    @classmethod
    def parse(cls, name: str) -> Net:
        """The net of the name [BLOCK/]POINT[/batch-norm|/layer-norm][/squeeze-excitation].

        The block is Swin's around dot products and DWNet's around all else, its norm its own, if the name does not say.

        Raises:
            ValueError: not such a name; says what is wrong.
        """
        parts = name.split("/")
        squeeze_excitation = parts[-1] == "squeeze-excitation"
        if squeeze_excitation:
            parts.pop()
        norm = parts.pop().removesuffix("-norm") if parts and parts[-1] in {f"{norm}-norm" for norm in NORMS} else None
        block = parts.pop(0) if parts and parts[0] in BLOCKS else None
        point = Point.parse("/".join(parts))
        block = block or ("swin" if point.weights is Dynamics.DOT_PRODUCT else "dwnet")
        return cls(point, block, norm or BLOCKS[block][1], squeeze_excitation)

    @property
    def name(self) -> str:
        """The name that parses back to this net; without a norm that is the block's own."""
        parts = [self.block, self.point.name]
        if self.norm != BLOCKS[self.block][1]:
            parts.append(f"{self.norm}-norm")
        if self.squeeze_excitation:
            parts.append("squeeze-excitation")
        return "/".join(parts)

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return self.name.replace("/", "_")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `localmixer_*`."""
        return {
            "mixer": self.point.name,
            "block": self.block,
            "norm": self.norm,
            "squeeze_excitation": self.squeeze_excitation,
        }


@dataclass(frozen=True)
class Study:
    """Nets that are compared with the one that is labelled `baseline`."""

    name: str
    title: str
    question: str
    nets: dict[str, Net]
    baseline: str
    left_out: tuple[str, ...] = ()
    """What is no net, and why."""


DEPTHWISE = "dwnet/sliding7/shared-positions/unshared-channels/static"
ATTENTION = "swin/window7-shift3-pad/unshared-positions/groups3,6,12,24/dot-product"
INHOMOGENEOUS = "dwnet/sliding7/unshared-positions/groups8/inhomogeneous"


def _study(name: str, title: str, question: str, baseline: str, nets: dict[str, str]) -> Study:
    return Study(name, title, question, {label: Net.parse(net) for label, net in nets.items()}, baseline)


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _study(
            "channels-convolution",
            "Sharing over channels: convolution",
            "How many sets of weights does a depth-wise convolution need, if groups of channels share them?",
            "unshared",
            {
                "unshared": DEPTHWISE,
                "24 groups": "dwnet/sliding7/shared-positions/groups24/static",
                "8 groups": "dwnet/sliding7/shared-positions/groups8/static",
                "3 groups": "dwnet/sliding7/shared-positions/groups3/static",
                "1 group": "dwnet/sliding7/shared-positions/shared-channels/static",
            },
        ),
        _study(
            "channels-attention",
            "Sharing over channels: window attention",
            "How many sets of weights does window attention need, if every stage has as many?",
            "as Swin: 3-6-12-24",
            {
                "as Swin: 3-6-12-24": ATTENTION,
                "24 groups": "swin/window7-shift3-pad/unshared-positions/groups24/dot-product",
                "12 groups": "swin/window7-shift3-pad/unshared-positions/groups12/dot-product",
                "3 groups": "swin/window7-shift3-pad/unshared-positions/groups3/dot-product",
                "1 group": "swin/window7-shift3-pad/unshared-positions/shared-channels/dot-product",
            },
        ),
        _study(
            "positions",
            "Sharing over positions",
            "Does it matter whether static weights are shared by all positions (convolution), by windows (local MLP), "
            "or by none, where 8 groups of channels share them?",
            "convolution",
            {
                "convolution": "dwnet/sliding7/shared-positions/groups8/static",
                "local MLP": "dwnet/window7-shift3/shared-windows/groups8/static",
                "windows, by offset": "dwnet/window7-shift3/shared-positions/groups8/static",
                "own up to 14 x 14": "dwnet/sliding7/shared-windows14/groups8/static",
                "depth-wise": DEPTHWISE,
            },
        ),
        _study(
            "weights",
            "Where the weights come from",
            "What do weights gain that are computed from the image, in the block of DWNet and a kernel of 7?",
            "static",
            {
                "static": DEPTHWISE,
                "homogeneous": "dwnet/sliding7/shared-positions/unshared-channels/homogeneous",
                "mixture of 4": "dwnet/sliding7/shared-positions/unshared-channels/mixture4",
                "inhomogeneous": INHOMOGENEOUS,
                "dot product": "dwnet/sliding7/unshared-positions/groups8/dot-product",
            },
        ),
        _study(
            "normalisation-attention",
            "Softmax or free weights: window attention",
            "Does window attention need its softmax, or may the dot products be the weights?",
            "softmax",
            {
                "softmax": ATTENTION,
                "free": "swin/window7-shift3/unshared-positions/groups3,6,12,24/dot-product/free",
            },
        ),
        _study(
            "normalisation-convolution",
            "Softmax or free weights: convolution",
            "What does a softmax over the taps do to weights that are free in DWNet's block, static and inhomogeneous?",
            "static",
            {
                "static": DEPTHWISE,
                "static, softmax": f"{DEPTHWISE}/softmax",
                "inhomogeneous": INHOMOGENEOUS,
                "inhomogeneous, softmax": f"{INHOMOGENEOUS}/softmax",
            },
        ),
        _study(
            "kernel-size",
            "Kernel size",
            "How large must the kernel of a depth-wise convolution be?",
            "7",
            {str(n): f"dwnet/sliding{n}/shared-positions/unshared-channels/static" for n in SIZES},
        ),
        _study(
            "window-size",
            "Window size",
            "How large must the windows of attention be?",
            "7",
            {str(n): f"swin/window{n}-shift{n // 2}-pad/unshared-positions/groups3,6,12,24/dot-product" for n in SIZES},
        ),
        _study(
            "heads",
            "Heads, growing with the width",
            "How many heads does window attention need, if they double from stage to stage?",
            "3-6-12-24",
            {
                "1-2-4-8": "swin/window7-shift3-pad/unshared-positions/groups1,2,4,8/dot-product",
                "2-4-8-16": "swin/window7-shift3-pad/unshared-positions/groups2,4,8,16/dot-product",
                "3-6-12-24": ATTENTION,
                "6-12-24-48": "swin/window7-shift3-pad/unshared-positions/groups6,12,24,48/dot-product",
            },
        ),
        _study(
            "norm-convolution",
            "Norm: DWNet",
            "Does DWNet's block need its batch norms?",
            "batch norm",
            {"batch norm": DEPTHWISE, "layer norm": f"{DEPTHWISE}/layer-norm"},
        ),
        _study(
            "norm-attention",
            "Norm: Swin",
            "Does Swin's block need its layer norms?",
            "layer norm",
            {"layer norm": ATTENTION, "batch norm": f"{ATTENTION}/batch-norm"},
        ),
        _study(
            "squeeze-excitation",
            "Squeeze-and-excitation on top",
            "Does a factor per image and channel do what weights per image and channel do, and do both add up?",
            "static",
            {
                "static": DEPTHWISE,
                "static + SE": f"{DEPTHWISE}/squeeze-excitation",
                "homogeneous": "dwnet/sliding7/shared-positions/unshared-channels/homogeneous",
                "homogeneous + SE": "dwnet/sliding7/shared-positions/unshared-channels/homogeneous/squeeze-excitation",
            },
        ),
        _study(
            "connectivity-attention",
            "Window or sliding: attention",
            "Does it matter whether attention looks at windows or at a neighborhood that slides?",
            "shifted windows",
            {
                "shifted windows": ATTENTION,
                "windows, not shifted": "swin/window7-pad/unshared-positions/groups3,6,12,24/dot-product",
                "sliding": "swin/sliding7/unshared-positions/groups3,6,12,24/dot-product",
            },
        ),
        _study(
            "connectivity-inhomogeneous",
            "Window or sliding: inhomogeneous",
            "Does it matter whether inhomogeneous weights belong to a kernel that slides or to windows?",
            "sliding",
            {
                "sliding": INHOMOGENEOUS,
                "shifted windows": "dwnet/window7-shift3/unshared-positions/groups8/inhomogeneous",
                "windows, not shifted": "dwnet/window7/unshared-positions/groups8/inhomogeneous",
            },
        ),
    )
}
"""What the paper ablates, and beside it normalisation, norms and connectivity; by name."""


def listing() -> str:
    """The studies and their nets, as text."""
    lines = []
    for study in STUDIES.values():
        lines += [f"{study.name}: {study.question}"]
        for label, net in study.nets.items():
            lines.append(f"  {label:24} {net.name}{'  (baseline)' if label == study.baseline else ''}")
    count = len({net for study in STUDIES.values() for net in study.nets.values()})
    return "\n".join([*lines, f"{len(STUDIES)} studies of {count} different networks"])
