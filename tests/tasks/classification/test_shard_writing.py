import errno
import io
import json
import shutil

import pytest
from PIL import Image

from localmix import cli, writing
from localmix.tasks.classification import shard_writing
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.shard_progress import Progress, Written
from localmix.tasks.classification.shard_reading import verify_shards
from localmix.tasks.classification.shard_writing import write_shards
from localmix.tasks.images import CorruptImage, read_image
from localmix.writing import write_atomically

FOLDERS = {"train/cat": 9, "train/dog": 11, "val/cat": 3, "val/dog": 4}


@pytest.fixture
def folder(tmp_path, photographs, monkeypatch):
    """20 training and 7 validation images, of which about 4 go into a chunk."""
    monkeypatch.setattr(shard_writing.ShardWriter, "_chunk_images", lambda self: 4)
    return photographs(tmp_path / "images", FOLDERS)


def write(folder, output, **options):
    return write_shards(str(folder), output, workers=1, announce=lambda text: None, **options)


def content(output):
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.suffix in (".bin", ".json")}


def contents_of_images(split):
    """(content, label) of each image in the shards of a split."""
    images = split.images
    return sorted(
        chunk.item(k) for i, c in enumerate(images.chunks) for chunk in [images._open(i)] for k in range(c.images)
    )


def test_shards_hold_the_files(folder, tmp_path):
    manifest = write(folder, tmp_path / "shards")
    assert [chunk.images for chunk in manifest.train] == [4] * 5
    assert [chunk.images for chunk in manifest.validation] == [4, 3]
    shards, files = load_images(str(tmp_path / "shards")), load_images(str(folder))
    assert shards.classes == files.classes == ["cat", "dog"]
    for split in ("train", "validation"):
        expected = [
            (p.read_bytes(), int(k))
            for p, k in zip(getattr(files, split).images.paths, getattr(files, split).images.labels, strict=True)
        ]
        assert contents_of_images(getattr(shards, split)) == sorted(expected)
    # Shuffled, so that a chunk has images of all classes; for validation there is no need.
    assert sorted({label for _, label in (shards.train.images[i] for i in range(4))}) == [0, 1]
    assert [label for _, label in shards.validation.images] == [0, 0, 0, 1, 1, 1, 1]


def test_larger_images_are_resized(folder, tmp_path):
    Image.new("RGB", (100, 20), "red").save(folder / "val/cat/000.png")
    Image.effect_noise((12, 10), 50).save(folder / "val/cat/001.png")
    write(folder, tmp_path / "shards", size=20, quality=80)
    validation = load_images(str(tmp_path / "shards")).validation
    sizes = {image.size for image, _ in validation.images}
    # From 40 x 36: the shorter side has 20. What is small enough stays as it is.
    assert sizes == {(22, 20), (100, 20), (12, 10)}
    stored = [content for content, _ in contents_of_images(validation)]
    assert (folder / "val/cat/000.png").read_bytes() in stored
    jpegs = [image for image in map(Image.open, map(io.BytesIO, stored)) if image.format == "JPEG"]
    assert len(jpegs) == 5
    original = read_image(folder / "val/dog/000.png", 3).resize((22, 20), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=80)
    assert buffer.getvalue() in stored


class Killed(BaseException):
    pass


def interrupted(after):
    def track(iterable, what, count):
        for done, item in enumerate(iterable):
            if done == after:
                raise Killed
            yield item

    return track


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(folder, tmp_path, monkeypatch, after):
    write(folder, tmp_path / "at once")
    output = tmp_path / "shards"
    with pytest.raises(Killed):
        write(folder, output, track=interrupted(after))
    assert not (output / "shards.json").exists()
    # As a process that is killed leaves it: chunks without a line, a line and a chunk half written.
    (output / "validation").mkdir(exist_ok=True)
    (output / "validation/.chunk-000001.bin.0123abcd.partial").write_bytes(b"half")
    writing._remove_left.cache_clear()
    with (output / "shards.progress.jsonl").open("ab") as file:
        file.write(b'{"split": "train", "numb')
    written = []
    encode = shard_writing.encode_chunk
    monkeypatch.setattr(shard_writing, "encode_chunk", lambda items: written.append(items) or encode(items))
    write(folder, output)
    assert len(written) == 7 - after
    assert content(output) == content(tmp_path / "at once")
    assert not list(output.rglob("*.partial"))


