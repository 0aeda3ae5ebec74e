"""Suspect: it runs away.

Minutes: 10. Difficulty: medium.

"With one update a sample all is well. With several, which is what the clip is there
for, good tokens are pushed up without end, and a good token that came down by accident
does not come up again."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_runs_away.py
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor

from minclipo.grpo import policy_loss


def loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """PPO's clipped loss (arXiv 1707.06347, eq. 7): the sum of weights * token losses.

    logprobs, old_logprobs, weights [N, T]; advantages [N]. A token's ratio is how much
    likelier it has become since it was sampled; beyond 1 - clip and 1 + clip a move no
    longer pays. A scalar with gradient.
    """
    ratio = (logprobs - old_logprobs.detach()).exp()  # [N, T]
    A = advantages[:, None]  # [N, 1]
    clipped = ratio.clamp(1 - clip, 1 + clip)  # [N, T]
    objective = torch.maximum(A * ratio, A * clipped)  # [N, T], to be made large
    return -(weights * objective).sum()


# The check. Reading it is allowed; it knows the symptom only.


def check_loss(loss):
    one = torch.ones(1, 1, dtype=torch.float64)

    def found(ratio, advantage):
        """(loss, its gradient with respect to the log-prob) of a single token."""
        logprob = (ratio * one).log().requires_grad_()
        value = loss(logprob, 0 * one, torch.tensor([float(advantage)]), one, 0.2)
        value.backward()
        return value.item(), logprob.grad.item()

    expect(found(1.0, 1), (-1.0, -1.0), "an unmoved good token: (loss, gradient)")
    expect(found(1.0, -1), (1.0, 1.0), "an unmoved bad token: (loss, gradient)")
    expect_true(
        found(0.5, 1)[1] < 0,
        "a good token at half its probability is not pulled up again",
    )
    expect_true(
        found(2.0, -1)[1] > 0,
        "a bad token at twice its probability is not pulled down again",
    )
    expect_true(
        found(2.0, 1)[1] == 0, "a good token at twice its probability is still pushed up"
    )
    expect_true(
        found(0.5, -1)[1] == 0, "a bad token at half its probability is still pushed down"
    )
    expect(found(2.0, 1)[0], -1.2, "a good token at twice its probability: the loss")
    expect(found(2.0, -1)[0], 2.0, "a bad token at twice its probability: the loss")

    generator = torch.Generator().manual_seed(0)
    logprobs, old = torch.randn(2, 3, 5, generator=generator).log_softmax(2)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    A, weights = torch.tensor([1.0, -0.5, 2.0]), mask / mask.sum()
    options = dict(weights=weights, clip_low=0.3, clip_high=0.3)
    wanted = policy_loss(logprobs, old, A, mask, **options).loss
    expect(
        loss(logprobs, old, A, weights, 0.3),
        wanted,
        "three rows of unequal length, clip 0.3, against the package",
    )


if __name__ == "__main__":
    report(globals())
