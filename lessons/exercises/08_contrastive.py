"""Exercise 8: contrastive losses that survive what a batch contains.

Minutes: 30. Difficulty: hard.

Fill in the four functions. `python lessons/exercises/08_contrastive.py` tells right from
wrong; with --solution it checks lessons/solutions/08_contrastive.py, which is there to be
read afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def masked_logsumexp(scores: Tensor, mask: Tensor) -> Tensor:
    """The log of the sum of exp(scores) over the mask, without an epsilon.

    [N] from scores [N, M] and mask [N, M] bool.

    Scores may be far beyond what exp can take. Outside of the mask they may be larger
    still, -inf or NaN. A row whose mask is empty gets -inf.
    """
    raise NotImplementedError("What must not count can be made -inf: exp(-inf) is 0.")


def soft_nn(scores: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
    """The soft-nearest-neighbour loss of each row, [N].

    scores [N, M] are already divided by the temperature.

    positives, candidates [N, M] bool; every positive is a candidate, too, and the other
    candidates are negatives. Outside of the candidates scores may be anything, NaN
    included. Exactly 0, with a gradient of 0, for rows without a positive or without a
    negative.

    Choosing the rows with torch.where at the end need not be enough. The log of an empty
    sum is -inf, and its slope infinite or undefined. torch.where gives it the weight 0,
    and 0 times that is NaN. masked_fill writes zeros over it on the way back, but not if
    a mask was added or multiplied, nor where something is computed between masked_fill
    and the sum.
    """
    raise NotImplementedError(
        "Pick the rows that have both, compute on them alone, and put the results back."
    )


def supcon_out(scores: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
    """The SupCon-out loss of each row, [N]; everything else as in `soft_nn`."""
    raise NotImplementedError("InfoNCE's mean over the positive that it draws.")


def anchors(correct: Tensor, group_size: int) -> Tensor:
    """Which rollouts have a loss at group level, [N] bool from correct [N] bool.

    A right rollout is an anchor if its group holds another right one and a wrong one. The
    group_size rollouts of a prompt stand side by side.
    """
    raise NotImplementedError("Count the right ones of each group.")


# The checks. Reading them is allowed.


def check_masked_logsumexp(masked_logsumexp):
    yes, no, inf = True, False, torch.inf
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[yes, yes, no], [yes, yes, yes]])
    expect(
        masked_logsumexp(scores, mask),
        [2.31326, 1.09861],
        "small scores: two of three, and three zeros",
    )
    huge = torch.tensor([[1000.0, 999.0, 0.0], [-1000.0, -1000.0, 0.0]])
    expect(
        masked_logsumexp(huge, mask)[:1],
        [1000.31326],
        "scores near 1000: exp overflows, take out the largest first",
    )
    far = torch.tensor([[-1000.0, -1000.0, 0.0], [-60.0, -60.0, -60.0]])
    expect(
        masked_logsumexp(far, mask),
        [-999.30685, -58.90139],
        "scores far below those outside of the mask, or below 0: take out the largest "
        "*of the mask*, add no epsilon",
    )
    broken = torch.tensor([[1.0, 2.0, torch.nan], [0.0, -inf, 0.0]])
    expect(
        masked_logsumexp(broken, mask),
        [2.31326, 0.69315],
        "NaN outside of the mask, and a score of -inf inside",
    )
    found = masked_logsumexp(scores, mask & torch.tensor([[no], [yes]]))
    expect_true(
        found is not None and found[0].item() == -inf,
        "an empty mask must give -inf, the log of an empty sum",
    )
    expect(found[1:], [1.09861], "a row beside an empty one")


CANDIDATES = torch.tensor(
    [[False, True, True, True], [True, False, True, True], [True, True, False, True]]
)
POSITIVES = torch.tensor(
    [[False, True, True, False], [False, False, False, False], [True, True, False, True]]
)
# 9: the row itself
SCORES = torch.tensor([[9.0, 2.0, 1.0, 0.0], [1.0, 9.0, 3.0, 2.0], [1.0, 2.0, 9.0, 3.0]])


def common_to_both(loss, of_the_first: float, far: float):
    """What the two losses share: scores in which only the first row is an anchor."""
    expect(
        loss(SCORES[:1], POSITIVES[:1], CANDIDATES[:1]),
        [of_the_first],
        "scores 2 and 1 against 0, itself excluded",
    )
    expect(
        loss(SCORES, POSITIVES, CANDIDATES),
        [of_the_first, 0.0, 0.0],
        "rows without positive, without negative must be 0",
    )
    broken = SCORES.masked_fill(~CANDIDATES, torch.nan).requires_grad_()
    found = loss(broken, POSITIVES, CANDIDATES)
    expect(found, [of_the_first, 0.0, 0.0], "NaN outside of the candidates")
    found.sum().backward()
    expect(broken.grad[1:], torch.zeros(2, 4), "the gradient of rows that are no anchors")
    expect_true(
        bool(broken.grad.isfinite().all()),
        "the gradient of the anchor must be finite, and 0 for itself",
    )
    # temperature 0.02: 50 is the cosine of 1 with itself
    scores = torch.tensor([[50.0, -20.0, -25.0, -30.0]])
    expect(
        loss(scores, POSITIVES[:1], CANDIDATES[:1]),
        [far],
        "scores 70 below the row's own",
        tolerance=1e-4,
    )
    empty = loss(SCORES[1:], POSITIVES[1:], CANDIDATES[1:])
    expect(empty, [0.0, 0.0], "a batch without any anchor")


def check_soft_nn(soft_nn):
    common_to_both(soft_nn, 0.09434, 4.5095e-5)
    scores, everything = torch.tensor([[0.0, 1.0, 1.0, -1e4]]), CANDIDATES[:1]
    expect(
        soft_nn(scores, POSITIVES[:1], everything),
        [0.0],
        "equal positives, a negative infinitely far: its floor is 0",
    )


def check_supcon_out(supcon_out):
    common_to_both(supcon_out, 0.90761, 2.50676)
    scores, everything = torch.tensor([[0.0, 1.0, 1.0, -1e4]]), CANDIDATES[:1]
    expect(
        supcon_out(scores, POSITIVES[:1], everything),
        [0.69315],
        "equal positives, a far negative: its floor is log 2",
    )


def check_anchors(anchors):
    found = anchors(torch.tensor([True, True, False]), 3)
    expect_true(
        getattr(found, "dtype", None) == torch.bool,
        "expected a bool tensor, one entry a rollout",
    )
    expect(found, [True, True, False], "two right, one wrong")
    expect(
        anchors(torch.tensor([True, False, False]), 3),
        [False] * 3,
        "one right: it has no positive",
    )
    expect(
        anchors(torch.tensor([True, True, True]), 3),
        [False] * 3,
        "all right: no negatives at group level",
    )
    expect(anchors(torch.tensor([False, False, False]), 3), [False] * 3, "all wrong")
    expect(
        anchors(torch.tensor([True, True]), 2),
        [False] * 2,
        "groups of two can have no anchor",
    )
    correct = torch.tensor([True, False, False, True, True, False, True, True, True])
    expected = [False, False, False, True, True, False, False, False, False]
    expect(
        anchors(correct, 3),
        expected,
        "three groups, of which only the middle one has anchors",
    )


if __name__ == "__main__":
    report(globals())
