"""Solution of exercise 9.

Compare minclipo/contrastive.py and `spread` in minclipo/runs/measure.py.
"""

import torch
from torch import Tensor


def contrastive_reward(
    loss: Tensor, correct: Tensor, weight: float, floor: float
) -> Tensor:
    # The weight first, then the floor: a floor of the reward.
    price = (-weight * loss.detach()).clamp(min=floor)
    return torch.where(correct, price, 0.0)


def has_signal(contrastive: Tensor, correct: Tensor, group_size: int) -> Tensor:
    values = contrastive.view(-1, group_size)  # [B, G]
    right = correct.view(-1, group_size)  # [B, G]
    high = values.masked_fill(~right, -torch.inf).amax(1)  # [B]
    low = values.masked_fill(~right, torch.inf).amin(1)
    return high - low > 1e-6  # nobody right: high - low is -inf


def largest_weight(loss: Tensor, correct: Tensor, floor: float) -> float:
    losses = loss[correct]
    if len(losses) == 0 or losses.max() == 0:
        return torch.inf
    return -floor / losses.max().item()  # whoever pays most is the first on the floor


def cross_anchors(correct: Tensor, group: Tensor) -> Tensor:
    same_prompt = group[:, None] == group[None, :]  # [N, N]
    right_siblings = same_prompt & correct[None, :]  # [N, N]
    positives = right_siblings.sum(1) - 1  # a right rollout has counted itself
    candidates = len(correct) - 1
    return correct & (positives > 0) & (positives < candidates)
