import json
import pickle
from argparse import Namespace

import numpy as np
import pytest
import torch

from localmix import cli
from localmix.tasks.classification import shard_writing
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.shard_cache import RemoteShards
from localmix.tasks.classification.shard_format import sha256
from localmix.tasks.classification.shard_reading import ShardOrder, verify_shards
from localmix.tasks.classification.shard_writing import write_shards
from localmix.tasks.engine.batches import EpochBatches, loader


@pytest.fixture
def shards(tmp_path, photographs, monkeypatch):
    """20 training images in 5 chunks, 7 validation images in 2."""
    monkeypatch.setattr(shard_writing.ShardWriter, "_chunk_images", lambda self: 4)
    folder = photographs(tmp_path / "images", {"train/cat": 9, "train/dog": 11, "val/cat": 3, "val/dog": 4})
    write_shards(str(folder), tmp_path / "shards", workers=1, announce=lambda text: None)
    return tmp_path / "shards"


def all_of(split):
    return split[None, 0, list(range(len(split)))]


def test_any_image_by_its_index(shards):
    images = load_images(str(shards), img_size=16)
    assert (len(images.train), len(images.validation), images.size, images.channels) == (20, 7, 16, 3)
    pixels, labels = all_of(images.train)
    places = [13, 0, 19, 4]
    again = images.train[None, 0, places]
    assert torch.equal(again[0], pixels[places]) and torch.equal(again[1], labels[places])
    for index in (-1, 20):
        with pytest.raises(IndexError):
            images.train.images[index]


def test_views_larger_than_what_is_stored_are_announced(shards, tmp_path):
    small = tmp_path / "small"
    write_shards(str(tmp_path / "images"), small, size=24, workers=1, announce=lambda text: None)
    for folder, size, number in ((small, 25, 1), (small, 24, 0), (shards, 500, 0)):
        said = []
        load_images(str(folder), img_size=size, announce=said.append)
        assert len(said) == number
        assert all("a shorter side of 24 px: for views of 25 px they are enlarged" in text for text in said)


