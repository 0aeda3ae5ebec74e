"""Advantages, the clipped policy loss and the KL estimators: gradients in float64, slow loops, refusals."""

import math

import pytest
import torch

from minclipo.grpo import aggregate, group_advantages, kl_penalty, masked_mean, policy_loss, token_weights

RATIOS = ["token", "sequence", "geometric_mean"]
AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum", "constant"]


def ragged_mask(*lengths: int, width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def random_batch(seed: int = 0, drift: float = 0.3, dtype=torch.float64):
    """(logprobs with gradient, old_logprobs, advantages, mask) of 4 rows of 1 to 6 tokens."""
    g = torch.Generator().manual_seed(seed)
    mask = ragged_mask(6, 1, 4, 3)
    old = -torch.rand(4, 6, generator=g, dtype=dtype)
    logprobs = (old + drift * torch.randn(4, 6, generator=g, dtype=dtype)).requires_grad_()
    return logprobs, old, torch.randn(4, generator=g, dtype=dtype), mask


def test_the_docstring_example():
    got = group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2)
    torch.testing.assert_close(got, torch.tensor([0.7071, -0.7071, 0.0, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
@pytest.mark.parametrize("reward", [0.9, 0.7, 1 / 3, 0.1, -2.3e6])
def test_equal_rewards_give_exactly_zero(scale, reward):
    """Catches: the float32 mean of sixteen 0.9s is not 0.9; over a tiny std the difference is a large advantage."""
    for size, dtype in ((16, torch.float32), (3, torch.float64), (7, torch.float64)):
        advantages = group_advantages(torch.full((2 * size,), reward, dtype=dtype), size, scale=scale)
        assert (advantages == 0).all()


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_equal_rewards_give_exactly_zero_without_an_epsilon(scale):
    """Catches: 0 / 0 where nothing is added to what divides."""
    assert (group_advantages(torch.ones(4), 2, scale=scale, epsilon=0.0) == 0).all()
    mixed = group_advantages(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2, epsilon=0.0)
    torch.testing.assert_close(mixed, torch.tensor([0.0, 0.0, -(0.5**0.5), 0.5**0.5]))


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_rounding_is_no_difference(scale):
    """Two rewards that differ in the last bits of a float32. Catches: a rounding error of 6e-8 divided by epsilon; a
    tolerance that swallows real differences, at any size of the rewards."""
    for size in (1e-3, 1.0, 1e6):
        rewards = size * torch.tensor([1.0, 1 + 2**-22, 1.0, 1.0])
        assert rewards[0] != rewards[1] and (group_advantages(rewards, 4, scale=scale) == 0).all()
        rewards = size * torch.tensor([1.0, 1 + 2**-20, 1.0, 1.0])
        assert (group_advantages(rewards, 4, scale=scale) != 0).all()
    assert (group_advantages(torch.tensor([1.0, 1 + 1e-12], dtype=torch.float64), 2, scale=scale) != 0).all()


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_advantages_of_a_group_sum_to_zero(scale):
    """Catches: a mean over the batch where the group's is meant."""
    advantages = group_advantages(torch.randn(24, dtype=torch.float64), 8, scale=scale)
    torch.testing.assert_close(advantages.view(3, 8).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)


def test_std_advantages_do_not_see_scale_and_shift():
    """Catches: an epsilon so large that it acts. (This is also why a small contrastive penalty acts in full.)"""
    rewards = torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, 8), group_advantages(3 * rewards - 5, 8), atol=1e-5, rtol=1e-5)


def test_groups_do_not_mix():
    """Catches: a view with the axes exchanged."""
    rewards = torch.randn(12)
    changed = rewards.clone()
    changed[6:] = torch.randn(6)
    assert torch.equal(group_advantages(rewards, 6)[:6], group_advantages(changed, 6)[:6])


def test_a_group_of_one_gives_nothing():
    assert (group_advantages(torch.tensor([0.0, 1.0, 5.0]), 1) == 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [0, 1.5])
def test_policy_loss_gradient(ratio, aggregation, dual_clip):
    """Catches: any gradient that is not the derivative of the value. Ratios lie away from the kinks for these seeds.

    GSPO and GMPO hand the gradient of a mean out to its tokens (`sequence_log_ratio`). It is not the derivative of any
    single token's loss, but with equal weights along a row, as here, it is the derivative of their sum.
    """
    for seed in range(5):
        logprobs, old, advantages, mask = random_batch(seed)
        options = dict(clip_low=0.1, clip_high=0.28, dual_clip=dual_clip)
        options["weights"] = token_weights(mask, aggregation, 8, torch.float64)
        loss = lambda x: policy_loss(x, old, advantages, mask, ratio=ratio, **options).loss
        assert torch.autograd.gradcheck(loss, logprobs, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_dual_clip_works_with_every_ratio(ratio):
    """Every token is 4 times as likely; rows of 3, 2 and 1 tokens have advantages -1, 1, 0: one is bounded.

    Catches: a dual clip of one ratio only, of other advantages, that leaves a gradient, that counts rows for tokens.
    """
    mask, old = ragged_mask(3, 2, 1), torch.full((3, 3), -2.0, dtype=torch.float64)
    advantages = torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64)
    for dual_clip, bounded_row, cut in ((0, 4, 0), (4.1, 4, 0), (3.0, 3, 3 / 6)):
        logprobs = (old + math.log(4)).requires_grad_()
        options = dict(ratio=ratio, clip_high=9.0, dual_clip=dual_clip)
        options["weights"] = token_weights(mask, "sequence_mean", dtype=torch.float64)
        found = policy_loss(logprobs, old, advantages, mask, **options)
        found.loss.backward()
        assert found.loss.item() == pytest.approx((bounded_row - 4 + 0) / 3)
        assert found.dual_clip_fraction.item() == pytest.approx(cut)
        wanted = 4 / 3 * torch.tensor([[1 / 3] * 3 if cut == 0 else [0.0] * 3, [-1 / 2, -1 / 2, 0], [0.0] * 3])
        torch.testing.assert_close(logprobs.grad, wanted.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_gradient(kind):
    logprobs, ref, _, _ = random_batch()
    assert torch.autograd.gradcheck(lambda x: kl_penalty(x, ref, kind), logprobs)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("padding", [(-7.0, -3.0), (-200.0, -1.0), (-torch.inf, 0.0), (torch.nan, 0.0)])
def test_the_kl_penalty_reads_nothing_outside_its_mask(kind, padding):
    """Value and gradient are those of clean padding. Without a mask they cannot be: nothing says then that a NaN is
    padding. Catches: a slope of inf at padding, whose product with the weight 0 is a gradient of NaN."""
    mask, found = torch.tensor([[True, True, False]]), []
    for here, there in (padding, (0.0, 0.0)):
        logprobs = torch.tensor([[-1.0, -2.0, here]], requires_grad=True)
        penalty = kl_penalty(logprobs, torch.tensor([[-1.0, -1.5, there]]), kind, mask)
        loss = aggregate(penalty, token_weights(mask))
        loss.backward()
        found.append((loss.detach(), logprobs.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1][0, 1] != 0 and found[0][1][0, 2] == 0


def test_nothing_has_no_mean():
    """Catches: 0, the best value of many a metric, where there was nothing to measure."""
    values = torch.tensor([3.0, torch.nan, 5.0])
    assert masked_mean(values, torch.tensor([1, 0, 1])) == 4 and masked_mean(values, torch.zeros(3)).isnan()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_policy_loss_equals_a_slow_loop(aggregation):
    """Catches: a broadcast that puts advantages on the wrong axis, min for max, a divisor that counts padding."""
    logprobs, old, advantages, mask = random_batch(drift=0.6)
    rows = []
    for i in range(4):
        tokens = []
        for t in range(6):
            if mask[i, t]:
                ratio = float((logprobs[i, t].detach() - old[i, t]).exp())
                clipped = min(max(ratio, 0.8), 1.28)
                tokens.append(-min(float(advantages[i]) * ratio, float(advantages[i]) * clipped))
        rows.append(tokens)
    total = sum(sum(tokens) for tokens in rows)
    wanted = {
        "token_mean": total / sum(len(tokens) for tokens in rows),
        "sequence_mean": sum(sum(tokens) / len(tokens) for tokens in rows) / 4,
        "sequence_sum": total / 4,
        "constant": total / (4 * 9),
    }[aggregation]
    weights = token_weights(mask, aggregation, 9, torch.float64)
    got = policy_loss(logprobs, old, advantages, mask, clip_high=0.28, weights=weights)
    assert got.loss.item() == pytest.approx(wanted, rel=1e-12)


def test_on_policy_the_gradient_is_the_policy_gradient():
    """With ratio 1: loss -mean(A), gradient -A / (number of tokens). Catches: a ratio detached on the wrong side."""
    _, old, advantages, mask = random_batch()
    logprobs = old.clone().requires_grad_()
    found = policy_loss(logprobs, old, advantages, mask)
    found.loss.backward()
    wanted = -(advantages[:, None] * mask) / mask.sum()
    torch.testing.assert_close(found.loss.detach(), wanted.sum())
    torch.testing.assert_close(logprobs.grad, wanted)
    assert found.clip_fraction == 0 and found.kl == 0


def test_the_clip_stops_the_gradient_on_one_side_only():
    """A token that is already 2x as likely gets no push up, but may still be pushed down. Catches: clip by itself."""
    old, mask = torch.full((2, 1), -2.0), torch.ones(2, 1, dtype=torch.bool)
    logprobs = (old + torch.tensor(2.0).log()).requires_grad_()
    policy_loss(logprobs, old, torch.tensor([1.0, -1.0]), mask).loss.backward()
    assert logprobs.grad[0] == 0 and logprobs.grad[1] > 0


@pytest.mark.parametrize("ratio", RATIOS)
def test_values_outside_the_mask_are_never_read(ratio):
    """Catches: mask applied by multiplication, where 0 * inf is NaN; a mean log-ratio over padding."""
    logprobs, old, advantages, mask = random_batch()
    reference = policy_loss(logprobs, old, advantages, mask, ratio=ratio, dual_clip=1.2)
    (wanted,) = torch.autograd.grad(reference.loss, logprobs)
    for garbage, old_garbage in ((torch.nan, torch.inf), (-torch.inf, -torch.inf), (7.0, torch.nan)):
        spoilt = torch.where(mask, logprobs.detach(), garbage).requires_grad_()
        found = policy_loss(spoilt, torch.where(mask, old, old_garbage), advantages, mask, ratio=ratio, dual_clip=1.2)
        found.loss.backward()
        assert all(torch.equal(value, vars(reference)[name]) for name, value in vars(found).items())
        assert torch.equal(spoilt.grad, wanted)


def test_a_batch_without_tokens_gives_zero():
    """Catches: a division by the number of tokens where there are none."""
    for aggregation in AGGREGATIONS:
        assert aggregate(torch.ones(2, 3), token_weights(torch.zeros(2, 3), aggregation, 3)) == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_of_the_whole_step_make_micro_batches_exact(aggregation):
    """Catches: a mean of micro-batch means, which weighs tokens by the luck of the split."""
    logprobs, _, _, mask = random_batch()
    weights = token_weights(mask, aggregation, 7, torch.float64)
    whole = aggregate(logprobs, weights)
    parts = sum(aggregate(logprobs[rows], weights[rows]) for rows in ([0], [1, 3], [2]))
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_for_every_ratio(ratio, aggregation):
    """Loss and gradient, off-policy. Catches: a ratio or a clip that depends on the other rows of the batch."""
    logprobs, old, advantages, mask = random_batch(drift=0.6)
    weights = token_weights(mask, aggregation, 7, torch.float64)
    loss_of = lambda rows: (
        policy_loss(
            logprobs[rows], old[rows], advantages[rows], mask[rows], ratio=ratio, weights=weights[rows], dual_clip=1.5
        ).loss
    )
    losses = loss_of(slice(None)), sum(loss_of(rows) for rows in ([0], [1, 3], [2]))
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in losses]
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def categorical(seed: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=dtype).log_softmax(0)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimators_are_unbiased_by_enumeration(kind):
    """E over the policy's own tokens of the estimate is KL(policy || reference). Catches: KL the wrong way round."""
    policy, reference = categorical(0), categorical(1)
    expected = (policy.exp() * kl_penalty(policy, reference, kind)).sum()
    torch.testing.assert_close(expected, (policy.exp() * (policy - reference)).sum())


def test_the_gradients_of_the_kl_estimators_by_enumeration():
    """k2's is that of the KL, k1's is 0 on average (as a loss it does nothing), k3's that of the KL the other way."""
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    reference = categorical(1)

    def expected_gradient(kind: str) -> torch.Tensor:
        logprobs = logits.log_softmax(0)
        weights = logprobs.detach().exp()  # tokens are drawn from the policy; no gradient through the drawing
        return torch.autograd.grad((weights * kl_penalty(logprobs, reference, kind)).sum(), logits)[0]

    policy = logits.log_softmax(0)
    (true,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    torch.testing.assert_close(expected_gradient("k2"), true)
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(7, dtype=torch.float64))
    (reverse,) = torch.autograd.grad((reference.exp() * (reference - logits.log_softmax(0))).sum(), logits)
    torch.testing.assert_close(expected_gradient("k3"), reverse)


def test_k3_does_not_lose_small_differences():
    """Catches: exp(-d) - 1 + d in float32, which is 0 or negative for d = 1e-4."""
    d = torch.tensor([1e-4])
    assert kl_penalty(d, torch.zeros(1), "k3").item() == pytest.approx(5e-9, rel=0.3)


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: group_advantages(torch.ones(7), 3), r"rewards must be \[B \* 3\]"),
        (lambda: group_advantages(torch.tensor([1.0, float("nan")]), 2), "rewards must be finite"),
        (lambda: group_advantages(torch.ones(2, 2), 2), r"rewards must be \[B \* 2\]"),
        (lambda: group_advantages(torch.ones(2), 2, scale="variance"), "scale='variance'"),
        (lambda: token_weights(torch.ones(2, 2), "mean"), "aggregation='mean'"),
        (lambda: token_weights(torch.ones(2, 2), "constant"), "max_length"),
        (lambda: kl_penalty(torch.ones(2), torch.ones(2), "k4"), "kind='k4'"),
        (lambda: kl_penalty(torch.ones(2), torch.ones(3)), "logprobs .*2.*, ref_logprobs .*3"),
        (lambda: policy_loss(*torch.ones(2, 2, 3), torch.ones(2), torch.ones(2, 4)), "old_logprobs and mask"),
        (lambda: policy_loss(*torch.ones(2, 2, 3), torch.ones(3), torch.ones(2, 3)), "advantages must be"),
        (lambda: policy_loss(*torch.ones(2, 2, 3), torch.ones(2), torch.ones(2, 3), dual_clip=0.5), "dual_clip .* 0.5"),
        (lambda: policy_loss(*torch.ones(2, 2, 3), torch.ones(2), torch.ones(2, 3), clip_low=-0.5), "clip_low=-0.5"),
        (lambda: policy_loss(*torch.ones(2, 2, 3), torch.ones(2), torch.ones(2, 3), ratio="mean"), "ratio='mean'"),
    ],
)
def test_bad_arguments_are_named(call, names):
    """For whoever lifts the file: an argument of the wrong shape would broadcast, and a misspelt word mean another."""
    with pytest.raises(AssertionError, match=names):
        call()
