"""Solution of exercise 11. Compare minclipo/extensions/prompt_contrast.py."""

import math

import torch
from torch import Tensor


def cluster_losses(sizes: Tensor, between: float, tau: float, strangers: int) -> Tensor:
    same = torch.eye(len(sizes), dtype=torch.bool)
    counts = (
        sizes[None] - same.long()
    ).double()  # [K, K], how many of each cluster a rollout of each cluster sees
    scores = torch.full_like(counts, between / tau).masked_fill(same, 1 / tau)
    positives = (scores + counts.log()).logsumexp(
        1
    )  # [K]; the log of 0 is -inf, which adds nothing
    strangers_score = torch.tensor(
        float(strangers), dtype=torch.float64
    ).log()  # their cosine is 0
    return torch.logaddexp(positives, strangers_score) - positives


def prompt_contrast(own: Tensor, others: Tensor, mask: Tensor, limit: float) -> Tensor:
    mean_of_others = others.logsumexp(0) - math.log(
        len(others)
    )  # [N, T]; exp(-200) would be 0
    gain = (own - mean_of_others).clamp(-limit, limit)  # each token, before the mean
    return gain.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def other_prompts(circle: Tensor, others: int) -> Tensor:
    if not 1 <= others < len(circle):
        raise ValueError(f"{len(circle)} prompts have no {others} others each")
    found = torch.empty(others, len(circle), dtype=torch.long)
    for k in range(others):
        found[k, circle] = circle.roll(-1 - k)  # who stands k + 1 places on
    return found
