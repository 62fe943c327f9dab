"""What was built and what runs here, as text: `localmix bench --info`."""

from __future__ import annotations

import platform

import torch

import localmix
from localmix import kernels
from localmix.kernels import native, triton
from localmix.layers.linear import is_faster
from localmix.reports.environment import cpu_name, version
from localmix.tasks.classification.parallel import cpu_cores


def info() -> str:
    """Versions and hardware, the kernels that are there, and what "auto" takes for each operator and why.

    >>> print(info().splitlines()[0].split(",")[0])
    localmix 0.1.0
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return "\n\n".join(["\n".join(_machine()), "\n".join(_kernels()), *map(_choices, devices)])


def _machine() -> list[str]:
    instructions = torch.backends.cpu.get_cpu_capability()
    facts = [
        f"localmix {localmix.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"CPU: {cpu_name()}, {cpu_cores()} cores, {torch.get_num_threads()} threads; PyTorch uses {instructions}",
    ]
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return [*facts, f"GPU: none that PyTorch sees (it was built {f'for {built}' if built else 'for CPUs only'})"]
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    memory = f"{gpu.total_memory / 2**30:.0f} GiB, {gpu.multi_processor_count} multiprocessors"
    return [*facts, f"GPU: {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}"]


def _kernels() -> list[str]:
    gpu = f"Triton {version('triton')}" if triton.MISSING is None else f"none ({triton.MISSING})"
    peers = {name: version(name) for name in ("natten", "flash-attn")}
    return [
        native.description(),
        f"linear maps of folded networks on the CPU: {_linear_maps()}",
        f"GPU kernels: {gpu}",
        *(f"{name}: {number or 'not installed'}" for name, number in peers.items()),
    ]


def _linear_maps() -> str:
    by_onednn = [str(dtype).removeprefix("torch.") for dtype in (torch.float32, torch.bfloat16) if is_faster(dtype)]
    return f"oneDNN in {' and '.join(by_onednn)}" if by_onednn else "as PyTorch has them"


def _choices(device: str) -> str:
    """What "auto" takes for float32 on a device, and why it passes over what it would prefer."""
    x = torch.empty(0, device=device)
    lines = [f'impl="auto" for float32 on {"the CPU" if device == "cpu" else "the GPU"}:']
    for operator in kernels.OPERATORS:
        taken = kernels.choose(operator, x=x)
        reasons = kernels.refusals(operator, x)
        preferred = list(reasons)[: list(reasons).index(taken)]
        why = "; ".join(f"{name}: {reasons[name]}" for name in preferred)
        lines.append(f"  {operator:36} {taken:10} {f'not {why}' if why else 'the preferred one'}")
    return "\n".join(lines)
