"""Prompt contrast: a slow loop, edge cases, what it is worth in expectation, its place in the training step."""

import copy
import json
import math
import random
import zlib
from pathlib import Path

import pytest
import torch
from conftest import small_gpt

import minclipo.extensions.micro_batches as micro_batches_module
import minclipo.extensions.prompt_contrast as prompt_contrast_module
import minclipo.extensions.rewards as rewards_module
import minclipo.trainer as trainer_module
from minclipo.checkpoint import load_model
from minclipo.config import TrainConfig
from minclipo.extensions.prompt_contrast import (
    LIMIT,
    draw_other_prompts,
    first_of_equals,
    logprobs_under,
    prompt_contrast,
)
from minclipo.model import GPT
from minclipo.runs.loop import Run
from minclipo.runs.recipes import TOY
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Task
from minclipo.toy import TASK, ToyConfig, toy_task, toy_tokenizer
from minclipo.trainer import Trainer

ROOT = Path(__file__).parent.parent

# ---- the formula ----


def random_logprobs(K: int = 3, N: int = 7, T: int = 5):
    """(own [N, T], others [K, N, T], mask [N, T]) with differences on both sides of LIMIT; row 0 is full."""
    own, others = -8 * torch.rand(N, T, dtype=torch.float64), -20 * torch.rand(K, N, T, dtype=torch.float64)
    lengths = torch.cat([torch.tensor([T]), torch.randint(1, T + 1, (N - 1,))])
    return own, others, torch.arange(T) < lengths[:, None]


def slow_gain(own, others, mask, i: int) -> float:
    """One rollout's gain as the docstring says it, in plain Python."""
    gains = []
    for t in range(mask.shape[1]):
        if mask[i, t]:
            mean = sum(math.exp(other[i, t]) for other in others) / len(others)
            gains.append(min(max(own[i, t].item() - math.log(mean), -LIMIT), LIMIT))
    return sum(gains) / len(gains)


@pytest.mark.parametrize("K", [1, 2, 5])
def test_gain_equals_a_slow_loop(K):
    """Catches: a sum over the others for their mean, the mean of logs for the log of the mean, a mean over padding."""
    own, others, mask = random_logprobs(K)
    wanted = [slow_gain(own, others, mask, i) for i in range(len(own))]
    torch.testing.assert_close(prompt_contrast(own, others, mask), torch.tensor(wanted, dtype=torch.float64))


def test_each_token_is_bounded_by_itself():
    """Catches: the mean bounded in place of each token, where one impossible token outweighs all others; a bound on one
    side only."""
    own, mask = torch.tensor([[0.0, 0.0], [-1.0, -90.0]]), torch.ones(2, 2, dtype=torch.bool)
    others = torch.tensor([[[-80.0, -1.0], [-1.0, -2.0]]])
    torch.testing.assert_close(prompt_contrast(own, others, mask), torch.tensor([(LIMIT + 1) / 2, -LIMIT / 2]))


def test_one_other_prompt_is_a_plain_difference():
    """K = 1. Catches: a divisor of K - 1 or K + 1."""
    own, others, mask = random_logprobs(1)
    wanted = (own - others[0]).clamp(-LIMIT, LIMIT).where(mask, 0.0).sum(1) / mask.sum(1)
    torch.testing.assert_close(prompt_contrast(own, others, mask), wanted)


def test_the_order_of_the_other_prompts_does_not_matter():
    """Catches: one of the others left out."""
    own, others, mask = random_logprobs(3)
    torch.testing.assert_close(prompt_contrast(own, others, mask), prompt_contrast(own, others[[2, 0, 1]], mask))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_is_never_read(garbage):
    """Bit-equal whatever stands there. Catches: masking by multiplication, where 0 * nan is nan."""
    own, others, mask = random_logprobs()
    wanted = prompt_contrast(own, others, mask)
    assert (~mask).any()
    assert torch.equal(prompt_contrast(own.where(mask, garbage), others.where(mask, -garbage), mask), wanted)


def test_a_row_without_tokens_gains_nothing():
    """Catches: 0 / 0."""
    own, others, mask = random_logprobs()
    mask[2] = False
    gain = prompt_contrast(own, others, mask)
    assert gain[2] == 0 and gain.isfinite().all()


