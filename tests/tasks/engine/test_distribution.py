import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from localmix.tasks.engine import distribution
from localmix.tasks.engine.distribution import is_helper, placement


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("LOCAL_RANK", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_on_a_cpu_by_default():
    placed = placement()
    (environment,) = placed.pop("plugins")
    assert placed == {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    assert isinstance(environment, LightningEnvironment)


def test_all_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    placed = placement()
    assert (placed["accelerator"], placed["devices"]) == ("cuda", 4)
    assert isinstance(placed["strategy"], DDPStrategy)
    assert placement(devices=1)["strategy"] == "auto"
    assert isinstance(placement(strategy="fsdp")["strategy"], ModelParallelStrategy)


def test_what_slurm_has_started(monkeypatch):
    for name, value in {"SLURM_NTASKS": 16, "SLURM_NTASKS_PER_NODE": 8, "SLURM_NNODES": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("SLURM_JOB_NAME", "localmix")
    placed = placement()
    (environment,) = placed["plugins"]
    assert (placed["devices"], placed["num_nodes"]) == (8, 2)
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_slurm_has_to_say_how_many_tasks_share_a_node(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NAME", "localmix")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_NNODES", "2")
    with pytest.raises(ValueError, match="ntasks-per-node: expected a job of Slurm that says it, got one of 16 tasks"):
        placement()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert placement()["devices"] == 1


def test_missing_gpu_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.accelerator: expected a GPU"):
        placement(accelerator="cuda")


def test_helpers_are_those_that_lightning_has_started(monkeypatch):
    assert not is_helper()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_helper()
    monkeypatch.setattr(distribution, "is_torchelastic_launched", lambda: True)
    assert not is_helper()
