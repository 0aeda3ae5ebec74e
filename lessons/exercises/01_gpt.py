"""Exercise 1: norm, rotation and attention, as real checkpoints need them.

Minutes: 40. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/01_gpt.py` tells right from wrong;
with --solution it checks lessons/solutions/01_gpt.py, which is there to be read
afterwards.
"""

import math

import torch
from checking import expect, expect_true, report
from torch import Tensor


def rms_norm(u: Tensor, gain: Tensor, eps: float) -> Tensor:
    """gain * u / sqrt(mean(u^2) + eps), the mean over the last dimension.

    u [..., D] and gain [D], both of one dtype, which the result has too. float16 and
    bfloat16 are types of 16 bits. float16 ends at 65504, and bfloat16 has fewer
    than three digits. So both are computed in float32, other types as they are.
    """
    raise NotImplementedError("In float16 the square of 300 is infinite.")


def rotate(channels: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn the pairs of channels [N, H, T, C], of any dtype, which the result has too.

    Pair number n, of C/2, is channel n together with channel n + C/2. It is turned from
    the first of the two towards the second, by the angle position * theta^(-2n / C).

    positions [N, T], whole numbers: every row of the batch has its own, shared by its
    heads. The channels may be bfloat16, but the angles must be exact all the same.
    """
    raise NotImplementedError(
        "Angles of which shape? They have no heads, and half of the channels."
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(C)) value, where no query sees a later place.

    query and result [N, H, T, C]; key and value [N, K, S, C]. Write out the scores.

    Grouped heads: H is a multiple of K. The first H / K query heads use key and value
    head 0, the next H / K use head 1, and so on.

    Kept keys: S is at least T. There are keys of S places, and the queries are those of
    the last T. Lesson 2 needs that, since it keeps the keys of earlier places.
    """
    raise NotImplementedError("Which places does query 0 see if S is T + 2?")


# The checks. Reading them is allowed.


def check_rms_norm(rms_norm):
    one = torch.ones(2)
    expect(
        rms_norm(torch.tensor([3.0, 4.0]), one, 0.0),
        [0.848528, 1.131371],
        "the norm of (3, 4)",
    )
    expect(
        rms_norm(torch.tensor([5.0, 5.0]), one, 0.0),
        [1.0, 1.0],
        "(5, 5): RMSNorm subtracts no mean",
    )
    rows = rms_norm(torch.tensor([[3.0, 4.0], [30.0, 40.0]]), one, 0.0)
    expect(
        rows,
        [[0.848528, 1.131371]] * 2,
        "two rows, the second ten times the first: each has its own mean",
    )
    expect(
        rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]), 0.0),
        [1.697056, 0.0],
        "with gain = (2, 0)",
    )
    expect(
        rms_norm(torch.tensor([0.3, 0.4]), one, 0.125),
        [0.6, 0.8],
        "eps = 0.125 belongs under the root",
    )
    half = rms_norm(torch.tensor([300.0, 300.0], dtype=torch.float16), one.half(), 1e-5)
    expect(half, [1.0, 1.0], "(300, 300) in float16: compute in float32", tolerance=1e-3)
    expect_true(
        half.dtype == torch.float16,
        f"the result for float16 should be float16, found {half.dtype}",
    )
    brief = rms_norm(torch.tensor([1.0, 17.0]).bfloat16(), one.bfloat16(), 1e-5)
    expect(
        brief,
        [0.08301, 1.4141],
        "(1, 17) in bfloat16: compute in float32",
        tolerance=2e-4,
    )
    double = rms_norm(torch.tensor([3.0, 4.0]).double(), one.double(), 0.0)
    third = torch.tensor([3.0, 4.0]).double() / math.sqrt(12.5)
    expect(double, third, "float64 should not lose digits on the way", tolerance=1e-12)