@pytest.mark.parametrize(
    "others, mask", [((7, 5), (7, 5)), ((2, 5, 7), (7, 5)), ((2, 7, 5), (7, 4)), ((2, 1, 5), (7, 5))]
)
def test_shapes_that_do_not_fit_are_refused(others, mask):
    """Catches: a wrong shape that broadcasts, the K dimension forgotten."""
    with pytest.raises(AssertionError, match=r"own_logprobs and mask must be \[N, T\]"):
        prompt_contrast(torch.zeros(7, 5), torch.zeros(others), torch.ones(mask, dtype=torch.bool))


# ---- what it is worth in expectation ----


def expected_gains(policy: torch.Tensor) -> tuple[float, float, float]:
    """Of one-token answers y ~ p(y | x) of a table p [B, V], x uniform, K = B - 1 (all other prompts), by enumeration:

    (expected gain, mean_x KL(p(. | x) || mean of p(. | x') over x' != x), mutual information I(x; y)).
    """
    B, V = policy.shape
    own = policy.log().reshape(B * V, 1)  # every x with every y, a row each
    others = torch.stack([policy.log().roll(-k, 0).reshape(B * V, 1) for k in range(1, B)])  # [B - 1, B * V, 1]
    gain = prompt_contrast(own, others, torch.ones(B * V, 1, dtype=torch.bool))
    divergence = information = 0.0
    for x in range(B):
        for y in range(V):
            rest = sum(policy[z, y].item() for z in range(B) if z != x) / (B - 1)
            divergence += policy[x, y].item() * math.log(policy[x, y].item() / rest) / B
            information += policy[x, y].item() * math.log(policy[x, y].item() / policy[:, y].mean().item()) / B
    return (policy.flatten() * gain).sum().item() / B, divergence, information


@pytest.mark.parametrize("sharpness", [0.3, 0.8, 1.5])
def test_the_expected_gain_of_a_policys_own_answers(sharpness):
    """The mean of log p(y|x) - log mean_{x' != x} p(y|x') over y ~ p(y|x) is a mean KL divergence, so never negative.

    With m the mean over all prompts and m_x the mean over the others, m = p_x / B + (1 - 1 / B) m_x, and KL is convex:
    mutual information = mean_x KL(p_x || m) <= (1 - 1 / B) mean_x KL(p_x || m_x) = (1 - 1 / B) * the expected gain.
    Catches: the own prompt among the others, the sign.
    """
    policy = (sharpness * torch.randn(6, 5, dtype=torch.float64)).softmax(-1)
    gain, divergence, information = expected_gains(policy)
    assert policy.log().min() > -LIMIT  # no gain is cut
    assert gain == pytest.approx(divergence, rel=1e-12)
    assert 0 < information <= (1 - 1 / 6) * gain


def test_with_many_prompts_the_expected_gain_is_the_mutual_information():
    """It exceeds it by about 1 / B. Catches: a factor; ten times the prompts must bring it ten times as near."""
    policy = torch.randn(200, 5, dtype=torch.float64).softmax(-1)
    few, many = (expected_gains(policy[:B]) for B in (20, 200))
    assert many[0] == pytest.approx(many[2], rel=0.02)
    assert (many[0] - many[2]) / many[2] < 0.2 * (few[0] - few[2]) / few[2]


def test_answers_that_do_not_depend_on_the_prompt_gain_nothing():
    """The same log-probs under every prompt, own and others. Catches: 1 / K left out of the mean."""
    own, _, mask = random_logprobs()
    gain = prompt_contrast(own, own.expand(4, *own.shape), mask)
    torch.testing.assert_close(gain, torch.zeros_like(gain), atol=1e-12, rtol=0)


# ---- which other prompts ----


@pytest.mark.parametrize("B, K", [(2, 1), (5, 1), (5, 3), (5, 4), (32, 2)])
def test_other_prompts_are_others_and_different_ones(B, K):
    """Catches: a prompt compared with itself, one other drawn twice, a prompt that serves more often than the rest."""
    for seed in range(20):
        drawn = draw_other_prompts(B, K, torch.Generator().manual_seed(seed))
        assert drawn.shape == (K, B)
        for b in range(B):
            assert len({b, *drawn[:, b].tolist()}) == K + 1
        assert all(sorted(row) == list(range(B)) for row in drawn.tolist())


