"""Suspect: agreement costs something.

Minutes: 10. Difficulty: medium.

"Soft-NN (lesson 8) should cost a right rollout nothing where the right ones say the
same and the wrong ones lie far away. Here they pay, and the more so the fewer they
are: just where the prompt is hard."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_agreement_costs.py
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor

from minclipo.contrastive import contrastive_loss


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
    candidates = group[:, None] == group
    positives = candidates & correct & ~itself
    anchors = correct & positives.any(1) & (candidates & ~correct).any(1)  # [N]
    scores = embeddings @ embeddings.T / temperature  # [N, N]
    log_all = scores.masked_fill(~candidates, -torch.inf)[anchors].logsumexp(1)
    log_positive = scores.masked_fill(~positives, -torch.inf)[anchors].logsumexp(1)
    return scores.new_zeros(len(scores)).index_put((anchors,), log_all - log_positive)


# The check. Reading it is allowed; it knows the symptom only.


def check_contrast(contrast):
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    for count in (2, 4):
        embeddings = torch.stack([right] * count + [wrong] * 2)
        correct = torch.tensor([True] * count + [False] * 2)
        group = torch.zeros(count + 2, dtype=torch.long)
        found = contrast(embeddings, correct, group, 0.05)
        expect(
            found,
            torch.zeros(count + 2),
            f"{count} right ones that agree, wrong ones far away",
        )
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(
        torch.randn(12, 3, generator=generator), dim=1
    ).requires_grad_()
    # the last prompt has one right rollout
    correct = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1]).bool()
    group = torch.arange(12) // 4
    found = contrast(embeddings, correct, group, 0.5)
    options = dict(loss="soft_nn", level="group", temperature=0.5)
    expect(
        found,
        contrastive_loss(embeddings, correct, group, **options).loss,
        "three prompts, against the package",
    )
    (gradient,) = torch.autograd.grad(found.sum(), embeddings)
    expect_true(
        bool(gradient.isfinite().all()),
        "the values are right; the gradient of a row without positives is not finite",
    )


if __name__ == "__main__":
    report(globals())
