"""The contrastive losses: gradients in float64, identities between them, a slow loop, every edge case."""

import math

import pytest
import torch
import torch.nn.functional as F

from minclipo.contrastive import (
    LEVELS,
    LOSSES,
    SIMILARITIES,
    ContrastiveHead,
    center_by_group,
    contrastive_loss,
    contrastive_reward,
)


def random_batch(seed: int = 0, groups: tuple = (5, 4, 6), width: int = 7, dtype=torch.float64):
    """(embeddings, correct, group): unit rows, groups of unequal size whose rows lie scattered."""
    g = torch.Generator().manual_seed(seed)
    group = torch.cat([torch.full((size,), 10 * b) for b, size in enumerate(groups)])
    group = group[torch.randperm(len(group), generator=g)]
    embeddings = F.normalize(torch.randn(len(group), width, generator=g, dtype=dtype), dim=-1)
    return embeddings, torch.rand(len(group), generator=g) < 0.6, group


def slow_loss(z, correct, group, i, loss, level, temperature, similarity) -> float | None:
    """One rollout's loss as the docstring says it, in plain Python; None if the row is no anchor."""
    others = [j for j in range(len(z)) if j != i and (level != "group" or group[j] == group[i])]
    positives = [j for j in others if correct[j] == correct[i] and (level == "batch" or group[j] == group[i])]
    if not positives or len(positives) == len(others):
        return None
    cosine = lambda j: float(z[i] @ z[j])
    q = lambda j: (cosine(j) if similarity == "cosine" else 1 - math.sqrt(2 - 2 * cosine(j))) / temperature
    all_, pos = sum(math.exp(q(j)) for j in others), sum(math.exp(q(j)) for j in positives)
    return {
        "supcon_out": math.log(all_) - sum(q(j) for j in positives) / len(positives),
        "supcon_in": math.log(all_) - math.log(pos / len(positives)),
        "soft_nn": math.log(all_) - math.log(pos),
    }[loss]


