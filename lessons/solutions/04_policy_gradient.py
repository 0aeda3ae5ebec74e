"""Solution of exercise 4. Compare `token_weights` in minclipo/grpo.py, "sequence_sum"."""

import torch
from torch import Tensor


def surrogate(logprobs: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    # masked_fill, because multiplying by the mask would keep NaN
    rollout_logprobs = logprobs.masked_fill(~mask, 0.0).sum(1)  # [N]
    return -(advantages.detach() * rollout_logprobs).mean()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    if group_size == 1:
        return torch.zeros_like(rewards)  # the formula would say 0 / 0
    groups = rewards.view(-1, group_size)  # [B, G]
    others = groups.sum(1, keepdim=True) - groups
    return (others / (group_size - 1)).flatten()


def exact_gradient(logits: Tensor, rewards: Tensor, temperature: float) -> Tensor:
    policy = (logits / temperature).softmax(1)  # [B, V]
    expected = (policy * rewards).sum(1, keepdim=True)  # [B, 1]
    gradient = policy * (rewards - expected)  # [B, V], of logits / temperature
    return gradient / temperature / len(logits)  # the chain rule, and the mean


def first_token_gradient(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    policy = first.softmax(0)  # [V]
    after = (second.softmax(1) * rewards).sum(1)  # [V], expected after each first token
    return policy * (after - policy @ after)  # one token whose reward is `after`
