"""The contrastive part of CLIPO (arXiv 2603.10101): correct rollouts pay for lying far from each other.

A small head maps the pooled hidden state of each rollout to a unit vector. A supervised-contrastive loss asks of each
correct rollout how close it lies to the other correct ones (positives) and how far from the rest (negatives). The head
learns to make that loss small; the rollout's own loss becomes a negative reward. No gradient of the loss ever reaches
the policy: a rollout that got to the right answer by another way than its siblings just earns less.
Left out: the official code's epsilons inside logarithms and its N x N matrices at group level.

N rows (rollouts), D width of the pooled states, E width of the embeddings, K blocks of M rows, A anchors.
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
        if kind == "linear":
            self.projection = nn.Sequential(nn.Linear(hidden_size, output_size, bias=bias))
        elif kind == "mlp":
            hidden = nn.Linear(hidden_size, hidden_size, bias=bias)
            self.projection = nn.Sequential(hidden, nn.ReLU(), nn.Linear(hidden_size, output_size, bias=bias))
        elif kind == "none":
            self.projection = nn.Identity()  # E = D, nothing to learn
        else:
            raise ValueError(f"kind must be one of {', '.join(HEADS)}; found {kind!r}")

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors [N, E] from pooled states [N, D]; a zero vector stays zero."""
        return F.normalize(self.projection(pooled), dim=-1, eps=1e-12)


