"""Solution: the larger of two objectives, where it must be the smaller.

Lesson 5 takes the larger of two *losses*; of two objectives, which have the other
sign, that is the smaller. The wrong one cuts off the gradient of a token that has
moved the wrong way, and not that of one that has moved far enough. While every ratio
is 1 the two are equal, so no check on policy can tell.
"""

import torch
from torch import Tensor


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
    objective = torch.minimum(A * ratio, A * clipped)  # [N, T], to be made large
    return -(weights * objective).sum()
