import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from localmix.tasks import fashion_mnist
from localmix.tasks.classification.views import ImageNetViews, SquareViews, drawn_from
from localmix.tasks.engine.seeding import seed_generators
from localmix.tasks.images import normalise

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def image():
    images, _ = fashion_mnist.load("test")
    return Image.fromarray(images[:3].transpose(1, 2, 0).copy(), "RGB").resize((60, 48))


@pytest.fixture(params=["square", "imagenet"])
def views(request):
    return SquareViews(32) if request.param == "square" else ImageNetViews(32, mean=MEAN, std=STD, random_erasing=1.0)


def test_view_is_a_function_of_its_generator(views, image):
    seed_generators(0)
    first = views.train(image, np.random.default_rng([1, 2, 3]))
    seed_generators(1)
    second, other = (views.train(image, np.random.default_rng([1, 2, last])) for last in (3, 4))
    assert first.shape == (3, 32, 32)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_policy_that_timm_does_not_know_is_refused():
    with pytest.raises(ValueError, match="auto_augment: expected a policy that timm knows, got 'nonsense'"):
        ImageNetViews(8, mean=MEAN, std=STD, auto_augment="nonsense")


def test_global_generators_are_left_alone(views, image):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_generators(5)
    expected = draw()
    seed_generators(5)
    views.train(image, np.random.default_rng(0))
    assert draw() == expected
    with pytest.raises(KeyError), drawn_from(np.random.default_rng(0)):
        raise KeyError
    assert draw() != expected


def test_imagenet_views_are_those_of_timm(image):
    options = {"input_size": 32, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    train = create_transform(
        **options, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=1.0, re_mode="pixel", color_jitter=0.4
    )
    views = ImageNetViews(32, mean=MEAN, std=STD, random_erasing=1.0)
    with drawn_from(np.random.default_rng(7)):
        expected = train(image)
    torch.testing.assert_close(views.train(image, np.random.default_rng(7)), expected)
    validate = create_transform(**options, crop_pct=0.875)
    torch.testing.assert_close(normalise(views.validate(image), MEAN, STD), validate(image))


def test_without_erasing_pixels_stay_bytes(image):
    views = ImageNetViews(32, mean=MEAN, std=STD, random_erasing=0.0, auto_augment="")
    assert views.train(image, np.random.default_rng(0)).dtype == torch.uint8
    assert views.validate(image).dtype == torch.uint8


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "original", "augmix-m10"])
def test_no_policy_asks_pillow_for_what_it_refuses(image, policy):
    """A level of 10 keeps no bit; in a thousand images each operation comes often."""
    views = pickle.loads(pickle.dumps(ImageNetViews(8, mean=MEAN, std=STD, random_erasing=0.0, auto_augment=policy)))
    for seed in range(300):
        assert views.train(image, np.random.default_rng(seed)).shape == (3, 8, 8)
