"""What the algorithms have in common and where they part: identities of their losses, Dr. GRPO's unbiasedness by
enumeration, DAPO's dynamic sampling with a made-up sampler, and every preset in a real training step."""

import itertools
import math
import zlib
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import small_gpt

import minclipo.extensions.rewards as rewards_module
import minclipo.trainer as trainer_module
from minclipo.config import TrainConfig
from minclipo.extensions.dapo import dynamic_sampling, informative_groups, overlong_penalty
from minclipo.grpo import group_advantages, policy_loss, sequence_log_ratio, token_weights
from minclipo.runs.loop import Run, step_tensors
from minclipo.runs.measure import timed_step
from minclipo.runs.recipes import ALGORITHMS
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Task
from minclipo.toy import TASK, ToyConfig, toy_model, toy_tokenizer
from minclipo.trainer import Trainer

LOSS_FIELDS = ("ratio", "clip_low", "clip_high")
ALGORITHM_FIELDS = [
    "ratio", "clip_low", "clip_high", "dual_clip", "aggregation", "advantage_scale", "kl_weight", "kl_kind",
    "dynamic_sampling", "overlong_penalty", "overlong_buffer",
]  # fmt: skip


def off_policy_batch(seed: int, lengths: tuple[int, ...] = (6, 1, 4, 3, 2, 5), drift: float = 0.5):
    """(logprobs with gradient, old_logprobs, advantages, mask), float64; log-ratios of about `drift` on either side."""
    g = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    old = -random(len(lengths), max(lengths)).abs()
    logprobs = (old + drift * random(*old.shape)).requires_grad_()
    return logprobs, old, random(len(lengths)), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def loss_and_gradient(logprobs, old, advantages, mask, aggregation="sequence_mean", **options):
    weights = token_weights(mask, aggregation, max_length=9, dtype=torch.float64)
    found = policy_loss(logprobs, old, advantages, mask, weights=weights, **options)
    return found, torch.autograd.grad(found.loss, logprobs)[0]


@pytest.mark.parametrize("name", ["gspo", "gmpo"])
def test_on_policy_gspo_and_gmpo_are_grpo_as_published(name):
    """Values and gradients agree when the ratios are 1: the algorithms differ in what they clip and in nothing else.

    Catches: a gradient of the mean log-ratio that is 1/|y| too small or too large, which Adam and clipping would hide.
    """
    _, old, advantages, mask = off_policy_batch(0)
    logprobs = old.clone().requires_grad_()
    settings = lambda name: {field: ALGORITHMS[name][field] for field in LOSS_FIELDS}
    ours, gradient = loss_and_gradient(logprobs, old, advantages, mask, **settings(name))
    grpo, wanted = loss_and_gradient(logprobs, old, advantages, mask, **settings("grpo_published"))
    torch.testing.assert_close(ours.loss, grpo.loss)
    torch.testing.assert_close(gradient, wanted)
    assert ours.clip_fraction == 0


@pytest.mark.parametrize("aggregation", ["sequence_mean", "constant"])
def test_gspo_of_one_token_rollouts_is_grpo(aggregation):
    """Off-policy, clip and dual clip at work. Catches: a mean that counts padding or that is taken over the batch."""
    logprobs, old, advantages, mask = off_policy_batch(1, (1,) * 24, drift=0.8)
    logprobs, old, mask = (F.pad(x.detach(), (0, 2)) for x in (logprobs, old, mask))  # two places of padding
    logprobs.requires_grad_()
    options = dict(aggregation=aggregation, clip_high=0.28, dual_clip=1.5)
    gspo, gradient = loss_and_gradient(logprobs, old, advantages, mask, ratio="sequence", **options)
    grpo, wanted = loss_and_gradient(logprobs, old, advantages, mask, ratio="token", **options)
    assert 0 < grpo.clip_fraction < 1 and grpo.dual_clip_fraction > 0
    assert all(torch.equal(value, vars(grpo)[name]) for name, value in vars(gspo).items())
    assert torch.equal(gradient, wanted)


