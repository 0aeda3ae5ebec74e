"""Solution: a mean of means.

Each piece was divided by its own number of tokens, and then all pieces counted the
same: a token weighed more in a piece of short rows. The weights belong to the whole
batch and are cut together with it; then the pieces only add up. With rows of one
length, or with one piece, nothing is to be seen.
"""

from collections.abc import Callable

from torch import Tensor

from minclipo.grpo import token_weights


def backward(loss_of: Callable, mask: Tensor, pieces: list[Tensor]) -> float:
    """Add the gradient of the batch's loss to .grad piece by piece; returns the loss.

    The loss is the mean over the batch's tokens. mask [N, T]: which of them are real.
    pieces: the row numbers, cut up. loss_of(rows, weights): the sum of weights * token
    losses over some rows, with gradient; weights [rows, T].
    """
    total = 0.0
    weights = token_weights(mask, "token_mean")  # [N, T], of the whole batch
    for rows in pieces:
        loss = loss_of(rows, weights[rows])
        loss.backward()  # frees the graph of this piece before the next one begins
        total += loss.item()
    return total
