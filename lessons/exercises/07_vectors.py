"""Exercise 7: rollouts as vectors, as they come: padded, in bfloat16, in any order.

Minutes: 20. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/07_vectors.py` tells right from
wrong; with --solution it checks lessons/solutions/07_vectors.py, which is there to be
read afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's states over its mask, [N, D] float32.

    From hidden [N, T, D] and mask [N, T] bool.

    hidden may be bfloat16: add up in float32. What lies outside the mask may be anything,
    NaN included. Every row has at least one token.
    """
    raise NotImplementedError("NaN times 0 is NaN: replace it, do not multiply it away.")


def centred(pooled: Tensor, group: Tensor) -> Tensor:
    """Each state minus the mean over its own group.

    [N, D] from pooled [N, D] and group [N].

    Rows are of one group where their entries in `group` are equal. Groups may have any
    size and their rows may be mixed. A row becomes exactly 0 if what is left of it is
    shorter than 1e-5 times the length of the group's mean.
    """
    raise NotImplementedError(
        "group[:, None] == group[None, :] says who belongs with whom."
    )


def mean_auc(scores: Tensor, faithful: Tensor, group: Tensor) -> Tensor:
    """The mean over the groups of the AUC within the group.

    From scores [N], faithful [N] bool and group [N].

    AUC: the probability that a random faithful row scores higher than a random other row
    of the same group, ties counting one half. Groups without a faithful row, or with
    nothing but faithful ones, do not count.
    """
    raise NotImplementedError("A loop over group.unique() will do.")


# The checks. Reading them is allowed.


def check_pooled(pooled):
    hidden = torch.tensor(
        [[[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]], [[5.0, 1.0], [1.0, 1.0], [7.0, 7.0]]]
    )
    everything = torch.ones(2, 3, dtype=torch.bool)
    expect(pooled(hidden, everything), [[4.0, 2.0], [13 / 3, 3.0]], "nothing masked")
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expect(
        pooled(hidden, mask),
        [[2.0, 3.0], [5.0, 1.0]],
        "two tokens and one token, the rest is padding",
    )
    broken = hidden.masked_fill(~mask[..., None], torch.nan)
    expect(pooled(broken, mask), [[2.0, 3.0], [5.0, 1.0]], "NaN in the padding")
    long = torch.full((1, 1000, 1), 1.0, dtype=torch.bfloat16)
    long[0, 0] = 300.0
    mask = torch.ones(1, 1000, dtype=torch.bool)
    found = pooled(long, mask)
    expect_true(
        found.dtype == torch.float32,
        f"bfloat16 states: expected a float32 mean, found {found.dtype}",
    )
    expect(
        found,
        [[1.299]],
        "300 and 999 ones in bfloat16: the sum is 1299, which bfloat16 cannot hold",
    )


def check_centred(centred):
    states = torch.tensor(
        [[10.0, 1.0], [10.0, 1.0], [10.0, -2.0], [0.0, 5.0], [4.0, 5.0]]
    )
    differences = torch.tensor(
        [[0.0, 1.0], [0.0, 1.0], [0.0, -2.0], [-2.0, 0.0], [2.0, 0.0]]
    )
    group = torch.tensor([0, 0, 0, 1, 1])
    expect(centred(states, group), differences, "a group of three, then one of two")
    order = torch.tensor([3, 0, 4, 1, 2])
    expect(
        centred(states[order], group[order] + 7),
        differences[order],
        "the same rows mixed, groups called 7 and 8",
    )
    expect(centred(states[:1], group[:1]), [[0.0, 0.0]], "a group of one")

    four = torch.tensor([[0.2, 0.7], [0.3, 0.4], [0.4, 0.3], [0.7, 0.2]])
    # equal but for the order of summation
    twice = torch.stack([sum(four), sum(four.flip(0))])
    found = centred(twice, torch.tensor([0, 0]))
    expect_true(
        bool((found == 0).all()),
        "equal but for rounding: expected exactly 0, what is left is rounding",
    )
    found = centred(1e-6 * twice, torch.tensor([0, 0]))
    expect_true(
        bool((found == 0).all()),
        "the same in small: 1e-5 *of the mean* is the limit, small means included",
    )
    near = centred(torch.tensor([[100.0, 1.0], [100.0008, 3.0]]), torch.tensor([0, 0]))
    expect(
        near,
        [[-4e-4, -1.0], [4e-4, 1.0]],
        "whole vectors are rounding or not, their single numbers are not judged",
    )
    states = 1e-6 * states
    expect(
        1e6 * centred(states, group),
        differences,
        "small vectors that differ are not rounding",
    )


def check_mean_auc(mean_auc):
    one, faithful = torch.zeros(4), torch.tensor([True, True, False, False])
    expect(
        mean_auc(torch.tensor([0.9, 0.8, 0.3, 0.1]), faithful, one),
        1.0,
        "all faithful rows above all others",
    )
    expect(
        mean_auc(torch.tensor([0.9, 0.2, 0.3, 0.1]), faithful, one),
        0.75,
        "three pairs of four in order",
    )
    expect(mean_auc(torch.full((4,), 0.5), faithful, one), 0.5, "only ties")
    scores = torch.tensor([0.9, 0.5, 0.5, 0.1])
    expect(mean_auc(scores, faithful, one), 0.875, "three pairs in order and a tie")

    scores = torch.tensor([9.0, 2.0, 8.0, 1.0, 2.0])
    faithful = torch.tensor([False, True, True, False, False])
    group = torch.tensor([5, 2, 5, 2, 2])
    expect(
        mean_auc(scores, faithful, group),
        0.375,
        "groups at 0 and 0.75, mixed rows: pairs within a group only",
    )
    scores = torch.cat([scores, scores[:3]])
    faithful = torch.tensor([0, 1, 1, 0, 0, 1, 0, 0]).bool()
    group = torch.tensor([5, 2, 5, 2, 2, 6, 7, 7])
    expect(
        mean_auc(scores, faithful, group),
        0.375,
        "the same and two groups that lack one kind: they do not count",
    )


if __name__ == "__main__":
    report(globals())
