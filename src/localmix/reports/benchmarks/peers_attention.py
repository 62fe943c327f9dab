"""Attentions, and the local MLP, as users have them without localmix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix import functional
from localmix.functional.neighborhood import relative_position
from localmix.reports.benchmarks.contenders import Contender, compiler_missing, no_bias, not_installed, only_on_cuda
from localmix.reports.benchmarks.problems import Problem, Tensors


def _windows(t: Tensor, shift: int, size: int) -> Tensor:
    """[B, H, W, heads, D] to [B * windows, heads, N, D], rolled so that windows begin at `shift`."""
    if shift:
        t = t.roll((-shift, -shift), (1, 2))
    batch, height, width, heads, dim = t.shape
    t = t.view(batch, height // size, size, width // size, size, heads, dim)
    return t.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, size * size, dim)


def _whole_map(y: Tensor, shape: torch.Size, shift: int, size: int) -> Tensor:
    """The inverse of `_windows`."""
    batch, height, width, heads, dim = shape
    y = y.view(batch, height // size, width // size, heads, size, size, dim)
    y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)
    return y.roll((shift, shift), (1, 2)) if shift else y


def _cut_by_window(problem: Problem) -> str | None:
    size = problem.options["window_size"]
    height, width = problem.shape[1:3]
    return f"windows of {size} do not divide the map" if height % size or width % size else None


def partition_sdpa(problem: Problem) -> Contender:
    """As timm's Swin does: roll, partition, attention with a mask where windows wrap around, reverse, roll back."""
    size, shift = problem.options["window_size"], problem.options["shift"]
    missing = _cut_by_window(problem)
    mask = _regions_mask(problem) if shift and not missing else None

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (_windows(t, shift, size) for t in (query, key, value))
        added = bias
        if mask is not None:
            windows = mask if bias is None else mask + bias
            added = windows.expand(len(query), *windows.shape).flatten(0, 1)
        return _whole_map(F.scaled_dot_product_attention(q, k, v, attn_mask=added), query.shape, shift, size)

    return Contender("", run, missing=missing)


def _regions_mask(problem: Problem) -> Tensor:
    """[windows, 1, N, N]: -inf between positions of a window that were not neighbors before the roll."""
    size, shift = problem.options["window_size"], problem.options["shift"]
    height, width = problem.shape[1:3]
    rows, columns = ((torch.arange(n, device=problem.first.device) >= shift).to(problem.dtype) for n in (height, width))
    regions = (2 * rows[:, None] + columns).view(1, height, width, 1, 1)
    slots = _windows(regions, shift, size).flatten(1)  # [windows, N]
    apart = slots[:, None, :, None] != slots[:, None, None, :]
    return torch.zeros_like(apart, dtype=problem.dtype).masked_fill_(apart, -torch.inf)


def flash_attention(problem: Problem) -> Contender:
    """Partition, FlashAttention, reverse."""
    size, shift = problem.options["window_size"], problem.options["shift"]

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from flash_attn import flash_attn_func  # ty: ignore[import-not-found] -- if it is installed

        q, k, v = (_windows(t, 0, size).transpose(1, 2) for t in (query, key, value))
        return _whole_map(flash_attn_func(q, k, v).transpose(1, 2).contiguous(), query.shape, 0, size)

    missing = _cut_by_window(problem) or not_installed("flash_attn") or no_bias(problem) or only_on_cuda(problem)
    if shift:
        missing = missing or "it has no mask for shifted windows"
    if problem.dtype == torch.float32:
        missing = missing or "it has no float32"
    return Contender("", run, missing=missing)


def gather(problem: Problem) -> Contender:
    """Each position gathers the keys and values of its neighborhood."""
    height, width = problem.shape[1:3]
    kernel, device = problem.options["kernel_size"], problem.first.device
    index = functional.sliding(height, width, kernel, border="clamp", device=device).flatten(0, 1)  # [HW, K]
    valid = index >= 0
    index = index.clamp(min=0)
    rows, columns = _distances(problem)

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))  # [B, heads, HW, D]
        scores = torch.einsum("bhpd,bhpkd->bhpk", q * q.shape[-1] ** -0.5, k[:, :, index])
        if bias is not None:
            scores = scores + bias[:, rows, columns]
        weight = scores.masked_fill(~valid, -torch.inf).softmax(-1)
        return torch.einsum("bhpk,bhpkd->bhpd", weight, v[:, :, index]).transpose(1, 2).reshape(query.shape)

    return Contender("", run)


