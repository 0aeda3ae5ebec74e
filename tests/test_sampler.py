"""Sampling: it returns what one plain forward pass would say, and draws from the distribution that it claims."""

import pytest
import torch
from conftest import small_gpt

from minclipo.logprobs import completion_logprobs
from minclipo.sampler import draw_token, sample, sampling_logprobs

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]


def rollouts_of(model, seed=0, **changes):
    settings = dict(group_size=5, max_new_tokens=12, eos_ids=[0, 1, 2], generator=torch.Generator().manual_seed(seed))
    return sample(model, changes.pop("prompts", PROMPTS), **settings | changes)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_one_plain_forward_pass(temperature):
    """Catches: a prefix shared with the wrong group, log-probs at another temperature, mixed-up rows as some leave."""
    model = small_gpt()
    rollouts = rollouts_of(model, temperature=temperature)
    assert len(set(rollouts.mask.sum(1).tolist())) > 3  # rows of many lengths: some left early
    prompts = [prompt for prompt in PROMPTS for _ in range(5)]
    logprobs, _ = completion_logprobs(model, prompts, rollouts.completions, rollouts.mask, temperature=temperature)
    torch.testing.assert_close(rollouts.logprobs, logprobs, atol=1e-5, rtol=1e-5)


def test_pooled_states_equal_one_plain_forward_pass():
    """Catches: prompt states in the mean, the last token's state left out, a division by the padded length."""
    model = small_gpt()
    rollouts = rollouts_of(model)
    prompts = [prompt for prompt in PROMPTS for _ in range(5)]
    for row, prompt in enumerate(prompts):
        completion = rollouts.completions[row][rollouts.mask[row]]
        hidden = model(torch.cat([torch.tensor(prompt), completion])[None])[0, len(prompt) :]  # [T, D]
        torch.testing.assert_close(rollouts.pooled[row], hidden.mean(0), atol=1e-5, rtol=1e-5)


def test_a_row_ends_with_its_first_eos():
    """Catches: eos outside the mask (then it is never trained), tokens after eos inside it."""
    rollouts = rollouts_of(small_gpt())
    assert rollouts.finished.any() and not rollouts.finished.all()
    for row, mask, finished in zip(rollouts.completions, rollouts.mask, rollouts.finished):
        is_eos = torch.isin(row[mask], torch.tensor([0, 1, 2]))
        assert not is_eos[:-1].any() and is_eos[-1] == finished
        assert finished or mask.all()


def test_completion_ids_leave_out_eos_and_nothing_else():
    """Catches: the last word of a completion that ran out of room taken for its eos."""
    rollouts = rollouts_of(small_gpt())
    rows = zip(rollouts.completion_ids(), rollouts.completions, rollouts.mask, rollouts.finished)
    for ids, row, mask, finished in rows:
        assert ids == row[mask].tolist()[: -1 if finished else None]


def test_greedy_rows_do_not_depend_on_their_batch():
    """Catches: any leak between rows."""
    model = small_gpt()
    together = rollouts_of(model, temperature=0, group_size=1)
    for i, prompt in enumerate(PROMPTS):
        alone = rollouts_of(model, temperature=0, group_size=1, prompts=[prompt])
        assert alone.completions[0][alone.mask[0]].tolist() == together.completions[i][together.mask[i]].tolist()


def test_the_generator_decides():
    """Catches: draws from the global generator."""
    model = small_gpt()
    first, again, other = rollouts_of(model, seed=1), rollouts_of(model, seed=1), rollouts_of(model, seed=2)
    assert torch.equal(first.completions, again.completions)
    assert not torch.equal(first.mask, other.mask) or not torch.equal(first.completions, other.completions)


def test_samples_follow_the_claimed_distribution():
    """Catches: sampling from one distribution and reporting another. 5 standard errors allowed: no luck."""
    model, n = small_gpt(), 20000
    options = dict(temperature=0.8, top_k=6, top_p=0.9)
    rollouts = rollouts_of(model, prompts=[[3, 4]], group_size=n, max_new_tokens=1, eos_ids=[], **options)
    logits = model.logits(model(torch.tensor([[3, 4]])))[:, -1]
    claimed = sampling_logprobs(logits, **options)[0].exp()
    drawn = rollouts.completions[:, 0].bincount(minlength=31) / n
    assert (drawn - claimed).abs().max() < 5 * 0.5 / n**0.5
    torch.testing.assert_close(rollouts.logprobs[:, 0].exp(), claimed[rollouts.completions[:, 0]])


