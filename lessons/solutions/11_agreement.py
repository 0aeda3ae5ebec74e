"""Solution of exercise 11. Compare minclipo/extensions/prompt_contrast.py."""

import math

import torch
from torch import Tensor


def cluster_losses(sizes: Tensor, between: float, tau: float, strangers: int) -> Tensor:
    same = torch.eye(len(sizes), dtype=torch.bool)
    # [clusters, clusters], how many of each cluster a rollout of each cluster sees
    counts = (sizes[None] - same.long()).double()
    scores = torch.full_like(counts, between / tau).masked_fill(same, 1 / tau)
    # [clusters]; the log of 0 is -inf, which adds nothing
    positives = (scores + counts.log()).logsumexp(1)
    # The cosine of a stranger is 0.
    negatives = torch.tensor(float(strangers), dtype=torch.float64).log()
    return torch.logaddexp(positives, negatives) - positives


def prompt_contrast(own: Tensor, others: Tensor, mask: Tensor, limit: float) -> Tensor:
    # [N, T]; exp(-200) would be 0
    mean_of_others = others.logsumexp(0) - math.log(len(others))
    gain = (own - mean_of_others).clamp(-limit, limit)  # each token, before the mean
    return gain.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def other_prompts(circle: Tensor, others: int) -> Tensor:
    if not 1 <= others < len(circle):
        raise ValueError(f"{len(circle)} prompts have no {others} others each")
    found = torch.empty(others, len(circle), dtype=torch.long)
    for row in range(others):
        found[row, circle] = circle.roll(-1 - row)  # who stands row + 1 places on
    return found
