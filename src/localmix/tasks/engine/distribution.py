"""Where a run takes place: devices, nodes, and how processes share the work."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed
from torch.distributed import is_torchelastic_launched


def placement(
    *, accelerator: str = "auto", devices: int | str = "auto", num_nodes: int | str = "auto", strategy: str = "auto"
) -> dict[str, Any]:
    """Arguments of Lightning's trainer.

    Args:
        accelerator: "cpu", "cuda" or "auto", which is a GPU if there is one.
        devices: number on each node; "auto": as many as torchrun or Slurm have started processes, else all GPUs.
        num_nodes: "auto": as many as torchrun or Slurm have started, else one.
        strategy: "ddp": each process has the whole net; "fsdp": each has a share of its parameters; "auto": "ddp" if
            there are several.

    Raises:
        ValueError: there is no GPU where one is asked for.
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator: expected a GPU that PyTorch sees, found none")
    started_devices, started_nodes, environment = _started()
    if is_torchelastic_launched():
        _meet("nccl" if accelerator == "cuda" else "gloo")
    if devices == "auto":
        devices = started_devices or (torch.cuda.device_count() if accelerator == "cuda" else 1)
    if num_nodes == "auto":
        num_nodes = started_nodes or 1
    count = int(devices) * int(num_nodes)
    sharing: Any = "auto"
    if strategy == "fsdp":
        # a whole checkpoint in one file, as every other run has it
        sharing = ModelParallelStrategy(
            data_parallel_size=count, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    elif strategy == "ddp" or count > 1:
        # Buffers need no broadcast: synchronised batch norms agree, and `Classification` cares for others. With it,
        # processes that validate different numbers of batches would wait for each other for ever.
        sharing = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": sharing,
        "plugins": [environment],
    }


def is_helper() -> bool:
    """Whether Lightning has started this process beside the first one of its machine.

    Lightning kills the first one as soon as a helper ends with a status other than 0; that of the first one counts.
    """
    external = is_torchelastic_launched() or SLURMEnvironment.detect()
    return not external and int(os.environ.get("LOCAL_RANK", 0)) > 0


def _started() -> tuple[int | None, int | None, Any]:
    """Processes on each node and nodes that a launcher has started, and Lightning's name for it."""
    if is_torchelastic_launched():
        return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"]), TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        # requeueing is the job of the sbatch file, which the exit status tells to
        return *_started_by_slurm(), SLURMEnvironment(auto_requeue=False)
    return None, None, LightningEnvironment()


def _started_by_slurm() -> tuple[int, int]:
    """Tasks on each node, and nodes."""
    tasks, nodes = (int(os.environ.get(name, 1)) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    on_each = os.environ.get("SLURM_NTASKS_PER_NODE")
    if on_each is None and tasks > 1:
        # Lightning does not know then which of them share a node
        raise ValueError(f"ntasks-per-node: expected a job of Slurm that says it, got one of {tasks} tasks in all")
    return int(on_each or 1), nodes


def _meet(backend: str) -> None:
    """Connect the processes that torchrun has started, before Lightning does.

    Those that torchrun starts again after one of them has died meet in the store of its agent, in which the addresses
    of the dead ones still stand. So each attempt has a place of its own there.
    """
    if distributed.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agent = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = distributed.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", agent)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=num_processes, timeout=timedelta(minutes=30)
    )
    if backend == "nccl":
        atexit.register(distributed.destroy_process_group)