def test_every_other_prompt_is_drawn_equally_often():
    """2000 draws: each of the 4 others serves half of the time; 130 is 6 standard deviations. Catches: a circle that is
    not shuffled, which compares neighbours in the data with each other for ever."""
    g, count = torch.Generator().manual_seed(0), torch.zeros(5, 5)
    for _ in range(2000):
        count[torch.arange(5), draw_other_prompts(5, 2, g)] += 1
    others = ~torch.eye(5, dtype=torch.bool)
    assert (count[~others] == 0).all() and ((count[others] - 1000).abs() < 130).all()


def test_other_prompts_come_from_the_generator():
    """Catches: a draw from the global generator, which a resumed run would not repeat."""
    draw = lambda seed: draw_other_prompts(32, 2, torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("B, K", [(1, 1), (2, 2), (4, 7), (4, 0)])
def test_more_other_prompts_than_there_are_is_refused(B, K):
    """Catches: the circle going round to the prompt itself."""
    with pytest.raises(AssertionError, match=f"{K} others cannot be drawn"):
        draw_other_prompts(B, K)


# ---- log-probs under other prompts ----

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
OTHERS = torch.tensor([[1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])


def ragged_rollouts(G: int = 3) -> Rollouts:
    """Four prompts and twelve completions of unequal length; what stands in their padding is no token."""
    lengths = torch.tensor([4, 1, 6, 3, 6, 5, 2, 2, 1, 6, 5, 4])
    mask = torch.arange(6) < lengths[:, None]
    completions = torch.randint(0, 31, (12, 6)).masked_fill(~mask, 999)
    return Rollouts(PROMPTS, G, completions, mask, torch.zeros(12, 6), torch.zeros(12, 16), torch.ones(12).bool())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_under_equal_a_plain_forward_pass(temperature):
    """Row by row and prompt by prompt, without padding. Catches: prompts and rows paired in the wrong order, the own
    prompt instead of the other, a temperature that is dropped, a padded prompt that is read to its end."""
    model, rollouts = small_gpt(), ragged_rollouts()
    scored = logprobs_under(model, rollouts, OTHERS, temperature=temperature)
    assert scored.shape == (3, 12, 6)
    for k in range(3):
        for i in range(12):
            prompt, completion = PROMPTS[OTHERS[k, i // 3]], rollouts.completions[i][rollouts.mask[i]]
            tokens = torch.cat([torch.tensor(prompt), completion])
            logits = model.logits(model(tokens[None]))[0, len(prompt) - 1 : -1] / temperature
            wanted = logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
            torch.testing.assert_close(scored[k, i, : len(completion)], wanted, atol=2e-5, rtol=1e-5)
    assert (scored[:, ~rollouts.mask] == 0).all()


@pytest.mark.parametrize("tokens", [1, 25, 60])
def test_micro_batches_change_nothing(monkeypatch, tokens):
    """Catches: parts written to the wrong rows, rows scored twice or never, a limit that is not passed on."""
    model, rollouts, calls = small_gpt(), ragged_rollouts(), []
    wanted = logprobs_under(model, rollouts, OTHERS)
    original = micro_batches_module.batch_logprobs
    watched = lambda model, part, **k: calls.append(len(part.rows)) or original(model, part, **k)
    monkeypatch.setattr(micro_batches_module, "batch_logprobs", watched)
    got = logprobs_under(model, rollouts, OTHERS, micro_batch_tokens=tokens)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    assert len(calls) > 3 and sum(calls) == 36


def test_no_gradient_is_recorded():
    """Catches: a graph over K forward passes that nobody needs, held until the update."""
    scored = logprobs_under(small_gpt(), ragged_rollouts(), OTHERS)
    assert not scored.requires_grad and scored.grad_fn is None


def test_the_own_prompt_in_place_of_the_others_gains_nothing():
    """Against itself, K = 2. Catches: sampled log-probs and those under other prompts that disagree, by a temperature,
    a position or a token."""
    model = small_gpt()
    rollouts = sample(model, PROMPTS, 4, 6, temperature=0.8, eos_ids=[0], generator=torch.Generator().manual_seed(0))
    itself = torch.arange(4).expand(2, 4)
    gain = prompt_contrast(rollouts.logprobs, logprobs_under(model, rollouts, itself, temperature=0.8), rollouts.mask)
    torch.testing.assert_close(gain, torch.zeros(16), atol=2e-5, rtol=0)


def test_a_model_that_ignores_its_prompt_gains_nothing():
    """Without attention a token depends on the token before it alone, and all prompts end in the same one. Its
    counterpart with attention does gain. Catches: a gain that comes from anything but the prompt."""
    model = small_gpt()
    prompts = [[*prompt, 30] for prompt in PROMPTS]
    gains = []
    for _ in range(2):
        rollouts = sample(model, prompts, 4, 6, eos_ids=[0], generator=torch.Generator().manual_seed(0))
        gains.append(prompt_contrast(rollouts.logprobs, logprobs_under(model, rollouts, OTHERS), rollouts.mask))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "o_proj" in name:
                    weight.zero_()
    assert gains[0].mean() > 0.05
    torch.testing.assert_close(gains[1], torch.zeros(16), atol=2e-5, rtol=0)


# ---- in the training step ----


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 1e-6), (torch.bfloat16, 1e-4), (torch.bfloat16, 0.0)])
def test_equal_rollouts_earn_equal_rewards(monkeypatch, dtype, rounding):
    """A policy that is sure of itself writes the same right answer sixteen times; scoring passes cut its group up.
    Catches: rewards that differ by how a pass rounds, and advantages of up to 1 made of that. (How much a pass rounds
    depends on the machine: so it is added by hand, and the last case is without.)"""
    original = prompt_contrast_module.logprobs_under
    rounded = lambda *a, **k: (found := original(*a, **k)) + rounding * torch.randn_like(found)
    monkeypatch.setattr(prompt_contrast_module, "logprobs_under", rounded)
    model = load_model(ROOT / "lessons" / "models" / "careless")
    with torch.no_grad():
        model.norm.weight.mul_(4)
    config = TrainConfig(
        prompts_per_step=8, group_size=16, max_new_tokens=24, prompt_contrast_weight=0.2, micro_batch_tokens=300
    )
    task = Task(toy_task((2, 6)).draw, lambda *_: True)
    step = Trainer(model.to(dtype), toy_tokenizer(), task, config).step()
    rows = (step.rollouts.completions * step.rollouts.mask).view(8, 16, -1)
    alike = (rows == rows[:, :1]).all(2).all(1)
    assert alike.any() and step.rewards.std() > 0.01  # the groups themselves differ
    assert (step.rewards.view(8, 16)[alike].amax(1) == step.rewards.view(8, 16)[alike].amin(1)).all()
    assert (step.advantages.view(8, 16)[alike] == 0).all()


def test_only_equal_texts_of_one_prompt_share_a_value():
    """Catches: other prompts' values, the last one's instead of the first, rows that differ in their end alone."""
    completions = torch.tensor([[1, 2], [1, 2], [1, 0], [1, 2], [1, 2], [1, 1]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [1, 1], [1, 1]]).bool()
    rollouts = Rollouts([[1], [1]], 3, completions, mask, mask.float(), mask.float(), torch.zeros(6).bool())
    assert first_of_equals(torch.arange(6.0), rollouts).tolist() == [0, 0, 2, 3, 3, 5]


EASY = Task(TASK.draw, lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0)
TINY = dict(steps=4, prompts_per_step=5, group_size=4, max_new_tokens=5, learning_rate=1e-2, save_every=2)


def make(**changes) -> Trainer:
    return Trainer(small_gpt(vocab_size=122), toy_tokenizer(), EASY, TrainConfig(**TINY | changes))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def watch_gains(monkeypatch) -> list[torch.Tensor]:
    """The gains of all steps from now on."""
    seen, original = [], rewards_module.own_prompt_gain
    monkeypatch.setattr(rewards_module, "own_prompt_gain", lambda *a: seen.append(original(*a)) or seen[-1])
    return seen


def test_right_answers_earn_weight_times_gain_and_wrong_ones_nothing(monkeypatch):
    """Catches: wrong answers paid, the weight dropped or squared, a gain that is added after the advantage."""
    trainer, seen = make(prompt_contrast_weight=0.3), watch_gains(monkeypatch)
    step = trainer.step()
    gain, correct, rewards = seen[0], step.correct, step.rewards
    assert 0 < correct.sum() < 20 and (gain[~correct].abs() > 1e-3).any()
    torch.testing.assert_close(rewards[correct], 1 + 0.3 * gain[correct])
    assert (rewards[~correct] == 0).all()
    assert step.metrics["prompt_contrast"] == pytest.approx(gain[correct].mean().item(), rel=1e-5)
    wanted = trainer_module.group_advantages(rewards, 4)
    assert torch.equal(step.advantages, wanted)


def test_the_trainer_passes_its_settings_on(monkeypatch):
    """Catches: temperature, number of others, limit or generator that stay at their defaults."""
    options = dict(prompt_contrast_weight=0.3, prompt_contrast_others=3, temperature=0.7, micro_batch_tokens=30)
    trainer, limits = make(**options), []
    original = micro_batches_module.micro_batches
    monkeypatch.setattr(micro_batches_module, "micro_batches", lambda *a: limits.append(a[2]) or original(*a))
    batch = trainer.collect()
    step = trainer_module.Step(1, *batch[:3], correct=batch[3])
    others = draw_other_prompts(5, 3, torch.Generator().set_state(trainer.generator.get_state()))
    other_logprobs = logprobs_under(trainer.model, step.rollouts, others, temperature=0.7)
    gain = prompt_contrast(step.rollouts.logprobs, other_logprobs, step.rollouts.mask)
    limits.clear()
    extra = rewards_module.extra_rewards(trainer.config, step, trainer.model, trainer.task, trainer.generator)
    torch.testing.assert_close(extra, 0.3 * gain * step.correct, atol=1e-5, rtol=1e-5)
    assert limits == [30] * 3


def test_weight_0_draws_no_random_number(monkeypatch):
    """After a step the generator stands where sampling and the order of the mini-batches leave it, and the prompts are
    never scored again. Catches: GRPO and CLIPO that change, or grow slower, for an option that is off."""

    def never(*_, **__):
        raise AssertionError("prompt contrast is off")

    monkeypatch.setattr(rewards_module, "own_prompt_gain", never)
    trainer, g = make(), torch.Generator().manual_seed(0)
    prompts = toy_tokenizer().encode_batch([TASK.draw("training 0", i).prompt for i in range(5)])
    sample(copy.deepcopy(trainer.model), prompts, 4, 5, eos_ids=toy_tokenizer().eos_ids, generator=g)
    torch.randperm(20, generator=g)
    assert "prompt_contrast" not in trainer.step().metrics
    assert torch.equal(trainer.generator.get_state(), g.get_state())


def test_weight_0_is_bit_equal_whatever_the_number_of_others():
    """Catches: an option of prompt contrast that reaches a run without it."""
    runs = [make(prompt_contrast_others=K) for K in (2, 50)]  # 50: more than there are, and no error
    for trainer in runs:
        trainer.step(), trainer.step()
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_prompt_contrast_reaches_the_weights():
    """The counterpart of the tests above. The first step samples the same, so that only the reward differs."""
    runs = [make(prompt_contrast_weight=weight) for weight in (0.0, 0.3, 0.3)]
    for trainer in runs:
        trainer.step()
    assert torch.equal(*(trainer.last.rollouts.completions for trainer in runs[:2]))
    assert not torch.equal(weights(runs[0]), weights(runs[1])) and torch.equal(weights(runs[1]), weights(runs[2]))


def test_a_resumed_run_ends_bit_equal(tmp_path):
    """Stopped after 2 of 4 steps. Catches: other prompts drawn from a generator that the state does not hold."""
    changes = dict(prompt_contrast_weight=0.3)
    without_times = lambda lines: [{name: line[name] for name in line if name != "seconds"} for line in lines]
    whole, resumed = make(**changes), make(**changes)
    wanted = Run(whole, tmp_path / "whole").train()
    Run(make(**changes | dict(steps=2)), tmp_path / "parts").train()
    history = Run(resumed, tmp_path / "parts").train(resume=True)
    assert without_times(history) == without_times(wanted) and len(wanted) == 4
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.generator.get_state(), whole.generator.get_state())


