"""Patterns without end: what the ground and the fabrics are covered with."""

from __future__ import annotations

import numpy as np
from PIL import Image


def texture(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A random pattern of a random kind, float32 [height, width] in 0..1."""
    kind = (clouds, stripes, checks, dots, weave)[random.integers(5)]
    return kind(height, width, random)


def clouds(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Noise of four octaves, each half as strong as the one before, stretched to 0..1."""
    total = np.zeros((height, width), np.float32)
    cell = random.uniform(0.2, 0.6) * min(height, width)
    for octave in range(4):
        total += smooth_noise(height, width, cell / 2**octave, random) * np.float32(0.5**octave)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def smooth_noise(height: int, width: int, cell: float, random: np.random.Generator) -> np.ndarray:
    """Random values a `cell` of pixels apart, with smooth ways between them: float32 [height, width], about 0..1."""
    cell = max(cell, 1.0)
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    grid = Image.fromarray(random.random((rows, columns), np.float32))
    box = (1.0, 1.0, 1.0 + width / cell, 1.0 + height / cell)
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box))


def stripes(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Parallel stripes at any angle."""
    u, _ = _turned(height, width, random)
    return _soft(_triangle(u), random)


def checks(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A chessboard at any angle."""
    u, v = _turned(height, width, random)
    return 0.5 + 2 * (_soft(_triangle(u), random) - 0.5) * (_soft(_triangle(v), random) - 0.5)


def dots(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Round dots in rows."""
    u, v = _turned(height, width, random)
    distance = np.sqrt((u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2)
    return np.clip((np.float32(random.uniform(0.2, 0.4)) - distance) * 8 + 0.5, 0, 1)


def weave(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Threads over and under each other."""
    u, v = _turned(height, width, random)
    over = (np.floor(u) + np.floor(v)) % 2
    return np.where(over == 1, _triangle(2 * u), _triangle(2 * v))


def _turned(height: int, width: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along two axes at right angles, in random directions, from a random origin [periods]."""
    angle, period = random.uniform(0, np.pi), random.uniform(0.06, 0.25) * min(height, width)
    start = random.random(2).astype(np.float32)
    across, down = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    return x * across + y * down + start[0], y * across - x * down + start[1]


def _triangle(u: np.ndarray) -> np.ndarray:
    """A wave of period 1 between 0 and 1."""
    return np.abs(2 * (u - np.floor(u)) - 1)


def _soft(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A wave made steeper, by a random amount: between stripes that blend and stripes with edges."""
    return np.clip((wave - 0.5) * np.float32(random.uniform(1, 8)) + 0.5, 0, 1)
