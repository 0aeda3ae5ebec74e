"""Solution: every rollout was among its own candidates.

Its cosine with itself is 1, the largest there is, so the first sum had a term that no positive can make up for: with
P positives that agree the loss was log((P + 1) / P) in place of 0. Without the diagonal in the candidates there is none
in the positives either, which are a part of them.
"""

import torch
from torch import Tensor


def contrast(
    embeddings: Tensor, correct: Tensor, group: Tensor, temperature: float
) -> Tensor:
    """Soft-NN loss of every right rollout against the other rollouts of its prompt, [N]; 0 for wrong ones.

        loss_i = log sum over candidates j of exp(q_ij) - log sum over positives j of exp(q_ij)

    q_ij: cosine / temperature. Candidates: the other rollouts of i's prompt; positives: the right ones of them. Without
    a positive, or without a wrong one to set it against, the loss is 0. embeddings [N, E], unit rows; the others [N].
    """
    candidates = (group[:, None] == group) & ~torch.eye(
        len(group), dtype=torch.bool
    )  # [N, N]
    positives = candidates & correct
    anchors = correct & positives.any(1) & (candidates & ~correct).any(1)  # [N]
    q = embeddings @ embeddings.T / temperature  # [N, N]
    log_all = q.masked_fill(~candidates, -torch.inf)[anchors].logsumexp(1)
    log_positive = q.masked_fill(~positives, -torch.inf)[anchors].logsumexp(1)
    return q.new_zeros(len(q)).index_put((anchors,), log_all - log_positive)
