"""The training step: who sees what, what stands still when, and what happens when numbers go wrong."""

import copy
import json
import random
import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import minclipo.runs.loop as loop_module
import minclipo.trainer as trainer_module
from minclipo.checkpoint import load_model, load_tokenizer
from minclipo.config import TrainConfig
from minclipo.contrastive import center_by_group, contrastive_loss
from minclipo.extensions.micro_batches import micro_batches
from minclipo.grpo import PolicyLoss, group_advantages
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.runs.loop import Run, step_tensors
from minclipo.runs.measure import evaluate, faithfulness, rollout_metrics, timed_step
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Task
from minclipo.tasks.chain import check_outcome, random_problem
from minclipo.toy import TASK, ToyConfig, pretrained_toy, toy_tokenizer
from minclipo.trainer import Step, Trainer

TINY = dict(steps=3, prompts_per_step=6, group_size=8, learning_rate=3e-3)
METHODS = {"grpo": {}, "clipo": dict(contrastive_weight=0.5), "oracle": dict(process_penalty=0.5)}
draw = TASK.draw
OUTCOME_ONLY = Task(draw, check_outcome)


@pytest.fixture(scope="module")
def start():
    """A toy that has just begun to quote and add: some rollouts are right, most are not."""
    torch.manual_seed(0)
    return pretrained_toy(
        ToyConfig(num_layers=2, hidden_size=32, pretrain_steps=250, pretrain_batch=64, slip=0.0), toy_tokenizer(), 0
    )


def lenient(problem, completion, finished) -> bool:
    """An outcome check that a beginner passes about half of the time: short runs have something to learn from."""
    return finished and any(
        word.isdigit() and int(word) % 2 == 0 for word in completion.split()[1:2]
    )  # first total is even


EASY = Task(draw, lenient, lambda problem, completion: [True, len(completion) % 3 > 0])


def make(start, task=EASY, **changes) -> Trainer:
    return Trainer(copy.deepcopy(start), toy_tokenizer(), task, TrainConfig(**TINY | changes))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


@pytest.mark.parametrize("method", ["grpo", "clipo"])
@pytest.mark.parametrize("step_check", ["absent", "a lie"])
def test_the_step_check_never_reaches_training(start, method, step_check):
    """Rewards, advantages, batches and weights are bit-equal with the step check, without it, or with a lie instead.

    Catches: any path from the process labels into GRPO's or CLIPO's training data.
    """
    other = Task(draw, lenient, None if step_check == "absent" else lambda problem, completion: [False])
    runs = []
    for task in (EASY, other):
        trainer = make(start, task, **METHODS[method])
        batches = []
        for _ in range(3):
            batches.append(step_tensors(trainer.step(), trainer.tokenizer))
        runs.append((batches, weights(trainer)))
    (batches, first), (other_batches, second) = runs
    for batch, other_batch in zip(batches, other_batches):
        assert batch.keys() == other_batch.keys() >= {"rewards", "advantages", "completions"}
        assert all(torch.equal(batch[name], other_batch[name]) for name in batch)
    assert torch.equal(first, second)


def test_the_oracle_does_see_the_steps(start):
    """The counterpart of the test above: it could not fail if nothing ever reached training."""
    first = make(start, **METHODS["oracle"])
    second = make(start, Task(draw, lenient, lambda problem, completion: [True]), **METHODS["oracle"])
    assert not torch.equal(first.step().rewards, second.step().rewards)
    assert not torch.equal(weights(first), weights(second))


