"""Writes the part of Fashion-MNIST that the package ships, from the files of the data set.

    apt-get install dataset-fashion-mnist
    python tools/make_fashion_mnist.py

The same source gives the same bytes. The archive is compressed with LZMA, which `numpy.load` reads as any other
`.npz` and which is a seventh smaller than what `numpy.savez_compressed` writes.
"""

import argparse
import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "src/localmix/tasks/fashion_mnist/fashion_mnist.npz"
SPLITS = {"train": ("train", 10_000), "test": ("t10k", 2_000)}


def read_idx(file: Path) -> np.ndarray:
    """The bytes of a gzipped IDX file as an array of the shape that its header states."""
    data = gzip.decompress(file.read_bytes())
    zero, kind, rank = int.from_bytes(data[:2], "big"), data[2], data[3]
    if (zero, kind) != (0, 0x08):
        raise ValueError(f"{file}: expected an IDX file of unsigned bytes, got the magic number {data[:4].hex()}")
    shape = np.frombuffer(data, ">u4", rank, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write(source: Path, output: Path) -> None:
    """Writes images and labels of both splits, each a member of the archive."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_LZMA) as archive:
        for split, (prefix, count) in SPLITS.items():
            for content, rank in (("images", 3), ("labels", 1)):
                array = read_idx(source / f"{prefix}-{content}-idx{rank}-ubyte.gz")[:count]
                # A ZipInfo made by hand has a fixed date, so that the bytes do not depend on the day.
                member = zipfile.ZipInfo(f"{split}_{content}.npy")
                member.compress_type = zipfile.ZIP_LZMA
                with archive.open(member, "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    write(args.source, args.output)
    print(f"{args.output}: {hashlib.sha256(args.output.read_bytes()).hexdigest()}")