@pytest.mark.parametrize("others", [5, 6])
def test_more_others_than_a_batch_has_are_refused_before_training(others):
    """Catches: an error after the first rollouts. 4 others of 5 prompts are fine."""
    TrainConfig(**TINY, prompt_contrast_weight=0.1, prompt_contrast_others=4)
    with pytest.raises(ValueError, match=f"prompt_contrast_others {others} must be below prompts_per_step 5"):
        TrainConfig(**TINY, prompt_contrast_weight=0.1, prompt_contrast_others=others)


# ---- lessons/experiments/attack*.py ----


@pytest.fixture
def experiments(monkeypatch):
    """The folder, with a textbook that is read in no time."""
    monkeypatch.syspath_prepend(ROOT / "lessons" / "experiments")
    import textbooks

    small = ToyConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, pretrain_steps=3, pretrain_batch=8
    )
    monkeypatch.setitem(textbooks.TEXTBOOKS, "toy", textbooks.Textbook(small))
    monkeypatch.setitem(TOY, "prompts_per_step", 3)


def test_hand_made_completions_are_what_they_are_called(experiments):
    """Right answers are right, wrong ones wrong, the steps as they should be. Catches: a price for another thing."""
    from attack_completions import COMPLETIONS, attack_problems, written

    surplus = ("operands copied once more before #", "start number first", "start number before #")
    for problem in attack_problems(0, 50):
        for kind in COMPLETIONS:
            text = written(kind, [problem], 0)[0]
            assert TASK.check_outcome(problem, text, True) == (not kind.startswith("wrong")), (kind, text)
            steps = TASK.check_steps(problem, text)
            if kind == "wrong: solution of another problem":
                assert not all(steps)
                continue
            wanted = {
                "faithful": 4, "one operand made up": 3, "all operands made up": 0, "last but one total garbage": 3,
                "shared false step (+1 in step 2)": 3, "totals before operands": 4, "no steps, # and the answer": 0,
                "operands copied once more before #": 4, "start number before #": 4, "start number first": 0,
                "operands without totals": 0, "wrong: right steps, wrong answer": 4,
            }[kind]  # fmt: skip
            assert sum(steps) == wanted, (kind, text)
            assert (len(steps) == 5) == (kind in surplus), (kind, text)