def test_the_oracle_without_a_step_check_is_refused(start):
    with pytest.raises(AssertionError, match="process_penalty needs a task with a step check"):
        make(start, OUTCOME_ONLY, process_penalty=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_get_the_same_problems(start, method):
    """Problems go by their number alone. Catches: a step that repeats the problems of the one before."""
    trainer = make(start, **METHODS[method])
    for first in (0, 6):
        wanted = [draw("training 0", index).prompt for index in range(first, first + 6)]
        step = trainer.step()
        assert step.rollouts.prompts == toy_tokenizer().encode_batch(wanted)
        assert [problem.prompt for problem in step.problems] == wanted


def test_the_policy_stands_still_while_the_head_warms_up(start):
    """Catches: warm-up counted from 1 or 0 wrongly, a policy update inside it, a head that does not learn in it."""
    trainer = make(start, contrastive_weight=0.5, head_warmup_steps=2)
    before, head = weights(trainer), trainer.head.projection[0].weight.detach().clone()
    for _ in range(2):
        assert "policy_loss" not in trainer.step().metrics
        assert torch.equal(weights(trainer), before)
    assert not torch.equal(trainer.head.projection[0].weight, head)
    trainer.step()
    assert not torch.equal(weights(trainer), before)


def test_a_frozen_head_stands_still(start):
    trainer = make(start, contrastive_weight=0.5, head_learning_rate=0.0)
    head = trainer.head.projection[0].weight.detach().clone()
    trainer.step()
    assert torch.equal(trainer.head.projection[0].weight, head)


def test_the_contrastive_loss_leaves_the_policy_alone(start):
    """No gradient reaches the policy except through the reward. Catches: pooled states with a graph."""
    trainer = make(start, contrastive_weight=0.5)
    rollouts = trainer.sample([random_problem(random.Random(0)) for _ in range(6)])
    trainer.contrast(rollouts, torch.arange(48) % 2 == 0)
    assert all(p.grad is None for p in trainer.model.parameters())


def test_without_an_anchor_the_head_stands_still(start):
    """All rollouts correct at group level. Catches: a step on a zero gradient, whose weight decay shrinks the head; a
    mean loss of 0, the best there is, where nobody has one."""
    trainer = make(start, contrastive_weight=0.5, contrastive_level="group", head_weight_decay=0.1)
    before = trainer.head.projection[0].weight.detach().clone()
    rollouts = trainer.sample([random_problem(random.Random(0)) for _ in range(6)])
    reward, loss = trainer.contrast(rollouts, torch.ones(48, dtype=torch.bool))
    assert torch.equal(trainer.head.projection[0].weight, before) and (reward == 0).all() and loss.isnan()


def test_a_float64_model_trains_with_a_head(start):
    """A float64 model's pooled states are float64, too. Catches: a head that stays in float32 and cannot read them."""
    trainer = make(copy.deepcopy(start).double(), contrastive_weight=0.5)
    before = weights(trainer)
    step = trainer.step()
    assert step.contrastive_rewards.dtype == torch.float64 and (step.contrastive_rewards < 0).any()
    assert not torch.equal(weights(trainer), before)


def test_a_trainer_leaves_the_global_random_numbers_alone(start):
    """Catches: a head whose weights shift whatever else draws from the global generator."""
    torch.manual_seed(5)
    make(start, contrastive_weight=0.5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_a_step_check_without_verdicts_is_named(start):
    """Catches: a function without return, which would count every right answer as faithful."""
    task = Task(draw, lenient, lambda problem, text: None)
    with pytest.raises(ValueError, match="check_steps must return a list with a verdict per step, found None"):
        timed_step(make(start, task))


def test_the_step_check_is_asked_once_about_each_right_answer(start):
    """By the oracle, and then for the metrics. Catches: an expensive check done twice, or for wrong answers."""
    asked = []
    task = Task(draw, lenient, lambda problem, text: asked.append(text) or [True])
    metrics = timed_step(make(start, task, process_penalty=0.5))
    assert len(asked) == round(48 * metrics["accuracy"]) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_old_logprobs_are_at_the_sampling_temperature(start, dtype):
    """Catches: half precision scored again at temperature 1, where every ratio would be wrong."""
    trainer = Trainer(copy.deepcopy(start).to(dtype), toy_tokenizer(), EASY, TrainConfig(**TINY, temperature=0.5))
    _, rollouts, *_ = trainer.collect()
    batch = MicroBatch.some(rollouts, torch.arange(48))
    _, later = trainer.old_logprobs(rollouts, [[batch], [batch]])
    error = (later - rollouts.logprobs)[rollouts.mask].abs()
    assert error.mean() < 0.02  # bfloat16 rounds; another temperature is off by ten times as much


@pytest.mark.parametrize("center", [True, False])
def test_centring_is_done_when_it_is_asked_for(start, center):
    """Catches: an option that is declared and never used, like the official `debias`."""
    trainer = make(start, contrastive_weight=0.1, contrastive_center=center)
    rollouts = trainer.sample([random_problem(random.Random(0)) for _ in range(6)])
    correct = torch.arange(48) % 3 > 0
    pooled = center_by_group(rollouts.pooled, rollouts.group) if center else rollouts.pooled
    embeddings = trainer.head(pooled).detach()
    wanted = contrastive_loss(embeddings, correct, rollouts.group, loss="soft_nn", level="cross", temperature=0.5)
    _, loss = trainer.contrast(rollouts, correct)
    torch.testing.assert_close(loss, wanted.mean)


def test_each_rollout_is_judged_by_its_own_problem(start):
    """Catches: problems and rows paired in the wrong order, which turns the reward into noise."""
    seen = []
    watch = lambda problem, *_: seen.append(problem) or True
    trainer = make(start, Task(draw, watch, lambda *row: [watch(*row)]))
    problems = [random_problem(random.Random(i)) for i in range(6)]
    rollouts = trainer.sample(problems)
    wanted = [problems[b] for b in rollouts.group.tolist()]
    trainer.verify(problems, rollouts)
    trainer.task.steps(problems, [""] * 48, [True] * 48)
    assert seen == wanted + wanted and len(set(wanted)) == 6


@pytest.mark.parametrize("kind", [int, float, np.bool_, torch.tensor])
def test_verdicts_that_mean_true_and_false_are_taken(start, kind):
    """1 and 0, of numpy, of torch. Catches: an error about masks after the first update; evaluate() counts others."""
    task = Task(draw, lambda *row: kind(lenient(*row)))
    trainer, wanted = make(start, task), make(start, Task(draw, lenient))
    assert torch.equal(trainer.step().correct, wanted.step().correct) and trainer.last.correct.dtype == torch.bool
    assert torch.equal(weights(trainer), weights(wanted))
    measure = lambda task: evaluate(start, toy_tokenizer(), task, problems=20, max_new_tokens=16, seed=0)["correct"]
    assert measure(task) == measure(Task(draw, lenient)) > 0


@pytest.mark.parametrize("verdict", [None, re.match("a", "a"), 0.5, 2, "wrong", (True, "well done"), float("nan")])
def test_a_verdict_that_is_neither_is_named(start, verdict):
    """A search for "# 64" that returns its match, a forgotten return, a grade. Catches: an error far from its cause,
    after the weights were changed; a grade of 0.5 or the word "wrong" that counts as right."""
    task = Task(draw, lambda *row: verdict)
    trainer = make(start, task)
    before = weights(trainer)
    with pytest.raises(ValueError, match="check_outcome must return True or False"):
        trainer.step()
    assert torch.equal(weights(trainer), before)
    with pytest.raises(ValueError, match="check_outcome must return True or False"):
        evaluate(start, toy_tokenizer(), task, problems=2, max_new_tokens=4, seed=0)


def test_rewards_are_outcome_plus_contrast(start, monkeypatch):
    """The update gets exactly the group advantage of the summed reward. Catches: contrast added after the advantage."""
    seen = {}
    monkeypatch.setattr(
        Trainer, "update_policy", lambda self, rollouts, advantages: seen.update(advantages=advantages) or {}
    )
    step = make(start, contrastive_weight=0.5).step()
    assert step.contrastive_rewards.min() < 0 and step.correct.any()
    assert torch.equal(step.rewards, step.correct.float() + step.contrastive_rewards)
    assert torch.equal(seen["advantages"], group_advantages(step.rewards, 8))


def test_the_first_mini_batch_is_on_policy(start, monkeypatch):
    """Sampled and recomputed log-probs agree: ratio 1, kl 0. Catches: another temperature, lost or shifted tokens."""
    seen = []
    original = trainer_module.policy_loss
    monkeypatch.setattr(trainer_module, "policy_loss", lambda *a, **k: seen.append(a) or original(*a, **k))
    trainer = make(start, temperature=0.7)
    trainer.step()
    logprobs, old, _, mask = seen[0]
    torch.testing.assert_close(logprobs[mask], old[mask], atol=1e-5, rtol=1e-5)


def test_dr_grpos_constant_is_the_length_that_a_completion_may_have(start, monkeypatch):
    """Catches: the longest completion of the batch in its place, which brings the length bias back."""
    trainer = make(start, aggregation="constant")
    rollouts, seen = trainer.sample([draw("training 0", i) for i in range(6)]), []
    rollouts.mask[:, 5:] = False
    for name in ("mask", "completions", "logprobs"):
        setattr(rollouts, name, getattr(rollouts, name)[:, :5])
    original = trainer_module.token_weights
    monkeypatch.setattr(trainer_module, "token_weights", lambda *a: seen.append(a[2]) or original(*a))
    trainer.update_policy(rollouts, torch.randn(48))
    assert set(seen) == {16}


def test_every_rollout_is_used_once_a_step(start, monkeypatch):
    """Catches: mini-batches that overlap or leave the remainder out (48 rows in 5 parts)."""
    used, original = [], Trainer.loss_of
    watched = lambda self, part, *rest: used.extend(part.rows.tolist()) or original(self, part, *rest)
    monkeypatch.setattr(Trainer, "loss_of", watched)
    make(start, num_mini_batches=5, micro_batch_tokens=50).step()
    assert sorted(used) == list(range(48))


@pytest.mark.parametrize("prompts, group, asked", [(3, 3, 4), (5, 2, 6), (4, 4, 9), (16, 8, 48), (1, 2, 2)])
def test_a_step_makes_as_many_optimizer_steps_as_asked(start, monkeypatch, prompts, group, asked):
    """Catches: fewer steps where the rows do not divide evenly; a mini-batch of a few leftovers."""
    sizes, original = [], Trainer.update_on
    rows_of = lambda parts: sum(len(part.rows) for part in parts)
    monkeypatch.setattr(
        Trainer, "update_on", lambda self, parts, *rest: sizes.append(rows_of(parts)) or original(self, parts, *rest)
    )
    make(start, prompts_per_step=prompts, group_size=group, num_mini_batches=asked).step()
    assert len(sizes) == asked and sum(sizes) == prompts * group and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("tokens, most_parts", [(8192, 40), (100_000, 4), (10**6, 1)])
def test_micro_batches_take_linear_time(tokens, most_parts):
    """16384 short rows take 0.03 s. Catches: each row counting its whole part again, which took 9."""
    mask = torch.arange(16) < torch.randint(1, 17, (16384, 1))
    rollouts = Rollouts([[1] * 10] * 1024, 16, mask.long(), mask, mask.float(), mask.float(), mask[:, 0])
    started = time.process_time()
    parts = micro_batches(rollouts, torch.arange(16384), tokens)
    assert time.process_time() - started < 1 and len(parts) <= most_parts
    assert torch.equal(torch.cat([part.rows for part in parts]), torch.arange(16384))


def test_training_raises_the_reward(start, tmp_path):
    """An easy check, twenty steps. Catches: a loss with the wrong sign (then the accuracy falls).

    Over five seeds the accuracy rose by 0.28 to 0.42: 0.15 is far from chance.
    """
    history = Run(make(start, steps=20, prompts_per_step=16), tmp_path).train()
    first, last = (sum(m["accuracy"] for m in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 0.15


def test_a_kl_penalty_holds_the_policy_back(start, tmp_path):
    """Catches: the penalty subtracted, or taken against the moving policy (then it is 0)."""
    distances = {}
    for weight in (1e-6, 1.0):
        run = Run(make(start, steps=8, kl_weight=weight), tmp_path / str(weight))
        distances[weight] = run.train()[-1]["kl_reference"]
    assert 0 < distances[1.0] < 0.5 * distances[1e-6]


def test_the_same_seed_gives_the_same_run_and_another_does_not(start):
    runs = [make(start, seed=seed, contrastive_weight=0.3, contrastive_loss="infonce") for seed in (1, 1, 2)]
    for trainer in runs:
        trainer.step()
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_metrics_of_a_batch_made_by_hand():
    """4 groups of 2: both right, one right, both wrong, both right; the contrastive reward differs in the last only."""
    correct = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1]).bool()
    contrastive = torch.tensor([-0.1, -0.1, 0.0, 0, 0, 0, -0.2, -0.4])
    step = Step(1, rollouts=sample_of_eight(), correct=correct, contrastive_rewards=contrastive)
    step.rewards = correct.float() + contrastive
    assert "contrastive_penalty" not in rollout_metrics(step)
    step.metrics["contrastive_loss"] = 2.0
    got = rollout_metrics(step)
    assert got["informative_prompts"] == 0.25 and got["contrastive_signal"] == 0.25
    assert got["accuracy"] == pytest.approx(5 / 8)
    assert got["contrastive_penalty"] == pytest.approx(0.8 / 5)
    assert got["reward"] == pytest.approx((5 - 0.8) / 8)


def test_steps_are_counted_in_right_answers():
    """Catches: wrong answers in the hallucination rate, or in the number of steps that it rests on."""
    got = faithfulness([[True, True, True], [False], None, [True, True]])
    assert got["hallucination_rate"] == pytest.approx(1 / 3) and got["steps_checked"] == 2
    assert got["faithful_accuracy"] == 0.5 and got["faithful"] == 2


def sample_of_eight():
    tokenizer = toy_tokenizer()
    from conftest import small_gpt

    return sample(small_gpt(vocab_size=122), [tokenizer.encode("1 =")] * 4, 2, 3, eos_ids=[0])


def test_run_writes_metrics_and_a_model_that_loads(start, tmp_path):
    """Catches: a saved model that is not the trained one."""
    trainer = make(start, contrastive_weight=0.3)
    history = Run(trainer, tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and [line["step"] for line in lines] == [1, 2, 3]
    wanted = {
        "reward", "accuracy", "informative_prompts", "contrastive_signal", "hallucination_rate", "contrastive_penalty",
        "kl", "clip_fraction", "gradient_norm", "entropy", "completion_length", "seconds",
    }  # fmt: skip
    assert wanted <= lines[0].keys()
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    tokens = torch.tensor([tokenizer.encode("7 , +5 =")])
    assert torch.equal(model(tokens), trainer.model(tokens))


def test_a_nan_loss_stops_the_run_and_saves_the_evidence(start, tmp_path, monkeypatch):
    """Catches: weights spoilt by the NaN, a last good model overwritten, an error that does not say where to look."""
    trainer = make(start, steps=9, save_every=1, num_mini_batches=1)
    original, calls = trainer_module.policy_loss, []

    def spoilt(*args, **kwargs):
        calls.append(1)
        found = original(*args, **kwargs)
        return PolicyLoss(
            found.loss * float("nan") if len(calls) == 3 else found.loss,
            found.clip_fraction,
            found.dual_clip_fraction,
            found.kl,
        )

    monkeypatch.setattr(trainer_module, "policy_loss", spoilt)
    with pytest.raises(FloatingPointError) as error:
        Run(trainer, tmp_path).train()
    message = str(error.value)
    assert "step 3" in message and "failed_batch.safetensors" in message and "after step 2" in message
    batch = load_file(tmp_path / "failed_batch.safetensors")
    wanted = {"prompt_0", "completions", "mask", "logprobs", "pooled", "correct", "rewards", "advantages"}
    assert wanted <= batch.keys()
    model = load_model(tmp_path / "model")
    assert all(p.isfinite().all() for p in model.parameters())
    assert torch.equal(
        model.embed_tokens.weight, trainer.model.embed_tokens.weight
    )  # the step that failed changed nothing
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_failure_while_sampling_leaves_the_prompts(start, tmp_path):
    """Catches: a step that fails before there are rollouts and leaves nothing to look at."""
    run = Run(make(start), tmp_path)
    run.start(resume=False)
    with torch.no_grad():
        run.trainer.model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        run.trainer.step()
    assert "failed_batch" in str(run.failure(FloatingPointError("logits")))
    batch = load_file(tmp_path / "failed_batch.safetensors")
    assert batch["prompt_5"].tolist() == toy_tokenizer().encode(draw("training 0", 5).prompt)


def test_a_failure_in_a_second_batch_leaves_its_own_prompts(start):
    """Dynamic sampling draws again, and the model breaks. Catches: the first batch's rollouts beside the second's
    prompts."""
    hopeless = Task(draw, lambda problem, text, finished: False)
    trainer = make(start, hopeless, dynamic_sampling=2)
    sample_once = trainer.sample

    def breaks_on_the_second(problems, uniform):
        if problems[0] != first:
            raise FloatingPointError("the model's logits are not finite")
        return sample_once(problems)

    first, trainer.sample = draw("training 0", 0), breaks_on_the_second
    with pytest.raises(FloatingPointError):
        trainer.step()
    assert [problem.prompt for problem in trainer.last.problems] == [draw("training 0", i).prompt for i in range(6, 12)]
    assert trainer.last.rollouts is None


def test_a_batch_that_cannot_be_written_hides_no_cause(start, tmp_path, monkeypatch):
    """A NaN on a full disk. Catches: a run that ends with the disk's error alone."""

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(loop_module, "save_tensors", full_disk)
    run = Run(make(start), tmp_path)
    message = str(run.failure(FloatingPointError("the loss is nan")))
    assert "the loss is nan" in message and "could not be written: No space left" in message


def test_rewards_that_are_not_finite_stop_the_step(start, monkeypatch):
    """Catches: a reward that overflowed becoming NaN advantages, then NaN weights."""
    trainer = make(start, contrastive_weight=0.5)
    monkeypatch.setattr(
        trainer, "contrast", lambda rollouts, correct: (torch.full([len(correct)], -torch.inf), torch.zeros(()))
    )
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="rewards are not finite"):
        trainer.step()
    assert torch.equal(weights(trainer), before) and trainer.last.rewards is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradients_are_held_between_steps(start, dtype):
    """Catches: a whole model's worth of memory held while sampling."""
    trainer = make(copy.deepcopy(start).to(dtype))
    trainer.step()
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert all(master.grad is None for master in trainer.optimizer.masters.values())


def test_weights_that_cannot_compute_never_replace_good_ones(start, tmp_path, monkeypatch):
    """An update that spoils a weight without a NaN in its loss. The model on disk must still answer."""

    def spoil(self, rollouts, advantages):
        with torch.no_grad():
            self.model.norm.weight[0] = float("inf")
        return {}

    monkeypatch.setattr(Trainer, "update_policy", spoil)
    trainer = make(start, steps=9, save_every=1)
    with pytest.raises(FloatingPointError, match="step 1: the updated model's logits .* after step 0 are in"):
        Run(trainer, tmp_path).train()
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    assert evaluate(model, tokenizer, TASK, problems=20, max_new_tokens=16, seed=0)["problems"] == 20


@pytest.mark.parametrize("steps", [3, 2])
def test_weights_that_break_leave_their_batch_whichever_step_it_is(start, tmp_path, steps):
    """Broken by the update of step 2. Catches: a last step whose failure has no step, no folder and no batch."""
    trainer = make(start, steps=steps, save_every=1, num_mini_batches=1)
    original = trainer.optimizer.step

    def breaks():
        original()
        if trainer.last.number == 2:
            with torch.no_grad():
                trainer.model.norm.weight[0] = float("inf")

    trainer.optimizer.step = breaks
    with pytest.raises(FloatingPointError, match="step 2: the updated model's logits are not finite.*after step 1 are"):
        Run(trainer, tmp_path).train()
    assert {"completions", "advantages"} <= load_file(tmp_path / "failed_batch.safetensors").keys()
    assert load_model(tmp_path / "model").norm.weight.isfinite().all()


def test_evaluate_counts(start):
    """Catches: the hallucination rate over all rollouts instead of the right ones."""
    task = Task(
        draw,
        lambda problem, text, finished: problem.start % 2 == 0,
        lambda problem, text: [True, problem.start % 3 == 0],
    )
    found = evaluate(start, toy_tokenizer(), task, problems=400, max_new_tokens=4, seed=0)
    even = [problem.start for problem, _, _ in found["examples"] if problem.start % 2 == 0]
    assert found["correct"] == len(even)
    assert found["hallucination_rate"] == pytest.approx(sum(s % 3 > 0 for s in even) / len(even))
    assert found["faithful_accuracy"] == pytest.approx(sum(s % 3 == 0 for s in even) / 400)


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(steps=0), "steps must be at least 1, found 0"),
        (dict(temperature=0.0), "temperature must be above 0, found 0.0"),
        (dict(temperature=1e-38), "temperature must be at least 1e-06, found 1e-38"),
        (dict(contrastive_temperature=1e-40), "contrastive_temperature must be at least 1e-06"),
        (dict(overlong_buffer=1e-45), "overlong_buffer must be at least 1e-06"),
        (dict(group_size=1), "group_size must be at least 2, found 1"),
        (
            dict(num_mini_batches=6, prompts_per_step=1, group_size=5),
            "num_mini_batches 6 must be at most .* group_size 5",
        ),
        (dict(contrastive_weight=0.1, contrastive_floor=0.0), "contrastive_floor 0 cuts every contrastive reward to 0"),
        (dict(contrastive_weight=0.1, contrastive_level="group", group_size=2), "where 2 rollouts are compared.*Raise"),
        (dict(contrastive_weight=0.1, prompts_per_step=1, group_size=2), "where 2 rollouts are compared"),
        (dict(learning_rate=-1.0), "learning_rate must be above 0, found -1.0"),
        (dict(contrastive_weight=-0.1), "contrastive_weight must be at least 0, found -0.1"),
        (dict(temperature=float("nan")), "temperature must be a finite number, found nan"),
        (dict(contrastive_floor=0.3), "contrastive_floor must be at most 0, found 0.3"),
        (dict(seed=2**70), "seed must be at most"),
        (dict(head_warmup_steps=3), "head_warmup_steps is 3, but contrastive_weight 0 has no head"),
        (dict(head_warmup_steps=60, contrastive_weight=0.1), "head_warmup_steps 60 leaves the policy none of 60 steps"),
        (dict(dual_clip=0.5), "dual_clip must be above 1, or 0 for off; found 0.5"),
        (dict(aggregation="mean"), "aggregation must be one of token_mean.*'mean'"),
        (dict(contrastive_level="prompt"), "contrastive_level must be one of"),
    ],
)
def test_bad_settings_are_named(changes, names):
    with pytest.raises(ValueError, match=names):
        TrainConfig(**changes)


