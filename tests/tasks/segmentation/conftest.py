import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="session")
def camvid(tmp_path_factory):
    """A few images of CamVid of each split, as its archive has them."""
    return extracted(DATA / "camvid11_q92.zip", tmp_path_factory.mktemp("camvid"), every=150)


def extracted(archive, folder, *, every):
    """Every so many images of an archive, with their label maps."""
    if not archive.exists():
        pytest.skip(f"{archive.name} is not beside the checkout")
    with zipfile.ZipFile(archive) as file:
        images = sorted(name for name in file.namelist() if "/images/" in name and name.endswith(".jpg"))
        for image in images[::every] or images:
            file.extract(image, folder)
            file.extract(image.replace("/images/", "/annotations/").replace(".jpg", ".png"), folder)
    return next(folder.iterdir())


@pytest.fixture(scope="session")
def ade20k_sample(tmp_path_factory):
    """Three images of ADE20K with their label maps."""
    return extracted(DATA / "ade20k_sample3.zip", tmp_path_factory.mktemp("ade20k"), every=1) / "sampleData"


@pytest.fixture(scope="session")
def label_maps(camvid):
    """Real label maps, uint8 [N, 360, 480]; 11 is void."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(camvid.glob("annotations/*/*.png"))])


def png(array, **options):
    """The bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()