def test_neighbours_share_what_they_should(experiments):
    """Catches: a neighbour that shares more by chance, or an endless search for one."""
    from attack_completions import attack_problems
    from attack_pay import neighbour

    rng = random.Random(0)
    for problem in attack_problems(0, 20, margin=20):
        for kept in ([], [2], [0, 1, 3], [0, 1, 2, 3]):
            for same in (False, True):
                near = neighbour(problem, kept, same, rng)
                assert [i for i in range(4) if near.operands[i] == problem.operands[i]] == kept
                assert (near.start == problem.start) == same


def test_the_attack_runs_and_goes_on(experiments, tmp_path, capsys):
    """All four looks, as small as they come, twice. Catches: finished work done again, or taken for other work."""
    import attack

    sizes = "--seeds 1 0 --problems 4 --weights 0 5 --steps 1 --eval-problems 8 --teach-steps 1 --threads 1".split()
    assert attack.main([*sizes, "--out", str(tmp_path)]) == 0
    table = (tmp_path / "attack" / "table.md").read_text()
    assert table in capsys.readouterr().out
    results = json.loads((tmp_path / "attack" / "results.json").read_text())
    assert list(results["prices"]) == ["pretrained", "pressed, weight 0", "pressed, weight 5"]
    assert list(results["pressure"]) == ["0", "5"] and all(len(found) == 2 for found in results["pressure"].values())
    same = next(row for row in results["neighbours"][0] if row["same_start"] and row["shared"] == 4)
    assert abs(same["gain"]) < 1e-4  # the very same prompt
    finished = tmp_path / "attack" / "weight_5" / "seed0" / "result.json"
    written = finished.stat().st_mtime_ns
    assert attack.main([*sizes, "--out", str(tmp_path)]) == 0
    assert finished.stat().st_mtime_ns == written and (tmp_path / "attack" / "table.md").read_text() == table
    sizes[sizes.index("--steps") + 1] = "2"
    assert attack.main([*sizes, "--out", str(tmp_path)]) == 1
    assert "was made with other settings" in capsys.readouterr().err


def test_no_scoring_pass_is_larger_than_micro_batch_tokens(monkeypatch):
    """One long completion among short ones. Catches: short rows padded to the longest of the whole batch."""
    model, rollouts, seen, original = small_gpt(), ragged_rollouts(), [], GPT.forward
    rollouts.mask[1:, 1:] = False
    watch = lambda self, tokens, *rest: seen.append(tokens.numel()) or original(self, tokens, *rest)
    monkeypatch.setattr(GPT, "forward", watch)
    longest = max(len(prompt) for prompt in rollouts.prompts) + rollouts.mask.shape[1]
    logprobs_under(model, rollouts, OTHERS, micro_batch_tokens=longest)
    assert max(seen) <= longest
