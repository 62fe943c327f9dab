import pytest

from localmix.tasks import fashion_mnist


@pytest.fixture(scope="module")
def few_images():
    """Cuts the embedded set to 24 images for training and 8 for validation."""
    numbers = {"train": 24, "test": 8}
    whole = {split: fashion_mnist.load(split) for split in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "load", lambda split: tuple(array[: numbers[split]] for array in whole[split]))
        yield whole