def objective_of_a_rollout(logprobs, old, advantage, *, ratio, clip_low, clip_high, dual_clip=math.inf):
    """The papers' formulas for one rollout, to be maximised and differentiated as they stand. logprobs, old: [|y|]."""
    if ratio == "geometric_mean":  # GMPO eq. 4
        product = torch.ones((), dtype=torch.float64)
        for r in (logprobs - old).exp():
            product = product * (
                r.clamp(max=math.exp(clip_high)) if advantage > 0 else r.clamp(min=math.exp(-clip_low))
            )
        objective = advantage * product ** (1 / len(logprobs))
    else:
        r = (logprobs - old).exp()  # GRPO: one per token
        if ratio == "sequence":  # GSPO eq. 5 and 7
            r = (logprobs.sum() - old.sum()).exp()[None] ** (1 / len(logprobs))
        objective = torch.minimum(advantage * r, advantage * r.clamp(1 - clip_low, 1 + clip_high))
    bounded = objective.clamp(min=advantage * dual_clip) if advantage < 0 else objective
    return bounded.mean()


def slow_loss(logprobs, old, advantages, mask, aggregation: str, **options):
    """The loss and its gradient, rollout by rollout."""
    lengths = mask.sum(1).tolist()
    share = {  # of a rollout's mean in the loss
        "sequence_mean": [1 / len(lengths)] * len(lengths),
        "sequence_sum": [length / len(lengths) for length in lengths],
        "token_mean": [length / sum(lengths) for length in lengths],
        "constant": [length / (len(lengths) * 9) for length in lengths],
    }[aggregation]
    rows = [(logprobs[i][mask[i]], old[i][mask[i]], advantages[i]) for i in range(len(mask))]
    loss = -sum(share[i] * objective_of_a_rollout(*row, **options) for i, row in enumerate(rows))
    return loss, torch.autograd.grad(loss, logprobs)[0]


@pytest.mark.parametrize("ratio", ["sequence", "geometric_mean"])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "sequence_sum", "token_mean", "constant"])
def test_the_token_form_is_the_formula_of_the_rollout(ratio, aggregation):
    """Value and gradient. GSPO and GMPO are sequence_mean; the others weigh their rollouts by length.

    Catches: a clip of the wrong thing (tokens for the mean or the mean for tokens), on the wrong side of the sign of A,
    a gradient that leaks into the tokens that GMPO has clipped or out of those that it has not.
    """
    cut, dual = [], []
    for seed in range(8):
        batch, options = off_policy_batch(seed), dict(ratio=ratio, clip_low=0.2, clip_high=0.28, dual_clip=1.4)
        found, gradient = loss_and_gradient(*batch, aggregation, **options)
        wanted, wanted_gradient = slow_loss(*batch, aggregation, **options)
        torch.testing.assert_close(found.loss, wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-12, atol=1e-13)
        cut.append(found.clip_fraction), dual.append(found.dual_clip_fraction)
    assert 0 < min(cut) and max(cut) < 1 and max(dual) > 0


