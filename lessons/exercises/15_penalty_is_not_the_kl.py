"""Suspect: the penalty is not the KL.

Minutes: 10. Difficulty: medium.

"The penalty in the log should be the divergence from the reference. On a small
vocabulary one can add that up, and it is another number; once the policy has moved
far, the penalty is several times as large. It does hold the policy back."

Mend this file; nothing is missing, one thing is wrong. It runs its own check; with
--solution it checks the mended file in lessons/solutions, which begins with the cause:

    python lessons/exercises/15_penalty_is_not_the_kl.py
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def penalty(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k3 estimate (Schulman 2020) of KL(policy || reference) per token, [N, T].

    From the log-probs of tokens that the policy has drawn, under the policy and under the
    reference. Its mean is the divergence; it is never negative, and 0 where the two
    agree. The reference gets no gradient.
    """
    d = logprobs - ref_logprobs.detach()
    return torch.expm1(d) - d  # expm1(d): exp(d) - 1, exact for small d, too


# The check. Reading it is allowed; it knows the symptom only.


def check_penalty(penalty):
    same = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    expect(penalty(same, same), torch.zeros(2), "equal log-probs")
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.5, 2.0):  # how far the two lie apart
        logits = size * torch.randn(2, 7, generator=generator, dtype=torch.float64)
        policy, reference = logits.log_softmax(1)
        token_penalties = penalty(policy, reference)
        expect_true(bool((token_penalties >= 0).all()), "a penalty is negative")
        kl = (policy.exp() * (policy - reference)).sum()
        mean = (policy.exp() * token_penalties).sum()
        expect(
            mean,
            kl,
            f"logits of size {size}: its mean under the policy must be the KL",
        )
    leaf = torch.tensor([-1.0, -3.0], requires_grad=True)
    held = torch.tensor([-2.0, -2.0], requires_grad=True)
    penalty(leaf, held).sum().backward()
    expect_true(held.grad is None or not held.grad.any(), "the reference got a gradient")
    expect_true(
        bool(leaf.grad[0] > 0 > leaf.grad[1]),
        "a gradient that leads away from the reference",
    )


if __name__ == "__main__":
    report(globals())
