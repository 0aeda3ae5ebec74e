"""Solution: every rollout was among its own candidates.

Its cosine with itself is 1, the largest there is. So the first sum had a term that no
positive can make up for: with one positive that agrees the loss was log 2, with three
log(4/3), where it must be 0. Without the diagonal in the candidates there is none in the
positives either, which are a part of them.
"""

import torch
from torch import Tensor


def contrast(
    embeddings: Tensor, correct: Tensor, group: Tensor, temperature: float
) -> Tensor:
    """Soft-NN loss of every right rollout within its prompt, [N]; 0 for wrong ones.

        L_i = log sum of exp(s_ij) over candidates - log sum of exp(s_ij) over positives

    s_ij: cosine / temperature. Candidates: the other rollouts of i's prompt. Positives:
    the right ones of them. Without a positive, or without a wrong one to set it against,
    the loss is 0. embeddings [N, E], unit rows; the others [N].
    """
    itself = torch.eye(len(group), dtype=torch.bool)  # [N, N]
    candidates = (group[:, None] == group) & ~itself
    positives = candidates & correct
    anchors = correct & positives.any(1) & (candidates & ~correct).any(1)  # [N]
    scores = embeddings @ embeddings.T / temperature  # [N, N]
    log_all = scores.masked_fill(~candidates, -torch.inf)[anchors].logsumexp(1)
    log_positive = scores.masked_fill(~positives, -torch.inf)[anchors].logsumexp(1)
    return scores.new_zeros(len(scores)).index_put((anchors,), log_all - log_positive)
