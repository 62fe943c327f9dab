import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from localmix.functional import NO_INPUT, sliding, window
from localmix.functional.neighborhood import relative_position, window_slot

maps = st.tuples(st.integers(1, 9), st.integers(1, 9))
kernels = st.tuples(st.integers(1, 6), st.integers(1, 6))
dilations = st.tuples(st.integers(1, 4), st.integers(1, 4))
examples = settings(max_examples=60, deadline=None, derandomize=True)


@examples
@given(size=maps, kernel=kernels, dilation=dilations)
def test_zero_border_is_unfold(size, kernel, dilation):
    """`F.unfold` of the numbers 1, 2, 3, ... tells what each tap reads, and 0 where it reads the padding."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    numbers = torch.arange(1.0, size[0] * size[1] + 1).reshape(1, 1, *size)
    padded = F.pad(numbers, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    columns = F.unfold(padded, kernel, dilation)[0].T.reshape(*size, -1)
    assert torch.equal(sliding(*size, kernel, dilation=dilation), columns.long() - 1)


def runs_of(size, kernel, dilation, i):
    """All runs of `kernel` positions, `dilation` apart, that hold i; the shorter one if the map has no such run."""
    line = range(i % dilation, size, dilation)
    return [line[s : s + kernel] for s in range(max(len(line) - kernel, 0) + 1) if i in line[s : s + kernel]]


def clamped(size, kernel, dilation):
    """Of the runs that hold a position, the one in which `kernel // 2` others come before it, or as near as may be.

    Gives the same as the reference kernel of natten 0.21.7, `get_win_start` in `reference/mask.hpp`, on maps that are
    at least as large as the neighborhood; natten refuses smaller ones.
    """
    result = []
    for i in range(size):
        run = min(runs_of(size, kernel, dilation, i), key=lambda run: abs(run.index(i) - kernel // 2))
        result.append([*run, *[NO_INPUT] * (kernel - len(run))])
    return result


@examples
@given(size=maps, kernel=kernels, dilation=dilations)
def test_clamped_border_is_the_nearest_run_inside(size, kernel, dilation):
    rows, columns = (clamped(*axis) for axis in zip(size, kernel, dilation, strict=True))
    expected = [
        [
            [NO_INPUT if NO_INPUT in pair else pair[0] * size[1] + pair[1] for pair in itertools.product(r, c)]
            for c in columns
        ]
        for r in rows
    ]
    assert sliding(*size, kernel, dilation=dilation, border="clamp").tolist() == expected


def test_clamped_border_by_hand():
    even = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [2, 3, 4, 5]]
    dilated = [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6]]
    assert sliding(1, 6, (1, 4), border="clamp")[0].tolist() == even
    assert sliding(1, 7, (1, 3), dilation=2, border="clamp")[0].tolist() == dilated
    assert sliding(1, 2, (1, 3), border="clamp")[0].tolist() == [[0, 1, NO_INPUT]] * 2


@examples
@given(size=maps, kernel=kernels, dilation=dilations)
def test_relative_position_counts_steps(size, kernel, dilation):
    neighborhood = sliding(*size, kernel, dilation=dilation, border="clamp")
    distances = torch.broadcast_tensors(*relative_position(*size, kernel, dilation=dilation))
    height, width = size
    for i, j in itertools.product(range(height), range(width)):
        for k, tap in enumerate(neighborhood[i, j].tolist()):
            if tap != NO_INPUT:
                row, column = (d[i, j].flatten()[k].item() for d in distances)
                assert (i + row * dilation[0], j + column * dilation[1]) == divmod(tap, width)
            assert all(-kernel[a] < distances[a][i, j].flatten()[k] < kernel[a] for a in (0, 1))


def rolled_and_masked(size, window_size, shift):
    """Swin: roll the map, cut it into windows, and let tokens of different regions not see one another."""
    (height, width), (wh, ww), (sh, sw) = size, window_size, shift
    region = torch.zeros(size, dtype=torch.long)
    bands = [
        (slice(0, -w), slice(-w, -s or None), slice(-s, None) if s else slice(0))
        for w, s in zip(window_size, shift, strict=True)
    ]
    for number, (rows, columns) in enumerate(itertools.product(*bands)):
        region[rows, columns] = number
    index = torch.arange(height * width).reshape(size).roll((-sh, -sw), (0, 1))

    def cut(t):
        return t.reshape(height // wh, wh, width // ww, ww).transpose(1, 2).reshape(-1, wh * ww)

    index, region = cut(index), cut(region)
    seen = torch.where(region[:, :, None] == region[:, None, :], index[:, None, :], NO_INPUT)
    result = torch.empty(height * width, wh * ww, dtype=torch.long)
    result[index.flatten()] = seen.flatten(0, 1)
    return result.reshape(height, width, -1)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, 2), (1, 2), (1, 1)])
def test_shift_is_swin_s_roll_and_mask(shift):
    assert torch.equal(window(6, 9, (2, 3), shift=shift), rolled_and_masked((6, 9), (2, 3), shift))


@examples
@given(size=maps, window_size=kernels, data=st.data())
def test_window_of_any_map(size, window_size, data):
    """Two positions see each other if and only if the same window holds them, each in its own slot."""
    shift = tuple(data.draw(st.integers(0, w - 1)) for w in window_size)
    neighborhood = window(*size, window_size, shift=shift)
    slot = window_slot(*size, window_size, shift=shift)
    positions = list(itertools.product(range(size[0]), range(size[1])))

    def number(p):
        return [(p[a] - shift[a]) // window_size[a] for a in (0, 1)]

    for i, p in enumerate(positions):
        taps = neighborhood[p].tolist()
        assert len(taps) == window_size[0] * window_size[1]
        assert {t for t in taps if t != NO_INPUT} == {j for j, q in enumerate(positions) if number(q) == number(p)}
        assert taps[slot[p]] == i
        for q in taps:
            assert q == NO_INPUT or taps.index(q) == slot[positions[q]]


def test_an_int_counts_for_both_axes():
    assert torch.equal(sliding(4, 5, 3, dilation=2), sliding(4, 5, (3, 3), dilation=(2, 2)))
    assert torch.equal(window(4, 5, 3, shift=1), window(4, 5, (3, 3), shift=(1, 1)))


def test_result_lies_where_it_is_asked_to():
    for neighborhood in (sliding(4, 5, 3, device="meta"), window(4, 5, 3, device="meta")):
        assert (neighborhood.device.type, neighborhood.dtype) == ("meta", torch.int64)
        assert neighborhood.shape == (4, 5, 9)
