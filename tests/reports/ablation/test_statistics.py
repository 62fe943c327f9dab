"""On planted data: what is there is found, what is not there is found as rarely as promised."""

import math

import numpy as np
import pytest

from localmix.reports.ablation.statistics import difference, estimate, holm, quantile, within

# Printed tables of Student's distribution, two-sided 95%.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("degrees", "t"), T95.items())
def test_quantiles_are_those_of_the_printed_table(degrees, t):
    assert quantile(0.975, degrees) == pytest.approx(t, abs=5e-4)
    assert within(quantile(0.975, degrees), degrees) == pytest.approx(0.95, abs=1e-12)


@pytest.mark.parametrize("degrees", range(1, 12))
def test_distribution_is_the_integral_of_the_density(degrees):
    t = np.linspace(0, 3.7, 20001)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    density = scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    integral = 2 * ((density[1:] + density[:-1]) / 2 * np.diff(t)).sum()
    assert within(3.7, degrees) == pytest.approx(integral, abs=1e-8)


def test_half_of_the_distribution_is_below_zero():
    assert quantile(0.5, 3) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"probability: expected from 0\.5 to less than 1, got 1\.0"):
        quantile(1.0, 3)
    with pytest.raises(ValueError, match="degrees: expected at least 1, got 0"):
        within(1.0, 0)


def test_worked_example():
    """Sleep data of Student 1908, as every textbook has it: t = -4.0621, df = 9, p = 0.002833."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    result = difference(first, second)
    assert result.mean == pytest.approx(-1.58)
    assert result.interval == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert result.p == pytest.approx(0.00283289, abs=1e-8)


def test_one_seed_gives_no_interval():
    assert estimate([0.8]) == (0.8, None)
    assert difference([0.8], [0.7]) == (pytest.approx(0.1), None, None)


def test_ties():
    assert difference([0.8, 0.7, 0.9], [0.8, 0.7, 0.9]) == (0.0, None, 1.0)
    # always the same: no spread, so no measure of how far off it may be
    assert difference([0.85, 0.75, 0.95], [0.8, 0.7, 0.9]) == (pytest.approx(0.05), None, None)


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="values: expected as many as the baseline has, 2, got 1"):
        difference([0.8], [0.7, 0.8])


def test_holm():
    """Worked by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 after 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02, None]) == [0.02, None]
    assert holm([]) == []


def simulated(studies, points, seeds, effect, spread=1.0):
    """Accuracies [studies, points + 1, seeds]; those of a seed have a part in common. The last point has the effect."""
    random = np.random.default_rng(0)
    common = random.normal(size=(studies, 1, seeds))
    values = 80 + common + spread * random.normal(size=(studies, points + 1, seeds))
    values[:, -1] += effect
    return values


def claims(values):
    """For each study, which points are distinguishable from its first one."""
    found = []
    for baseline, *others in values:
        adjusted = holm([difference(list(other), list(baseline)).p for other in others])
        found.append([p is not None and p < 0.05 for p in adjusted])
    return np.array(found)


@pytest.mark.parametrize(("points", "seeds"), [(1, 3), (4, 3), (4, 6)])
def test_a_null_is_called_an_effect_no_more_often_than_stated(points, seeds):
    """At least one false claim in a study of several comparisons: at most 5%, and with one comparison just 5%."""
    studies = 3000
    rate = claims(simulated(studies, points, seeds, effect=0.0)).any(1).mean()
    deviation = math.sqrt(0.05 * 0.95 / studies)
    assert rate < 0.05 + 3 * deviation
    if points == 1:
        assert rate > 0.05 - 3 * deviation


def test_without_the_correction_a_null_would_be_called_an_effect_too_often():
    values = simulated(3000, 4, 3, effect=0.0)
    raw = np.mean([any(difference(list(o), list(b)).p < 0.05 for o in others) for b, *others in values])
    assert raw > 0.10


def test_a_known_effect_is_found_and_the_others_are_not():
    found = claims(simulated(500, 4, 5, effect=6.0, spread=0.3))
    assert found[:, -1].mean() > 0.99
    assert found[:, :-1].any(1).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_as_often_as_stated(seeds):
    studies, effect = 3000, 1.5
    values = simulated(studies, 1, seeds, effect)
    intervals = [difference(list(point), list(baseline)).interval for baseline, point in values]
    of_mean = [estimate(list(point)).interval for _, point in values]
    tolerance = 3 * math.sqrt(0.05 * 0.95 / studies)
    assert np.mean([low <= effect <= high for low, high in intervals]) == pytest.approx(0.95, abs=tolerance)
    assert np.mean([low <= 80 + effect <= high for low, high in of_mean]) == pytest.approx(0.95, abs=tolerance)


def test_pairs_of_equal_seeds_are_told_apart_better_than_means():
    """A part that is common to a seed cancels in the differences."""
    random = np.random.default_rng(1)
    common = random.normal(scale=5.0, size=6)
    baseline, point = common, common + 1 + random.normal(scale=0.2, size=6)
    assert difference(list(point), list(baseline)).p < 0.001
    assert difference(list(random.permutation(point)), list(baseline)).p > 0.05