def _distances(problem: Problem) -> tuple[Tensor, Tensor]:
    """Indices into the bias [heads, 2 k - 1, 2 k - 1] for each position and tap, [HW, K] each."""
    height, width = problem.shape[1:3]
    kernel = problem.options["kernel_size"]
    distances = relative_position(height, width, kernel, device=problem.first.device)
    rows, columns = ((d + kernel - 1).expand(height, width, kernel, kernel) for d in distances)
    return rows.flatten(2).flatten(0, 1), columns.flatten(2).flatten(0, 1)


def flex_attention(problem: Problem) -> Contender:
    """PyTorch's FlexAttention with a mask of blocks, for windows and for neighborhoods."""
    from torch.nn.attention import flex_attention as flex

    height, width = problem.shape[1:3]
    mask, distance = _window_rule(problem) if "window_size" in problem.options else _neighborhood_rule(problem)
    # made by the first call, not where it has no part
    block_mask = cache(
        partial(flex.create_block_mask, mask, None, None, height * width, height * width, problem.device)
    )
    attend = torch.compile(flex.flex_attention, dynamic=False)

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        def add_bias(score: Tensor, b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score if bias is None else score + bias[(head, *distance(q, k))]

        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))  # [B, heads, HW, D]
        y: Any = attend(q, k, v, score_mod=add_bias, block_mask=block_mask())
        return y.transpose(1, 2).reshape(query.shape)

    return Contender("", run, missing=only_on_cuda(problem) or compiler_missing(problem.device))


Rule = tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]


def _window_rule(problem: Problem) -> Rule:
    """Which positions attend to each other, and the index into the bias of two that do."""
    size, shift, width = problem.options["window_size"], problem.options["shift"], problem.shape[2]

    def slot(p: Tensor) -> Tensor:
        return (p // width - shift) % size * size + (p % width - shift) % size

    def window(p: Tensor) -> Tensor:
        # one window more than the shift cuts off keeps both terms positive
        return (p // width - shift + size) // size * width + (p % width - shift + size) // size

    def mask(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return window(q) == window(k)

    return mask, lambda q, k: (slot(q), slot(k))


def _neighborhood_rule(problem: Problem) -> Rule:
    """The same for neighborhoods that stop at the border."""
    kernel, (height, width) = problem.options["kernel_size"], problem.shape[1:3]

    def starts_before(p: Tensor, k: Tensor, length: int) -> Tensor:
        start = torch.clamp(p - kernel // 2, 0, max(0, length - kernel))
        return (k >= start) & (k < start + kernel)

    def mask(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return starts_before(q // width, k // width, height) & starts_before(q % width, k % width, width)

    def distance(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # pairs outside of the mask are thrown away, but read the bias too
        rows, columns = k // width - q // width, k % width - q % width
        return (rows + kernel - 1).clamp(0, 2 * kernel - 2), (columns + kernel - 1).clamp(0, 2 * kernel - 2)

    return mask, distance


def natten(problem: Problem) -> Contender:
    """The kernels of the authors of neighborhood attention."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from natten.functional import na2d  # ty: ignore[import-not-found] -- if it is installed

        return na2d(query, key, value, kernel_size=problem.options["kernel_size"])

    missing = not_installed("natten") or no_bias(problem) or only_on_cuda(problem)
    if min(problem.shape[1:3]) < problem.options["kernel_size"]:
        missing = missing or "its kernel must fit into the map"
    return Contender("", run, missing=missing)


def grouped_conv1d(problem: Problem) -> Contender:
    """As the SwinMLP of Swin's authors does."""
    size = problem.options["window_size"]

    def prepare(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return {"x": x, "weight": weight.flatten(0, 1)[:, :, None], "bias": bias.flatten()}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        groups = weight.shape[0] // weight.shape[1]
        heads = x.unflatten(3, (groups, -1))
        windows = _windows(heads, 0, size).flatten(1, 2)  # [B * windows, groups * N, D]
        return _whole_map(F.conv1d(windows, weight, bias, groups=groups), heads.shape, 0, size).flatten(3)

    return Contender("", run, prepare, missing=_cut_by_window(problem))
