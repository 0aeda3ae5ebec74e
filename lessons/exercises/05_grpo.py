"""Exercise 5: GRPO's three formulas.

Minutes: 20. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/05_grpo.py` tells right from wrong;
with --solution it checks lessons/solutions/05_grpo.py, which is there to be read
afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(R - mean of the group) / (std of the group + 1e-6), [N] from rewards [N].

    Exactly 0 where all rewards of a group are equal. The group_size rollouts of a prompt
    stand side by side. The std divides by group_size - 1, as torch's does.
    """
    raise NotImplementedError("A view as [B, G] gives you the groups.")


def clipped_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """The mean over the mask of max(-A r, -A clip(r, 1 - clip, 1 + clip)).

    The ratio r is exp(logprobs - old_logprobs). logprobs, old_logprobs, mask [N, T];
    advantages [N]. What lies outside the mask may be anything, NaN included.
    """
    raise NotImplementedError(
        "Replace what is masked before you compute with it: 0 times NaN is NaN."
    )


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference), one per token; any shape.

    The tokens were drawn by the policy.
    """
    raise NotImplementedError("Three terms, of which one is -1.")


# The checks. Reading them is allowed.


def check_advantages(advantages):
    expect(
        advantages(torch.tensor([1.0, 0.0]), 2),
        [0.70711, -0.70711],
        "one right, one wrong",
    )
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    expect(
        advantages(rewards, 4),
        [1.5, -0.5, -0.5, -0.5, -1.5, 0.5, 0.5, 0.5],
        "two prompts, four rollouts each",
    )
    equal = advantages(torch.cat([torch.full((16,), 0.9), torch.eye(16)[0]]), 16)[:16]
    expect_true(
        bool((equal == 0).all()),
        "sixteen rewards of 0.9 beside a mixed group must give exactly 0",
    )


def check_clipped_loss(clipped_loss):
    old, mask = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
    both = torch.tensor([1.0, -1.0])
    expect(clipped_loss(old, old, both, mask, 0.2), 0.0, "ratio 1: the advantages cancel")
    doubled = old + torch.tensor(2.0).log()
    expect(
        clipped_loss(doubled, old, both, mask, 0.2),
        (-1.2 + 2.0) / 2,
        "ratio 2: only the positive one is clipped",
    )
    halved = old - torch.tensor(2.0).log()
    expect(
        clipped_loss(halved, old, both, mask, 0.2),
        (-0.5 + 0.8) / 2,
        "ratio 1/2: only the negative one is clipped",
    )
    mask = torch.tensor([[True, True], [True, False]])
    padded = torch.where(mask, doubled, torch.nan)
    expect(
        clipped_loss(padded, old, both, mask, 0.2),
        (-2.4 + 2.0) / 3,
        "NaN in the padding, a mean over 3 tokens",
    )
    leaf = torch.where(mask, 0.0, torch.nan).requires_grad_()
    clipped_loss(leaf, old, both, mask, 0.2).backward()
    expect(
        leaf.grad,
        [[-1 / 3, -1 / 3], [1 / 3, 0.0]],
        "the gradient at ratio 1; no NaN of the padding may reach it",
    )


def check_k3(k3):
    same = torch.tensor([-1.0, -2.0])
    expect(k3(same, same), [0.0, 0.0], "equal log-probs")
    expect(k3(torch.tensor([0.0]), torch.tensor([-0.5])), [0.10653], "d = 0.5")
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    mean = (policy * k3(policy.log(), reference.log())).sum()
    expect(
        mean,
        (policy * (policy / reference).log()).sum(),
        "its mean over the policy must be KL(policy || reference)",
    )


if __name__ == "__main__":
    report(globals())
