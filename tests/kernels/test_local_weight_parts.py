"""Parts of maps whose weights fit a buffer."""

import pytest
import torch

from localmix.kernels import triton
from localmix.reports.benchmarks.timing import peak_bytes

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))


@pytest.fixture(scope="module")
def module():
    from localmix.kernels.triton import local_weight_parts

    return local_weight_parts


@pytest.mark.parametrize("most", [1, 7, 20, 50, 70, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_parts_cover_every_row_once_and_differ_little(module, monkeypatch, most, dtype):
    batch, height, row = 5, 6, 4
    parts = module.parts_of(torch.empty(batch, height, 4, 2, dtype=dtype), row, most * dtype.itemsize)
    rows = [
        (i, r)
        for image, images, first, n in parts
        for i in range(image, image + images)
        for r in range(first, first + n)
    ]
    assert rows == [(i, r) for i in range(batch) for r in range(height)]
    sizes = [images * rows * row for _, images, _, rows in parts]
    assert max(sizes) <= max(most, row)
    assert max(sizes) - min(sizes) <= max(row, height * row if most >= height * row else 0)


def test_rows_beyond_a_part_count_too(module):
    x, size = torch.empty(2, 10, 4, 2, dtype=torch.float16), 7 * 4 * 2
    parts = module.parts_of(x, 4, size, 3)
    assert parts == tuple((i, 1, first, n) for i in (0, 1) for first, n in ((0, 3), (3, 3), (6, 4)))
    assert max(rows for *_, rows in parts) + 3 <= 7
    assert module.parts_of(x, 4, size, 4) == ()  # most of what is made would be made again
    assert len(module.parts_of(x[:, :7], 4, size, 4)) == 2  # but whole images have no rows beyond


def test_a_smaller_buffer_is_tried_only_for_other_parts(module, monkeypatch):
    large, small = 20 * 4 * 2, 7 * 4 * 2
    monkeypatch.setattr(module, "_BUFFER_BYTES", (large, small))
    x = torch.empty(2, 10, 4, 4, dtype=torch.float16)
    assert module.buffers(x, 4) == [large, small]
    assert module.buffers(x[:, :7], 4) == [large, small]  # two images together, and one by one
    assert module.buffers(x[:1, :7], 4) == [large]
    assert module.buffers(x, 4, 4) == [large]  # no parts fit the smaller one
    assert module.buffers(x, 4, 11) == [large]
    assert module.buffers(torch.empty(1, 30, 4, 4, dtype=torch.float16), 4, 11) == []


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_that_are_made_are_never_all_in_memory(module, monkeypatch, transposed):
    """Of the maps of a first stage; the kernel itself is left out, which the interpreter would take minutes for."""
    written = []
    monkeypatch.setattr(module.tuning, "launch", lambda kernel, programs, tensors, *rest: written.append(tensors[2]))
    x, hidden, projection = torch.ones(8, 28, 28, 96), torch.ones(8, 28, 28, 24), torch.ones(32 * 49, 24)

    def run():
        made_of, sizes = (hidden, projection, projection[:, 0].contiguous(), 32), ((7, 7), (1, 1))
        (size, *_) = module.buffers_to_apply(x, 32 * 49, *sizes, transposed)
        module.run_in_parts((1, 7, 3, 4), x, x, made_of, *sizes, size=size, transposed=transposed)

    run()
    assert len(written) > 1
    assert peak_bytes(run) < 5 * x.numel() * 4 < 8 * 28 * 28 * 32 * 49 * 4
    assert sum(y.numel() for y in written) == 2 * x.numel()
