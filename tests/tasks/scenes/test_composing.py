import numpy as np
import pytest

from localmix.tasks import fashion_mnist
from localmix.tasks.scenes import layout as layouts
from localmix.tasks.scenes.composing import compose
from localmix.tasks.scenes.layout import layout
from localmix.tasks.scenes.textures import texture

OPTIONS = {"size": (96, 128), "max_objects": 10, "seed": 0}


@pytest.fixture(scope="module")
def scenes():
    return [compose("train", index, **OPTIONS) for index in range(150)]


def test_some_are_empty_and_some_are_crowded(scenes):
    numbers = [len(scene.classes) for scene in scenes]
    assert 0 in numbers and max(numbers) >= 8 and max(numbers) <= 10
    assert 2 < np.mean(numbers) < 5


def test_all_classes_come(scenes):
    assert {label for scene in scenes for label in scene.classes} == set(range(1, 11))


def test_every_garment_is_seen(scenes):
    for scene in scenes:
        counts = np.bincount(scene.seen.ravel(), minlength=1 + len(scene.classes))
        assert len(counts) == 1 + len(scene.classes) and (counts[1:] >= layouts.LEAST_PIXELS).all()


def test_some_garments_are_occluded_or_cut():
    whole = seen = 0
    for seed in range(30):
        garments, map_ = layout("train", (96, 128), 10, np.random.default_rng(seed))
        counts = np.bincount(map_.ravel(), minlength=1 + len(garments))[1:]
        shares = [count / garment.mask.sum() for garment, count in zip(garments, counts, strict=True)]
        assert all(layouts.LEAST_SEEN <= share <= 1 for share in shares)
        whole, seen = whole + sum(share == 1 for share in shares), seen + sum(share < 0.9 for share in shares)
    assert whole > 10 and seen > 10


def test_front_garment_hides_the_one_behind():
    garments, seen = layout("train", (96, 128), 10, np.random.default_rng(1))
    assert len(garments) > 1
    drawn = np.zeros_like(seen)
    for place, garment in enumerate(garments, 1):
        for row, column in zip(*np.nonzero(garment.mask), strict=True):
            y, x = garment.top + row, garment.left + column
            if 0 <= y < 96 and 0 <= x < 128:
                drawn[y, x] = place
    assert (drawn == seen).all()


def test_garments_of_a_split_are_of_its_images(monkeypatch):
    asked = []
    load = fashion_mnist.load
    monkeypatch.setattr(fashion_mnist, "load", lambda split: asked.append(split) or load(split))
    layouts._embedded.cache_clear()
    compose("val", 1, **OPTIONS), compose("val", 2, **OPTIONS)
    assert set(asked) == {"test"}


def test_garments_stand_out_from_the_ground(scenes):
    """Along the outline, an image changes more than elsewhere."""
    edges, inside = [], []
    for scene in scenes:
        image = scene.image.astype(float).mean(2)
        change = np.abs(np.diff(image, axis=1))
        outline = scene.seen[:, 1:] != scene.seen[:, :-1]
        if outline.any():
            edges.append(change[outline].mean())
            inside.append(change[~outline].mean())
    assert np.mean(np.array(edges) > np.array(inside)) > 0.8


def test_plain_scenes_are_the_same_ones_on_dark_ground(scenes):
    """What lies where does not change; ground is darker than garments, and less varied than with patterns."""
    varied = []
    for index, scene in enumerate(scenes[:40]):
        plain = compose("train", index, **OPTIONS, plain=True)
        assert plain.classes == scene.classes
        assert (plain.seen == scene.seen).all()
        ground = scene.seen == 0
        brightest = plain.image.max(2)
        if ground.any() and not ground.all():
            assert np.median(brightest[ground]) < 80 < np.median(brightest[~ground])
        if ground.any():
            varied.append(scene.image[ground].std(0).mean() > plain.image[ground].std(0).mean())
    assert np.mean(varied) > 0.95


def test_images_have_light_and_dark(scenes):
    deviations = [scene.image.std() for scene in scenes]
    assert min(deviations) > 4 and np.mean(deviations) > 25


@pytest.mark.parametrize("seed", range(20))
def test_textures_are_patterns_in_their_range(seed):
    pattern = texture(40, 60, np.random.default_rng(seed))
    assert pattern.shape == (40, 60) and pattern.dtype == np.float32
    assert pattern.min() >= 0 and pattern.max() <= 1 and pattern.std() > 0.05


@pytest.mark.parametrize("size", [(32, 32), (32, 200), (201, 33)])
def test_any_size(size):
    scenes = [compose("train", index, size=size, max_objects=20, seed=7) for index in range(10)]
    assert all(scene.image.shape == (*size, 3) and scene.labels.shape == size for scene in scenes)
    assert any(scene.classes for scene in scenes)
