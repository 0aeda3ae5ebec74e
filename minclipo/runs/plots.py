"""The pictures of both scripts. A method has the same colour and line style everywhere (Okabe-Ito palette)."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # draw to files: there may be no screen
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from minclipo.checkpoint.files import read_lines, replacing
from minclipo.runs.intervals import seeds_interval, share_interval
from minclipo.runs.measure import reward_parts

STYLES = {  # {} stands for the algorithm that they all train with
    "baseline": dict(color="#D55E00", linestyle=(0, (8, 1.5)), label="{}"),  # dashes that nearly touch
    "clipo": dict(color="#0072B2", linestyle="-", label="{} + CLIPO"),
    "oracle": dict(color="#000000", linestyle=":", label="oracle (sees the steps)"),
    "clipo_paper": dict(color="#CC79A7", linestyle="--", label="{} + CLIPO, paper's setting"),
    "prompt_contrast": dict(color="#009E73", linestyle="-.", label="{} + prompt contrast (ours)"),
}
TRAINING = "#808080"  # of the training rollouts of a single run
REWARD_PARTS = {  # in the colours of those who add them; the lines differ in a greyscale print, too
    "outcome": dict(color=STYLES["baseline"]["color"], linestyle=":"),
    "contrastive": dict(color=STYLES["clipo"]["color"], linestyle="--"),
    "extra": dict(color=STYLES["prompt_contrast"]["color"], linestyle="-."),
}
PANELS = (
    ("accuracy", "accuracy", "share of rollouts with a right answer"),
    ("hallucination_rate", "hallucination rate", "share of right answers with a wrong step"),
)


def plot_training(histories: dict[str, list[list[dict]]], path: str | Path, algorithm: str = "GRPO") -> None:
    """Accuracy and hallucination rate of the training rollouts against the step.

    histories: for each method the metrics of its runs, one list per seed. Several seeds: mean and its 95% interval, of
    those that have a value; a step where none has one is a gap.
    Runs of unequal length (interrupted ones) are drawn as far as all of a method's seeds got.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (metric, title, meaning) in zip(axes, PANELS):
        for method, runs in histories.items():
            steps = [run[0]["step"] for run in zip(*runs)]
            # Dynamic sampling trains on a selection, but knows the accuracy of everything that it has sampled.
            value = lambda metrics: metrics.get(f"{metric}_sampled", metrics[metric])
            bands = [seeds_interval([value(metrics) for metrics in of_step]) for of_step in zip(*runs)]
            mean, low, high = (np.array([vars(band)[key] for band in bands], float) for key in ("mean", "low", "high"))
            style = STYLES[method] | {"label": STYLES[method]["label"].format(algorithm)}
            axis.plot(steps, mean, linewidth=1.8, **style)  # None has become NaN, which is a gap
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set(title=title, xlabel="training step", ylim=(-0.02, 1.02))
        axis.set_ylabel(meaning, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=9)
    save(figure, path)


