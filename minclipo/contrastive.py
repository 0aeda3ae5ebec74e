"""The contrastive part of CLIPO (arXiv 2603.10101): correct rollouts pay for being far apart.

A small head maps the pooled hidden state of each rollout to a unit vector. A supervised-contrastive loss asks of each
correct rollout how close it is to the other correct ones (positives) and how far from the rest (negatives). The head
learns to make that loss small; the rollout's own loss becomes a negative reward. No gradient of the loss ever reaches
the policy: a rollout that got to the right answer in a different way from its siblings just earns less. Left out: the
official code's epsilons inside logarithms.

N rows (rollouts), D width of the pooled states, E width of the embeddings, M anchors.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("infonce", "supcon_out", "supcon_in", "soft_nn")
LEVELS = ("group", "cross", "batch")
SIMILARITIES = ("cosine", "l2")
ANCHORS = ("correct", "incorrect", "all")
HEADS = ("linear", "mlp", "none")


class ContrastiveHead(nn.Module):
    """z = f(h) / |f(h)|, with f linear, or one hidden ReLU layer as wide as its input, or no f at all ("none").

    Without bias, as in the official code, the length of h does not matter.
    """

    def __init__(self, hidden_size: int, output_size: int, kind: str = "linear", *, bias: bool = False):
        super().__init__()
        assert kind in HEADS, f"{kind=} must be one of {HEADS}"
        if kind == "linear":
            self.projection = nn.Sequential(nn.Linear(hidden_size, output_size, bias=bias))
        elif kind == "mlp":
            hidden = nn.Linear(hidden_size, hidden_size, bias=bias)
            self.projection = nn.Sequential(hidden, nn.ReLU(), nn.Linear(hidden_size, output_size, bias=bias))
        else:
            self.projection = nn.Identity()  # E = D, nothing to learn

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors [N, E] from pooled states [N, D]; a zero vector stays zero."""
        z = self.projection(pooled)
        z = z.to(torch.promote_types(z.dtype, torch.float32))  # in float16 the epsilon would be 0
        return F.normalize(z, dim=-1, eps=1e-12)


def center_by_group(pooled: Tensor, group: Tensor) -> Tensor:
    """Subtract from each pooled state [N, D] the mean over its prompt's rollouts; group [N] says whose they are.

    Rollouts of a prompt share most of their state, so their cosines are near 1 whatever they say; what is left after
    centring is how they differ. Where they do not, what is left is rounding, which the head would stretch to unit
    vectors: differences below 1e-5 of the mean's length (float32 resolves 1e-7) become exactly 0.
    """
    assert pooled.ndim == 2 and group.shape == pooled.shape[:1], "pooled must be [N, D] and group [N]"
    states = pooled.to(torch.promote_types(pooled.dtype, torch.float32))  # in half precision rounding is larger
    index, counts = group.unique(return_inverse=True, return_counts=True)[1:]  # [N] 0..B-1, [B]
    means = states.new_zeros(len(counts), states.shape[1]).index_add(0, index, states) / counts[:, None]  # [B, D]
    means = means[index]  # [N, D]
    difference = states - means
    rounding = difference.norm(dim=1) < 1e-5 * means.norm(dim=1)  # [N]
    return difference.masked_fill(rounding[:, None], 0.0).to(pooled.dtype)


@dataclass
class ContrastiveLoss:
    """What `contrastive_loss` found; loss and mean carry gradient to the embeddings."""

    loss: Tensor  # [N], 0 for rows that are no anchor
    anchors: Tensor  # [N] bool: rows that have a positive and a negative to be compared with
    mean: Tensor  # scalar, mean over the anchors; 0 without any


