"""What a few seeds say: means with intervals, paired differences, and p values that several comparisons share.

Student's t throughout. Its distribution is written out, as the sums that it is for whole degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import mean, stdev
from typing import NamedTuple

LEVEL = 0.05
"""Of the tests; intervals cover with a probability of 1 - LEVEL."""


class Interval(NamedTuple):
    """From low to high."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean over seeds with its interval, which one seed does not give."""

    mean: float
    interval: Interval | None


class Difference(NamedTuple):
    """Mean difference between pairs, its interval, and the p value of the paired t test against no difference.

    Without spread over the pairs (there is one pair, or all differ by the same) nothing says how far the mean may be
    off: there is neither an interval nor a p value. Pairs that are all equal have p = 1.
    """

    mean: float
    interval: Interval | None
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of `values` and its interval by Student's t."""
    middle = mean(values)
    if len(values) < 2:
        return Estimate(middle, None)
    half = quantile(1 - LEVEL / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(middle, Interval(middle - half, middle + half))


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """`values` minus `baseline`, pair by pair.

    Raises:
        ValueError: they are not equally many.
    """
    if len(values) != len(baseline):
        raise ValueError(f"values: expected as many as the baseline has, {len(baseline)}, got {len(values)}")
    pairs = [a - b for a, b in zip(values, baseline, strict=True)]
    middle, interval = estimate(pairs)
    # accuracies are fractions: equal differences come out of the subtraction a last bit apart
    if interval is None or stdev(pairs) < 1e-12:
        return Difference(middle, None, 1.0 if interval and abs(middle) < 1e-12 else None)
    t = middle / (stdev(pairs) / math.sqrt(len(pairs)))
    return Difference(middle, interval, 1 - within(abs(t), len(pairs) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of comparisons of one family, so enlarged that one error among all is as rare as in a single test.

    Holm's step-down: the i-th smallest of n is multiplied by n - i + 1, and none is smaller than one before it. A
    comparison that gave no p value makes no claim, so it does not count.
    """
    given = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for place, (p, index) in enumerate(given):
        largest = max(largest, min(1.0, (len(given) - place) * p))
        adjusted[index] = largest
    return adjusted


def within(t: float, degrees: int) -> float:
    """Probability that a variable of Student's distribution lies within -t and t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    angle = math.atan(t / math.sqrt(degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cos * cos * (k - 1) / k
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


@cache
def quantile(probability: float, degrees: int) -> float:
    """The t that a variable of Student's distribution stays below with that probability, of at least 1/2."""
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability: expected from 0.5 to less than 1, got {probability}")
    low, high = 0.0, 1.0
    while within(high, degrees) < 2 * probability - 1:
        high *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if within(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