def plot_evaluation(
    history: list[dict], evaluations: list[dict], path: str | Path, max_new_tokens: int | None = None
) -> None:
    """Accuracy, hallucination rate, reward and completion length against the step: rollouts, and greedy held-out ones.

    history: metrics of each step. evaluations: [{"step", "greedy": counts of `minclipo.runs.measure.score`}, ...];
    their shares are drawn with 95% intervals. Either may be empty. A rate that does not exist is a gap.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    accuracy, hallucination, reward, length = axes.flat
    for axis, (metric, title, meaning) in zip((accuracy, hallucination), PANELS):
        axis.set(title=title, ylim=(-0.05, 1.05))
        axis.set_ylabel(meaning, fontsize=8)
        both(axis, history, evaluations, metric)
    both(length, history, evaluations, "completion_length")
    length.set(title="completion length", ylabel="tokens, eos included")
    limit_line(length, max_new_tokens)
    reward.set(title="reward of the training rollouts", ylabel="mean over rollouts")
    reward_lines(reward, history)
    for axis in axes.flat:
        axis.set_xlabel("training step")
        if not any(y == y for line in axis.lines for y in line.get_ydata()):  # NaN is not equal to itself
            axis.text(0.5, 0.5, "no value so far", ha="center", transform=axis.transAxes)
            axis.set_ylim(-0.05, 1.05)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_xlim(*step_range(history, evaluations))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def both(axis, history: list[dict], evaluations: list[dict], metric: str) -> None:
    """A metric of the training rollouts, and on top of it that of the held-out completions."""
    # Dynamic sampling trains on a selection, but knows the accuracy of everything that it has sampled.
    rollouts = np.array([metrics.get(f"{metric}_sampled", metrics.get(metric)) for metrics in history], float)
    steps = [metrics["step"] for metrics in history]
    axis.plot(steps, rollouts, ".-", color=TRAINING, markersize=3, linewidth=1, label="training rollouts")
    if evaluations:
        steps, greedy = [line["step"] for line in evaluations], [line["greedy"] for line in evaluations]
        style = dict(color=STYLES[method_of(history)]["color"], markersize=5, linewidth=1.8, clip_on=False, zorder=3)
        axis.plot(
            steps, np.array([found.get(metric) for found in greedy], float), "o-", label="held out, greedy", **style
        )
        bounds = [vars(share_interval(*counts_of(found, metric))) for found in greedy]
        low, high = (np.array([bound[end] for bound in bounds], float) for end in ("low", "high"))
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def counts_of(found: dict, metric: str) -> tuple[int, int]:
    """(how many, of how many) of a share in an evaluation; (0, 0) for what is no share, or has none."""
    if found.get(metric) is None:
        return 0, 0
    if metric == "hallucination_rate":
        return found["correct"] - found["faithful"], found["correct"]
    return (found["correct"], found["problems"]) if metric == "accuracy" else (0, 0)


def method_of(history: list[dict]) -> str:
    """Which of the methods this run trains with, by what its metrics hold: it sets the colour."""
    names = history[-1] if history else {}
    return "prompt_contrast" if "prompt_contrast" in names else "clipo" if "contrastive_loss" in names else "baseline"


def reward_lines(axis, history: list[dict]) -> None:
    """The reward and, where there is more to it than the outcome, its parts."""
    steps, parts = [metrics["step"] for metrics in history], [reward_parts(metrics) for metrics in history]
    axis.plot(steps, [metrics["reward"] for metrics in history], ".-", color=TRAINING, markersize=3, label="reward")
    drawn = [name for name in ("contrastive", "extra") if any(abs(part[name]) > 1e-6 for part in parts)]
    for name in ["outcome", *drawn] if drawn else []:
        axis.plot(steps, [part[name] for part in parts], label=name, linewidth=1.5, **REWARD_PARTS[name])
    if drawn:
        axis.set_title(axis.get_title(), pad=22)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=4, frameon=False, fontsize=9)


def limit_line(axis, max_new_tokens: int | None) -> None:
    """Lengths from 0, with air above a constant one, and the longest that a completion may be. A limit that is far
    above all lengths is told instead of drawn: it would press the curves to the ground."""
    longest = max([1.0, *(y for line in axis.lines for y in line.get_ydata() if y == y)])
    label = f"--max-new-tokens {max_new_tokens}"
    if max_new_tokens and max_new_tokens <= 3 * longest:
        axis.axhline(max_new_tokens, color="black", linestyle="--", linewidth=1, zorder=1)
        place = axis.get_yaxis_transform()  # x as a share of the width, y in tokens
        axis.text(1, 1.01 * max_new_tokens, label, ha="right", va="bottom", transform=place)
        longest = max(longest, max_new_tokens)
    elif max_new_tokens:
        axis.text(1, 1, f"{label} is above ", ha="right", va="top", transform=axis.transAxes)
    axis.set_ylim(0, 1.15 * longest)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def step_range(history: list[dict], evaluations: list[dict]) -> tuple[float, float]:
    """From the first step to the last, with a little room for the outermost points."""
    steps = [line["step"] for line in history + evaluations] or [0]
    room = max(0.5, 0.02 * (max(steps) - min(steps)))
    return min(steps) - room, max(steps) + room


def save(figure, path: str | Path) -> None:
    """Write the picture, whole or not at all: a run draws over it again and again."""
    try:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, dpi=150, format="png")
    finally:
        plt.close(figure)


class Curves:
    """A callback: the picture of a run in `out`, every `every` steps and after the `last`."""

    def __init__(self, out: Path, *, every: int, last: int, max_new_tokens: int):
        self.out, self.every, self.last, self.max_new_tokens = out, every, last, max_new_tokens

    def after_step(self, step, metrics: dict) -> None:
        if step.number % self.every == 0 or step.number == self.last:
            self.draw()

    def draw(self) -> None:
        history, evaluations = (read_lines(self.out / f"{name}.jsonl") for name in ("metrics", "evaluation"))
        plot_evaluation(history, evaluations, self.out / "curves.png", self.max_new_tokens)
