"""Solution of exercise 6.

Compare minclipo/extensions/rewards.py and minclipo/runs/measure.py.
"""

import torch
from torch import Tensor


def oracle_rewards(
    correct: Tensor, step_is_right: Tensor, step_exists: Tensor, penalty: float
) -> Tensor:
    wrong = (step_exists & ~step_is_right).sum(1)  # [N]
    share = wrong / step_exists.sum(1).clamp(min=1)  # [N], 0 / 1 where there is no step
    return correct * (1 - penalty * share).clamp(min=0)


def informative_prompts(rewards: Tensor, group_size: int) -> Tensor:
    grouped = rewards.view(-1, group_size)  # [B, G]
    return (grouped.amax(1) > grouped.amin(1)).float().mean()


def mean_advantages(advantages: Tensor, correct: Tensor, faithful: Tensor) -> Tensor:
    kinds = torch.stack([correct & faithful, correct & ~faithful, ~correct])  # [3, N]
    kinds = kinds.float()
    return kinds @ advantages / kinds.sum(1).clamp(min=1)
