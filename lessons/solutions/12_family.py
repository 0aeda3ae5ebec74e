"""Solution of exercise 12. Compare minclipo/grpo.py and minclipo/extensions/dapo.py."""

import torch
from torch import Tensor


def dr_grpo_weights(mask: Tensor, max_length: int) -> Tensor:
    return mask.float() / (len(mask) * max_length)  # all rollouts, with tokens or without


def gspo_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    log_ratio = log_ratio.masked_fill(~mask, 0.0)  # first, because 0 times NaN is NaN
    tokens = mask.sum(1, keepdim=True).clamp(min=1)  # [N, 1]; 1 for a rollout without any
    mean = log_ratio.sum(1, keepdim=True) / tokens  # [N, 1]
    own = log_ratio - log_ratio.detach()  # [N, T], exactly 0, with a gradient of 1
    return (mean.detach() + own).masked_fill(~mask, 0.0)


def gmpo_bounded(log_ratio: Tensor, advantages: Tensor, bound: float) -> Tensor:
    A = advantages[:, None]  # [N, 1]
    from_above = torch.where(A > 0, log_ratio.clamp(max=bound), log_ratio)
    return torch.where(A < 0, log_ratio.clamp(min=-bound), from_above)


def overlong(lengths: Tensor, max_length: int, buffer: int, penalty: float) -> Tensor:
    if buffer == 0:
        return -penalty * (lengths >= max_length).float()
    into_buffer = lengths - (max_length - buffer)  # [N], 0 where the buffer begins
    return -penalty * (into_buffer / buffer).clamp(0, 1)
