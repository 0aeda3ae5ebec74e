"""Part 1 of separation.py: how well does each contrastive loss tell hallucinated right rollouts from clean ones?

N rows, D width of the pooled states.
"""

import copy
from dataclasses import replace
from itertools import product

import torch
from separation_states import OURS, States
from torch import Tensor

from minclipo.contrastive import LOSSES, ContrastiveHead, ContrastiveLoss, center_by_group, contrastive_loss

TEMPERATURES = (0.05, 0.2, 0.5, 1.0, 2.0)
SCORED_LEVELS = ("group", "cross")


def auc(values: Tensor, positive: Tensor) -> float:
    """Probability that a positive has a larger value than a negative, ties counting half: the area under the ROC curve.

    values [n], positive [n] bool, at least one of either kind. Equal to Mann and Whitney's U / (n+ n-), 1947.

    >>> auc(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([False, False, True, True]))
    0.875
    """
    difference = values[positive][:, None] - values[~positive][None, :]  # [n+, n-]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def mean_auc(values: Tensor, states: States, compared: Tensor) -> tuple[float | None, int]:
    """How well large values single out hallucinated rollouts: (mean AUC within a group, number of groups).

    values [N]; compared [N] bool: correct rollouts that have a value. Groups that lack one of the kinds do not count.
    """
    found = []
    for b in states.group.unique():
        rows = compared & (states.group == b)  # [N]
        hallucinated = ~states.faithful[rows]  # [rows]
        if hallucinated.any() and not hallucinated.all():
            found.append(auc(values[rows], hallucinated))
    return mean(found), len(found)


def mean(values: list[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def random_heads(hidden_size: int, output_size: int, number: int, seed: int) -> list[ContrastiveHead]:
    """Linear heads as they are at the start of training."""
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
        torch.default_generator.manual_seed(seed)
        return [ContrastiveHead(hidden_size, output_size) for _ in range(number)]


@torch.no_grad()
def loss_of(states: States, head: ContrastiveHead, *, center: bool, seed: int, **options) -> ContrastiveLoss:
    """The contrastive loss of each correct rollout, as training computes it; `options` go to `contrastive_loss`."""
    pooled = center_by_group(states.pooled, states.group) if center else states.pooled  # [N, D]
    generator = torch.Generator().manual_seed(seed)  # for InfoNCE's positives
    return contrastive_loss(head(pooled), states.correct, states.group, generator=generator, **options)


def score_losses(states: States, head_number: int, seed: int) -> list[dict]:
    """Mean AUC within a group, for every loss, temperature and level, with and without centring and head.

    auc is computed in float64. auc_float32 is what training's precision leaves of it: soft_nn is the difference of two
    logarithms, which at temperature 0.05 are near 20, where float32 has steps of 2e-6; many losses are smaller.
    """
    width = states.pooled.shape[1]
    heads = {
        "no head": [ContrastiveHead(width, width, "none")],
        "random head": random_heads(width, OURS.head_size, head_number, seed),
    }
    exact = replace(states, pooled=states.pooled.double())
    exact_heads = {name: [copy.deepcopy(head).double() for head in some] for name, some in heads.items()}

    def score(states: States, heads: list[ContrastiveHead], **options) -> tuple[float | None, int]:
        """(mean AUC over heads and groups, number of groups)."""
        found = [loss_of(states, head, seed=seed + i, **options) for i, head in enumerate(heads)]
        scores = [mean_auc(one.loss, states, one.anchors) for one in found]
        return mean([value for value, _ in scores]), scores[0][1]

    rows = []
    for level, name, center, loss, temperature in product(SCORED_LEVELS, heads, (False, True), LOSSES, TEMPERATURES):
        options = dict(level=level, center=center, loss=loss, temperature=temperature)
        value, groups = score(exact, exact_heads[name], **options)
        rounded, _ = score(states, heads[name], **options)
        rows.append(options | {"head": name, "auc": value, "auc_float32": rounded, "groups": groups})
    return rows
