"""`localmix bench models`: whole networks, for inference and in training, beside others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from localmix import kernels, models
from localmix.arguments import choice, positive
from localmix.layers import InhomogeneousDynamicConv
from localmix.reports.benchmarks.contenders import compiler_missing
from localmix.reports.benchmarks.gate import reason
from localmix.reports.benchmarks.limits import Work, measure
from localmix.reports.benchmarks.peers_convolution import official
from localmix.reports.benchmarks.report import Report
from localmix.reports.benchmarks.rows import (
    DTYPES,
    Entry,
    best_of_cudnn,
    known_device,
    threads_of_cpu,
    timed_rows,
    turns,
)
from localmix.reports.benchmarks.timing import peak_bytes
from localmix.reports.cost import Cost, cost
from localmix.reports.throughput import inference_pass, training_step
from localmix.tasks.engine.output import output_folder
from localmix.testing import assert_within_budget

NETS = (
    "dwnet_tiny",
    "dynamic_dwnet_tiny",
    "i_dynamic_dwnet_tiny",
    "localswin_tiny",
    "swin_tiny_patch4_window7_224",
)
"""What is timed if nothing else is asked for."""
BATCH = {"cpu": 8, "cuda": 128}
"""Images of a call."""
DIRECTIONS = ("inference", "training")
MODES = ("eager", "compiled")
JUDGED = 2
"""Images of a batch for inference that the definition is computed for."""


def bench_models(
    *,
    nets: Sequence[str] | None = None,
    batch_size: int | None = None,
    img_size: int = 224,
    dtype: str = "float32",
    device: str = "auto",
    direction: Sequence[str] = DIRECTIONS,
    modes: Sequence[str] | None = None,
    rounds: int = 5,
    seconds: float = 0.05,
    threads: int | None = None,
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Time networks in turns, each only after its numbers were found right in this run.

    Batch norms of the networks of this package are folded for inference. Beside a network with inhomogeneous
    convolutions stands the same one computed the official way, by `F.unfold`. Networks of convolutions that are not of
    this package run with images in either memory format.

    Args:
        nets: their names in timm; by default `NETS`.
        batch_size: images of a call; by default 8 on a CPU, 128 on a GPU.
        img_size: side of the images [pixels].
        dtype: "float32", "bfloat16" or "float16"; a training step then keeps its parameters in float32, under autocast.
        device: "auto", "cpu" or "cuda".
        direction: "inference", "training" (forward, backward, AdamW) or both.
        modes: "eager", "compiled" or both; by default both, but eager for training on a CPU, where compiling it takes
            minutes for each network.
        rounds, seconds, threads, output: as in `localmix.reports.benchmarks.operators.bench_operators`.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    device, kind = known_device(device), DTYPES[choice("dtype", dtype, tuple(DTYPES))]
    batch_size = positive("batch_size", BATCH[device] if batch_size is None else batch_size)
    positive("img_size", img_size)
    ways = [choice("direction", name, DIRECTIONS) for name in dict.fromkeys(direction)]
    chosen = None if modes is None else tuple(choice("modes", mode, MODES) for mode in dict.fromkeys(modes))
    timing = turns(rounds, seconds)
    if output is not None:
        output_folder(output)
    nets = NETS if nets is None else tuple(dict.fromkeys(nets))
    costs = {name: _cost(name, img_size) for name in nets}
    # the networks share their code
    with threads_of_cpu(threads), best_of_cudnn(), dynamo.patch(recompile_limit=8 * len(nets)):
        limits = measure(device, kind)
        settings = {"batch": batch_size, "dtype": dtype, "img_size": img_size, **timing}
        with Report("networks", settings, device, limits, output) as report:
            for way in ways:
                tried = chosen or (MODES if way == "inference" or device == "cuda" else MODES[:1])
                missing = compiler_missing(device) if "compiled" in tried else None
                if missing:
                    report.leave_out({f"compiled networks, {way}": missing})
                    tried = MODES[:1]
                entries: list[Entry] = []
                for name in report.track(nets):
                    task = Task(name, batch_size, img_size, kind, device, way)
                    entries += [_entry(form, task, mode, costs[name]) for form in task.forms() for mode in tried]
                report.add(timed_rows(entries, limits, batch=batch_size, **timing))
                torch.compiler.reset()
    return report.results


@dataclass(frozen=True)
class Form:
    """A network in the form that is timed: how its row calls it, and the module."""

    name: str
    module: nn.Module
    is_ours: bool
    memory_format: torch.memory_format = torch.contiguous_format


@dataclass(frozen=True)
class Task:
    """What a network is to do: pass a batch for inference, or a step of training."""

    name: str
    batch: int
    img_size: int
    dtype: torch.dtype
    device: str
    direction: str

    @cached_property
    def images(self) -> Tensor:
        """[B, 3, H, W]."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(self.batch, 3, self.img_size, self.img_size, generator=generator, device=self.device)

    @cached_property
    def labels(self) -> Tensor:
        """[B]."""
        return torch.arange(self.batch, device=self.device) % 1000

    @cached_property
    def net(self) -> nn.Module:
        """The network as it is defined, in float32."""
        torch.manual_seed(0)
        return _settled(_create(self.name)).to(self.device)

    def forms(self) -> Iterator[Form]:
        """In which forms it is timed."""
        is_ours = self.name in models.NAMES
        is_folded = is_ours and self.direction == "inference"
        net = models.fold(self.net) if is_folded else deepcopy(self.net)
        yield Form(self.name, self.cast(net), is_ours)
        if any(isinstance(module, InhomogeneousDynamicConv) for module in net.modules()):
            yield Form(f"{self.name} by unfold", self.cast(official(deepcopy(self.net))), False)
        if not is_ours and sum(isinstance(module, nn.Conv2d) for module in net.modules()) > 1:
            net = deepcopy(self.net).to(memory_format=torch.channels_last)
            yield Form(f"{self.name} channels-last", self.cast(net), False, torch.channels_last)

    def cast(self, net: nn.Module) -> nn.Module:
        """The network in the dtype of the task: its weights for inference, its arithmetic in training."""
        if self.direction == "inference":
            return net.to(self.dtype)
        return net if self.dtype == torch.float32 else Autocast(net, self.device, self.dtype)

    @cached_property
    def expected(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the network gives in float64, and in eager PyTorch in the dtype of the task.

        For inference by the definition, for the last images. A training step depends on all images, of which the
        definition would gather K copies: it is computed by PyTorch's own operators, which equal the definition in
        float64.
        """
        impl = "reference" if self.direction == "inference" else "aten"
        with kernels.prefer(impl):
            return (
                self.results(deepcopy(self.net).double(), self.images[self._judged].double()),
                self.results(self.cast(deepcopy(self.net)), self.images[self._judged]),
            )

    @property
    def _judged(self) -> slice:
        return slice(-JUDGED, None) if self.direction == "inference" else slice(None)

    def results(self, net: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """The logits; in training also the gradient of the first parameter, which all others take part in."""
        if self.direction == "inference":
            net.eval()
            with torch.inference_mode():
                logits = net(images.to(next(net.parameters()).dtype))
            return {"logits": logits[self._judged]}
        net.train()
        logits = net(images)
        F.cross_entropy(logits, self.labels).backward()
        first = next(net.parameters()).grad
        assert first is not None
        net.zero_grad(set_to_none=True)
        return {"logits": logits.detach(), "gradient of the first parameter": first}

    def work(self, cost: Cost) -> Work:
        """Weights are read once, and by a training step weights, gradients and two moments are read and written once.

        A training step has three products for each of the forward pass. All are counted as matrix products, whose units
        are the fastest.
        """
        if self.direction == "inference":
            num_bytes = (cost.parameters + self.images.numel()) * self.dtype.itemsize
            return Work(num_bytes, matrix_macs=self.batch * cost.macs)
        return Work(8 * 4 * cost.parameters + self.images.nbytes, matrix_macs=3 * self.batch * cost.macs)


class Autocast(nn.Module):
    """A network whose arithmetic is in a lower dtype and whose parameters and logits are in float32."""

    def __init__(self, net: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.device, self.dtype = net, device, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device, self.dtype):
            return self.net(images).float()


def _entry(form: Form, task: Task, mode: str, cost: Cost) -> Entry:
    # a step of training changes the weights: every row has its own
    module = form.module if task.direction == "inference" else deepcopy(form.module)
    net = torch.compile(module, dynamic=False) if mode == "compiled" else module
    assert isinstance(net, nn.Module)
    images = task.images.to(memory_format=form.memory_format)
    size = f"{task.batch} x 3 x {task.img_size} x {task.img_size}"
    dtype = str(task.dtype).removeprefix("torch.")
    facts = {
        "group": f"networks {size} {dtype}, {task.direction}",
        "name": form.name,
        "shape": list(images.shape),
        "dtype": dtype,
        "direction": task.direction,
        "implementation": mode,
        "is_ours": form.is_ours,
        "is_auto": False,
    }
    if task.direction == "inference":
        run = inference_pass(net, images.to(task.dtype))
    else:
        run = training_step(net, images, task.labels)
    entry = Entry(f"{form.name} {mode}", facts, task.work(cost), run, reason(lambda: _check(net, images, task)))
    if entry.refused is None:
        entry.peak_bytes = peak_bytes(run, task.device)
    return entry


def _check(net: nn.Module, images: Tensor, task: Task) -> None:
    exact, eager = task.expected
    batch, _, height, width = images.shape
    for name, result in task.results(net, images).items():
        # the gradient of the stem is a sum over all positions
        summands = batch * height * width if name.startswith("gradient") else 0
        assert_within_budget(result, exact[name], eager[name], name=name, summands=summands)


def _create(name: str) -> nn.Module:
    net = models.create_model(name)
    for module in net.modules():
        # what is dropped at random has no right result
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def _cost(name: str, img_size: int) -> Cost:
    try:
        return cost(_create(name), img_size)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"nets: {name} does not take images of {img_size} px: {error}") from error


def _settled(net: nn.Module) -> nn.Module:
    """Batch norms as after some training: with those of a new network a wrong fold would go unseen."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for t in module.state_dict().values():
                if t.is_floating_point():
                    nn.init.uniform_(t, 0.5, 1.5)
    return net
