"""Solution of exercise 12. Compare token_weights in minclipo/grpo.py, and minclipo/extensions/dapo.py."""

import torch
from torch import Tensor


def dr_grpo_weights(mask: Tensor, max_length: int) -> Tensor:
    return mask.float() / (
        len(mask) * max_length
    )  # len(mask): all rollouts, those without a token too


def gspo_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    log_ratio = log_ratio.masked_fill(
        ~mask, 0.0
    )  # before anything is computed: 0 times NaN is NaN
    tokens = mask.sum(1, keepdim=True).clamp(min=1)  # [N, 1]; 1 for a rollout without any
    mean = log_ratio.sum(1, keepdim=True) / tokens  # [N, 1]
    return (mean.detach() + (log_ratio - log_ratio.detach())).masked_fill(
        ~mask, 0.0
    )  # the bracket is exactly 0


def gmpo_bounded(log_ratio: Tensor, advantages: Tensor, bound: float) -> Tensor:
    A = advantages[:, None]  # [N, 1]
    from_above = torch.where(A > 0, log_ratio.clamp(max=bound), log_ratio)
    return torch.where(A < 0, log_ratio.clamp(min=-bound), from_above)


def overlong(lengths: Tensor, max_length: int, buffer: int, penalty: float) -> Tensor:
    if buffer == 0:
        return -penalty * (lengths >= max_length).float()
    into_buffer = (
        lengths - (max_length - buffer)
    ) / buffer  # 0 where the buffer begins, 1 at max_length
    return -penalty * into_buffer.clamp(0, 1)
