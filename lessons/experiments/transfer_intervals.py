"""95% intervals of shares, and of differences of paired shares, where several problems are made from one template.

N problems have values x_i. S_c is the sum of the values in template c, n_c their number; there are K templates, which
count as independent draws from all that could have been written. Below about 30 the intervals are too narrow.
"""

import math
from collections import defaultdict
from collections.abc import Hashable

from minclipo.runs.intervals import Interval, Z, share_interval


def by_template(values: list[int], templates: list[Hashable]) -> list[tuple[int, int]]:
    """(S_c, n_c) of each template. templates: that of each value."""
    groups = defaultdict(list)
    for value, template in zip(values, templates, strict=True):
        groups[template].append(value)
    return [(sum(group), len(group)) for group in groups.values()]


def share(values: list[bool], templates: list[Hashable]) -> Interval:
    """Wilson's interval of a share p, as of so many independent problems as these are worth.

        q = (Σ_c S_c + s) / (N + 2s)      s = N / K
        variance of q = (Σ_c (S_c − q n_c)² + s² (q² + (1 − q)²)) / (N + 2s)²
        worth = q (1 − q) / variance − 2, at most N      effective sample size, Korn and Graubard 1998

    The variance is the clustered one (Miller 2024, arXiv 2411.00640) with two templates more, one all right and one all
    wrong: the errors of a single template alone would say that templates hardly differ. One problem per template:
    worth = N, Wilson's own. Templates that are all right or all wrong: worth = K.
    """
    if not values:
        return Interval(None, None, None)
    groups, n = by_template(values, templates), len(values)
    s = n / len(groups)
    p, q = sum(values) / n, (sum(values) + s) / (n + 2 * s)
    squares = sum((total - q * size) ** 2 for total, size in groups) + s**2 * (q**2 + (1 - q) ** 2)
    worth = min(n, q * (1 - q) * (n + 2 * s) ** 2 / squares - 2)
    return share_interval(p * worth, worth)


def difference(values: list[bool], others: list[bool], templates: list[Hashable]) -> Interval:
    """Mean of d_i = values[i] − others[i] and its normal interval, m ± 1.96 √variance. Here S_c is the sum of the d_i.

        m = Σ_c S_c / (N + 2s)      variance = (Σ_c (S_c − m n_c)² + s² (1 + 2 m²)) / (N + 2s)²      s = N / K

    This adds half a template to each of the four outcomes of a pair (right or wrong, by right or wrong). Without it,
    two models that never differ would get an interval of no width. One problem per template: s = 1, which is "Wald+2"
    of Agresti and Min 2005, Statistics in Medicine 24, 729-740. More: the same with a clustered variance, our own.
    """
    if not values:
        return Interval(None, None, None)
    groups = by_template([value - other for value, other in zip(values, others, strict=True)], templates)
    n, total = len(values), sum(total for total, _ in groups)
    s = n / len(groups)
    m = total / (n + 2 * s)
    squares = sum((total - m * size) ** 2 for total, size in groups) + s**2 * (1 + 2 * m**2)
    half = Z * math.sqrt(squares) / (n + 2 * s)
    return Interval(total / n, max(-1.0, m - half), min(1.0, m + half))