def test_top_k_and_top_p_keep_what_they_say():
    """Catches: top-p that drops the token which crosses the threshold, or keeps one too many."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = lambda **options: sampling_logprobs(logits, 1.0, **options).exp()[0].tolist()
    assert kept(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert kept(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0])
    assert kept(top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert kept(top_p=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05])


def test_temperature_zero_is_certain():
    """Catches: log-probs of the untempered model beside greedy tokens."""
    rollouts = rollouts_of(small_gpt(), temperature=0)
    assert (rollouts.logprobs == 0).all()


def test_entropy_equals_enumeration():
    """Catches: entropy in bits, or at temperature 1 whatever the temperature."""
    model = small_gpt()
    rollouts = rollouts_of(model, prompts=[[3, 4]], group_size=1, max_new_tokens=1, eos_ids=[])
    _, entropy = completion_logprobs(model, [[3, 4]], rollouts.completions, rollouts.mask, temperature=0.5)
    p = (model.logits(model(torch.tensor([[3, 4]])))[0, -1] / 0.5).softmax(-1)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(prompts=[]), "prompts must not be empty"),
        (dict(prompts=[[1], []]), "prompts must not be empty"),
        (dict(temperature=-0.5), "temperature .* -0.5"),
        (dict(temperature=float("nan")), "temperature .* nan"),
        (dict(group_size=0), "group_size=0"),
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(top_k=0), "top_k .* 0"),
        (dict(top_p=1.5), "top_p .* 1.5"),
    ],
)
def test_bad_arguments_are_named(changes, names):
    with pytest.raises(AssertionError, match=names):
        rollouts_of(small_gpt(), **changes)


def test_sequences_without_positions_are_refused():
    """Catches: a completion that runs past what the model was trained for, without a sound."""
    with pytest.raises(ValueError, match="66 tokens, more than the model's max_positions 64"):
        rollouts_of(small_gpt(), max_new_tokens=60)


@pytest.mark.parametrize(
    "completions, mask, names",
    [
        ([[1, 2, 3]], [[True, True]], "completions and a bool mask must be"),
        ([[1, 2, 3]], [[True, False, True]], "mask must be true for the first tokens"),
        ([[1, 2, 3]], [[1, 1, 0]], "a bool mask"),
        ([[1, 2, 3], [1, 2, 3]], [[True] * 3] * 2, "owner must name a prompt for each of 2 rows"),
    ],
)
def test_completions_that_would_be_misread_are_refused(completions, mask, names):
    """Catches: a mask with a hole, or padded on the left, which gives wrong log-probs without a sound."""
    with pytest.raises(AssertionError, match=names):
        completion_logprobs(small_gpt(), [[1]], torch.tensor(completions), torch.tensor(mask))


def test_a_float64_model_samples_in_float64():
    """Catches: results cut down to float32, or refused, where the model is wider."""
    rollouts = rollouts_of(small_gpt().double())
    assert rollouts.logprobs.dtype == rollouts.pooled.dtype == torch.float64


def test_logits_that_are_not_finite_stop_the_sampling():
    model = small_gpt()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        rollouts_of(model)


def test_sampling_rows_gives_whole_groups_in_order():
    """Catches: groups cut in two, prompts and rows joined in different orders, widths that do not fit."""
    model, greedy = small_gpt(), dict(temperature=0.0, eos_ids=[0, 1, 2])
    together = rollouts_of(model, **greedy)
    apart = rollouts_of(model, **greedy, sampling_rows=11)  # two groups of five, then the other two
    assert apart.prompts == together.prompts and apart.group_size == 5
    for name in ("completions", "mask", "finished"):
        assert torch.equal(
            getattr(apart, name)[together.mask] if name == "completions" else getattr(apart, name),
            together.completions[together.mask] if name == "completions" else getattr(together, name),
        )
    torch.testing.assert_close(apart.pooled, together.pooled, atol=1e-5, rtol=1e-5)
    sampled = rollouts_of(model, sampling_rows=1)  # a group at a time
    prompts = [prompt for prompt in PROMPTS for _ in range(5)]
    logprobs, _ = completion_logprobs(model, prompts, sampled.completions, sampled.mask)
    torch.testing.assert_close(sampled.logprobs, logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uniform, wanted", [(1.0, 2), (2**-24, 1)])
def test_extreme_random_numbers_draw_possible_tokens(uniform, wanted):
    """Token 0 and the last one have probability 0. Catches: an index past the end, a log-prob of -inf, once in 2^24."""
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    token, logprob = draw_token(logits, torch.tensor([uniform]), 1.0, None, None)
    assert token.item() == wanted and logprob.isfinite()
