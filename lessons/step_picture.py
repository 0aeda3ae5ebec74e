"""A small picture of the training step for the top of each lesson, its part of it lit."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image

PARTS = {
    "policy": "a GPT",
    "sample": "rollouts",
    "verify": "right or wrong",
    "contrast": "alike or not",
    "advantages": "better or worse",
    "update": "a gradient step",
}
LIT = {
    "00_guess": tuple(PARTS),
    "01_gpt": ("policy",),
    "02_sampling": ("sample",),
    "03_task": ("verify",),
    "04_policy_gradient": ("update",),
    "05_grpo": ("advantages", "update"),
    "06_blind": ("sample", "verify", "advantages", "update"),
    "07_vectors": ("contrast",),
    "08_contrastive": ("contrast",),
    "09_reward": ("contrast",),
    "10_clipo": tuple(PARTS),
    "11_agreement": ("contrast",),
    "12_family": ("advantages", "update"),
    "13_checkpoints": ("policy",),
    "14_answers": ("verify",),
    "15_find_the_bug": tuple(PARTS),
}


def draw(lit: tuple[str, ...], path: Path) -> None:
    """Save the picture as a PNG: six boxes in a ring, policy to update and back."""
    figure, axis = plt.subplots(figsize=(8, 0.95))
    for x, (part, does) in enumerate(PARTS.items()):
        face, ink = ("#0072B2", "white") if part in lit else ("#EEEEEE", "#555555")
        style = dict(boxstyle="round,pad=0,rounding_size=0.12", fc=face, ec="none")
        axis.add_patch(FancyBboxPatch((x + 0.06, 0.25), 0.8, 0.75, **style))
        weight = "bold" if part in lit else "normal"
        axis.text(
            x + 0.46, 0.74, part, ha="center", va="center", color=ink, weight=weight
        )
        axis.text(x + 0.46, 0.46, does, ha="center", va="center", color=ink, fontsize=7.5)
        if x:
            arrow(axis, [(x - 0.13, 0.62), (x + 0.05, 0.62)])
    arrow(axis, [(5.46, 0.25), (5.46, 0.08), (0.46, 0.08), (0.46, 0.23)])
    axis.set(xlim=(0, len(PARTS) - 0.08), ylim=(0, 1.05))
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(path, dpi=200)
    plt.close(figure)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(32, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def arrow(axis: plt.Axes, points: list[tuple[float, float]]) -> None:
    """A line through the points, with a head at the last."""
    axis.plot(*zip(*points), color="#777777", linewidth=1.2, solid_joinstyle="round")
    head = dict(arrowstyle="-|>", color="#777777", shrinkA=0, shrinkB=0, mutation_scale=9)
    axis.annotate("", points[-1], points[-2], arrowprops=head)