# name: (ratio, clip_low, clip_high, aggregation) of the papers, and a drift at which some of it is clipped
PAPERS = {
    "grpo": ("token", 0.2, 0.2, "token_mean", 0.3),
    "grpo_published": ("token", 0.2, 0.2, "sequence_mean", 0.3),
    "dr_grpo": ("token", 0.2, 0.2, "constant", 0.3),
    "dapo": ("token", 0.2, 0.28, "token_mean", 0.3),
    "gspo": ("sequence", 3e-4, 4e-4, "sequence_mean", 1e-3),
    "gmpo": ("geometric_mean", 0.4, 0.4, "sequence_mean", 0.5),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loss_of_a_preset_is_its_papers(name):
    """Catches: a number, a ratio or a mean in the table of presets that is not the one published."""
    preset, (ratio, clip_low, clip_high, aggregation, drift) = ALGORITHMS[name], PAPERS[name]
    settings = {field: preset[field] for field in LOSS_FIELDS}
    for seed in range(5):
        batch = off_policy_batch(seed, drift=drift)
        found, gradient = loss_and_gradient(*batch, preset["aggregation"], **settings)
        wanted, wanted_gradient = slow_loss(*batch, aggregation, ratio=ratio, clip_low=clip_low, clip_high=clip_high)
        assert 0 < found.clip_fraction < 1 and preset["dual_clip"] == 0
        torch.testing.assert_close(found.loss, wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-12, atol=1e-13)


def test_what_presets_set_besides_the_loss():
    """Catches: an extra that has slipped into another algorithm, DAPO's penalty of 1 with rewards of 1 and 0."""
    besides = ("advantage_scale", "kl_weight", "kl_kind", "dynamic_sampling", "overlong_penalty", "overlong_buffer")
    plain = dict(zip(besides, ("std", 0.0, "k3", 0, 0.0, 0.2)))
    wanted = {
        "grpo_published": dict(kl_weight=0.04),
        "dr_grpo": dict(advantage_scale="none"),
        "dapo": dict(dynamic_sampling=10, overlong_penalty=0.5, overlong_buffer=4096 / 20480),
    }
    for name, preset in ALGORITHMS.items():
        assert {field: preset[field] for field in besides} == plain | wanted.get(name, {})


def test_the_token_form_gives_each_token_its_own_gradient():
    """Every place holds its row's mean, and its derivative is 1 for that token and 0 for all others (GSPO eq. 14).

    Catches: the mean itself, repeated. With equal weights along a row that would come to the same, but weights that
    differ from token to token (verl's importance weights) would no longer reach the token they are for.
    """
    log_ratio, _, _, mask = off_policy_batch(0, (3, 1, 2))
    log_ratio = (log_ratio.detach() * mask).requires_grad_()
    out = sequence_log_ratio(log_ratio, mask)
    means = torch.stack([log_ratio[i][mask[i]].mean() for i in range(3)])
    torch.testing.assert_close(out, means[:, None].expand(3, 3))
    jacobian = torch.autograd.functional.jacobian(lambda x: sequence_log_ratio(x, mask), log_ratio)
    assert torch.equal(jacobian.view(9, 9), torch.eye(9, dtype=torch.float64))


# Dr. GRPO on a policy small enough to try everything: each token goes on or stops, and the fourth must stop. So there
# are four completions, of 1, 2, 3 and 4 tokens, each with a reward.

REWARDS = torch.tensor([0.2, 0.1, 0.1, 0.5], dtype=torch.float64)
THETA = torch.tensor([-0.5, 0.5, -0.5], dtype=torch.float64)  # log-odds of going on after 0, 1 and 2 tokens
MAX_LENGTH, GROUP = 5, 3


def completions(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [4, 4] of the tokens of the four completions under the policy theta [3], and their mask."""
    go_on, stop, zero = F.logsigmoid(theta), F.logsigmoid(-theta), torch.zeros((), dtype=torch.float64)
    rows = [[*go_on[:n], stop[n] if n < 3 else zero] + [zero] * (3 - n) for n in range(4)]
    return torch.stack([torch.stack(row) for row in rows]), torch.ones(4, 4).tril().bool()


def true_gradient(theta: torch.Tensor) -> torch.Tensor:
    """d E[reward] / d theta."""
    logprobs, _ = completions(theta)
    return torch.autograd.grad((logprobs.sum(1).exp() * REWARDS).sum(), theta)[0]


def expected_gradient(theta: torch.Tensor, scale: str, aggregation: str) -> torch.Tensor:
    """The gradient of the loss of a group of rollouts, averaged over all groups that the policy may draw."""
    logprobs, mask = completions(theta)
    probabilities, total = logprobs.sum(1).exp().detach(), torch.zeros((), dtype=torch.float64)
    assert probabilities.sum().item() == pytest.approx(1)
    for group in itertools.product(range(4), repeat=GROUP):
        rows = list(group)
        advantages = group_advantages(REWARDS[rows], GROUP, scale=scale)
        weights = token_weights(mask[rows], aggregation, MAX_LENGTH, torch.float64)
        found = policy_loss(logprobs[rows], logprobs[rows].detach(), advantages, mask[rows], weights=weights)
        total = total + probabilities[rows].prod() * found.loss
    return torch.autograd.grad(total, theta)[0]


def test_dr_grpo_is_unbiased():
    """Averaged over everything that may be drawn, its gradient is a constant times the true one.

    A_i = (1 - 1/G) R_i - (sum of the other G - 1 rewards) / G. The others are independent of rollout i, and the mean of
    grad log p(y_i) is 0, so that A_i grad log p(y_i) is (1 - 1/G) grad E[R] on average. The loss is the mean of its
    negative over G rollouts, divided by max_length.
    Catches: any weight that depends on what was drawn, a baseline with the rollout's own reward counted otherwise.
    """
    theta = THETA.clone().requires_grad_()
    preset = ALGORITHMS["dr_grpo"]
    found = expected_gradient(theta, preset["advantage_scale"], preset["aggregation"])
    torch.testing.assert_close(found, -(1 - 1 / GROUP) / MAX_LENGTH * true_gradient(theta), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "scale, aggregation, below",
    [
        ("std", "token_mean", 0.7),
        ("std", "sequence_mean", 0.7),
        ("std", "constant", 0.8),
        ("none", "token_mean", 0.98),
        ("none", "sequence_mean", 0.98),
    ],
)
def test_the_others_are_biased(scale, aggregation, below):
    """GRPO's two forms, then what Dr. GRPO leaves out, one by one: each turns the gradient away from the true one.

    This is the counterpart of the test above, which could not fail if every choice passed it here.
    """
    theta = THETA.clone().requires_grad_()
    found = expected_gradient(theta, scale, aggregation)
    assert F.cosine_similarity(-found, true_gradient(theta), dim=0) < below


def length_of(row: int) -> int:
    return 1 + row % 2


def made_up_batch(first: int, verdicts: str, width: int):
    """What a sampler returns for problems `first`, `first` + 1, ..., two rollouts each, verdicts such as "10 11 00".

    Every tensor says which row (2 * problem + rollout) it belongs to.
    """
    problems = [first + b for b in range(len(verdicts.split()))]
    rows = torch.tensor([2 * problem + g for problem in problems for g in range(2)])
    mask = torch.arange(width) < torch.tensor([length_of(row) for row in rows.tolist()])[:, None]
    completions = torch.where(mask, rows[:, None], 777)
    rollouts = Rollouts(
        prompts=[[problem] for problem in problems],
        group_size=2,
        completions=completions,
        mask=mask,
        logprobs=torch.where(mask, -rows[:, None].float(), 0.0),
        pooled=rows[:, None].repeat(1, 3).float(),
        finished=rows % 3 == 0,
    )
    texts = [f"row {row}" for row in rows.tolist()]
    return problems, rollouts, texts, torch.tensor([verdict == "1" for verdict in verdicts.replace(" ", "")])


def sampler(*batches: str, widths: tuple[int, ...] = (2, 2, 2, 2)):
    """(collect, calls): collect() returns the next of the batches and counts itself in calls."""
    calls = []

    def collect():
        number = len(calls)
        calls.append(number)
        size = len(batches[0].split())
        return made_up_batch(number * size, batches[number], widths[number])

    return collect, calls


def assert_holds(kept, wanted: list[int], *batches: str) -> None:
    """The batch `kept` holds the `wanted` problems in this order, and everything of each of their rollouts."""
    problems, rollouts, texts, correct = kept
    verdicts = " ".join(batches).split()
    rows = [2 * problem + g for problem in wanted for g in range(2)]
    assert problems == wanted and rollouts.prompts == [[problem] for problem in wanted]
    assert correct.tolist() == [verdicts[row // 2][row % 2] == "1" for row in rows]
    assert texts == [f"row {row}" for row in rows]
    assert rollouts.completion_ids() == [[row] * (length_of(row) - (row % 3 == 0)) for row in rows]
    assert rollouts.mask.sum(1).tolist() == [length_of(row) for row in rows]
    assert rollouts.logprobs.sum(1).tolist() == [-row * length_of(row) for row in rows]
    assert rollouts.pooled.tolist() == [[row] * 3 for row in rows]
    assert rollouts.finished.tolist() == [row % 3 == 0 for row in rows]


def test_informative_problems_are_kept_as_they_were_drawn():
    """The first 4 that are solved sometimes, out of 5 in two batches; the third batch is never sampled.

    Catches: rows apart from their problems, a last batch that comes first, a surplus that replaces earlier problems.
    """
    batches = ("10 11 00 01", "01 10 11 10", "10 10 10 10")
    collect, calls = sampler(*batches)
    kept, metrics = dynamic_sampling(collect, limit=9)
    assert_holds(kept, [0, 3, 4, 5], *batches)
    assert len(calls) == 2
    assert metrics == {"batches_sampled": 2, "accuracy_sampled": pytest.approx(9 / 16), "filled_up": 0}


@pytest.mark.parametrize("limit, wanted", [(1, [0, 1, 2]), (2, [4, 0, 1]), (3, [4, 6, 0])])
def test_the_limit_stops_the_search(limit, wanted):
    """Then problems of the first batch that teach nothing fill it up, and the metrics say how many.

    Catches: a search without end once everything is solved, a batch that is too small, a limit off by one.
    """
    batches = ("11 00 11", "00 10 11", "01 11 00", "10 10 10")
    collect, calls = sampler(*batches)
    kept, metrics = dynamic_sampling(collect, limit)
    assert_holds(kept, wanted, *batches)
    assert len(calls) == limit == metrics["batches_sampled"] and metrics["filled_up"] == 4 - limit


def test_the_log_says_that_the_search_gave_up(capsys):
    """Catches: training on prompts that teach nothing without a word about it."""
    run = Run(make(prompts_per_step=3), "unused")
    step = dict(step=1, batches_sampled=2, filled_up=1)
    run.show(step)
    said = capsys.readouterr().out
    assert "dynamic sampling gives up: of 2 batches 2 problems" in said and "1 others fill" in said
    run.show(step | dict(filled_up=0))
    assert "gives up" not in capsys.readouterr().out


def test_a_first_batch_that_is_informative_is_left_alone():
    """Catches: one draw too many, which would make another run out of the same seed."""
    collect, calls = sampler("10 01 10", "10 10 10")
    (problems, rollouts, _, correct), metrics = dynamic_sampling(collect, limit=9)
    wanted_problems, wanted, _, wanted_correct = made_up_batch(0, "10 01 10", 2)
    assert len(calls) == 1 and metrics["batches_sampled"] == 1
    assert problems == wanted_problems and torch.equal(correct, wanted_correct)
    for name, value in vars(wanted).items():
        found = getattr(rollouts, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


@pytest.mark.parametrize("widths", [(2, 5), (5, 2)])
def test_batches_of_different_width_are_joined(widths):
    """Catches: padding that counts as sampled, or that cuts a wider batch off."""
    batches = ("10 00 11", "01 10 10")
    collect, _ = sampler(*batches, widths=widths)
    kept, _ = dynamic_sampling(collect, limit=2)
    assert_holds(kept, [0, 3, 4], *batches)
    mask = kept[1].mask
    assert mask.shape == (6, 5) and not mask[:, 2:].any() and (kept[1].logprobs[~mask] == 0).all()


def test_a_group_of_one_is_informative():
    """Catches: a search that never ends where there is nothing to compare with."""
    assert informative_groups(torch.tensor([0.0, 1.0]), 1).tolist() == [True, True]


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: informative_groups(torch.ones(5), 2), r"rewards must be \[B \* 2\]"),
        (lambda: overlong_penalty(torch.ones(2), 16, buffer=0, penalty=1), "buffer must be above 0 .* found 0"),
        (lambda: overlong_penalty(torch.ones(2), 16, buffer=17, penalty=1), "at most max_length 16, found 17"),
        (lambda: overlong_penalty(torch.ones(2), 16, buffer=4, penalty=-1), "penalty must be 0 or more, found -1"),
    ],
)
def test_bad_arguments_are_named(call, names):
    with pytest.raises(AssertionError, match=names):
        call()


TINY = dict(steps=4, prompts_per_step=4, group_size=4, max_new_tokens=5, learning_rate=1e-2, head_size=4)


def one_in(n: int):
    """An outcome check that lets about one in n completions of a random model pass."""
    return lambda problem, text, finished: zlib.crc32(text.encode()) % n == 0


def make(task: Task | None = None, **changes) -> Trainer:
    task = task or Task(TASK.draw, one_in(2))
    return Trainer(small_gpt(vocab_size=122), toy_tokenizer(), task, TrainConfig(**TINY | changes))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def test_presets_set_every_field_of_an_algorithm():
    """Catches: a preset that leaves an option as the one chosen before had set it; a field that no config has."""
    assert set(ALGORITHM_FIELDS) <= {field.name for field in fields(TrainConfig)}
    assert all(list(preset) == ALGORITHM_FIELDS for preset in ALGORITHMS.values())
    assert all(getattr(TrainConfig(), name) == value for name, value in ALGORITHMS["grpo"].items())


@pytest.mark.parametrize("contrastive_weight", [0.0, 0.1])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_preset_trains(name, contrastive_weight):
    """One step: finite metrics, weights that move. Catches: rewards of the contrast that an algorithm cannot digest."""
    trainer = make(contrastive_weight=contrastive_weight, **ALGORITHMS[name])
    before = weights(trainer)
    metrics = timed_step(trainer)
    assert all(math.isfinite(value) for value in metrics.values())
    assert weights(trainer).isfinite().all() and not torch.equal(weights(trainer), before)
    assert (metrics.get("contrastive_penalty", 0) > 0) == (contrastive_weight > 0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_settings_of_a_preset_arrive_where_they_act(monkeypatch, name):
    """Catches: an option of an algorithm that the trainer does not read, or that acts although it is off."""
    preset = ALGORITHMS[name] | dict(dual_clip=3.0 if name == "grpo" else 0.0)
    places = ["policy_loss", "token_weights", "group_advantages", "kl_penalty", "dynamic_sampling", "overlong_penalty"]
    calls = {place: [] for place in places}
    for place in places:
        module = rewards_module if place == "overlong_penalty" else trainer_module
        original = getattr(module, place)
        watched = lambda *a, place=place, original=original, **k: calls[place].append((a, k)) or original(*a, **k)
        monkeypatch.setattr(module, place, watched)
    make(num_mini_batches=1, **preset).step()
    ((_, found),) = calls["policy_loss"]
    assert {field: found[field] for field in LOSS_FIELDS} == {field: preset[field] for field in LOSS_FIELDS}
    assert found["dual_clip"] == preset["dual_clip"]
    assert [found[1] for found, _ in calls["token_weights"]] == [preset["aggregation"]]
    assert [found["scale"] for _, found in calls["group_advantages"]] == [preset["advantage_scale"]]
    assert [found[2] for found, _ in calls["kl_penalty"]] == [preset["kl_kind"]] * (preset["kl_weight"] > 0)
    limit, penalty = preset["dynamic_sampling"], preset["overlong_penalty"]
    assert [found[1] for found, _ in calls["dynamic_sampling"]] == [limit] * (limit > 0)
    buffer = preset["overlong_buffer"] * TINY["max_new_tokens"]  # a share of the longest completion
    assert [found for _, found in calls["overlong_penalty"]] == [dict(buffer=buffer, penalty=penalty)] * (penalty > 0)


@pytest.mark.parametrize("width", [3, 5])
def test_the_overlong_penalty_counts_in_max_new_tokens(monkeypatch, width):
    """A completion of all 5 tokens loses 0.4, right or wrong, one of 1 token nothing (a buffer of 4 tokens).

    Catches: the longest completion of the batch in the place of the limit, a penalty that only right answers pay.
    """

    def short(*args, **options):
        found = sample(*args, **options)
        return replace(found, **{name: getattr(found, name)[:, :width] for name in ("completions", "mask", "logprobs")})

    monkeypatch.setattr(trainer_module, "sample", short)
    step = make(overlong_penalty=0.4, overlong_buffer=0.8).step()
    lengths = step.rollouts.mask.sum(1)
    assert step.correct.any() and not step.correct.all() and lengths.max() == width
    torch.testing.assert_close(step.rewards, step.correct.float() - 0.1 * (lengths - 1))


def test_a_resumed_run_with_dynamic_sampling_goes_on_with_the_next_problems(tmp_path):
    """A step draws as many problems as it takes, so its number does not say where it was. Catches: a resumed run that
    begins again at step * prompts_per_step, and sees problems twice."""

    def run(out: str, steps: int, resume: bool = False) -> tuple[list[int], Trainer]:
        drawn = []
        watched = lambda stream, index: drawn.append(index) or TASK.draw(stream, index)
        trainer = make(Task(watched, one_in(8)), steps=steps, dynamic_sampling=3)
        Run(trainer, tmp_path / out).train(resume=resume)
        return drawn, trainer

    wanted, whole = run("whole", 4)
    first, _ = run("parts", 2)
    second, resumed = run("parts", 4, resume=True)
    assert first + second == wanted == list(range(len(wanted)))
    assert len(first) > 2 * TINY["prompts_per_step"]  # else the number of steps would have done
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_contrastive_reward_of_zero_changes_nothing(monkeypatch, name):
    """Three steps with a head whose rewards are put to 0 are bit-equal to three without a head.

    Catches: any algorithm that asks whether there is a contrastive part, that chooses other problems then, or whose
    random numbers are those of the head.
    """
    zeros = lambda self, rollouts, correct: (torch.zeros(len(correct)), torch.zeros(()))
    monkeypatch.setattr(Trainer, "contrast", zeros)
    runs = []
    for weight in (0.0, 0.1):
        trainer = make(Task(TASK.draw, one_in(4)), contrastive_weight=weight, **ALGORITHMS[name])
        batches = [step_tensors(trainer.step(), trainer.tokenizer) for _ in range(3)]
        runs.append((batches, weights(trainer)))
    (batches, first), (other_batches, second) = runs
    for batch, other in zip(batches, other_batches):
        assert batch.keys() == other.keys() and all(torch.equal(batch[key], other[key]) for key in batch)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_update_depends_on_nothing_but_rollouts_and_advantages(monkeypatch, name):
    """The update of a CLIPO run is repeated, bit by bit, by a trainer without a head that gets the same advantages.

    Catches: a contrastive gradient, weight or metric that enters the policy update beside the rewards.
    """
    seen, original = [], Trainer.update_policy

    def watched(self, rollouts, advantages):
        seen.append((self.generator.get_state(), rollouts, advantages))
        return original(self, rollouts, advantages)

    monkeypatch.setattr(Trainer, "update_policy", watched)
    clipo = make(contrastive_weight=0.1, **ALGORITHMS[name])
    assert clipo.step().contrastive_rewards.min() < 0
    plain = make(**ALGORITHMS[name])
    state, rollouts, advantages = seen[0]
    plain.generator.set_state(state)
    original(plain, rollouts, advantages)
    assert plain.head is None and torch.equal(weights(plain), weights(clipo))
    grpo = make(**ALGORITHMS[name])
    grpo.step()
    assert not torch.equal(weights(grpo), weights(clipo))  # the contrastive reward did act


def test_clip_bounds_of_logarithms_may_exceed_1():
    """A ratio is never below 0, a logarithm may be below -1. Catches: one bound for both, refused or ignored."""
    assert TrainConfig(ratio="geometric_mean", clip_low=1.5).clip_low == 1.5
    with pytest.raises(ValueError, match="clip_low must be at most 1"):
        TrainConfig(clip_low=1.5)
    tensors = (torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2))
    assert policy_loss(*tensors, ratio="geometric_mean", clip_low=1.5).loss == -1


@pytest.mark.parametrize("num_mini_batches", [1, 2, 4])
def test_gspo_does_not_clip_rounding(num_mini_batches):
    """In bfloat16, before the policy moves, nothing is clipped, whatever the mini-batches and their parts. Catches:
    ratios to log-probs of the sampling or of other passes, whose rounding is as large as GSPO's clip range. (How large
    depends on the machine: so the sampling's are made wrong by hand.)"""
    settings = ALGORITHMS["gspo"] | dict(num_mini_batches=num_mini_batches, micro_batch_tokens=200)
    config = TrainConfig(prompts_per_step=8, group_size=8, **settings)
    trainer = Trainer(toy_model(ToyConfig(), seed=0).bfloat16(), toy_tokenizer(), Task(TASK.draw, one_in(2)), config)
    _, rollouts, *_ = trainer.collect()
    rollouts = replace(rollouts, logprobs=rollouts.logprobs + 0.01)
    trainer.optimizer.step = lambda: None  # the policy stands still
    advantages = torch.randn(64)
    assert trainer.update_policy(rollouts, advantages)["clip_fraction"] == 0
    trainer.old_logprobs = lambda rollouts, mini_batches: [rollouts.logprobs] * num_mini_batches
    assert trainer.update_policy(rollouts, advantages)["clip_fraction"] > 0


def test_in_float32_the_ratios_are_to_the_samplings_log_probs():
    """Catches: a whole pass over the rollouts for numbers that are there."""
    model = toy_model(ToyConfig(), seed=0)
    trainer = Trainer(model, toy_tokenizer(), Task(TASK.draw, one_in(2)), TrainConfig(**ALGORITHMS["gspo"]))
    _, rollouts, *_ = trainer.collect()
    assert trainer.old_logprobs(rollouts, [[], []]) == [rollouts.logprobs] * 2


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(dynamic_sampling=1), "dynamic_sampling must be 0"),
        (dict(contrastive_weight=0.1, head_warmup_steps=2, head_kind="none"), "this head does not learn"),
        (dict(contrastive_weight=0.1, head_warmup_steps=2, head_learning_rate=0.0), "this head does not learn"),
        (dict(prompt_contrast_weight=0.1, prompts_per_step=2), "must be below prompts_per_step"),
    ],
)
def test_settings_that_could_do_nothing_are_refused(settings, message):
    """Catches: steps that train neither head nor policy, a search for prompts that cannot find any."""
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