def check_rotate(rotate):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 6, generator=generator)  # [N, H, T, C]
    places = torch.tensor([[0, 1, 2], [7, 8, 9]])  # [N, T]
    expect(
        rotate(x, torch.zeros(2, 3, dtype=torch.long), 10.0),
        x,
        "position 0 turns nothing",
    )
    hand = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    one = torch.tensor([[1]])
    expect(
        rotate(hand, one, 10.0).flatten(), [0.540302, 0.841471], "(1, 0) at position 1"
    )
    four = torch.eye(4).view(4, 1, 1, 1, 4)  # each a single place of a single head
    expect(
        rotate(four[0], one, 100.0).flatten(),
        [0.540302, 0, 0.841471, 0],
        "channel 0 of four is paired with channel 2, not with its neighbour",
    )
    expect(
        rotate(four[1], one, 100.0).flatten(),
        [0, 0.995004, 0, 0.099833],
        "theta = 100: the second of two pairs turns by 0.1 a place",
    )
    turned = rotate(x, places, 10.0)
    expect(turned.norm(dim=-1), x.norm(dim=-1), "a rotation keeps lengths")
    for b, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = rotate(x[b : b + 1, h : h + 1], places[b : b + 1], 10.0)[0, 0]
        expect(
            turned[b, h],
            alone,
            f"row {b}, head {h} has the positions of row {b}, whatever else is there",
        )
    moved = rotate(x, places + 100, 10.0)
    what = "moving all places by 100 changes no dot product"
    expect(moved @ moved.mT, turned @ turned.mT, what, tolerance=1e-3)
    far = torch.tensor([[257, 258, 259]] * 2)
    half = rotate(x.bfloat16(), far, 10000.0)
    exact = rotate(x.bfloat16().float(), far, 10000.0)
    expect(
        half.float(),
        exact,
        "bfloat16, position 257: bfloat16 has no number 257, the angles must",
        tolerance=0.03,
    )
    expect_true(
        half.dtype == torch.bfloat16,
        f"the result for bfloat16 should be bfloat16, found {half.dtype}",
    )


def check_causal_attention(causal_attention):
    column = lambda *numbers: torch.tensor(numbers).float().view(1, 1, -1, 1)  # C = 1
    values, zeros = column(8, 4, 0), column(0, 0, 0)
    expect(
        causal_attention(zeros, zeros, values),
        column(8, 6, 4),
        "equal scores: the mean of what has been so far",
    )
    keys = torch.zeros(1, 1, 3, 4)
    keys[..., 0] = torch.tensor([0, math.log(3), math.log(2)])
    mixed = causal_attention(torch.full_like(keys, 2.0), keys, values.expand(1, 1, 3, 4))
    expect(
        mixed[0, 0, :, 0],
        [8, 5, 20 / 6],
        "C = 4: after division by 2 the weights should be 1, then 1 : 3, then 1 : 3 : 2",
    )
    huge = causal_attention(column(1000, 1000, 1000), column(1, 2, 3), values).flatten()
    expect(
        huge,
        [8, 4, 0],
        "scores of 1000 and more: softmax subtracts the largest, so no inf and no NaN",
    )

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    before = causal_attention(q, k, v)
    expect_true(
        before is not None and before.shape == q.shape,
        "the result should have the shape of query, [N, H, T, C]",
    )
    k[:, :, 4], v[:, :, 4] = 9.0, -9.0
    expect(
        causal_attention(q, k, v)[:, :, :4],
        before[:, :, :4],
        "a changed last place must not reach earlier ones",
    )
    # value head 0 gives 0, value head 1 gives 1
    two = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 5, 8)
    heads = causal_attention(q[:1], k[:1], two)[0, :, 0, 0]
    expect(
        heads,
        [0, 0, 1, 1],
        "four query heads on two: 0 and 1 use the first, 2 and 3 the second",
    )
    expect(
        causal_attention(zeros[:, :, :1], zeros, values).flatten(),
        [4],
        "one query, three keys: it is at the last",
    )
    expect(
        causal_attention(zeros[:, :, :2], zeros, values).flatten(),
        [6, 4],
        "two queries, three keys: at the last two",
    )


if __name__ == "__main__":
    report(globals())
