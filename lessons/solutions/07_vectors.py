"""Solution of exercise 7.

Compare `pooled` in minclipo/sampler.py and center_by_group in minclipo/contrastive.py.
"""

import torch
from torch import Tensor


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    # [N, T, D]; float32 before the sum, not after it
    kept = hidden.float().masked_fill(~mask[..., None], 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True)


def centred(pooled: Tensor, group: Tensor) -> Tensor:
    together = (group[:, None] == group[None, :]).to(pooled.dtype)  # [N, N]
    means = together @ pooled / together.sum(1, keepdim=True)  # [N, D], of its own group
    difference = pooled - means
    # [N]; float32 resolves about 1e-7 of a number
    rounding = difference.norm(dim=1) < 1e-5 * means.norm(dim=1)
    return difference.masked_fill(rounding[:, None], 0.0)


def mean_auc(scores: Tensor, faithful: Tensor, group: Tensor) -> Tensor:
    found = []
    for g in group.unique():
        high, low = scores[(group == g) & faithful], scores[(group == g) & ~faithful]
        if len(high) and len(low):
            difference = high[:, None] - low[None, :]  # every pair
            found.append((difference.sign() / 2 + 0.5).mean())  # 1, 0.5 or 0
    return torch.stack(found).mean()
