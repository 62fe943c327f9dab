import gc
import os

import pytest
import torch

from localmix.tasks.classification import parallel
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.parallel import Events, Job, cpu_cores, gpus, train_all
from localmix.tasks.classification.task import Classification


def job(folder, **changes):
    values = {"epochs": 1, "batch_size": 8, "seed": 0, "augment": False, "device": "cpu", "workers": 0, "threads": 1}
    return Job(recipe={"model": "localmlp_nano"}, folder=folder, **{**values, **changes})


class Record(Events):
    def __init__(self):
        self.starts, self.steps, self.ends = [], [], {}

    def start(self, job):
        self.starts.append(job)

    def step(self, job, done, total):
        self.steps.append((job, done, total))

    def end(self, job, result):
        self.ends[job] = result


def test_a_system_without_affinity_counts_its_cores(tmp_path, photographs, monkeypatch):
    """Such as macOS: a folder of images is read there too."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_cores() == os.cpu_count()
    assert len(load_images(str(photographs(tmp_path, {"cat": 3, "dog": 3}))).train) == 4


@pytest.mark.timeout(600)
def test_processes_give_the_results_of_one(few_images, tmp_path):
    alone, together = Record(), Record()
    for events, processes in ((alone, 1), (together, 2)):
        jobs = [job(tmp_path / str(processes) / str(seed), seed=seed) for seed in range(3)]
        train_all(jobs, few_images, processes=processes, events=events)
    assert sorted(together.starts) == [0, 1, 2]
    assert sorted(together.steps) == sorted(alone.steps) == [(i, done, 3) for i in range(3) for done in (1, 2, 3)]
    for index in range(3):
        metrics = [(tmp_path / folder / str(index) / "metrics.csv").read_text() for folder in "12"]
        assert metrics[0] == metrics[1]
        assert alone.ends[index]["val_loss"] == together.ends[index]["val_loss"]
    assert alone.ends[0]["val_loss"] != alone.ends[1]["val_loss"]


def test_nothing_of_a_run_stays_in_memory(few_images, tmp_path):
    def nets():
        return [thing for thing in gc.get_objects() if type(thing) is Classification]

    gc.collect()
    gc.disable()  # it may come by chance
    try:
        assert nets() == []
        train_all([job(tmp_path)], few_images, processes=1, events=Events())
        assert nets() == []
    finally:
        gc.enable()


@pytest.mark.timeout(600)
def test_error_of_a_process_reaches_the_caller(few_images, tmp_path):
    jobs = [job(tmp_path / "a"), job(tmp_path / "b")]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/checkpoint.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"b/checkpoint\.ckpt is truncated"):
        train_all(jobs, few_images, processes=2, events=Events())


def test_processes_share_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1", "2"]
    assert [parallel._share(gpus(), number) for number in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,2")
    assert gpus() == ["5", "7", "2"]
    assert parallel._share(["5"], 1) is None
    assert parallel._share([], 1) is None