def center_by_group(pooled: Tensor, group: Tensor) -> Tensor:
    """Subtract from each pooled state [N, D] the mean over its prompt's rollouts; group [N] says whose they are.

    All rollouts of a prompt share most of their state, so their cosines are near 1 whatever they say; what is left
    after centring is how they differ. Where they do not differ, what is left is rounding, which the head would stretch
    to unit vectors: differences below 1e-5 of the mean's length (float32 resolves 1e-7) become exactly 0.
    """
    if pooled.ndim != 2 or group.shape != pooled.shape[:1]:
        raise ValueError(f"pooled must be [N, D] and group [N], found {tuple(pooled.shape)} and {tuple(group.shape)}")
    index, counts = group.unique(return_inverse=True, return_counts=True)[1:]  # [N] 0..B-1, [B]
    means = pooled.new_zeros(len(counts), pooled.shape[1]).index_add(0, index, pooled) / counts[:, None]  # [B, D]
    means = means[index]  # [N, D]
    difference = pooled - means
    rounding = difference.norm(dim=1) < 1e-5 * means.norm(dim=1)  # [N]
    return difference.masked_fill(rounding[:, None], 0.0)


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

    Only soft_nn can reach 0: in the others the remaining positives stay in the denominator, so that their floor is
    log |P| (of infonce, on average over the positive drawn).

    embeddings [N, E], unit rows (see `ContrastiveHead`); correct [N] bool; group [N], which prompt a row answers.
    level: where positives and candidates come from.
        group   P: same verdict, same prompt   A: same prompt
        cross   P: same verdict, same prompt   A: the whole batch
        batch   P: same verdict, any prompt    A: the whole batch
    similarity: "cosine" z_i . z_j, or "l2" 1 - |z_i - z_j|.
    anchors: rows that get a loss: "correct", "incorrect" or "all". A row without a positive or without a negative is
        never an anchor; a batch without an anchor gives zeros.
    positive [N]: row of the positive to use for infonce (read at anchors only); default: drawn with `generator`.
    """
    _check(embeddings, correct, group, loss, level, temperature, similarity, anchors)
    if positive is not None and positive.shape != correct.shape:
        raise ValueError(f"positive must be [N] = [{len(correct)}], found shape {tuple(positive.shape)}")
    correct = correct.bool()
    index, candidates, positives = _pairs(correct, group, level)  # [K, M], [K, M, M], [K, M, M]
    is_anchor = positives.any(2) & (candidates & ~positives).any(2)  # [K, M]
    if anchors != "all":
        is_anchor &= correct[index] == (anchors == "correct")

    # From here on one row an anchor: every row has candidates and positives, so no logarithm of an empty sum can occur.
    rows = index[is_anchor]  # [A]
    scores = _similarity(embeddings[index], similarity)[is_anchor] / temperature  # [A, M]
    A, P = candidates[is_anchor], positives[is_anchor]  # [A, M]
    log_sum_all = _masked_logsumexp(scores, A)  # [A]
    if loss == "infonce":
        columns = index[:, None, :].expand_as(candidates)[is_anchor]  # [A, M], the row that each column stands for
        chosen = _draw(P, generator) if positive is None else _given(positive[rows], columns, P)
        losses = log_sum_all - scores.gather(1, chosen)[:, 0]
    elif loss == "supcon_out":
        losses = log_sum_all - scores.masked_fill(~P, 0.0).sum(1) / P.sum(1)
    elif loss == "supcon_in":
        losses = log_sum_all - _masked_logsumexp(scores, P) + P.sum(1).to(scores.dtype).log()
    else:
        losses = log_sum_all - _masked_logsumexp(scores, P)

    per_row = losses.new_zeros(len(embeddings)).index_put((rows,), losses)  # [N]
    mask = torch.zeros_like(correct).index_fill(0, rows, True)  # [N]
    return ContrastiveLoss(per_row, mask, losses.sum() / max(1, len(rows)))


def contrastive_reward(
    loss: Tensor, correct: Tensor, *, weight: float, floor: float = -0.5, constant: float = 0.0
) -> Tensor:
    """The contrastive part of the reward, [N], from each rollout's contrastive loss [N] and verdict [N] (no gradient).

        c_i = max(constant - weight * loss_i * correct_i, floor)        CLIPO's reward, official code

    With the floor at -0.5, no constant and an outcome reward of 0 or 1, a correct rollout always earns more than an
    incorrect one. A constant is added to the incorrect ones too.
    """
    if loss.shape != correct.shape:
        raise ValueError(f"loss and correct must have one shape, found {tuple(loss.shape)} and {tuple(correct.shape)}")
    if not weight >= 0:
        raise ValueError(f"weight must be 0 or more, found {weight}")
    return (constant - weight * loss.detach() * correct).clamp(min=floor)


def _check(embeddings, correct, group, loss, level, temperature, similarity, anchors) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be [N, E], found shape {tuple(embeddings.shape)}")
    for name, tensor in (("correct", correct), ("group", group)):
        if tensor.shape != embeddings.shape[:1]:
            raise ValueError(f"{name} must be [N] = [{len(embeddings)}], found shape {tuple(tensor.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    options = (
        ("loss", loss, LOSSES),
        ("level", level, LEVELS),
        ("similarity", similarity, SIMILARITIES),
        ("anchors", anchors, ANCHORS),
    )
    for name, value, known in options:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; found {value!r}")


def _pairs(correct: Tensor, group: Tensor, level: str) -> tuple[Tensor, Tensor, Tensor]:
    """Who is compared with whom: (rows in blocks [K, M], candidates [K, M, M], positives [K, M, M]).

    A block holds rows that can see each other: one prompt's at group level, else the whole batch.
    """
    index = _blocks(group) if level == "group" else torch.arange(len(group), device=group.device)[None]
    real = index >= 0  # [K, M]
    index = index.clamp(min=0)
    itself = torch.eye(index.shape[1], dtype=torch.bool, device=index.device)
    candidates = real[:, :, None] & real[:, None, :] & ~itself  # [K, M, M]
    positives = candidates & (correct[index][:, :, None] == correct[index][:, None, :])
    if level == "cross":
        positives &= group[index][:, :, None] == group[index][:, None, :]
    return index, candidates, positives


def _blocks(group: Tensor) -> Tensor:
    """Rows of each group side by side, [K, M] row indices, filled up with -1 where a group has fewer than M."""
    inverse, counts = group.unique(return_inverse=True, return_counts=True)[1:]
    order = inverse.argsort(stable=True)  # rows sorted by group
    first = counts.cumsum(0) - counts  # where each group begins in that order
    rank = torch.arange(len(group), device=group.device) - first[inverse[order]]  # place within its group
    blocks = torch.full((len(counts), int(counts.max()) if len(counts) else 0), -1, device=group.device)
    blocks[inverse[order], rank] = order
    return blocks


def _similarity(blocks: Tensor, similarity: str) -> Tensor:
    """All pairs within each block, [K, M, M] from [K, M, E]."""
    cosine = blocks @ blocks.transpose(1, 2)
    if similarity == "cosine":
        return cosine
    # |a - b|^2 = 2 - 2 a.b for unit vectors. The clamp keeps the root's gradient finite (0) where the two coincide.
    return 1 - (2 - 2 * cosine).clamp(min=1e-8).sqrt()


def _masked_logsumexp(scores: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp(scores) over the mask, exactly: no epsilon, the maximum taken over the mask only."""
    return scores.masked_fill(~mask, -torch.inf).logsumexp(1)


def _draw(positives: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniformly drawn positive of each anchor, as a column index [A, 1]."""
    if len(positives) == 0:
        return positives.new_zeros((0, 1), dtype=torch.long)  # multinomial refuses an empty batch
    return torch.multinomial(positives.float(), 1, generator=generator)


def _given(positive: Tensor, columns: Tensor, positives: Tensor) -> Tensor:
    """The column [A, 1] in which the given positive [A] of each anchor stands."""
    found = (columns == positive[:, None]) & positives  # [A, M]
    if not found.any(1).all():
        raise ValueError(f"positive names row {positive[~found.any(1)][0].item()}, which is no positive of its anchor")
    return found.int().argmax(1, keepdim=True)
