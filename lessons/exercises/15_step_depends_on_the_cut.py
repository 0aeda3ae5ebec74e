"""Suspect: the step depends on the cut.

Minutes: 10. Difficulty: hard.

"A batch that does not fit into the memory goes through in pieces, and the gradients
add up. It should be the very same step. But the same batch in four pieces and in one
gives two different gradients, and no rounding is that large."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_step_depends_on_the_cut.py
"""

from collections.abc import Callable

import torch
from checking import expect, report
from torch import Tensor

from minclipo.grpo import token_weights


def backward(loss_of: Callable, mask: Tensor, pieces: list[Tensor]) -> float:
    """Add the gradient of the batch's loss to .grad piece by piece; returns the loss.

    The loss is the mean over the batch's tokens. mask [N, T]: which of them are real.
    pieces: the row numbers, cut up. loss_of(rows, weights): the sum of weights * token
    losses over some rows, with gradient; weights [rows, T].
    """
    total = 0.0
    for rows in pieces:
        weights = token_weights(mask[rows], "token_mean")  # [rows, T]
        loss = loss_of(rows, weights) / len(pieces)
        loss.backward()  # frees the graph of this piece before the next one begins
        total += loss.item()
    return total


# The check. Reading it is allowed; it knows the symptom only.


def check_backward(backward):
    mask = torch.arange(6) < torch.tensor([6, 1, 2, 6])[:, None]  # 15 tokens
    token_losses = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

    def step(*cut):
        # one weight a row, so that the gradient tells whose share it is
        scale = torch.ones(4, requires_grad=True)
        scaled = lambda rows: scale[rows, None] * token_losses[rows]
        loss_of = lambda rows, weights: (weights * scaled(rows)).sum()
        return backward(loss_of, mask, [torch.tensor(rows) for rows in cut]), scale.grad

    loss, gradient = step([0, 1, 2, 3])
    expect(loss, token_losses[mask].mean(), "in one piece: the loss")
    expect(gradient, (token_losses * mask).sum(1) / 15, "in one piece: the gradient")
    for cut in ([[0, 3], [1, 2]], [[0, 1, 2], [3]], [[3], [2], [1], [0]]):
        cut_loss, cut_gradient = step(*cut)
        expect(
            cut_gradient,
            gradient,
            f"rows cut as {cut}: the gradient, against that of one piece",
        )
        expect(cut_loss, loss, f"rows cut as {cut}: the loss, against that of one piece")


if __name__ == "__main__":
    report(globals())
