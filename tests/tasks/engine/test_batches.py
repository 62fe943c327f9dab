import multiprocessing
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from localmix.tasks.classification.data import load_images
from localmix.tasks.engine.batches import EpochBatches, loader


def epochs(data, number, **options):
    result = []
    batches = loader(data, 8, **options)
    for epoch in range(number):
        batches.sampler.set_epoch(epoch)
        result.append(list(batches))
    return result


def same(a, b):
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def test_order_depends_on_seed_and_epoch_alone(few_images):
    torch.manual_seed(0)
    first = epochs(few_images.train, 2, seed=3)
    torch.manual_seed(1)
    second = epochs(few_images.train, 2, seed=3)
    assert same(first[0], second[0]) and same(first[1], second[1])
    assert not same(first[0], first[1])
    assert not same(first[0], epochs(few_images.train, 1, seed=4)[0])


def test_loader_draws_nothing_from_the_global_generator(few_images):
    before = torch.get_rng_state()
    epochs(few_images.train, 2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(tmp_path, photographs):
    folder = photographs(tmp_path, {"train/a": 9, "train/b": 9, "val/a": 1, "val/b": 1})
    images = load_images(str(folder), img_size=16)
    alone, helped = (epochs(images.train, 2, seed=0, workers=workers) for workers in (0, 2))
    assert same(alone[0], helped[0]) and same(alone[1], helped[1])
    assert not same(alone[0], alone[1])


def test_each_epoch_shows_each_image_once():
    batches = EpochBatches(10, 3, seed=5)
    for epoch in range(3):
        batches.set_epoch(epoch)
        shown = [index for _, _, indices in batches for index in indices]
        assert len(batches) == 3
        assert len(set(shown)) == len(shown) == 9


def test_validation_is_whole_and_in_order():
    assert list(EpochBatches(5, 2, seed=None)) == [(None, 0, [0, 1]), (None, 0, [2, 3]), (None, 0, [4])]


def test_batch_is_never_larger_than_the_set():
    (request,) = EpochBatches(5, 64, seed=0)
    assert sorted(request[2]) == [0, 1, 2, 3, 4]


def indices(batches):
    return [index for _, _, images in batches for index in images]


def shares(number, **options):
    return [EpochBatches(process=process, num_processes=number, **options) for process in range(number)]


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (3, 2)])
def test_a_step_has_the_same_images_however_it_is_shared(processes, accumulate):
    size = 12 // (processes * accumulate)
    alone = [set(images) for _, _, images in EpochBatches(50, 12, seed=3)]
    parts = [list(p) for p in shares(processes, num_images=50, batch_size=size, seed=3, accumulate=accumulate)]
    assert [len(part) for part in parts] == [4 * accumulate] * processes
    for step, images in enumerate(alone):
        batches = [part[step * accumulate + i][2] for part in parts for i in range(accumulate)]
        assert all(len(batch) == size for batch in batches)
        assert {index for batch in batches for index in batch} == images


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 5, 8, 9])
def test_processes_validate_each_image_once(processes, images):
    parts = shares(processes, num_images=images, batch_size=2, seed=None)
    assert sorted(index for part in parts for index in indices(part)) == list(range(images))
    assert all(len(part) == len(list(part)) and all(batch for _, _, batch in part) for part in parts)


def test_order_of_the_data_set_is_kept_and_each_process_has_a_stretch():
    def order(seed, epoch):
        return (np.arange(24) + seed + epoch) % 24

    parts = shares(2, num_images=24, batch_size=3, seed=1, order=order)
    assert [indices(part) for part in parts] == [list(range(1, 13)), [*range(13, 24), 0]]


@pytest.mark.parametrize("processes", [1, 2])
def test_epoch_goes_on_where_it_was_left(processes):
    whole, parts = (shares(processes, num_images=40, batch_size=4, seed=2) for _ in range(2))
    for one, other in zip(whole, parts, strict=True):
        one.set_epoch(3)
        other.go_on(3, 2)
        other.set_epoch(3)
        assert list(other) == list(one)[2:]
        assert len(other) == len(one)
        one.set_epoch(4)
        other.set_epoch(4)
        assert list(other) == list(one)


def test_an_epoch_of_so_many_steps_takes_as_many_passes_as_that_needs():
    batches = EpochBatches(10, 3, seed=2, steps=5)
    assert len(batches) == 5
    requests = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        requests += list(batches)
    # three whole batches in a pass: what is left of it is dropped
    assert [through for _, through, _ in requests] == [step // 3 for step in range(15)]
    passes = EpochBatches(10, 3, seed=2)
    for through in range(5):
        passes.set_epoch(through)
        assert requests[3 * through : 3 * through + 3] == list(passes)


@pytest.mark.parametrize("order", [None, lambda seed, through: np.roll(np.arange(24), seed + through)])
def test_stretch_of_steps_goes_on_where_it_was_left_and_is_shared(order):
    options = {"num_images": 24, "batch_size": 2, "seed": 1, "order": order, "accumulate": 2, "steps": 7}
    whole, parts = shares(2, **options), shares(2, **options)
    for one, other in zip(whole, parts, strict=True):
        one.set_epoch(2)
        other.go_on(2, 6)
        assert len(one) == 14 and list(other) == list(one)[6:]
    seen = [index for part in whole for _, through, images in part if through == 5 for index in images]
    assert len(seen) == len(set(seen)) > 0


def test_steps_belong_to_the_layout_of_a_run():
    assert EpochBatches(10, 3, seed=0).layout != EpochBatches(10, 3, seed=0, steps=3).layout


def test_step_larger_than_the_epoch_is_refused():
    message = r"batch_size: expected at most the 7 images of an epoch in a step, got 4 x 2 processes x 1 .* = 8"
    with pytest.raises(ValueError, match=message):
        EpochBatches(7, 4, seed=0, num_processes=2)


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request):
    """How processes are started; a process that a fork server has started starts its own by another one."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_leave_the_signal_of_a_scheduler_to_the_run_and_end_for_the_run(few_images, start_method):
    batches = iter(loader(few_images.train, 8, seed=0, workers=1))
    (worker,) = batches._workers
    next(batches)
    subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {signal.SIGTERM.value})"], check=True)
    next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    status = worker.exitcode
    worker.kill()  # or the tests would wait for it at their end
    assert status == 0
    batches._shutdown_workers()