@pytest.mark.parametrize("loss", ["supcon_out", "supcon_in", "soft_nn"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_losses_equal_a_slow_loop(loss, level, similarity):
    """Catches: blocks filled up wrongly when groups are scattered and unequal, a mask of the wrong level."""
    z, correct, group = random_batch()
    found = contrastive_loss(
        z, correct, group, loss=loss, level=level, similarity=similarity, temperature=0.3, anchors="all"
    )
    for i in range(len(z)):
        wanted = slow_loss(z, correct, group, i, loss, level, 0.3, similarity)
        assert found.anchors[i] == (wanted is not None)
        assert found.loss[i].item() == pytest.approx(wanted or 0.0, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_loss_gradient_through_the_head(loss, level, similarity):
    """Catches: a detached factor, a maximum that leaks gradient. From the pooled states through head and loss."""
    _, correct, group = random_batch()
    pooled = torch.randn(len(group), 5, dtype=torch.float64, requires_grad=True)
    head = ContrastiveHead(5, 4).double()
    options = dict(loss=loss, level=level, similarity=similarity, temperature=0.4)

    def value(x):
        g = torch.Generator().manual_seed(3)  # the same positives at every call
        return contrastive_loss(head(x), correct, group, generator=g, **options).mean

    assert torch.autograd.gradcheck(value, pooled)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_head_gradient(kind):
    head = ContrastiveHead(4, 3, kind).double()
    assert torch.autograd.gradcheck(head, torch.randn(5, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_head_gives_unit_vectors_whatever_the_length(kind):
    """Without bias the length of the pooled state cancels. Catches: a bias that is on by default."""
    head, x = ContrastiveHead(16, 4, kind), torch.randn(5, 16)
    torch.testing.assert_close(head(x).norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(head(x), head(7.5 * x))


@pytest.mark.parametrize("level", LEVELS)
def test_expected_infonce_is_supcon_out(level):
    """E over the drawn positive, by enumeration. Catches: a positive drawn from the candidates, or not uniformly."""
    z, correct, group = random_batch()
    options = dict(level=level, temperature=0.3)
    wanted = contrastive_loss(z, correct, group, loss="supcon_out", **options)
    for i in wanted.anchors.nonzero()[:, 0].tolist():
        positives = [
            j
            for j in range(len(z))
            if j != i and correct[j] == correct[i] and (level == "batch" or group[j] == group[i])
        ]
        values = []
        for j in positives:
            # any valid positive for the other anchors, j for this one
            given = contrastive_positive(z, correct, group, level)
            given[i] = j
            values.append(contrastive_loss(z, correct, group, loss="infonce", positive=given, **options).loss[i])
        torch.testing.assert_close(sum(values) / len(values), wanted.loss[i])


def contrastive_positive(z, correct, group, level) -> torch.Tensor:
    """Some valid positive of each row, 0 where there is none."""
    same = (correct[:, None] == correct) & ~torch.eye(len(z), dtype=torch.bool)
    return (same if level == "batch" else same & (group[:, None] == group)).int().argmax(1)


def test_drawn_positives_are_uniform_positives():
    """Catches: a draw that ignores the mask. 3000 draws, mean of InfoNCE against SupCon-out."""
    z, correct, group = random_batch()
    g = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [contrastive_loss(z, correct, group, loss="infonce", generator=g, temperature=0.5).loss for _ in range(3000)]
    )
    wanted = contrastive_loss(z, correct, group, loss="supcon_out", temperature=0.5).loss
    assert ((draws.mean(0) - wanted).abs() <= 5 * draws.std(0) / 3000**0.5 + 1e-12).all()


@pytest.mark.parametrize("level", LEVELS)
def test_supcon_in_is_soft_nn_plus_log_positives_and_below_supcon_out(level):
    """Catches: log|P| on the wrong side; Jensen's inequality must hold."""
    z, correct, group = random_batch()
    by = {loss: contrastive_loss(z, correct, group, loss=loss, level=level, temperature=0.2) for loss in LOSSES[1:]}
    same = (correct[:, None] == correct) & ~torch.eye(len(z), dtype=torch.bool)
    count = (same if level == "batch" else same & (group[:, None] == group)).sum(1).double()
    anchors = by["soft_nn"].anchors
    torch.testing.assert_close(by["supcon_in"].loss[anchors], (by["soft_nn"].loss + count.log())[anchors])
    assert (by["supcon_in"].loss <= by["supcon_out"].loss + 1e-12).all()
    assert (by["soft_nn"].loss >= 0).all()


def test_one_positive_makes_all_losses_equal():
    z = F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=-1)
    correct, group = torch.tensor([True, True, False, False]), torch.zeros(4, dtype=torch.long)
    values = [contrastive_loss(z, correct, group, loss=loss, temperature=0.2).loss for loss in LOSSES]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


def test_the_floor_is_log_positives_except_for_soft_nn():
    """Identical positives, negatives infinitely far. Why 14 correct of 16 hit CLIPO's reward floor with InfoNCE."""
    z = torch.tensor([[1.0, 0.0]] * 5 + [[-1.0, 0.0]] * 3, dtype=torch.float64)
    correct, group = torch.tensor([True] * 5 + [False] * 3), torch.zeros(8, dtype=torch.long)
    for loss, floor in (
        ("infonce", math.log(4)),
        ("supcon_out", math.log(4)),
        ("supcon_in", math.log(4)),
        ("soft_nn", 0.0),
    ):
        found = contrastive_loss(z, correct, group, loss=loss, temperature=0.02)
        torch.testing.assert_close(found.loss[:5], torch.full((5,), floor, dtype=torch.float64), atol=1e-12, rtol=0)


def test_group_level_equals_each_group_alone():
    """Catches: negatives from other prompts at group level."""
    z, correct, group = random_batch()
    together = contrastive_loss(z, correct, group, loss="soft_nn")
    for b in group.unique():
        rows = group == b
        alone = contrastive_loss(z[rows], correct[rows], group[rows], loss="soft_nn")
        torch.testing.assert_close(together.loss[rows], alone.loss)


EDGE_CASES = {
    "no correct": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "one correct": ([1, 0, 0, 0], [0, 0, 0, 0]),
    "all correct": ([1, 1, 1, 1], [0, 0, 0, 0]),
    "a single rollout": ([1], [0]),
    "groups of one": ([1, 0, 1, 0], [0, 1, 2, 3]),
    "two correct alone in their groups": ([1, 1], [0, 1]),
}


@pytest.mark.parametrize("case", EDGE_CASES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_batches_without_an_anchor_are_no_error(case, loss, similarity):
    """Catches: the official code's crash in backward() when nobody is an anchor; log of an empty sum."""
    correct, group = (torch.tensor(values) for values in EDGE_CASES[case])
    pooled = torch.randn(len(correct), 3, requires_grad=True)
    head = ContrastiveHead(3, 2)
    found = contrastive_loss(head(pooled), correct.bool(), group, loss=loss, similarity=similarity)
    found.mean.backward()
    assert not found.anchors.any() and (found.loss == 0).all() and found.mean == 0
    assert (pooled.grad == 0).all() and (head.projection[0].weight.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.002])
def test_extreme_embeddings_have_finite_gradients(loss, similarity, temperature):
    """Identical, opposite and zero vectors in one group. Catches: the root's infinite slope at 0, overflow, 0 / 0."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    correct, group = torch.tensor([True, True, True, False, True, False]), torch.zeros(6, dtype=torch.long)
    found = contrastive_loss(z, correct, group, loss=loss, similarity=similarity, temperature=temperature)
    found.mean.backward()
    assert found.loss.isfinite().all() and z.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss, value", [("infonce", math.log(5)), ("supcon_out", math.log(5)), ("soft_nn", math.log(5 / 3))]
)
def test_identical_embeddings_carry_no_information(loss, value):
    z = torch.tensor([[0.6, 0.8]] * 6)
    correct, group = torch.tensor([True] * 4 + [False] * 2), torch.zeros(6, dtype=torch.long)
    found = contrastive_loss(z, correct, group, loss=loss, temperature=0.05)
    torch.testing.assert_close(found.loss[:4], torch.full((4,), value), atol=1e-5, rtol=0)


def test_reward_floor_and_sign():
    """Catches: the floor inside the weight, a reward for incorrect rollouts, a penalty that is a bonus."""
    loss, correct = torch.tensor([1.0, 10.0, 3.0]), torch.tensor([True, True, False])
    torch.testing.assert_close(contrastive_reward(loss, correct, weight=0.2), torch.tensor([-0.2, -0.5, 0.0]))
    shifted = contrastive_reward(loss, correct, weight=0.2, constant=0.3, floor=-1.0)
    torch.testing.assert_close(shifted, torch.tensor([0.1, -1.0, 0.3]))


def test_a_correct_rollout_always_earns_more_than_an_incorrect_one():
    """The floor of -0.5 under an outcome reward of 1. Catches: a floor that a constant or a large weight can pass."""
    loss, correct = 100 * torch.rand(50), torch.rand(50) < 0.5
    reward = correct.float() + contrastive_reward(loss, correct, weight=5.0)
    assert reward[correct].min() >= 0.5 and (reward[~correct] == 0).all()


def test_centring_removes_what_a_group_shares():
    """Catches: the batch's mean in place of the group's, rows of scattered groups mixed up."""
    _, _, group = random_batch()
    difference, shared = torch.randn(15, 4, dtype=torch.float64), torch.randn(100, 4, dtype=torch.float64)
    centred = center_by_group(difference + shared[group], group)
    for b in group.unique():
        rows = group == b
        torch.testing.assert_close(centred[rows], difference[rows] - difference[rows].mean(0))


def test_centring_does_not_blow_up_rounding():
    """Identical rollouts, up to rounding, must get equal losses. Catches: noise of 1e-7 normalised to unit vectors,
    which a division by the group's standard deviation then turns into advantages of full size."""
    pooled = torch.randn(1, 64).expand(8, 64) * (1 + 1e-7 * torch.randn(8, 64))
    group, correct = torch.zeros(8, dtype=torch.long), torch.tensor([True] * 6 + [False] * 2)
    assert (center_by_group(pooled, group) == 0).all()
    embeddings = ContrastiveHead(64, 16)(center_by_group(pooled, group))
    losses = contrastive_loss(embeddings, correct, group, loss="soft_nn").loss[correct]
    assert (losses == losses[0]).all()


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(correct=torch.ones(3)), r"correct and group must be \[N\]"),
        (dict(group=torch.zeros(4, 1)), r"correct and group must be \[N\]"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(loss="triplet"), "impossible: loss='triplet'"),
        (dict(level="prompt"), "level='prompt' must be one of"),
        (dict(similarity="dot"), "similarity='dot' must be one of"),
        (dict(anchors="wrong"), "anchors='wrong'"),
        (dict(positive=torch.tensor([2, 0, 0, 0])), "positive names a row that is no positive"),
    ],
)
def test_bad_arguments_are_named(changes, names):
    """For whoever lifts the file: a misspelt word would mean another loss, a wrong shape would broadcast."""
    arguments = dict(embeddings=torch.eye(4), correct=torch.tensor([1, 1, 0, 0]).bool(), group=torch.zeros(4)) | changes
    with pytest.raises(AssertionError, match=names):
        contrastive_loss(**arguments)


def test_a_negative_weight_is_named():
    with pytest.raises(AssertionError, match="weight must be 0 or more, found -1"):
        contrastive_reward(torch.ones(2), torch.ones(2), weight=-1)


def test_an_unknown_head_is_named():
    with pytest.raises(AssertionError, match="kind='conv' must be one of"):
        ContrastiveHead(4, 4, "conv")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_finite_gradients(loss, similarity, dtype):
    """Lifted into a run in half precision, where 1e-8 is 0. Catches: the root's slope at a row's distance to itself;
    sums that float16 cannot hold (2000 positives at a small temperature)."""
    rows = F.normalize(torch.randn(8, 16), dim=1)
    for z, temperature in ((rows, 0.05), (rows[torch.zeros(2000, dtype=torch.long)], 0.02)):
        z = z.to(dtype).requires_grad_()
        correct, group = torch.arange(len(z)) % 4 > 0, torch.zeros(len(z))
        found = contrastive_loss(
            z, correct, group, loss=loss, level="group", similarity=similarity, temperature=temperature
        )
        found.mean.backward()
        assert found.mean.isfinite() and z.grad.isfinite().all() and z.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_has_finite_gradients(dtype):
    """The same where only the products are in half precision."""
    z = F.normalize(torch.randn(8, 16), dim=1).requires_grad_()
    with torch.autocast("cpu", dtype):
        found = contrastive_loss(z, torch.arange(8) % 2 == 0, torch.zeros(8), loss="soft_nn", similarity="l2")
    found.mean.backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_vector_and_equal_states_stay_zero_in_every_precision(dtype):
    """Catches: 0 / 0 in the head; the rounding of a half precision mean taken for a difference."""
    assert (ContrastiveHead(4, 3, "none")(torch.zeros(2, 4, dtype=dtype)) == 0).all()
    centered = center_by_group(torch.randn(1, 64).to(dtype).expand(7, 64), torch.zeros(7))
    assert centered.dtype == dtype and (centered == 0).all()