def test_a_full_disk_is_told_with_the_name_of_the_list_of_what_is_done(tmp_path, full_disk):
    path = tmp_path / "shards.progress.jsonl"
    progress = Progress(path, {}, lambda: 4)
    expected = r"File too large while writing: '.*shards\.progress\.jsonl'"
    with full_disk(path.stat().st_size):
        with pytest.raises(OSError, match=expected):
            progress.add(Written("train", 0, None, []))
        with pytest.raises(OSError, match=expected):
            progress.__exit__()


def test_one_that_was_killed_in_its_first_moment_is_no_obstacle(folder, tmp_path):
    output = tmp_path / "shards"
    output.mkdir()
    (output / ".shards.progress.jsonl.0123abcd.partial").write_bytes(b"half")
    write(folder, output)
    assert not list(output.rglob("*.partial"))


def test_chunk_that_vanished_or_shrank_is_written_again(folder, tmp_path):
    output = tmp_path / "shards"
    with pytest.raises(Killed):
        write(folder, output, track=interrupted(3))
    before = {name: chunk for name, chunk in content(output).items() if name < "train/chunk-000002"}
    (output / "train/chunk-000000.bin").unlink()
    (output / "train/chunk-000001.bin").write_bytes(b"short")
    write(folder, output)
    assert before.items() <= content(output).items()


def test_called_again_it_verifies_and_mends(folder, tmp_path):
    output = tmp_path / "shards"
    write(folder, output)
    whole = content(output)
    write(folder, output)
    assert content(output) == whole
    damage(output / "train/chunk-000002.bin")
    with pytest.raises(
        ValueError, match=r"output: damaged chunks were removed.*\n.*train/chunk-000002\.bin: wrong checksum"
    ):
        write(folder, output)
    write(folder, output)
    assert content(output) == whole


