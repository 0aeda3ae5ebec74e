"""A picture for each experiment whose table has many rows."""

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from tables import Found

from minclipo.runs.intervals import Interval, seeds_interval
from minclipo.runs.plots import STYLES

COLORS = {  # by what a variant's name contains; the first that fits
    "after pretraining": "#999999",
    "oracle": STYLES["oracle"]["color"],
    "CLIPO + prompt contrast": "#56B4E9",
    "prompt contrast": STYLES["prompt_contrast"]["color"],
    "paper's setting": STYLES["clipo_paper"]["color"],
    "CLIPO": STYLES["clipo"]["color"],
    "log-prob": "#E69F00",
    "as a gradient": "#E69F00",
    "": STYLES["baseline"]["color"],
}
TITLES = {"accuracy": "accuracy", "hallucination_rate": "hallucination rate"}


def color_of(name: str) -> str:
    return next(color for part, color in COLORS.items() if part in name)


def over_seeds(results: list[dict], measure: str) -> Interval:
    """Mean and 95% interval over the seeds that have a value; one seed has no interval, none is not drawn (NaN)."""
    found = seeds_interval([result[measure] for result in results])
    mean = math.nan if found.mean is None else found.mean
    return found if found.low is not None else Interval(mean, mean, mean)


def error_bar(axis, x: float, y: float, interval: Interval, *, vertical: bool, color: str, faint: bool = False) -> None:
    """A point with the interval of the coordinate that `vertical` names."""
    bars = {"yerr" if vertical else "xerr": [[interval.mean - interval.low], [interval.high - interval.mean]]}
    width = dict(elinewidth=0.7, capsize=0) if faint else dict(capsize=2)
    axis.errorbar(x, y, **bars, fmt="o", color=color, markersize=5, **width)


def tidy(axis) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def dots(found: Found, path: Path) -> None:
    """One row per variant: hallucination rate and accuracy with their intervals."""
    found = [(variant, list(by_seed.values())) for variant, by_seed in found if by_seed]
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 0.9 + 0.24 * len(found)), sharey=True, width_ratios=(3, 2), layout="constrained"
    )
    for axis, measure in zip(axes, ("hallucination_rate", "accuracy")):
        for row, (variant, results) in enumerate(found):
            interval = over_seeds(results, measure)
            error_bar(axis, interval.mean, row, interval, vertical=False, color=color_of(variant.name))
        axis.set(title=TITLES[measure])
        tidy(axis)
    axes[0].set_yticks(range(len(found)), [variant.name for variant, _ in found])
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    axes[0].set_xlim(-0.02, 1.02)
    save(figure, path)


def lines(found: Found, path: Path, label: str, place: Callable[[str], float]) -> None:
    """Hallucination rate and accuracy against a property of the textbook: one line per method, the mean, and small
    points, one per seed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, measure in zip(axes, ("hallucination_rate", "accuracy")):
        for shift, name in enumerate(dict.fromkeys(variant.name for variant, _ in found)):
            mine = [
                (place(variant.textbook), by_seed) for variant, by_seed in found if variant.name == name and by_seed
            ]
            color, linestyle = color_of(name), ":" if name == "after pretraining" else "-"
            means = [over_seeds(list(by_seed.values()), measure).mean for _, by_seed in mine]
            axis.plot([x for x, _ in mine], means, linewidth=1.8, linestyle=linestyle, color=color, label=name)
            for x, by_seed in mine:
                ys = [result[measure] for result in by_seed.values()]
                axis.plot([x + 0.006 * (shift - 1)] * len(ys), ys, "o", markersize=3.5, alpha=0.7, color=color)
        axis.set(title=TITLES[measure], xlabel=label, ylim=(-0.02, 1.02))
        tidy(axis)
    axes[0].legend(frameon=False)
    save(figure, path)


def frontier(found: Found, path: Path) -> None:
    """Made-up steps against the shared false step: methods that help are on the left, harmless ones at the bottom."""
    by_place = {(variant.textbook, variant.name): list(by_seed.values()) for variant, by_seed in found if by_seed}
    names = [name for book, name in by_place if book == "toy" and ("shared70", name) in by_place]
    figure, axis = plt.subplots(figsize=(8.5, 6), layout="constrained")
    for number, name in enumerate(names, 1):
        x, y = (over_seeds(by_place[book, name], "hallucination_rate") for book in ("toy", "shared70"))
        for interval, vertical in ((x, False), (y, True)):
            error_bar(axis, x.mean, y.mean, interval, vertical=vertical, color=color_of(name), faint=True)
        aside = ((7, -8), (-14, 5), (7, 4))[number % 3]  # keeps neighbours' numbers apart
        style = dict(textcoords="offset points", fontsize=9, color=color_of(name))
        axis.annotate(str(number), (x.mean, y.mean), xytext=aside, **style)
        axis.plot([], [], "o", color=color_of(name), label=f"{number}  {name}")
    axis.set(
        xlabel="hallucination rate, made-up operands (15% per step)",
        ylabel="hallucination rate, the same false step in 70% of the solutions",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    tidy(axis)
    axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
    save(figure, path)


def dose_response(found: Found, path: Path) -> None:
    """Hallucination rate against the contrastive weight, GRPO being weight 0."""
    rows = [(variant, list(by_seed.values())) for variant, by_seed in found if by_seed]
    doses = [(0.0, results) for variant, results in rows if variant.name == "GRPO"]
    doses += [
        (variant.training["contrastive_weight"], results)
        for variant, results in rows
        if variant.name == "CLIPO" or variant.name.startswith("CLIPO, weight")
    ]
    doses.sort(key=lambda dose: dose[0])
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for place, (_, results) in enumerate(doses):
        interval = over_seeds(results, "hallucination_rate")
        error_bar(axis, place, interval.mean, interval, vertical=True, color=COLORS["CLIPO"])
    axis.set_xticks(range(len(doses)), [f"{weight:g}" for weight, _ in doses])
    axis.set(xlabel="contrastive weight λ", ylabel="hallucination rate", ylim=(-0.02, 1.02))
    tidy(axis)
    save(figure, path)


def tests(found: Found, path: Path) -> None:
    """Hallucination rate and accuracy on each of the textbook's tests."""
    rows = [(variant.name, list(by_seed.values())) for variant, by_seed in found if by_seed]
    names = ["as trained", *rows[0][1][0]["tests"]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for axis, measure in zip(axes, ("hallucination_rate", "accuracy")):
        for shift, (name, results) in enumerate(rows):
            for place, test in enumerate(names):
                tested = results if test == "as trained" else [result["tests"][test] for result in results]
                interval = over_seeds(tested, measure)
                x = place + 0.12 * (shift - (len(rows) - 1) / 2)
                error_bar(axis, x, interval.mean, interval, vertical=True, color=color_of(name))
            axis.plot([], [], "o", color=color_of(name), label=name)
        axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=8.5)
        axis.set(title=TITLES[measure], ylim=(-0.02, 1.02))
        tidy(axis)
    axes[0].legend(frameon=False, fontsize=8.5)
    save(figure, path)


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
