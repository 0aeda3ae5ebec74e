"""Exercise 6: see what a reward pays for before training with it.

Minutes: 20. Difficulty: easy.

Fill in the three functions. `python lessons/exercises/06_blind.py` tells right from
wrong. With --solution it checks lessons/solutions/06_blind.py, which is there to be read
afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def oracle_rewards(
    correct: Tensor, step_is_right: Tensor, step_exists: Tensor, penalty: float
) -> Tensor:
    """An oracle that counts wrong steps: rewards, [N] float32.

    A right answer gets 1 - penalty * (share of wrong steps), a wrong one 0.

    correct [N] bool; step_is_right, step_exists [N, steps] bool: rollouts have up to so
    many steps, and what step_is_right says of a step that does not exist means nothing. A
    right answer without any step has no wrong ones. However large the penalty is, a right
    answer never gets less than 0. Else being wrong would pay.
    """
    raise NotImplementedError("Count the steps that exist and are wrong. Mind 0 / 0.")


def informative_prompts(rewards: Tensor, group_size: int) -> Tensor:
    """The share of groups whose rewards [N] are not all equal: a 0-d float tensor.

    The group_size rollouts of a prompt stand side by side. Equal means equal: sixteen
    rewards of 0.9 are.
    """
    raise NotImplementedError(
        "Compare with one of the group, not with the mean: that of equal numbers rounds."
    )


def mean_advantages(advantages: Tensor, correct: Tensor, faithful: Tensor) -> Tensor:
    """Mean advantages of the faithful, the hallucinated and the wrong rollouts: [3].

    A kind without rollouts has 0. advantages [N]; correct, faithful [N] bool: is the
    answer right, is every step right? A rollout with a wrong answer is wrong, even if
    all its steps are right.
    """
    raise NotImplementedError("Three masks, which share no rollout and leave none out.")


# The checks. Reading them is allowed.


def check_oracle_rewards(oracle_rewards):
    yes, no = True, False
    all_exist = torch.ones(4, 4, dtype=torch.bool)
    right = torch.tensor(
        [[yes, yes, yes, yes], [yes, no, yes, yes], [no, no, no, no], [yes, no, yes, yes]]
    )
    correct = torch.tensor([yes, yes, yes, no])
    found = oracle_rewards(correct, right, all_exist, 0.5)
    expect(
        found,
        [1.0, 0.875, 0.5, 0.0],
        "0, 1 and 4 wrong steps of 4; the last has 1 and a wrong answer",
    )
    expect(
        oracle_rewards(~correct, right, all_exist, 0.5),
        [0.0, 0.0, 0.0, 0.875],
        "the same with answers reversed",
    )
    exist = torch.tensor(
        [[yes, yes, no, no], [yes, yes, no, no], [no, no, no, no], [yes, yes, yes, no]]
    )
    found = oracle_rewards(correct, right & exist, exist, 0.5)
    expect(
        found,
        [1.0, 0.75, 1.0, 0.0],
        "2, 2, 0 and 3 steps, 1 of the second's wrong: a share of those that exist",
    )
    found = oracle_rewards(correct, right | ~exist, exist, 0.5)
    expect(
        found,
        [1.0, 0.75, 1.0, 0.0],
        "the same, and step_is_right is true where no step exists",
    )
    expect(
        oracle_rewards(correct, right, all_exist, 4.0),
        [1.0, 0.0, 0.0, 0.0],
        "penalty 4: never below a wrong answer",
    )


def check_informative_prompts(informative_prompts):
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    expect(informative_prompts(rewards, 3), 0.0, "all right, all wrong")
    expect(informative_prompts(rewards, 2), 1 / 3, "the same rewards in groups of 2")
    expect(
        informative_prompts(torch.tensor([1.0, 0.0, 1.0, 0.0]), 2),
        1.0,
        "every group has both",
    )
    expect(
        informative_prompts(torch.tensor([0.5, 1.0, 0.5, 0.5]), 2),
        0.5,
        "no wrong answer, but different rewards",
    )
    expect(
        informative_prompts(torch.full((48,), 0.9), 16),
        0.0,
        "sixteen equal rewards of 0.9 per group",
    )


def check_mean_advantages(mean_advantages):
    # two groups of 4
    advantages = torch.tensor([0.9, 0.9, -0.9, -0.9, 0.5, 0.5, 0.5, -1.5])
    correct = advantages > 0
    faithful = torch.tensor([True, False, True, False, True, False, False, False])
    found = mean_advantages(advantages, correct, faithful)
    expect(
        found,
        [0.7, 1.9 / 3, -1.1],
        "2 faithful, 3 hallucinated, 3 wrong, of which one has right steps",
    )
    none = torch.zeros(8, dtype=torch.bool)
    found = mean_advantages(advantages, correct, none)
    expect_true(
        found is not None and not bool(torch.as_tensor(found).isnan().any()),
        "no faithful rollout: NaN",
    )
    expect(found[0], 0.0, "no faithful rollout")
    expect(mean_advantages(torch.zeros(8), none, none), [0.0, 0.0, 0.0], "all wrong")


if __name__ == "__main__":
    report(globals())