def contrastive_loss(
    embeddings: Tensor,
    correct: Tensor,
    group: Tensor,
    *,
    loss: str = "infonce",
    level: str = "group",
    temperature: float = 0.05,
    similarity: str = "cosine",
    anchors: str = "correct",
    positive: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> ContrastiveLoss:
    """Supervised contrastive loss of each rollout.

    For anchor i let P be its positives, A its candidates (positives and negatives, never i itself) and q_ij the
    similarity of i and j divided by the temperature:

        infonce      log sum_A exp(q_ia) - q_ip,  one p drawn from P      CLIPO; van den Oord et al. 2018, eq. 4
        supcon_out   log sum_A exp(q_ia) - mean_P q_ip                    Khosla et al. 2020, eq. 2: E_p[infonce]
        supcon_in    log sum_A exp(q_ia) - log mean_P exp(q_ip)           Khosla et al. 2020, eq. 3
        soft_nn      log sum_A exp(q_ia) - log sum_P exp(q_ip)            Frosst et al. 2019, eq. 1

    Only soft_nn can reach 0: in the others the remaining positives stay in the denominator, so their floor is log |P|
    (of infonce, on average over the positive drawn).

    embeddings [N, E], unit rows (see `ContrastiveHead`); correct [N] bool; group [N], which prompt a row answers.
    level: where positives and candidates come from.
        group   P: same verdict, same prompt   A: same prompt
        cross   P: same verdict, same prompt   A: the whole batch
        batch   P: same verdict, any prompt    A: the whole batch
    similarity: "cosine" z_i . z_j, or "l2" 1 - |z_i - z_j|.
    anchors: rows that get a loss: "correct", "incorrect" or "all", unless they lack a positive or a negative.
    positive [N]: row of infonce's positive, read at anchors only; default: drawn with `generator`.
    """
    assert correct.shape == group.shape == embeddings.shape[:1], "correct and group must be [N], embeddings [N, E]"
    assert loss in LOSSES and anchors in ANCHORS and temperature > 0, f"impossible: {loss=}, {anchors=}, {temperature=}"
    correct = correct.bool()
    candidates, positives = pairs(correct, group, level)  # [N, N] each
    is_anchor = positives.any(1) & (candidates & ~positives).any(1)  # [N]
    if anchors != "all":
        is_anchor &= correct == (anchors == "correct")

    # From here on one row per anchor: each has candidates and positives, so no logarithm of an empty sum can occur.
    q = similarities(embeddings, similarity)[is_anchor] / temperature  # [M, N]
    A, P = candidates[is_anchor], positives[is_anchor]  # [M, N] each
    log_sum_A = masked_logsumexp(q, A)  # [M]
    if loss == "infonce":
        p = drawn(P, generator) if positive is None else positive[is_anchor, None]  # [M, 1]
        assert P.gather(1, p).all(), "positive names a row that is no positive of its anchor"
        losses = log_sum_A - q.gather(1, p)[:, 0]
    elif loss == "supcon_out":
        losses = log_sum_A - q.masked_fill(~P, 0.0).sum(1) / P.sum(1)
    elif loss == "supcon_in":
        losses = log_sum_A - masked_logsumexp(q, P) + P.sum(1).to(q.dtype).log()
    else:  # soft_nn
        losses = log_sum_A - masked_logsumexp(q, P)
    per_row = losses.new_zeros(len(group)).masked_scatter(is_anchor, losses)  # [N]
    return ContrastiveLoss(per_row, is_anchor, losses.sum() / max(1, len(losses)))  # zeros where nobody is an anchor


def pairs(correct: Tensor, group: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """Who is compared with whom: (candidates, positives), [N, N] bool each; row i says it of anchor i."""
    assert level in LEVELS, f"{level=} must be one of {LEVELS}"
    others = ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    same_verdict = correct[:, None] == correct[None, :]
    same_prompt = group[:, None] == group[None, :]
    candidates = others & same_prompt if level == "group" else others
    positives = candidates & same_verdict
    return candidates, positives & same_prompt if level == "cross" else positives


def similarities(embeddings: Tensor, similarity: str) -> Tensor:
    """All pairs of unit vectors, [N, N] float32 at least, from [N, E]."""
    assert similarity in SIMILARITIES, f"{similarity=} must be one of {SIMILARITIES}"
    cosine = (embeddings @ embeddings.T).to(torch.promote_types(embeddings.dtype, torch.float32))
    if similarity == "cosine":
        return cosine
    # |a - b|^2 = 2 - 2 a.b for unit vectors. The clamp keeps the root's gradient finite (0) where the two coincide.
    return 1 - (2 - 2 * cosine).clamp(min=1e-8).sqrt()


def masked_logsumexp(scores: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp(scores) over the mask, exactly: no epsilon, the maximum taken over the mask only."""
    return scores.masked_fill(~mask, -torch.inf).logsumexp(1)


def drawn(positives: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniformly drawn positive of each anchor, as its row [M, 1]."""
    if len(positives) == 0:
        return positives.new_zeros((0, 1), dtype=torch.long)  # multinomial refuses an empty batch
    return torch.multinomial(positives.float(), 1, generator=generator)


def contrastive_reward(
    loss: Tensor, correct: Tensor, *, weight: float, floor: float = -0.5, constant: float = 0.0
) -> Tensor:
    """The contrastive part of the reward, [N], from each rollout's contrastive loss [N] and verdict [N] (no gradient).

        c_i = max(constant - weight * loss_i * correct_i, floor)        CLIPO's reward, official code

    With the floor at -0.5, no constant and an outcome reward of 0 or 1, a correct rollout always earns more than an
    incorrect one. A constant is added to the incorrect ones too.
    """
    assert loss.shape == correct.shape, f"loss and correct must both be [N], found {loss.shape} and {correct.shape}"
    assert weight >= 0, f"weight must be 0 or more, found {weight}"
    return (constant - weight * loss.detach() * correct).clamp(min=floor)