def test_the_smallest_settings_that_can_teach_something_are_allowed(start):
    """And do teach. Catches: a bound that is off by one."""
    for changes in (
        dict(group_size=3, contrastive_level="group", contrastive_center=False),
        dict(group_size=2, contrastive_level="cross"),
        dict(group_size=2, num_mini_batches=12),
    ):
        trainer = make(start, contrastive_weight=0.1, **changes)
        before = weights(trainer)
        for _ in range(4):
            trainer.step()
        assert not torch.equal(weights(trainer), before)
    TrainConfig(group_size=2, contrastive_level="group", contrastive_floor=0.0)  # without a weight they are not read


@pytest.mark.parametrize("loss", ["infonce", "supcon_out", "supcon_in", "soft_nn"])
def test_the_smallest_temperatures_and_no_epsilon_train(start, loss):
    """Catches: bounds that let through what becomes inf or NaN."""
    smallest = dict(temperature=1e-6, contrastive_temperature=1e-6, advantage_epsilon=0.0, overlong_buffer=1e-6)
    trainer = make(start, contrastive_weight=0.1, contrastive_loss=loss, overlong_penalty=0.5, **smallest)
    for _ in range(3):
        step = trainer.step()
        assert step.advantages.isfinite().all()
    assert weights(trainer).isfinite().all() and trainer.head.projection[0].weight.isfinite().all()


