import json

import numpy as np
import pytest
import torch
from torch import distributed

from localmix.tasks.detection.coco import CocoImages, decode_mask
from localmix.tasks.detection.coco_scores import NAMES, CocoScores


@pytest.fixture(scope="module")
def images(coco_subset):
    return CocoImages(*coco_subset(60))


def detections(images, index, shift=0, seed=0):
    """The objects of an image, moved by up to `shift` pixels, some of a wrong class, as a detector would give them."""
    target, random = images.target(index), np.random.default_rng(seed + index)
    count = len(target["labels"])
    moved = random.integers(-shift, shift + 1, (count, 2))
    masks = [torch.roll(mask, (int(y), int(x)), (0, 1)) for mask, (x, y) in zip(target["masks"], moved, strict=True)]
    wrong = torch.from_numpy(random.random(count) < (0.2 if shift else 0))
    return {
        "boxes": target["boxes"] + torch.tensor(np.concatenate([moved, moved], 1)),
        "labels": torch.where(wrong, 1 + target["labels"] % len(images.classes), target["labels"]),
        "scores": torch.tensor(random.random(count)) if shift else torch.ones(count),
        "masks": torch.stack(masks)[:, None].float() if masks else torch.zeros(0, 1, *target["masks"].shape[1:]),
    }


def test_the_truth_scores_one(images):
    scores = CocoScores(subset(images, 20))
    for index in range(20):
        scores.update([index], [detections(images, index)])
    found = scores.compute()
    assert found.box == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert found.mask == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert all(box == mask == pytest.approx(1.0) for count, box, mask in found.classes.values() if count)


def test_equals_pycocotools(images, tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scores = CocoScores(images)
    for index in range(len(images)):
        scores.update([index], [detections(images, index, shift=6)])
    found = scores.compute()
    scores.write(tmp_path / "results.json")
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": images.images,
        "annotations": [item for items in images.objects for item in items],
        "categories": [{"id": i, "name": n} for i, n in zip(images.category_ids, images.classes, strict=True)],
    }
    truth.createIndex()
    for kind, ours, place in (("bbox", found.box, 1), ("segm", found.mask, 2)):
        results = json.loads((tmp_path / "results.json").read_text())
        if kind == "segm":
            results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        np.testing.assert_allclose([ours[name] for name in NAMES], evaluation.stats[:6], atol=5e-6)
        assert 0.1 < ours["AP"] < 0.9
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for index, scores_of_class in enumerate(found.classes.values()):
            values = precision[:, :, index][precision[:, :, index] > -1]
            expected = values.mean() if values.size else None
            assert scores_of_class[place] == (None if expected is None else pytest.approx(expected, abs=5e-6))


def test_a_crowd_counts_neither_for_nor_against(images):
    """A detection inside a crowd is no false alarm; the same outside is one."""
    index, crowd = next((i, o) for i, objects in enumerate(images.objects) for o in objects if o["iscrowd"])
    few = subset(images, index + 1, first=index)
    x, y, width, height = crowd["bbox"]
    inside = detections(few, 0)
    label = few.labels[crowd["category_id"]]
    mask = torch.from_numpy(decode_mask(crowd["segmentation"], few.images[0]["height"], few.images[0]["width"]))
    extra = {
        "boxes": torch.tensor([[x, y, x + width, y + height]]),
        "labels": torch.tensor([label]),
        "scores": torch.tensor([2.0]),
        "masks": mask[None, None].float(),
    }
    scores = CocoScores(few)
    scores.update([0], [{name: torch.cat([inside[name], extra[name].to(inside[name])]) for name in inside}])
    assert scores.compute().box["AP"] == pytest.approx(1.0)
    free = [other for other in range(1, 81) if other in inside["labels"].tolist() and other != label]
    extra["labels"] = torch.tensor([free[0]])
    scores = CocoScores(few)
    scores.update([0], [{name: torch.cat([inside[name], extra[name].to(inside[name])]) for name in inside}])
    assert scores.compute().box["AP"] < 1


def test_nothing_found_scores_nothing(images):
    found = CocoScores(subset(images, 5)).compute()
    assert found.box["AP"] == found.mask["AP"] == 0
    table = found.table()
    assert table.splitlines()[0] == "| | AP | AP50 | AP75 | AP_small | AP_medium | AP_large |"
    assert "| mask | 0.0 |" in table
    assert "| person |" in table
    assert any(line.endswith("| 0 | - | - |") for line in table.splitlines())


def test_without_masks_boxes_are_scored(images):
    few = subset(images, 5)
    scores = CocoScores(few, masks=False)
    for index in range(5):
        found = detections(few, index)
        scores.update([index], [{name: found[name] for name in ("boxes", "labels", "scores")}])
    found = scores.compute()
    assert found.box["AP"] == pytest.approx(1.0) and found.mask == {}
    assert "| mask |" not in found.table()
    assert "segmentation" not in scores.results[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_score_together_what_one_would_alone(images, tmp_path):
    """Two processes share the images, and both have seen the last one: it counts once."""
    few = subset(images, 9)
    alone = CocoScores(few)
    for index in range(9):
        alone.update([index], [detections(few, index, shift=6)])
    store = tmp_path / "store"
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_score_a_share, args=(few, rank, store, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert answers[0] == answers[1] == alone.compute()


def _score_a_share(images, rank, store, queue):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scores = CocoScores(images)
    for index in sorted({*range(rank, 9, 2), 8}):
        scores.update([index], [detections(images, index, shift=6)])
    queue.put(scores.compute_together())
    distributed.destroy_process_group()


def subset(images, end, first=0):
    """The data set of some of the images."""
    few = CocoImages.__new__(CocoImages)
    few.__dict__ = {**images.__dict__, "images": images.images[first:end], "objects": images.objects[first:end]}
    return few
