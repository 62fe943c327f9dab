"""Triton kernels for weights of its own at every position: every kind of tile, forward and the gradient of x."""

import pytest
import torch

from localmix import functional, kernels
from localmix.kernels import triton
from localmix.testing import assert_within_budget, output_and_gradients

pytestmark = pytest.mark.skipif(bool(triton.MISSING), reason=str(triton.MISSING))


@pytest.fixture(scope="module")
def launches():
    from localmix.kernels.triton import local_weight_launches

    return local_weight_launches


def check_every_tile(launches, monkeypatch, operator, kind, x, others, options):
    """Compares y and the gradient of x with the definition, for each tile of a kind; there have to be some."""
    definition = getattr(functional, operator)
    gradient = torch.randn(x.shape).to(x.dtype)
    eager = output_and_gradients(lambda x: definition(x, *others, **options), {"x": x}, {}, gradient)
    exact = [t if t is None else t.double() for t in others]
    reference = output_and_gradients(
        lambda x: definition(x, *exact, **options), {"x": x.double()}, {}, gradient.double()
    )
    taken, seen = 0, []

    def take(name, problem, candidates, run, x):
        tiles = [tile for tile in candidates if tile[3] == getattr(launches, kind)]
        seen.append(len(tiles))
        return tiles[min(taken, len(tiles) - 1)]

    monkeypatch.setattr(launches.tuning, "choose", take)
    monkeypatch.setattr(launches.tuning, "is_hopper", lambda x: kind != "_BY_ROWS")
    while taken < max(seen, default=1):
        seen.clear()
        actual = output_and_gradients(
            lambda x: getattr(kernels, operator)(x, *others, **options, impl="triton"), {"x": x}, {}, gradient
        )
        assert len(seen) == 2  # forward, and the gradient of x
        for name, result in actual.items():
            assert_within_budget(result, reference[name], eager[name], name=f"{name} with tile {taken} of {kind}")
        taken += 1


