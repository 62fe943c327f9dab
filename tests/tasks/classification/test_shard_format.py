import json
from itertools import pairwise

import pytest

from localmix.tasks.classification.shard_format import (
    Chunk,
    Manifest,
    check_index,
    decode_item,
    decode_offsets,
    encode_chunk,
    encode_index,
    read_manifest,
    sha256,
)

ITEMS = [(b"first image", 3), (b"", -1), (b"third" * 100, 2**40)]


def chunk_of(content, images=3, name="chunk-000000.bin"):
    return Chunk(name, images, len(content), sha256(content))


def test_items_come_back():
    content = encode_chunk(ITEMS)
    offsets = decode_offsets(content, chunk_of(content))
    assert [decode_item(content[a:b]) for a, b in pairwise(offsets)] == ITEMS


def test_chunk_is_the_one_that_litdata_writes(tmp_path):
    from litdata.streaming.writer import BinaryWriter

    content = encode_chunk(ITEMS)
    offsets = decode_offsets(content, chunk_of(content))
    checksums = [int.from_bytes(content[end - 8 : end], "little") for end in offsets[1:]]
    writer = BinaryWriter(str(tmp_path), chunk_size=3)
    for place, ((image, label), checksum) in enumerate(zip(ITEMS, checksums, strict=True)):
        writer[place] = (image, label, checksum)
    writer.done()
    assert (tmp_path / "chunk-0-0.bin").read_bytes() == content
    theirs, ours = json.loads((tmp_path / "0.index.json").read_bytes()), json.loads(encode_index([chunk_of(content)]))
    assert ours["chunks"] == [{**theirs["chunks"][0], "filename": "chunk-000000.bin"}]
    assert {key: theirs["config"][key] for key in ("data_format", "data_spec", "item_loader")} == {
        key: ours["config"][key] for key in ("data_format", "data_spec", "item_loader")
    }


@pytest.mark.parametrize("place", [0, 12, 20])
def test_a_wrong_byte_in_an_item_is_found(place):
    content = encode_chunk([(b"image", 3)])
    item = bytearray(content[12:])
    item[12 + place] ^= 1
    with pytest.raises(ValueError, match="wrong checksum"):
        decode_item(bytes(item))


@pytest.mark.parametrize("place", [0, 4, 9, 18])
def test_a_wrong_byte_in_the_list_of_items_is_found(place):
    content = bytearray(encode_chunk(ITEMS))
    content[place] ^= 255
    with pytest.raises(ValueError, match="list of items is damaged"):
        decode_offsets(bytes(content), chunk_of(content))


def test_too_large_a_chunk_is_refused(monkeypatch):
    monkeypatch.setattr("localmix.tasks.classification.shard_format.LARGEST", 500)
    with pytest.raises(ValueError, match=r"chunk_mb: 3 images take .* ask for less"):
        encode_chunk(ITEMS)


def manifest(**changes):
    chunk = {"name": "chunk-000000.bin", "images": 2, "bytes": 90, "sha256": "0" * 64}
    whole = Manifest(["cat", "dog"], {}, [], [Chunk(**chunk)], [Chunk(**chunk)], {})
    values = json.loads(whole.to_bytes())
    values["train"][0].update({k: v for k, v in changes.items() if k in chunk})
    values.update({k: v for k, v in changes.items() if k not in chunk})
    return json.dumps(values).encode()


def test_manifest_comes_back():
    content = manifest()
    assert read_manifest(content, "m").train == [Chunk("chunk-000000.bin", 2, 90, "0" * 64)]
    assert json.loads(read_manifest(content, "m").to_bytes()) == json.loads(content)


@pytest.mark.parametrize(
    "name",
    ["../chunk-000000.bin", "/tmp/chunk-000000.bin", "chunk-000000.bin/..", "a\\chunk-000000.bin", ".", 5, "x.bin\n"],
)
def test_a_name_that_may_lead_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match=r"data: m is no manifest of shards: expected a file name like"):
        read_manifest(manifest(name=name), "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "expected numbers of images and bytes"),
        ({"bytes": "90"}, "expected numbers of images and bytes"),
        ({"sha256": "0"}, "expected a SHA-256"),
        ({"format": "localmix shards 2"}, "expected the format 'localmix shards 1'"),
        ({"train": []}, "expected chunks for train, got none"),
        ({"train": [{"name": "chunk-000000.bin"}]}, "missing 3 required"),
        ({"train": 5}, "not iterable"),
        ({"classes": ["cat"]}, "at least 2 classes"),
    ],
)
def test_another_manifest_is_refused(changes, message):
    with pytest.raises(ValueError, match=rf"data: m is no manifest of shards: .*{message}"):
        read_manifest(manifest(**changes), "m")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format": "localmix shards 1"}'])
def test_no_manifest_is_refused(content):
    with pytest.raises(ValueError, match="data: m is no manifest of shards"):
        read_manifest(content, "m")


@pytest.mark.parametrize(
    "change", [{"data_format": ["pickle", "int", "int"]}, {"data_format": None}, {"compression": "zstd"}]
)
def test_an_index_that_asks_for_more_than_bytes_is_refused(change):
    index = json.loads(encode_index([Chunk("chunk-000000.bin", 2, 90, "0" * 64)]))
    check_index(json.dumps(index).encode(), "i")
    index["config"].update(change)
    with pytest.raises(ValueError, match=r"data: expected .*'bytes', 'int', 'int'.* in i, got .*; refused"):
        check_index(json.dumps(index).encode(), "i")


def test_no_index_is_refused():
    with pytest.raises(ValueError, match="data: i is no index of litdata"):
        check_index(b"[]", "i")
