"""The pictures of both scripts. A method has the same colour and line style everywhere (Okabe-Ito palette)."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # draw to files: there may be no screen
import matplotlib.pyplot as plt

from minclipo.checkpoint.files import replacing
from minclipo.runs.intervals import seeds_interval, share_interval

STYLES = {  # {} stands for the algorithm that they all train with
    "baseline": dict(color="#D55E00", linestyle="-", label="{}"),
    "clipo": dict(color="#0072B2", linestyle="-", label="{} + CLIPO"),
    "oracle": dict(color="#000000", linestyle=":", label="oracle (sees the steps)"),
    "clipo_paper": dict(color="#CC79A7", linestyle="--", label="{} + CLIPO, paper's setting"),
    "prompt_contrast": dict(color="#009E73", linestyle="-.", label="{} + prompt contrast (ours)"),
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
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def plot_evaluation(history: list[dict], evaluations: list[dict], path: str | Path) -> None:
    """Accuracy and completion length against the step: of the training rollouts, and of greedy held-out completions.

    history: metrics of each step. evaluations: [{"step", "greedy": counts of `minclipo.runs.measure.evaluate`}, ...];
    their accuracies are drawn with 95% intervals.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    steps, greedy = [line["step"] for line in evaluations], [line["greedy"] for line in evaluations]
    bounds = [share_interval(found["correct"], found["problems"]) for found in greedy]
    for axis, name in zip(axes, ("accuracy", "completion_length")):
        rollouts = [metrics[name] for metrics in history]
        axis.plot([m["step"] for m in history], rollouts, color="#999999", linewidth=1, label="training rollouts")
        axis.plot(steps, [found[name] for found in greedy], "o-", color="#0072B2", label="held out, greedy")
        axis.set_xlabel("training step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].fill_between(
        steps, [b.low for b in bounds], [b.high for b in bounds], color="#0072B2", alpha=0.2, linewidth=0
    )
    axes[0].set(title="accuracy", ylabel="share of right answers", ylim=(-0.02, 1.02))
    axes[1].set(title="completion length", ylabel="tokens, eos included", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
