"""Solution: the sign of d.

The mean of exp(d) - 1 - d over the policy's tokens is a chi-squared divergence minus the
KL. Only over tokens that the *reference* has drawn would it be a KL, the one of the
reference from the policy. For small d both formulas are about d^2 / 2, so the penalty
seems to work. For large d the wrong one grows like exp(d), the right one like d.
"""

import torch
from torch import Tensor


def penalty(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k3 estimate (Schulman 2020) of KL(policy || reference) per token, [N, T].

    From the log-probs of tokens that the policy has drawn, under the policy and under the
    reference. Its mean is the divergence; it is never negative, and 0 where the two
    agree. The reference gets no gradient.
    """
    d = logprobs - ref_logprobs.detach()
    return torch.expm1(-d) + d  # expm1(-d): exp(-d) - 1, exact for small d, too