def damage(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def test_chunk_that_the_disk_damaged_is_found_before_it_counts_as_done(folder, tmp_path, monkeypatch):
    def write_wrongly(path, write):
        write_atomically(path, write)
        if path.name == "chunk-000001.bin":
            damage(path)

    monkeypatch.setattr(shard_writing, "write_atomically", write_wrongly)
    with pytest.raises(ValueError, match=r"output: damaged .*\n.*chunk-000001"):
        write(folder, tmp_path / "shards")
    assert not (tmp_path / "shards/shards.json").exists()


def test_full_disk_leaves_what_is_done(folder, tmp_path, monkeypatch):
    def write_until_full(path, write):
        if path.name == "chunk-000003.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomically(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writing, "write_atomically", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            write(folder, tmp_path / "shards")
    assert not (tmp_path / "shards/shards.json").exists()
    write(folder, tmp_path / "shards")
    verify_shards(tmp_path / "shards")


@pytest.fixture
def damaged(folder):
    for name in ("train/dog/001.png", "val/cat/000.png"):
        (folder / name).write_bytes(b"no image")
    return folder


def test_corrupt_images_are_refused_by_name_and_the_rest_is_kept(damaged, tmp_path, photographs):
    with pytest.raises(CorruptImage, match=r"data: 2 corrupt image\(s\);.*train/dog/001\.png.*val/cat/000\.png"):
        write(damaged, tmp_path / "shards")
    assert len(list((tmp_path / "shards").rglob("*.bin"))) == 5
    assert not (tmp_path / "shards/shards.json").exists()
    photographs(damaged, {"train/dog": 2, "val/cat": 1})
    assert write(damaged, tmp_path / "shards").skipped == []


def test_corrupt_images_are_left_out_on_request(damaged, tmp_path):
    with pytest.raises(CorruptImage):
        write(damaged, tmp_path / "shards")
    manifest = write(damaged, tmp_path / "shards", on_corrupt="skip")
    assert sum(chunk.images for chunk in manifest.train) == 19
    assert sum(chunk.images for chunk in manifest.validation) == 6
    assert [reason.split(": ")[0] for reason in manifest.skipped] == [
        str(damaged / name) for name in ("train/dog/001.png", "val/cat/000.png")
    ]
    assert load_images(str(tmp_path / "shards")).skipped == manifest.skipped


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_or_images_are_refused(folder, tmp_path, finished):
    output = tmp_path / "shards"
    if finished:
        write(folder, output)
    else:
        with pytest.raises(Killed):
            write(folder, output, track=interrupted(2))
    with pytest.raises(ValueError, match=r"output: .*shards holds shards of other settings: size = None, now 16"):
        write(folder, output, size=16)
    shutil.copy(folder / "train/cat/000.png", folder / "train/cat/new.png")
    with pytest.raises(ValueError, match=r"output: .* images = {'train': 20, .*}, now {'train': 21, "):
        write(folder, output)


def test_folder_with_other_files_is_refused(folder, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/thesis.tex").touch()
    with pytest.raises(ValueError, match=r"output: expected an empty folder .* holds \['thesis.tex'\]"):
        write(folder, tmp_path / "shards")


def test_only_one_process_writes(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / "shards").mkdir()
    with FileLock(tmp_path / "shards/.lock"), pytest.raises(ValueError, match="output: another process is writing"):
        write(folder, tmp_path / "shards")


def test_validation_is_held_out_where_there_is_none(folder, tmp_path):
    notices = []
    manifest = write_shards(str(folder / "train"), tmp_path / "shards", announce=notices.append)
    assert sum(chunk.images for chunk in manifest.validation) == 4
    assert "20% of each class is held out (4 of 20 images)" in notices[0]
    assert "train: 16 images in 4 chunks" in notices[1] and "validation: 4 images in 1 chunks" in notices[2]


def test_size_of_a_chunk_is_about_what_was_asked_for(tmp_path, photographs):
    folder = photographs(tmp_path / "images", FOLDERS)
    sizes = [path.stat().st_size for path in folder.rglob("train/*/*.png")]
    write(folder, tmp_path / "shards", chunk_mb=1)
    header = json.loads((tmp_path / "shards/shards.progress.jsonl").read_bytes().splitlines()[0])
    assert header["chunk_images"] == round(1e6 / (sum(sizes) / len(sizes)))


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", 0), ("quality", 101), ("chunk_mb", 2000), ("workers", 0), ("on_corrupt", "ignore")],
)
def test_wrong_options_are_refused(folder, tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option}: expected"):
        write_shards(str(folder), tmp_path / "shards", **{option: value})
    assert not (tmp_path / "shards").exists()


def test_command(folder, tmp_path, capsys):
    shards = str(tmp_path / "shards")
    assert cli.main(["shard", str(folder), "--output", shards, "--size", "20", "--workers", "1"]) == 0
    assert "train: 20 images in 5 chunks" in capsys.readouterr().err
    assert cli.main(["shard", "--verify", shards]) == 0
    assert "validation: 7 images in 2 chunks" in capsys.readouterr().err
    damage(tmp_path / "shards/validation/chunk-000001.bin")
    assert cli.main(["shard", "--verify", shards]) == 2
    error = capsys.readouterr().err
    assert "verify: 1 of 7 chunks are damaged:" in error and "validation/chunk-000001.bin: wrong checksum" in error


@pytest.mark.parametrize("arguments", [[], ["DIR"], ["--output", "x"], ["DIR", "--output", "x", "--verify", "y"]])
def test_command_says_what_it_expects(arguments, capsys):
    assert cli.main(["shard", *arguments]) == 2
    assert "shard: expected DIR and --output SHARDS, or --verify SHARDS" in capsys.readouterr().err
