"""Pictures of how blind the outcome is, how sure the model becomes, and how much seeds differ."""

from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from pictures import color_of, over_seeds, save, tidy
from tables import Found
from textbooks import TEXTBOOKS

LIKELY = {
    "right_if_made_up": ("#D55E00", "where an operand is made up"),
    "right_if_not_made_up": ("#0072B2", "where none is"),
}


def believed(textbook: str) -> float:
    return TEXTBOOKS[textbook].config.believe


def seen(by_seed: dict[int, dict]) -> list[dict]:
    """The results that hold what `sharpness.look` saw; earlier runs do not."""
    return [result for result in by_seed.values() if "look" in result]


def against_belief(found: Found, path: Path) -> None:
    """Hallucination rates, sampled and greedy, against the share of made-up operands that the author believes; and how
    often the model that has read his textbook is right. A line is the mean, a small point a seed."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
    sampled, greedy, blind = axes
    for shift, name in enumerate(dict.fromkeys(variant.name for variant, _ in found)):
        mine = [(believed(variant.textbook), seen(by_seed)) for variant, by_seed in found if variant.name == name]
        mine = [(x, results) for x, results in mine if results]
        looks = [(x, [result["look"] for result in results]) for x, results in mine]
        style = dict(color=color_of(name), linestyle=":" if name == "after pretraining" else "-")
        plot_means(sampled, mine, "hallucination_rate", shift, label=name, **style)
        plot_means(greedy, looks, "greedy_hallucination_rate", shift, **style)
        if name == "after pretraining":
            for measure, (color, label) in LIKELY.items():
                plot_means(blind, looks, measure, 1, label=label, color=color)
    titles = ("hallucination rate", "the same, greedy", "right answers, after pretraining")
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="share of made-up operands that are believed", ylim=(-0.02, 1.02))
        tidy(axis)
    sampled.legend(frameon=False, fontsize=8.5)
    blind.legend(frameon=False, fontsize=8.5)
    save(figure, path)


def plot_means(axis, chosen: list[tuple[float, list[dict]]], measure: str, shift: int, **style) -> None:
    """chosen: for each place on the axis the results of all seeds."""
    means = [over_seeds(results, measure).mean for _, results in chosen]
    axis.plot([x for x, _ in chosen], means, linewidth=1.8, **style)
    for x, results in chosen:
        values = [result[measure] for result in results if result[measure] is not None]
        axis.plot([x + 0.006 * (shift - 1)] * len(values), values, "o", markersize=3, alpha=0.6, color=style["color"])


PICKS = {
    "hallucination rate": lambda result: result["hallucination_rate"],
    "the same, greedy": lambda result: result["look"]["greedy_hallucination_rate"],
    "accuracy": lambda result: result["accuracy"],
}


def distribution(found: Found, path: Path) -> None:
    """A point per seed: hallucination rate, sampled and greedy, and accuracy. A bar is the median."""
    found = [(variant.name, results) for variant, by_seed in found if (results := seen(by_seed))]
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 0.9 + 0.5 * len(found)), sharey=True, width_ratios=(3, 3, 2), layout="constrained"
    )
    for axis, (title, pick) in zip(axes, PICKS.items()):
        for row, (name, results) in enumerate(found):
            values = sorted(value for result in results if (value := pick(result)) is not None)
            spread = [row + 0.07 * (place % 5 - 2) for place in range(len(values))]
            axis.plot(values, spread, "o", markersize=4, alpha=0.7, color=color_of(name))
            if values:
                axis.plot([median(values)] * 2, [row - 0.28, row + 0.28], color="black", linewidth=1.5)
        axis.set(title=title, xlim=(-0.02, 1.02))
        tidy(axis)
    axes[0].set_yticks(range(len(found)), [name for name, _ in found])
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    save(figure, path)


def sharpening(found: Found, path: Path) -> None:
    """How sure the model becomes, against the step; and its hallucination rate at that entropy. Means over seeds."""
    books = [book for book in ("toy", "believed20") if any(variant.textbook == book for variant, _ in found)]
    figure, axes = plt.subplots(len(books), 3, figsize=(12, 3.4 * len(books)), squeeze=False, layout="constrained")
    for row, book in zip(axes, books):
        for variant, by_seed in found:
            runs = [result["signals"]["looks"] for result in seen(by_seed) if result["signals"]]
            if variant.textbook == book and runs:
                plot_sharpening(row, runs, variant.name)
        row[0].set(title="sampled, and greedy (dotted)", xlabel="training step", ylim=(-0.02, 1.02))
        row[0].set_ylabel(f"hallucination rate,\n{believed(book):.0%} believed", fontsize=9)
        row[1].set(title="entropy of operands, and of totals (dotted)", xlabel="training step", ylabel="nats")
        row[2].set(xlabel="entropy of operands, nats", title="hallucination rate at that entropy", ylim=(-0.02, 1.02))
        row[2].invert_xaxis()
        for axis in row:
            tidy(axis)
        row[0].legend(frameon=False, fontsize=8.5)
    save(figure, path)


def plot_sharpening(row, runs: list[list[dict]], name: str) -> None:
    """One method in the three panels. runs: for each seed what was seen every few steps."""
    mean = lambda measure: [over_seeds(list(looks), measure).mean for looks in zip(*runs)]
    steps, color = [look["step"] for look in runs[0]], color_of(name)
    row[0].plot(steps, mean("hallucination_rate"), color=color, label=name)
    row[0].plot(steps, mean("greedy_hallucination_rate"), color=color, linestyle=":")
    row[1].plot(steps, mean("operand_entropy"), color=color)
    row[1].plot(steps, mean("total_entropy"), color=color, linestyle=":")
    row[2].plot(mean("operand_entropy"), mean("hallucination_rate"), ".-", color=color)
