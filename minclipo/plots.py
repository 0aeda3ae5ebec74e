"""Every picture of scripts and lessons. One method has one colour and one line style everywhere (Okabe-Ito palette)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files: there may be no screen
import matplotlib.pyplot as plt

from minclipo.intervals import mean_interval

STYLES = {
    "grpo": dict(color="#D55E00", linestyle="-", label="GRPO"),
    "clipo": dict(color="#0072B2", linestyle="-", label="CLIPO"),
    "oracle": dict(color="#000000", linestyle=":", label="oracle (sees the steps)"),
    "clipo_paper": dict(color="#CC79A7", linestyle="--", label="CLIPO, paper's setting"),
}
PANELS = (
    ("accuracy", "accuracy", "share of rollouts with a right answer"),
    ("hallucination_rate", "hallucination rate", "share of right answers with a wrong step"),
)


def plot_training(histories: dict[str, list[list[dict]]], path: str | Path) -> None:
    """Accuracy and hallucination rate of the training rollouts against the step.

    histories: for each method the metrics of its runs, one list a seed. Several seeds: mean and its 95% interval.
    Runs of unequal length (interrupted ones) are drawn as far as all of a method's seeds got.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (metric, title, meaning) in zip(axes, PANELS):
        for method, runs in histories.items():
            steps = [run[0]["step"] for run in zip(*runs)]
            values = [[metrics[metric] for metrics in metrics_of_step] for metrics_of_step in zip(*runs)]
            axis.plot(steps, [sum(row) / len(row) for row in values], linewidth=1.8, **STYLES[method])
            if len(runs) > 1:
                bands = [mean_interval(row) for row in values]
                color = STYLES[method]["color"]
                axis.fill_between(
                    steps, [b.low for b in bands], [b.high for b in bands], color=color, alpha=0.2, linewidth=0
                )
        axis.set(title=title, xlabel="training step", ylim=(-0.02, 1.02))
        axis.set_ylabel(meaning, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
