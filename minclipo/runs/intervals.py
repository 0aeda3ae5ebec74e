"""95% confidence intervals: of a share counted once, and of a mean over training seeds."""

import math
from dataclasses import dataclass

# 97.5% quantiles of Student's t distribution for 1, 2, ... 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Z = 1.960  # the same quantile of the normal distribution


@dataclass
class Interval:
    mean: float | None  # None: there is no value
    low: float | None  # None: there are too few values for an interval
    high: float | None


def share_interval(count: int, trials: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): valid near 0 and 1, too. No trials: no share."""
    if trials == 0:
        return Interval(None, None, None)
    share = count / trials
    center = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return Interval(share, max(0.0, center - half), min(1.0, center + half))


def mean_interval(values: list[float]) -> Interval:
    """Student's t interval of the mean of at least two values, clipped to [0, 1]: the values are shares."""
    mean, half = student(values)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def seeds_interval(values: list[float | None]) -> Interval:
    """`mean_interval` of the values that there are; a single one has no interval."""
    found = [value for value in values if value is not None]
    return mean_interval(found) if len(found) > 1 else Interval(found[0] if found else None, None, None)


def student(values: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95% interval) of at least two values: Student's t."""
    n = len(values)
    if n < 2:
        raise ValueError(f"values must hold at least two numbers, found {n}")
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, (T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else Z) * deviation / math.sqrt(n)
