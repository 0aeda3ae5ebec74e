"""Exercise 12: one formula of each relative, in the form that a trainer needs.

Minutes: 40. Difficulty: hard.

Fill in the four functions. `python lessons/exercises/12_family.py` tells right from
wrong; with --solution it checks lessons/solutions/12_family.py, which is there to be read
afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def dr_grpo_weights(mask: Tensor, max_length: int) -> Tensor:
    """Weights [N, T] with which the token losses [N, T] are summed to Dr. GRPO's loss.

    0 in the padding. mask [N, T] bool. The batch is padded to its own longest rollout, so
    T is at most max_length, and often less. A rollout without a single token counts as a
    rollout all the same.
    """
    raise NotImplementedError(
        "Neither T nor the number of tokens may show in the result."
    )


def gspo_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each rollout's mean log-ratio, at every one of its tokens: [N, T] from [N, T].

    The value at a token is the mean, and 0 in the padding. The gradient is that of the
    lesson's token form: the value at token t passes a gradient of 1 to log_ratio at token
    t and none to the others. Padding (mask False) may hold anything, NaN included, and
    gets no gradient.
    """
    raise NotImplementedError("x - x.detach() is 0, and its gradient is 1.")


def gmpo_bounded(log_ratio: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """GMPO's log-ratios [N, T], clipped one by one, for each sign on one side only.

    At most bound where A > 0, at least -bound where A < 0, untouched where A = 0.
    log_ratio [N, T]; advantages [N], one per rollout.
    """
    raise NotImplementedError("Which tokens would the max of GRPO's loss have cut off?")


def overlong(lengths: Tensor, max_length: int, buffer: int, penalty: float) -> Tensor:
    """What DAPO adds to the rewards for length, [N] float, from lengths [N] in tokens.

    0 up to max_length - buffer, -penalty from max_length on, a straight line in between.
    With buffer 0 there is no in between: -penalty from max_length on, 0 below.
    """
    raise NotImplementedError("How far into the buffer is the rollout, as a share?")


# The checks. Reading them is allowed.


def check_dr_grpo_weights(dr_grpo_weights):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weights = dr_grpo_weights(mask, 10)
    expect(
        weights,
        [[0.05, 0.05, 0.0], [0.05, 0.05, 0.05]],
        "two rollouts, at most 10 tokens each, padded to 3",
    )
    expect(dr_grpo_weights(mask, 3), mask / 6, "the same two, at most 3 tokens each")
    wider = torch.cat((mask, torch.zeros(2, 4, dtype=torch.bool)), 1)
    expect(
        dr_grpo_weights(wider, 10)[:, :3],
        weights,
        "four more columns of padding must change no weight",
    )
    empty = torch.cat((mask, torch.zeros(2, 3, dtype=torch.bool)))
    expect(
        dr_grpo_weights(empty, 10)[:2],
        mask / 40,
        "two more rollouts without a token: there are four rollouts now",
    )


def check_gspo_log_ratio(gspo_log_ratio):
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_ratio = torch.tensor([[0.3, 0.0, -0.6], [0.5, 9.0, 9.0]], requires_grad=True)
    found = gspo_log_ratio(log_ratio, mask)
    expect(
        found,
        [[-0.1, -0.1, -0.1], [0.5, 0.0, 0.0]],
        "the values, of a rollout of three tokens and one of one",
    )
    expect_true(found.requires_grad, "no gradient gets through: was everything detached?")
    (found * torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])).sum().backward()
    spread = torch.allclose(log_ratio.grad[0], torch.full((3,), 7 / 3))
    expect_true(
        not spread,
        "a token's gradient is spread over its rollout: each token must keep its own",
    )
    expect(
        log_ratio.grad,
        [[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]],
        "gradients, where the tokens' losses weigh 1, 2, 4, ...",
    )
    padded = torch.tensor([[0.2, 0.4, torch.nan]], requires_grad=True)
    found = gspo_log_ratio(padded, torch.tensor([[True, True, False]]))
    expect(found, [[0.3, 0.3, 0.0]], "NaN in the padding")
    found.sum().backward()
    expect(padded.grad, [[1.0, 1.0, 0.0]], "the gradient with NaN in the padding")


def check_gmpo_bounded(gmpo_bounded):
    log_ratio = torch.tensor([[-2.0, -0.1, 0.1, 2.0]])
    found = gmpo_bounded(log_ratio, torch.tensor([0.7]), 0.4)
    expect_true(
        found is None or found.min() < -1,
        "a good token that has become less likely must keep its log-ratio",
    )
    expect(found, [[-2.0, -0.1, 0.1, 0.4]], "a positive advantage")
    expect(
        gmpo_bounded(log_ratio, torch.tensor([-0.7]), 0.4),
        [[-0.4, -0.1, 0.1, 2.0]],
        "a negative advantage",
    )
    expect(
        gmpo_bounded(log_ratio, torch.tensor([0.0]), 0.4),
        log_ratio,
        "advantage 0: nothing to clip",
    )
    both = gmpo_bounded(log_ratio.repeat(2, 1), torch.tensor([1.0, -1.0]), 0.4)
    expect(
        both,
        [[-2.0, -0.1, 0.1, 0.4], [-0.4, -0.1, 0.1, 2.0]],
        "a right and a wrong rollout in one batch",
    )
    leaf = log_ratio.clone().requires_grad_()
    gmpo_bounded(leaf, torch.tensor([0.7]), 0.4).sum().backward()
    expect(
        leaf.grad,
        [[1.0, 1.0, 1.0, 0.0]],
        "the gradient, a positive advantage: only the clipped token gets none",
    )


def check_overlong(overlong):
    lengths = torch.tensor([1, 12, 13, 14, 16])
    expect(
        overlong(lengths, 16, 4, 1.0),
        [0.0, 0.0, -0.25, -0.5, -1.0],
        "at most 16 tokens, buffer 4, penalty 1",
    )
    expect(
        overlong(lengths, 16, 4, 0.5),
        [0.0, 0.0, -0.125, -0.25, -0.5],
        "the same with penalty 0.5",
    )
    expect(
        overlong(torch.tensor([20]), 16, 4, 1.0),
        [-1.0],
        "longer than max_length: not more than the penalty",
    )
    expect(
        overlong(torch.tensor([8, 15, 16]), 16, 16, 1.0),
        [-0.5, -0.9375, -1.0],
        "the buffer is the whole length",
    )
    expect(
        overlong(torch.tensor([15, 16, 17]), 16, 0, 0.5),
        [0.0, -0.5, -0.5],
        "buffer 0: a cliff at max_length",
    )


if __name__ == "__main__":
    report(globals())