def test_litdata_reads_them_too(shards, monkeypatch, tmp_path):
    import litdata

    monkeypatch.setenv("HOME", str(tmp_path))
    images = load_images(str(shards)).validation.images
    theirs = litdata.StreamingDataset(str(shards / "validation"))
    assert len(theirs) == 7
    for index in range(7):
        content, label, _ = theirs[index]
        assert (content, label) == images._open(index // 4).item(index % 4)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(shards):
    images = load_images(str(shards), img_size=16)
    # Files that are open when the workers are forked.
    all_of(images.train)
    alone, helped = (list(loader(images.train, 4, seed=0, workers=workers)) for workers in (0, 2))
    assert all(torch.equal(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x, y, strict=True))
    assert torch.equal(all_of(pickle.loads(pickle.dumps(images.train)))[0], all_of(images.train)[0])


SIZES = [[4] * 5, [7, 1, 3], [1], [64] * 50 + [5]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("buffer", [1, 2, 16])
def test_order_is_a_permutation_of_seed_and_epoch(sizes, buffer):
    order = ShardOrder(sizes, 3, 1, buffer)
    whole = np.asarray(order)
    assert len(order) == len(whole) == sum(sizes)
    assert sorted(whole.tolist()) == list(range(sum(sizes)))
    assert np.array_equal(whole, np.asarray(ShardOrder(sizes, 3, 1, buffer)))
    if sum(sizes) > 10:
        assert not np.array_equal(whole, np.asarray(ShardOrder(sizes, 3, 2, buffer)))
        assert not np.array_equal(whole, np.asarray(ShardOrder(sizes, 4, 1, buffer)))


def test_slices_of_the_order_are_those_of_the_array():
    order = ShardOrder(SIZES[-1], 0, 0, 16)
    whole = np.asarray(order)
    for start, stop in [(0, 10), (100, 1000), (3000, 4000), (5, 5), (-7, None), (4000, 5000)]:
        assert np.array_equal(order[start:stop], whole[start:stop])
    assert np.array_equal(order[3:900:7], whole[3:900:7])


def test_order_needs_few_chunks_at_a_time_and_one_new_one():
    sizes, buffer = [64] * 50, 8
    chunks = np.asarray(ShardOrder(sizes, 0, 0, buffer)) // 64
    first, last = (np.array([f(np.flatnonzero(chunks == c)) for c in range(50)]) for f in (np.min, np.max))
    alive = [int(((first <= place) & (place <= last)).sum()) for place in range(len(chunks))]
    assert max(alive) <= buffer + 1
    # Chunks come in one after the other, about 64 images apart.
    assert np.diff(np.sort(first))[buffer:].max() < 3 * 64
    # And a batch has images of most of them.
    assert np.mean([len(set(chunks[place : place + 32])) for place in range(500, 2500)]) > 0.85 * buffer


def test_epoch_takes_the_order_and_each_process_a_stretch_of_it(shards):
    dataset = load_images(str(shards)).train
    order = np.asarray(dataset.images.order(5, 2))
    seen = []
    for process in range(2):
        batches = EpochBatches(20, 5, seed=5, order=dataset.order, process=process, num_processes=2)
        batches.set_epoch(2)
        seen.append([index for _, _, indices in batches for index in indices])
    assert seen == [order[:10].tolist(), order[10:].tolist()]


def test_truncated_chunk_is_named(shards):
    path = shards / "train/chunk-000001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    images = load_images(str(shards)).train.images
    images[0]
    with pytest.raises(ValueError, match=r"data: .*train/chunk-000001\.bin is damaged \(\d+ bytes, expected \d+\)"):
        images[5]
    with pytest.raises(
        ValueError, match=r"verify: 1 of 7 chunks are damaged:\n.*chunk-000001\.bin: \d+ bytes, expected"
    ):
        verify_shards(shards)


def test_damaged_image_is_named(shards):
    path = shards / "train/chunk-000001.bin"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    images = load_images(str(shards)).train.images
    images[6]
    with pytest.raises(ValueError, match=r"chunk-000001\.bin is damaged \(image 3: wrong checksum\)"):
        images[7]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_damage_that_a_worker_meets_is_named(shards):
    path = shards / "validation/chunk-000001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    batches = iter(loader(load_images(str(shards)).validation, 7, seed=None, workers=1))
    with pytest.raises(ValueError, match="Traceback") as error:
        next(batches)
    batches._shutdown_workers()
    assert cli._message(error.value, Namespace()).startswith(f"data: {path} is damaged (")


def test_missing_chunk_is_named(shards):
    (shards / "train/chunk-000001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"chunk-000001\.bin"):
        load_images(str(shards)).train.images[5]
    with pytest.raises(ValueError, match=r"chunk-000001\.bin: No such file"):
        verify_shards(shards)


def test_manifest_that_names_a_file_elsewhere_is_refused(shards):
    manifest = json.loads((shards / "shards.json").read_bytes())
    manifest["train"][0]["name"] = "../../chunk-000000.bin"
    (shards / "shards.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"data: .*shards\.json is no manifest .* got '\.\./\.\./chunk-000000\.bin'"):
        load_images(str(shards))


def test_index_that_unpickles_is_refused(shards):
    path = shards / "train/index.json"
    path.write_text(path.read_text().replace('"bytes"', '"pickle"'))
    with pytest.raises(ValueError, match=r"train/index\.json, got .*'pickle'.*; refused"):
        load_images(str(shards))


def test_index_that_was_changed_is_refused(shards):
    path = shards / "train/index.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"train/index\.json is not the file that shards\.json vouches for"):
        load_images(str(shards))


def test_unfinished_shards_are_no_data(shards):
    (shards / "shards.json").unlink()
    for use in (lambda: load_images(str(shards)), lambda: verify_shards(shards)):
        with pytest.raises(ValueError, match=r"data: expected shards with a shards\.json, .* has none"):
            use()


@pytest.fixture
def remote(shards, tmp_path):
    """The same images through litdata's downloader, and the folder that they are kept in."""
    cache = tmp_path / "cache"
    return load_images(f"local:{shards}", img_size=16, data_root=str(cache)), cache


def test_shards_at_an_address_are_fetched_when_they_are_needed(remote, shards):
    images, cache = remote
    assert not list(cache.glob("*.bin"))
    images.train.images[0]
    assert len(list(cache.glob("*.bin"))) == 1
    local = load_images(str(shards), img_size=16)
    for split in ("train", "validation"):
        assert torch.equal(all_of(getattr(images, split))[0], all_of(getattr(local, split))[0])
    assert len(list(cache.glob("*.bin"))) == 7
    assert not [path.name for path in cache.iterdir() if path.suffix not in (".bin", ".lock")]
    assert images.fingerprint == local.fingerprint


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_share_what_was_fetched(remote, shards):
    images, cache = remote
    (cache / f".{images.train.images.chunks[0].sha256}.bin.partial").write_bytes(b"left by a process that was killed")
    (cache / f".{images.train.images.chunks[0].sha256}.bin.partial.lock").touch()
    local = list(loader(load_images(str(shards), img_size=16).train, 4, seed=0))
    fetched = list(loader(images.train, 4, seed=0, workers=2))
    assert all(torch.equal(a, b) for x, y in zip(local, fetched, strict=True) for a, b in zip(x, y, strict=True))
    assert len(list(cache.glob("*.bin"))) == 5
    assert not list(cache.glob(".*partial*"))


def test_damaged_chunk_at_an_address_is_refused(remote, shards):
    images, cache = remote
    path = shards / "train/chunk-000000.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(
        ValueError, match=r"data: local:.*train/chunk-000000\.bin is damaged: SHA-256 \w+, expected \w+"
    ):
        images.train.images[0]
    assert not list(cache.glob("*.bin")) and not list(cache.glob(".*partial*"))


def test_missing_chunk_at_an_address_is_named(remote, shards):
    images, cache = remote
    (shards / "train/chunk-000000.bin").unlink()
    with pytest.raises(ValueError, match=r"data: cannot fetch local:.*train/chunk-000000\.bin: "):
        images.train.images[0]
    assert not list(cache.glob(".*partial*"))


def test_cache_keeps_what_was_used_last(remote, shards):
    images, cache = remote
    pairs, source = images.train.images, images.train.images.source
    size = max(chunk.bytes for chunk in pairs.chunks)
    source.max_bytes = 2 * size
    pixels = all_of(images.train)
    kept = {path.stem for path in cache.glob("*.bin")}
    assert kept == {chunk.sha256 for chunk in pairs.chunks[-2:]}
    pairs.opened.clear()
    pairs[12], pairs[0]
    assert {path.stem for path in cache.glob("*.bin")} == {pairs.chunks[0].sha256, pairs.chunks[3].sha256}
    pairs.opened.clear()
    assert torch.equal(all_of(images.train)[0], pixels[0])


def test_shards_made_anew_at_an_address_are_not_mixed_with_old_ones(remote, shards, tmp_path, photographs):
    images, cache = remote
    before = all_of(images.train)[0]
    photographs(tmp_path / "images", {"val/cat": 3, "train/cat": 9, "train/dog": 11})
    for path in sorted(shards.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    write_shards(str(tmp_path / "images"), shards, workers=1, announce=lambda text: None)
    anew = load_images(f"local:{shards}", img_size=16, data_root=str(cache))
    assert torch.equal(all_of(anew.train)[0], all_of(load_images(str(shards), img_size=16).train)[0])
    assert not torch.equal(all_of(anew.train)[0], before)


def test_address_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data: cannot fetch local:.*/shards\.json: "):
        load_images(f"local:{tmp_path}", data_root=str(tmp_path / "cache"))


def test_wrong_size_of_the_cache_is_refused():
    with pytest.raises(ValueError, match="max_cache_gb: expected more than 0, got 0"):
        RemoteShards("s3://bucket", None, 0)


def test_cache_has_a_folder_for_each_address():
    assert RemoteShards("s3://a/b/", None, 1).cache.name == sha256(b"s3://a/b")[:16]
