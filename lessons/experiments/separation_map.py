"""Part 3 of separation.py: a map of the pooled states, and where GRPO and CLIPO move them.

N rows, D width of the pooled states.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from run import train_config
from separation_states import OURS, States, look
from textbooks import fresh_problems, start
from torch import Tensor
from variants import CLIPO, Variant

from minclipo.contrastive import center_by_group
from minclipo.runs.loop import Run
from minclipo.runs.plots import STYLES, plt
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

MAPPED = {"baseline": Variant("GRPO"), "clipo": Variant("CLIPO", CLIPO)}  # by their names in STYLES
# Colours that no method has (Okabe-Ito palette).
KINDS = {"clean": "#56B4E9", "hallucinated": "#E69F00", "wrong": "#999999"}
SHOWN = 0.98  # share of the right rollouts that the picture has room for
MARKER = 6.0  # area of the marker of one rollout in it, in square points


@dataclass
class Panel:
    """One method at one step."""

    method: str
    step: int
    states: States
    points: Tensor  # [N, 2], in the plane
    variance: float  # share of these states' variance that the plane holds


def make_map(seed: int, out: Path, steps: list[int], prompts: int) -> dict:
    """Train both methods from one start, draw OUT/separation/map.png, return the numbers in it."""
    by_method = {name: snapshots(variant, seed, out, steps, prompts) for name, variant in MAPPED.items()}
    centred = {
        name: {step: center_by_group(states.pooled, states.group) for step, states in by_step.items()}
        for name, by_step in by_method.items()
    }
    first = torch.cat([by_step[steps[0]] for by_step in centred.values()])  # of all methods, [.., D]
    axes, explained = principal_axes(first)
    panels = []
    for name, by_step in by_method.items():
        for step, states in by_step.items():
            points = centred[name][step]  # [N, D]
            in_plane = (points @ axes).square().sum() / points.square().sum().clamp(min=1e-30)
            panels.append(Panel(name, step, states, points @ axes, in_plane.item()))
    shown = draw_map(panels, explained, out / "separation" / "map.png")
    numbers = [
        {"method": p.method, "step": p.step, "shares": p.states.shares, "variance": p.variance, "outside": outside}
        for p, outside in zip(panels, outside_of(panels, shown))
    ]
    return {"seed": seed, "prompts": prompts, "explained": explained, "shown": shown, "panels": numbers}


def snapshots(variant: Variant, seed: int, out: Path, steps: list[int], prompts: int) -> dict[int, States]:
    """States at these steps of a training run, of the same problems and with the same random numbers every time.

    The training is the one that `run.py` does with this variant and seed: looking draws nothing from its generator.
    """
    model, found, problems = start("toy", seed, out), {}, fresh_problems(f"separation {seed}", prompts)

    def after_step(step: int) -> None:
        if step in steps:
            found[step] = look(model, problems, OURS.group_size, seed)

    trainer = Trainer(model, toy_tokenizer(), TASK, train_config(replace(variant, steps=max(steps)), seed))
    Run(trainer, out / "separation" / f"seed{seed}" / variant.name, variant.name).train(after_step=after_step)
    return found


def principal_axes(points: Tensor) -> tuple[Tensor, list[float]]:
    """The two directions [D, 2] in which points [N, D] vary most, and the share of the variance along each.

    Points are taken as they are: those of a group have mean 0 once they are centred. Pearson 1901.
    """
    _, lengths, axes = torch.linalg.svd(points, full_matrices=False)  # [min(N, D)], [min(N, D), D]
    return axes[:2].T, (lengths.square() / lengths.square().sum())[:2].tolist()


# ---- the picture ----


def room(panels: list[Panel]) -> float:
    """Half the side of a square around 0 that holds SHOWN of the right rollouts; wrong ones may be far out."""
    right = torch.cat([panel.points[panel.states.correct] for panel in panels])  # [.., 2]
    return 1.1 * right.abs().amax(1).quantile(SHOWN).item() if len(right) else 1.0


def outside_of(panels: list[Panel], half: float) -> list[float]:
    """Share of each panel's rollouts outside that square."""
    return [(panel.points.abs().amax(1) > half).float().mean().item() for panel in panels]


def draw_map(panels: list[Panel], explained: list[float], path: Path) -> float:
    """One row per method, one column per step; the same axes everywhere, from -half to half. Returns half."""
    methods, half = list(dict.fromkeys(panel.method for panel in panels)), room(panels)
    columns = len(panels) // len(methods)
    size = (2.6 * columns + 0.7, 2.9 * len(methods) + 0.9)
    figure, grid = plt.subplots(len(methods), columns, figsize=size, layout="compressed", squeeze=False)
    for axis, panel in zip(grid.flat, panels):
        draw_panel(axis, panel)
        axis.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        axis.locator_params(nbins=5)
        axis.label_outer()
    for axis in grid[-1]:
        axis.set_xlabel(f"1st component ({explained[0]:.0%})", fontsize=8.5)
    for axis, method in zip(grid[:, 0], methods):
        axis.set_ylabel(f"2nd component ({explained[1]:.0%})", fontsize=8.5)
        place = dict(x=-0.36, y=0.5, transform=axis.transAxes, rotation=90, va="center", ha="center")
        axis.text(s=MAPPED[method].name, **place, fontsize=13, fontweight="bold", color=STYLES[method]["color"])
    place = dict(loc="outside lower center", ncols=6 if columns > 2 else 3)
    figure.legend(handles=legend(), **place, frameon=False, fontsize=9, handletextpad=0.4)
    figure.suptitle(
        "Rollouts' pooled states minus their group's mean, on the two leading principal components of "
        f"step {panels[0].step}: the same axes everywhere",
        fontsize=9.5,
        wrap=True,
    )
    figure.savefig(path, dpi=180)
    plt.close(figure)
    return half


def legend() -> list:
    """What colours and sizes mean."""
    marker = lambda number, colour, label: plt.Line2D(
        [], [], linestyle="", marker="o", markersize=(MARKER * number) ** 0.5, color=colour, label=label
    )
    sizes = {1: "one rollout", 4: "4 with the same text", 16: "16 with the same text"}
    return [marker(6, colour, kind) for kind, colour in KINDS.items()] + [
        marker(number, "#444444", label) for number, label in sizes.items()
    ]


def draw_panel(axis, panel: Panel) -> None:
    """The rollouts of one method at one step: one marker per solution; its area says how many rollouts wrote it."""
    states, colours = panel.states, {}
    for kind, rows in states.kinds.items():
        colours |= dict.fromkeys(states.solution[rows].tolist(), KINDS[kind])
    solutions, counts = states.solution.unique(return_counts=True)  # [S]: one row per solution; rollouts that wrote it
    order = counts.argsort(descending=True, stable=True)  # the small ones on top
    solutions, counts = solutions[order], counts[order]
    axis.scatter(
        *panel.points[solutions].T.tolist(),
        s=(MARKER * counts).tolist(),
        c=[colours[number] for number in solutions.tolist()],
        alpha=0.8,
        edgecolors="white",
        linewidths=0.3,
    )
    words = ", ".join(f"{value:.0%} {kind}" for kind, value in states.shares.items())
    axis.set_title(f"step {panel.step}\n{words}", fontsize=8.2)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