@pytest.mark.parametrize(("is_hopper", "rank"), [(False, 128), (True, 224)])
def test_a_tile_for_features_without_a_bias_is_none_for_those_with_one(launches, monkeypatch, is_hopper, rank):
    """The bias is one more feature, for which a block may have no room."""
    candidates_for = {}

    def choose(name, problem, candidates, run, x):
        # of one problem the first call's tile serves all
        assert candidates_for.setdefault(launches.tuning._plain(problem), candidates) == candidates
        return candidates[0]

    monkeypatch.setattr(launches.tuning, "choose", choose)
    monkeypatch.setattr(launches.tuning, "is_hopper", lambda x: is_hopper)
    x, hidden, projection = (torch.randn(*shape).half() for shape in ((1, 3, 3, 64), (1, 3, 3, rank), (64, rank)))
    for bias in (None, torch.zeros(64).half()):
        options = {"kernel_size": 2, "num_groups": 16, "impl": "triton"}
        kernels.projected_inhomogeneous_convolution(x, hidden, projection, bias, **options)
    assert len({str(candidates) for candidates in candidates_for.values()}) == 2


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "rank", "kernel", "dilation", "has_bias"),
    [
        # strips of several images in a tile, rows beyond the map, three blocks of channels, features that fill a block
        ("_BY_ROWS", (2, 9, 10, 48), 16, 15, (3, 3), (1, 1), True),
        # no bias, G = C, a dilation larger than the map has rows; a second tile, from the middle of the images on
        ("_BY_ROWS", (3, 3, 5, 32), 32, 16, (3, 2), (4, 1), False),
        # more taps than rows and columns, one group; a power of two of features needs a larger block for the bias
        ("_BY_ROWS", (3, 4, 3, 128), 1, 16, (7, 7), (1, 1), True),
        # two and four channels share a weight
        ("_BY_ROWS", (1, 13, 4, 192), 32, 24, (5, 3), (2, 2), True),
        ("_BY_ROWS", (1, 5, 13, 64), 16, 40, (2, 4), (1, 1), False),
        # a group of 3 is of one thread; strips of 2 and 4 rows in several images, rows and columns beyond the map
        ("_BY_STRIPS", (2, 5, 9, 48), 16, 15, (3, 3), (1, 1), True),
        ("_BY_STRIPS", (3, 5, 3, 96), 32, 16, (4, 2), (1, 2), False),
        # no shared weights, a dilation larger than the map has rows; more taps than rows and columns, one feature
        ("_BY_STRIPS", (2, 3, 5, 32), 32, 31, (3, 2), (4, 1), True),
        ("_BY_STRIPS", (1, 3, 2, 64), 32, 1, (7, 7), (1, 1), True),
        # two and four taps of larger groups are made by one product; words of 8 bytes; features in several blocks
        ("_BY_STRIPS", (1, 6, 5, 96), 16, 33, (5, 3), (2, 1), True),
        ("_BY_STRIPS", (1, 5, 3, 96), 8, 24, (7, 2), (1, 1), False),
        ("_BY_STRIPS", (1, 5, 4, 80), 16, 16, (2, 3), (1, 1), True),
        ("_BY_STRIPS", (1, 3, 4, 96), 4, 200, (3, 2), (1, 1), True),
        # in one part, of large groups and of small ones that no other candidate takes
        ("_BY_WORDS", (3, 3, 5, 72), 3, 24, (3, 3), (1, 1), True),
        ("_BY_WORDS", (1, 6, 7, 9), 9, 70, (3, 2), (1, 2), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_made_weights(launches, monkeypatch, kind, shape, groups, rank, kernel, dilation, has_bias, dtype):
    lines = groups * kernel[0] * kernel[1]
    hidden, projection = torch.randn(*shape[:3], rank).to(dtype), (torch.randn(lines, rank) / rank**0.5).to(dtype)
    others = [hidden, projection, torch.randn(lines).to(dtype) if has_bias else None]
    options = {"kernel_size": kernel, "num_groups": groups, "dilation": dilation}
    x = torch.randn(shape).to(dtype)
    check_every_tile(launches, monkeypatch, "projected_inhomogeneous_convolution", kind, x, others, options)


@pytest.mark.parametrize("layout", ["groups inside", "taps inside", "sliced"])
@pytest.mark.parametrize(
    ("kind", "shape", "groups", "kernel", "dilation", "dtype"),
    [
        # a word of two groups, several strips, tiles of columns of which the last is not full, threads without work
        ("_BY_WORDS", (2, 5, 9, 12), 4, (3, 3), (1, 1), torch.float16),
        # words of one group, its parts in several threads; dilations, one larger than the map has rows
        ("_BY_WORDS", (1, 3, 10, 24), 2, (3, 5), (4, 2), torch.float16),
        # number by number: an odd number of groups, a long odd group; even kernels, and one larger than the map
        ("_BY_WORDS", (2, 3, 4, 15), 5, (4, 2), (1, 1), torch.float16),
        ("_BY_WORDS", (1, 3, 4, 22), 2, (3, 3), (1, 1), torch.float16),
        ("_BY_WORDS", (2, 2, 3, 8), 2, (5, 7), (1, 1), torch.float32),
    ],
)
def test_given_weights(launches, monkeypatch, kind, shape, groups, kernel, dilation, dtype, layout):
    sizes = (*shape[:3], groups, kernel[0] * kernel[1])
    weight = torch.randn(sizes).to(dtype)
    if layout == "groups inside":
        weight = weight.transpose(3, 4).contiguous().transpose(3, 4)
    elif layout == "sliced":
        weight = torch.randn(shape[0], 2 * shape[1], *sizes[2:]).to(dtype)[:, ::2]
    options = {"kernel_size": kernel, "dilation": dilation}
    x = torch.randn(shape).to(dtype)
    check_every_tile(launches, monkeypatch, "inhomogeneous_convolution", kind, x, [weight], options)


def test_offsets_reach_all_images_of_a_tile(launches, monkeypatch):
    """A tile of small maps spans several; integers of 32 bits are not enough where these have 2^31 numbers together."""
    reached = []
    monkeypatch.setattr(launches.tuning, "launch", lambda *arguments, **options: None)
    monkeypatch.setattr(launches.tuning, "integers_up_to", lambda largest: reached.append(largest) or torch.int32)
    monkeypatch.setattr(launches, "buffers_to_apply", lambda *args: [])
    x = torch.empty(20, 2, 3, 16, dtype=torch.float16)
    made_of = (torch.empty(20, 2, 3, 4, dtype=x.dtype), torch.empty(9 * 16, 4, dtype=x.dtype), None, 16)
    launches.run_projected_apply(x, *made_of, (3, 3), (1, 1), transposed=False)
    assert reached.pop() >= 17 * 2 * 3 * 16  # 16 strips of 4 columns each, from the middle of an image on


@pytest.mark.parametrize(
    ("most", "kernel", "dilation"),
    [
        (17, (3, 2), (1, 1)),  # two images, and one
        # rows, with those around them where the gradient of x needs these
        (6, (3, 2), (1, 1)),
        (7, (4, 2), (1, 3)),
        (7, (2, 2), (3, 1)),
    ],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_weights_made_in_parts(launches, monkeypatch, most, kernel, dilation, has_bias):
    """Images of 8 rows of 3 positions with two groups, in parts of which at most so many rows have weights."""
    module, seen = launches.buffers_to_apply.__globals__, []
    launch, taps = module["launch_by_words"], kernel[0] * kernel[1]

    def record(tile, x, weight, rows, *args, **options):
        seen.append((tuple(weight.shape[:2]), (len(x), rows)))
        return launch(tile, x, weight, rows, *args, **options)

    monkeypatch.setitem(module, "launch_by_words", record)
    monkeypatch.setitem(module, "_BUFFER_BYTES", (2 * most * 3 * 2 * taps,))
    monkeypatch.setitem(module, "_BUFFER_OF_X", taps)
    shape, dtype = (3, 8, 3, 12), torch.float16
    others = [torch.randn(*shape[:3], 5).to(dtype), torch.randn(2 * taps, 5).to(dtype)]
    others.append(torch.randn(2 * taps).to(dtype) if has_bias else None)
    options = {"kernel_size": kernel, "num_groups": 2, "dilation": dilation}
    x = torch.randn(shape).to(dtype)
    check_every_tile(launches, monkeypatch, "projected_inhomogeneous_convolution", "_BY_WORDS", x, others, options)
    assert all(images * rows <= most for (images, rows), _ in seen)
    if most > 8:
        assert {written for _, written in seen} == {(1, 8), (2, 8)}
    else:
        assert all(written[1] < 8 for _, written in seen)
        assert any(made[1] > written[1] for made, written in seen)


@pytest.mark.parametrize("of", ["x", "weight"])
def test_what_is_no_multiple_of_a_word_away(launches, of):
    x, weight = torch.randn(2, 3, 4, 6).half(), torch.randn(2, 3, 4, 9, 2).half()
    aligned = launches.run_apply(x, weight.transpose(3, 4), (3, 3), (1, 1), transposed=False)

    def away(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    x, weight = (away(x), weight) if of == "x" else (x, away(weight))
    assert (x if of == "x" else weight).data_ptr() % 4
    assert launches.run_apply(x, weight.transpose(3, 4), (3, 3), (1, 1), transposed=False).equal(aligned)


def test_maps_without_parts_share_no_tile_with_others(launches, monkeypatch):
    """Maps of 9 and of 10 rows are about one size; but of the former the rows around a part would be most of it."""
    keys = []

    def take(name, problem, candidates, run, x):
        keys.append((launches.tuning._rounded(problem), {tile[3] for tile in candidates}))
        return candidates[-1]

    monkeypatch.setattr(launches.tuning, "choose", take)
    for height in (9, 10):
        x, hidden = torch.randn(1, height, 4, 2), torch.randn(1, height, 4, 3)
        launches.run_projected_apply(x, hidden, torch.randn(10, 3), None, 2, (5, 1), (1, 1), transposed=True)
    (without, few), (key, many) = keys
    assert launches._BY_WORDS not in few
    assert launches._BY_WORDS in many
    assert without != key