def test_no_logprob_is_computed_twice_when_nothing_asks_for_it(start, monkeypatch):
    """One forward with gradient per mini-batch and no other: pooled states and old log-probs come from sampling."""
    calls = []
    monkeypatch.setattr(trainer_module, "batch_logprobs", lambda *a, **k: calls.append(1) or batch_logprobs(*a, **k))
    make(start, contrastive_weight=0.3, num_mini_batches=2).step()
    assert len(calls) == 2


def test_a_contrastive_loss_that_is_not_finite_stops_the_run(start, tmp_path):
    """Catches: NaN rewards, and a head spoilt for good by one bad batch."""
    trainer = make(start, contrastive_weight=0.3)
    with torch.no_grad():
        trainer.head.projection[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1: the contrastive head.*not finite.*failed_batch"):
        Run(trainer, tmp_path).train()


# For every option: a value other than its default, the function it must reach, and under which name.
DESTINATIONS = [
    ("temperature", 0.7, "sample", "temperature"),
    ("temperature", 0.7, "batch_logprobs", "temperature"),
    ("max_new_tokens", 13, "sample", 3),
    ("sampling_rows", 16, "sample", "sampling_rows"),
    ("group_size", 4, "sample", 2),
    ("group_size", 4, "group_advantages", 1),
    ("advantage_scale", "none", "group_advantages", "scale"),
    ("advantage_epsilon", 0.01, "group_advantages", "epsilon"),
    ("clip_low", 0.11, "policy_loss", "clip_low"),
    ("clip_high", 0.33, "policy_loss", "clip_high"),
    ("dual_clip", 4.0, "policy_loss", "dual_clip"),
    ("aggregation", "constant", "token_weights", 1),
    ("max_new_tokens", 13, "token_weights", 2),
    ("micro_batch_tokens", 77, "passes", 3),
    ("kl_kind", "k2", "kl_penalty", 2),
    ("contrastive_weight", 0.37, "contrastive_reward", "weight"),
    ("contrastive_loss", "supcon_in", "contrastive_loss", "loss"),
    ("contrastive_level", "batch", "contrastive_loss", "level"),
    ("contrastive_temperature", 0.21, "contrastive_loss", "temperature"),
    ("contrastive_similarity", "l2", "contrastive_loss", "similarity"),
    ("contrastive_anchors", "all", "contrastive_loss", "anchors"),
    ("contrastive_floor", -0.4, "contrastive_reward", "floor"),
    ("head_size", 7, "ContrastiveHead", 1),
    ("head_kind", "mlp", "ContrastiveHead", 2),
]


@pytest.mark.parametrize("name, value, function, place", DESTINATIONS)
def test_options_arrive_where_they_act(start, monkeypatch, name, value, function, place):
    """Catches: an option that is declared and read by nobody, or that arrives under another's name."""
    calls, original = [], getattr(trainer_module, function)
    monkeypatch.setattr(trainer_module, function, lambda *a, **k: calls.append((a, k)) or original(*a, **k))
    settings = {"contrastive_weight": 0.1, "kl_weight": 0.01} | {name: value}
    make(start, **settings).step()
    assert calls
    for positional, named in calls:
        assert (named[place] if isinstance(place, str) else positional[place]) == value


@pytest.mark.parametrize(
    "name, value, of_head, field",
    [
        ("learning_rate", 0.0123, False, "lr"),
        ("weight_decay", 0.45, False, "weight_decay"),
        ("head_learning_rate", 0.0321, True, "lr"),
        ("head_weight_decay", 0.54, True, "weight_decay"),
    ],
)
def test_optimizer_options_arrive(start, name, value, of_head, field):
    trainer = make(start, **{"contrastive_weight": 0.1, name: value})
    optimizer = trainer.head_optimizer if of_head else trainer.optimizer
    assert optimizer.param_groups[0][field] == value


def test_the_gradient_is_clipped_to_its_norm(start, monkeypatch):
    """Catches: clipping after the step, or another norm. What the optimizer sees is at most max_grad_norm long."""
    trainer, seen = make(start, max_grad_norm=0.01), []
    original = trainer.optimizer.step

    def watched():
        seen.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item())
        return original()

    monkeypatch.setattr(trainer.optimizer, "step", watched)
    metrics = trainer.step().metrics
    assert len(seen) == 2 and max(seen) <= 0.01 * 1.001 < metrics["gradient_norm"]


def test_the_oracle_takes_off_what_it_is_told(start):
    """Outcome 1, minus 0.3 where the step check objects. Catches: the penalty on wrong answers too, or its sign."""
    task = Task(draw, lambda problem, *_: problem.start % 2 == 0, lambda problem, _: [problem.start % 3 == 0])
    trainer = make(start, task, process_penalty=0.3)
    step = trainer.step()
    problems = [draw("training 0", index) for index in range(6)]
    wanted = [float(p.start % 2 == 0) * (1.0 if p.start % 3 == 0 else 0.7) for p in problems for _ in range(8)]
    torch.testing.assert_close(step.rewards, torch.tensor(wanted))
