"""Exercise 4: the policy gradient, sampled and exact.

Minutes: 30. Difficulty: medium.

Fill in the four functions. `python lessons/exercises/04_policy_gradient.py` tells right
from wrong; with --solution it checks lessons/solutions/04_policy_gradient.py, which is
there to be read afterwards.
"""

import torch
from checking import expect, expect_true, report
from torch import Tensor


def surrogate(logprobs: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """A loss whose gradient is minus the policy gradient.

    It is a sum over a rollout's tokens and a mean over the rollouts. logprobs [N, T] are
    those of the tokens drawn; mask [N, T] is True for the tokens of a completion, and
    what lies outside may be anything, NaN included. A rollout without a token counts as
    one of the N. advantages [N] are constants: no gradient goes through them, even if
    they were computed from something that has one.
    """
    raise NotImplementedError(
        "A log-prob outside the mask becomes 0 before anything is computed with it."
    )


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """The baseline of each rollout, [N] from rewards [N].

    It is the mean reward of the *other* rollouts of its group. The group_size rollouts of
    a prompt stand side by side. In a group of one there are no others, and the baseline
    is 0.
    """
    raise NotImplementedError(
        "The sum of the others is the sum of the group minus one's own."
    )


def exact_gradient(logits: Tensor, rewards: Tensor, temperature: float) -> Tensor:
    """The gradient [B, V] of the expected reward, a mean over B prompts, in the logits.

    logits [B, V], rewards [B, V], one for each of a prompt's V completions. Completions
    are drawn from softmax(logits / temperature). Autograd is switched off: use the
    formula.
    """
    raise NotImplementedError(
        "The lesson has it for one prompt at temperature 1. By the chain rule, what does "
        "dividing the logits by the temperature do to a gradient? And the mean over B?"
    )


def first_token_gradient(first: Tensor, second: Tensor, rewards: Tensor) -> Tensor:
    """The gradient [V] of the expected reward of two tokens, in the first one's logits.

    first [V] are the logits of the first token. second [V, V] and rewards [V, V] have a
    row for each first token and a column for each second one: the logits of the second
    token after the first, and the reward of both together. Autograd is switched off.
    """
    raise NotImplementedError(
        "First work out the expected reward after each first token."
    )


# The checks. Reading them is allowed.


def check_surrogate(surrogate):
    mask = torch.tensor([[True, True, True], [True, False, False]])
    both = torch.tensor([1.0, -2.0])
    leaf = torch.tensor([[-0.5, -1.0, -2.0], [-0.7, 0.0, 0.0]], requires_grad=True)

    def gradient(loss):
        expect_true(loss is not None, "the function returned None; is a return missing?")
        expect_true(
            loss.ndim == 0,
            f"the loss must be one number, found shape {tuple(loss.shape)}",
        )
        expect_true(
            loss.requires_grad,
            "the loss has no gradient: the log-probs must not be detached",
        )
        return torch.autograd.grad(loss, leaf)[0]

    found = gradient(surrogate(leaf, mask, both))
    what = "an optimiser goes downhill: a positive advantage must get a negative gradient"
    expect_true(bool(found[0, 0] < 0), what)
    expect(
        found[0],
        [-0.5] * 3,
        "advantage 1: sum over the three tokens, mean over the two rollouts",
    )
    expect(
        found[1],
        [1.0, 0.0, 0.0],
        "advantage -2, one of two rollouts, one token and padding",
    )
    found = gradient(surrogate(torch.where(mask, leaf, torch.nan), mask, both))
    expect(
        found,
        [[-0.5] * 3, [1.0, 0.0, 0.0]],
        "NaN in the padding must not reach the gradient",
    )
    value = surrogate(torch.where(mask, leaf, torch.nan), mask, both)
    expect_true(bool(value.isfinite()), "NaN in the padding must not reach the loss")
    # the same values, but with a gradient
    penalised = both + 0.1 * leaf.sum(1) - 0.1 * leaf.sum(1).detach()
    found = gradient(surrogate(leaf, mask, penalised))
    expect(
        found,
        [[-0.5] * 3, [1.0, 0.0, 0.0]],
        "advantages that carry a gradient: it must not be followed",
    )
    found = gradient(surrogate(leaf, mask & torch.tensor([[False], [True]]), both))
    expect(
        found,
        [[0.0] * 3, [1.0, 0.0, 0.0]],
        "a rollout without a token is still one of the two",
    )


def check_leave_one_out(leave_one_out):
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    found = leave_one_out(rewards.clone(), 4)
    what = "that is the advantage, reward minus baseline; asked for is the baseline alone"
    expect_true(
        found is None
        or not torch.allclose(found, torch.tensor([2.0, -2.0, -2.0, 2.0]) / 3),
        what,
    )
    expect(
        found,
        [1 / 3, 2 / 3, 2 / 3, 1 / 3],
        "rewards 1 0 0 1: each one's own reward is left out",
    )
    expect(
        leave_one_out(torch.tensor([4.0, 1.0, 1.0]), 3),
        [1.0, 2.5, 2.5],
        "rewards 4 1 1, a group of three",
    )
    expect(
        leave_one_out(torch.tensor([1.0, 0.0, 0.0, 0.0]), 2),
        [0.0, 1.0, 0.0, 0.0],
        "two groups of two",
    )
    expect(
        leave_one_out(torch.tensor([0.7, 0.2]), 1),
        [0.0, 0.0],
        "two groups of one: no others, no baseline",
    )


def check_exact_gradient(exact_gradient):
    with torch.no_grad():
        logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
        by_hand = torch.tensor([[-0.16, 0.18, -0.08, 0.06]])
        expect(
            exact_gradient(logits, rewards, 1.0), by_hand, "the lesson's four completions"
        )
        expect(
            exact_gradient(logits, rewards + 10, 1.0),
            by_hand,
            "10 more for everybody changes nothing",
            tolerance=1e-4,
        )
        two = exact_gradient(logits.repeat(2, 1), torch.cat([rewards, 1 - rewards]), 1.0)
        expect(
            two,
            torch.cat([by_hand, -by_hand]) / 2,
            "two prompts, each with its own expected reward; the mean over both",
        )
        expect(
            exact_gradient(2 * logits, rewards, 2.0),
            by_hand / 2,
            "temperature 2, the same probabilities",
        )
        far, rewards = torch.tensor([[1000.0, 1000.0, 0.0]]), torch.tensor([[1.0, 0, 0]])
        what = "logits of 1000: their exp is infinite"
        expect(exact_gradient(far, rewards, 1.0), [[0.25, -0.25, 0.0]], what)


def check_first_token_gradient(first_token_gradient):
    with torch.no_grad():
        first = torch.tensor([0.5, 0.3, 0.2]).log()
        alike = first.repeat(3, 1)  # after each first token
        total_only = torch.tensor([0.0, 1.0, 0.0]).repeat(3, 1)
        first_only = torch.tensor([1.0, 0.0, 0.0])[:, None].repeat(1, 3)
        what = "a first token that changes neither the second nor the reward"
        expect(first_token_gradient(first, alike, total_only), [0.0, 0.0, 0.0], what)
        what = "a reward for the first token 0 alone: the lesson's formula"
        expect(first_token_gradient(first, alike, first_only), [0.25, -0.15, -0.1], what)
        second = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
        rewards = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        what = "a reward for the second token, whose chances the first one decides"
        expect(first_token_gradient(torch.zeros(2), second, rewards), [0.1, -0.1], what)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, generator=generator, requires_grad=True)
    second = torch.randn(3, 3, generator=generator)
    rewards = torch.rand(3, 3, generator=generator)
    expected = sum(
        (first.log_softmax(0)[a] + second[a].log_softmax(0)[b]).exp() * rewards[a, b]
        for a in range(3)
        for b in range(3)
    )
    (enumerated,) = torch.autograd.grad(expected, first)
    with torch.no_grad():
        expect(
            first_token_gradient(first.detach(), second, rewards),
            enumerated,
            "against autograd over all nine completions",
        )


if __name__ == "__main__":
    report(globals())
