"""Exercise 11: who agrees with whom, and what other prompts say.

Minutes: 30. Difficulty: medium.

Fill in the three functions. `python lessons/exercises/11_agreement.py` tells right from
wrong; with --solution it checks lessons/solutions/11_agreement.py, which is there to be
read afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def cluster_losses(sizes: Tensor, between: float, tau: float, strangers: int) -> Tensor:
    """The soft-NN loss of a rollout of each cluster, [clusters].

    The right rollouts of one prompt form clusters of `sizes` [clusters] rollouts, two
    rollouts or more altogether. The cosine is 1 within a cluster and `between` for
    different clusters; all these are positives of each other. `strangers` rollouts of
    other prompts, with cosine 0, are the negatives. No rollout is compared with itself.
    A tau of 0.001 must give numbers, not NaN or inf.
    """
    raise NotImplementedError(
        "count times exp(score) is exp(score + log(count)): torch.logsumexp adds those."
    )


def prompt_contrast(own: Tensor, others: Tensor, mask: Tensor, limit: float) -> Tensor:
    """How much likelier each completion is under its own prompt, nats per token, [N].

    own [N, T] and others [others, N, T] are log-probs. The gain of a token is own minus
    the log of the mean *probability* under the other prompts, at most `limit` and at
    least -limit. The result is the mean gain over the tokens of mask [N, T] bool, 0 for a
    row without any. Padding may hold anything, NaN included. Log-probs may be -200, or
    -inf in `others`.
    """
    raise NotImplementedError(
        "log of a mean of exp: torch.logsumexp minus a log. Mask before you sum."
    )


def other_prompts(circle: Tensor, others: int) -> Tensor:
    """Which prompts each of B prompts is compared with, [others, B].

    circle [B] is an order of 0..B-1, in which the prompts stand in a circle. Row 0 holds
    for each prompt the one that stands next to it, row 1 the one after that, and so on,
    going round. Column circle[place] holds circle[place + 1], circle[place + 2] ... No
    prompt is its own other: ValueError unless 1 <= others < B.
    """
    raise NotImplementedError(
        "Tensor.roll turns the circle; a column belongs to a prompt, not to a place."
    )


# The checks. Reading them is allowed.


def check_cluster_losses(cluster_losses):
    found = cluster_losses(torch.tensor([11, 5]), -1.0, 0.5, 496)
    expect(
        found,
        [2.03493, 2.83185],
        "11 against 5 at a cosine of -1, tau 0.5, 496 strangers",
    )
    found = cluster_losses(torch.tensor([3, 3]), 1.0, 0.5, 0)
    expect(found, [0.0, 0.0], "no strangers: nothing but positives, a loss of 0")
    found = cluster_losses(torch.tensor([1, 1]), 0.0, 0.5, 1)
    expect(
        found,
        [0.69315, 0.69315],
        "two at cosine 0 and one stranger: log 2 (is a rollout its own positive?)",
    )
    found = cluster_losses(torch.tensor([4, 6, 6]), -0.5, 0.5, 496)
    expect_true(
        bool(found[1] < found[0]) and bool(found[1] == found[2]),
        "4, 6 and 6: the larger clusters pay less",
    )
    found = cluster_losses(torch.tensor([11, 5]), -1.0, 0.001, 496)
    expect(found, [0.0, 0.0], "tau 0.001: strangers are infinitely far, nobody pays")
    found = cluster_losses(torch.tensor([1, 2]), -0.004, 0.001, 1)
    expect(
        found,
        [3.34282, 0.0],
        "1 against 2 at a cosine of -0.004, tau 0.001, one stranger",
    )


def check_prompt_contrast(prompt_contrast):
    everything = torch.ones(1, 2, dtype=torch.bool)
    own = torch.tensor([[0.9, 0.7]]).log()
    others = torch.tensor([[[0.02, 0.7]], [[0.04, 0.7]]]).log()
    expect(
        prompt_contrast(own, others, everything, 6.0),
        [3.40120 / 2],
        "30 times as likely, then as likely: log 30 / 2",
    )
    own, others = torch.tensor([[0.5]]).log(), torch.tensor([[[0.5]], [[1e-6]]]).log()
    found = prompt_contrast(own, others, everything[:, :1], 6.0)
    expect(
        found,
        [0.69315],
        "others 0.5 and 0.000001: log 2; the mean is of probabilities, not of log-probs",
    )
    own, others = torch.tensor([[0.0, -9.0]]), torch.tensor([[[-9.0, 0.0]]])
    expect(
        prompt_contrast(own, others, everything, 6.0),
        [0.0],
        "gains of 9 and -9, limit 6: 6 and -6",
    )
    own, others = torch.tensor([[0.0, -1.0]]), torch.tensor([[[-9.0, -1.0]]])
    expect(
        prompt_contrast(own, others, everything, 6.0),
        [3.0],
        "gains of 9 and 0: the limit is each token's",
    )
    own, others = torch.tensor([[-199.0, -1.0]]), torch.tensor([[[-200.0, -torch.inf]]])
    expect(
        prompt_contrast(own, others, everything, 6.0),
        [3.5],
        "-199 against -200 gains 1, an impossible word the limit",
    )
    own, others = torch.full((2, 3), torch.nan), torch.full((1, 2, 3), torch.nan)
    own[0, 0], others[0, 0, 0] = -1.0, -3.0
    mask = torch.tensor([[True, False, False], [False, False, False]])
    expect(
        prompt_contrast(own, others, mask, 6.0),
        [2.0, 0.0],
        "one token then NaN padding; a row without tokens",
    )
    found = prompt_contrast(
        torch.tensor([[-1.0, 0.0]]),
        torch.tensor([[[-4.0, -5.0]]]),
        everything & mask[:1, :2],
        2.0,
    )
    expect(found, [2.0], "limit 2: a token that gains 3, then padding that would gain 5")


def check_other_prompts(other_prompts):
    expect(
        other_prompts(torch.arange(4), 1),
        [[1, 2, 3, 0]],
        "four prompts in their order, one other each",
    )
    expect(
        other_prompts(torch.arange(4), 2),
        [[1, 2, 3, 0], [2, 3, 0, 1]],
        "four prompts in their order, two others each",
    )
    circle = torch.tensor([2, 0, 3, 1])
    expect(
        other_prompts(circle, 1),
        [[3, 2, 0, 1]],
        "circle 2, 0, 3, 1: after 0 comes 3, after 1 comes 2",
    )
    three = [[3, 2, 0, 1], [1, 0, 3, 2], [2, 3, 1, 0]]
    expect(other_prompts(circle, 3), three, "circle 2, 0, 3, 1, three others each")
    found = other_prompts(
        torch.randperm(32, generator=torch.Generator().manual_seed(0)), 3
    )
    expect_true(not bool((found == torch.arange(32)).any()), "a prompt is its own other")
    for row in found:
        expect(
            row.sort().values,
            torch.arange(32),
            "each prompt must serve once in every row",
        )
    for others in (4, 0):
        try:
            other_prompts(torch.arange(4), others)
        except ValueError:
            continue
        expect_true(False, f"four prompts and {others} others must be a ValueError")


if __name__ == "__main__":
    report(globals())
