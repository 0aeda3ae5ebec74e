"""Exercise 9: the contrastive reward, and when it says nothing.

Minutes: 20. Difficulty: medium.

Fill in the four functions. `python lessons/exercises/09_reward.py` tells right from
wrong; with --solution it checks lessons/solutions/09_reward.py, which is there to be read
afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def contrastive_reward(
    loss: Tensor, correct: Tensor, weight: float, floor: float
) -> Tensor:
    """max(-weight * loss, floor) for right rollouts, exactly 0 for wrong ones, [N].

    From loss [N] and correct [N] bool.

    The loss of a wrong rollout may be anything, NaN included. floor is negative, -0.5
    say. What comes back is a reward: no gradient may flow from it into the loss.
    """
    raise NotImplementedError("False times NaN is NaN; torch.where chooses.")


def has_signal(contrastive: Tensor, correct: Tensor, group_size: int) -> Tensor:
    """Which prompts' *right* rollouts differ in reward by more than 1e-6? [B] bool.

    contrastive [N], 0 for wrong rollouts; correct [N] bool; the group_size rollouts of a
    prompt stand side by side. A prompt with one right rollout or none has no signal.
    """
    raise NotImplementedError(
        "Largest minus smallest of a group, once the wrong ones are out of the way."
    )


def largest_weight(loss: Tensor, correct: Tensor, floor: float) -> float:
    """The largest weight at which the floor cuts nobody off.

    That is, -weight * loss >= floor for every right rollout.

    loss [N], 0 or more, any value for wrong rollouts; correct [N] bool; floor negative.
    torch.inf if no right rollout pays anything.
    """
    raise NotImplementedError("Which right rollout reaches the floor first?")


def cross_anchors(correct: Tensor, group: Tensor) -> Tensor:
    """Which rollouts have a loss at cross level? [N] bool.

    From correct [N] bool and group [N], in any order.

    Exercise 8 asked this for group level. An anchor is a right rollout that has a
    positive, another right one of its prompt, and a negative, any other rollout of the
    batch that is no positive. Rows with equal entries in group are of one prompt. Prompts
    may have different numbers of rollouts.
    """
    raise NotImplementedError(
        "How many positives has each? What is left of the batch, without them and itself?"
    )


# The checks. Reading them is allowed.


def check_contrastive_reward(contrastive_reward):
    loss = torch.tensor([1.0, 2.0, 9.0, 3.0])
    correct = torch.tensor([True, True, True, False])
    found = contrastive_reward(loss, correct, 0.2, -0.5)
    expect(
        found,
        [-0.2, -0.4, -0.5, 0.0],
        "weight 0.2, floor -0.5: three right, one wrong (the floor comes last)",
    )
    expect(
        contrastive_reward(loss, correct, 0.1, -0.15),
        [-0.1, -0.15, -0.15, 0.0],
        "weight 0.1, floor -0.15",
    )
    broken = torch.tensor([1.0, torch.nan, torch.inf])
    found = contrastive_reward(broken, torch.tensor([True, False, False]), 0.1, -0.5)
    expect(found, [-0.1, 0.0, 0.0], "wrong rollouts whose loss is NaN or infinite")
    found = contrastive_reward(loss.requires_grad_(), correct, 0.1, -0.5)
    expect_true(
        not found.requires_grad,
        "a gradient flows from the reward into the loss; is a detach missing?",
    )


def check_has_signal(has_signal):
    correct = torch.tensor([True, True, True, False])
    expect(
        has_signal(torch.tensor([-0.2, -0.2, -0.3, 0.0]), correct, 4),
        [True],
        "right ones pay 0.2, 0.2 and 0.3",
    )
    found = has_signal(torch.tensor([-0.2, -0.2, -0.2, 0.0]), correct, 4)
    expect(
        found,
        [False],
        "right ones all pay 0.2, a wrong one pays nothing: the wrong one is no signal",
    )
    found = has_signal(torch.tensor([-0.2, -0.2 - 1e-7, -0.2, 0.0]), correct, 4)
    expect(found, [False], "a difference of 1e-7 is rounding")
    found = has_signal(torch.tensor([-0.2, -0.2, -0.2001, 0.0]), correct, 4)
    expect(found, [True], "right ones pay 0.2, 0.2 and 0.2001: small, but a signal")
    contrastive = torch.tensor([-0.3, 0.0, 0.0, 0.0, -0.3, -0.4])
    correct = torch.tensor([True, False, False, False, True, True])
    expect(
        has_signal(contrastive, correct, 2),
        [False, False, True],
        "one right, none right, both right and different",
    )


def check_largest_weight(largest_weight):
    loss, correct = torch.tensor([1.0, 2.5, 0.5]), torch.tensor([True, True, True])
    expect(
        largest_weight(loss, correct, -0.5),
        0.2,
        "losses 1, 2.5 and 0.5, all right, floor -0.5",
    )
    found = largest_weight(loss, torch.tensor([True, False, True]), -0.5)
    expect(found, 0.5, "the loss of 2.5 is a wrong rollout's, who pays nothing")
    expect(largest_weight(loss, correct, -0.1), 0.04, "floor -0.1")
    broken = torch.tensor([torch.nan, 2.0])
    expect(
        largest_weight(broken, torch.tensor([False, True]), -0.5),
        0.25,
        "a wrong rollout whose loss is NaN",
    )
    loss = torch.tensor([0.0, 2.0])
    found = largest_weight(loss, torch.tensor([True, False]), -0.5)
    expect(found, torch.inf, "the only right rollout has loss 0: any weight will do")
    expect(
        largest_weight(loss, torch.tensor([False, False]), -0.5),
        torch.inf,
        "nobody is right: any weight will do",
    )


def check_cross_anchors(cross_anchors):
    yes, no = True, False
    correct = torch.tensor([yes, yes, no, yes, no, no])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    expect(
        cross_anchors(correct, group),
        [yes, yes, no, no, no, no],
        "two right ones; then one alone, without a positive",
    )
    correct = torch.tensor([yes, yes, yes, no, no, no])
    found = cross_anchors(correct, group)
    expect(
        found,
        [yes, yes, yes, no, no, no],
        "a prompt that is all right: the other prompt's are its negatives",
    )
    found = cross_anchors(torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    expect(
        found,
        [yes] * 4,
        "all right, two prompts: right answers to other prompts are negatives, too",
    )
    found = cross_anchors(
        torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.long)
    )
    expect(found, [no] * 4, "a batch of one prompt that is all right: no negative")
    found = cross_anchors(torch.tensor([yes, yes, no]), torch.zeros(3, dtype=torch.long))
    expect(
        found,
        [yes, yes, no],
        "a batch of one prompt with a wrong rollout: that is the negative",
    )
    correct, group = torch.tensor([yes, yes, no, yes, yes]), torch.tensor([7, 3, 7, 3, 9])
    expect(
        cross_anchors(correct, group),
        [no, yes, no, yes, no],
        "prompts 7, 3, 7, 3, 9: mixed rows, unequal sizes",
    )
    expect(
        cross_anchors(~correct & correct, group),
        [no] * 5,
        "nobody is right: wrong rollouts are no anchors",
    )


if __name__ == "__main__":
    report(globals())
