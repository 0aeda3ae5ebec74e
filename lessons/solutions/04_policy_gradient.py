"""Solution of exercise 4. Compare minclipo/grpo.py: this mean is "sequence_sum" in `token_weights`."""

import torch
from torch import Tensor


def surrogate(logprobs: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    rollout_logprobs = logprobs.masked_fill(~mask, 0.0).sum(
        1
    )  # [N]; multiplying by the mask would keep NaN
    return -(advantages.detach() * rollout_logprobs).mean()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    if group_size == 1:
        return torch.zeros_like(rewards)  # the formula would say 0 / 0
    groups = rewards.view(-1, group_size)  # [B, G]
    others = groups.sum(1, keepdim=True) - groups
    return (others / (group_size - 1)).flatten()


def exact_gradient(logits: Tensor, rewards: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(1)  # [B, V]
    J = (p * rewards).sum(1, keepdim=True)  # [B, 1]
    return (
        p * (rewards - J) / (temperature * len(logits))
    )  # the chain rule through z / temperature, and the mean


def first_token_gradient(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    p = first.softmax(0)  # [V]
    after = (second.softmax(1) * rewards).sum(
        1
    )  # [V], the expected reward after each first token
    return p * (
        after - p @ after
    )  # one token whose reward is `after`: the formula above once more
