"""Exercise 6b: write the training step, and train with it.

Minutes: 40. Difficulty: medium.

Fill in `grpo_step`, and run the file:

    python lessons/exercises/06_train.py

It first compares your step with the package's, then trains the careless model with it:
40 steps, about 15 seconds. More than 85% of the answers must be right afterwards; 69% are
before. With --hint grpo_step there is a hint, with --solution the solution trains
instead.

Take from the package what earlier lessons built, or put your own functions in its place:
`group_advantages`, `policy_loss`, `batch_logprobs` and `MicroBatch` are imported.
"""

import copy

import matplotlib.pyplot as plt
import torch
from checking import Wrong, curve, expect, expect_true, report
from common import METHODS, pretrained, problems_of, show, tidy, training_steps, verdicts
from torch import Tensor

from minclipo.config import TrainConfig
from minclipo.grpo import group_advantages, policy_loss  # noqa: F401, for the reader
from minclipo.logprobs import MicroBatch, batch_logprobs  # noqa: F401, for the reader
from minclipo.model import GPT
from minclipo.sampler import Rollouts, sample
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

G = 8  # rollouts per prompt
GOAL = 0.85  # share of right answers after training


def draw(
    model: GPT, problems: list[ChainProblem], generator: torch.Generator
) -> Rollouts:
    """G rollouts per problem, N = B * G in all, those of a problem side by side."""
    tokenizer = toy_tokenizer()
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    ends = tokenizer.eos_ids
    return sample(model, prompts, G, 16, eos_ids=ends, generator=generator)


def grpo_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    problems: list[ChainProblem],
    generator: torch.Generator,
    updates: int = 2,
) -> Tensor:
    """One training step; returns which of its rollouts were right, [N] bool.

    1. Sample: `draw(model, problems, generator)` gives the rollouts. They hold
       completions, mask and logprobs, each [N, T], and the log-probs are those of the
       sampling.
    2. Verify: `verdicts(problems, rollouts)` gives (is the answer right?, are the steps
       right?), [N] bool each. The reward is 1 for a right answer, else 0; nobody looks at
       the steps.
    3. Compare each reward with its group: the advantages, [N].
    4. Update the model `updates` times, each time on all the rollouts: lesson 5's clipped
       loss, the mean over all tokens, with a clip range of 0.2; ratios are to the
       sampling. Scale a gradient longer than 1 down to 1.

    `batch_logprobs(model, MicroBatch.some(rollouts, rows))` gives the log-probs of some
    rows, [rows, T], with gradient, and their entropy. Its T is the length of the longest
    of these rows.
    """
    raise NotImplementedError("What changes between two updates, and what does not?")


HINTS = {
    "grpo_step": """\
Everything but the log-probs with gradient is made once, before the first update.
rows = torch.arange(N) takes all rollouts, and the clipped loss is
policy_loss(new, old, advantages, mask).loss. An update: loss, optimizer.zero_grad(),
loss.backward(), torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
optimizer.step()."""
}

# The checks. Reading them is allowed.


def moved(step, start: GPT, problems, updates: int, rate: float, seed=0) -> Tensor:
    """How far the weights of a copy of `start` go in one step of plain gradient descent:
    one long vector."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    step(model, optimizer, problems, torch.Generator().manual_seed(seed), updates)
    pairs = zip(model.parameters(), start.parameters())
    return torch.cat([(after - before).detach().flatten() for after, before in pairs])


def packages_step(model, optimizer, problems, generator, updates) -> None:
    """The same step by the package's Trainer."""
    config = TrainConfig(group_size=G, num_mini_batches=1)
    trainer = Trainer(model, toy_tokenizer(), TASK, config)
    trainer.optimizer, trainer.generator = optimizer, generator
    optimizer.masters = dict(model.named_parameters())
    rollouts = trainer.sample(problems)
    correct = trainer.verify(problems, rollouts)[1]
    advantages = group_advantages(correct.float(), G)
    for _ in range(updates):
        trainer.update_policy(rollouts, advantages)


def check_grpo_step(grpo_step):
    start, problems = pretrained("careless").double(), problems_of("exercise 6", 4)
    hasty = copy.deepcopy(start)  # it ends too early now and then
    hasty.embed_tokens.weight.data[toy_tokenizer().eos_ids[0]] *= 3
    for model, some, updates, rate, what in (
        (start, problems, 1, 1e-3, "one update"),
        (start, problems, 2, 0.2, "two updates: the first moves ratios out of the range"),
        (start, problems[3:], 1, 1e-3, "a gradient longer than 1"),
        (hasty, problems, 1, 1e-3, "rollouts of unequal length"),
    ):
        found = moved(grpo_step, model, some, updates, rate)
        wanted = moved(packages_step, model, some, updates, rate)
        expect_true(bool(found.isfinite().all()), f"{what}: weights are not finite")
        length = found.norm() / wanted.norm()
        expect_true(length > 0, f"{what}: no weight has moved")
        cosine = found @ wanted / (found.norm() * wanted.norm())
        expect(cosine, 1.0, f"{what}: cosine of your move and the right one")
        expect(length, 1.0, f"{what}: length of your move, the right one being 1")
        expect(found, wanted, f"{what}: how far each weight moves", tolerance=1e-6)

    drawn = lambda seed: draw(start, problems[:1], torch.Generator().manual_seed(seed))
    alike = lambda seed: verdicts(problems[:1], drawn(seed))[0].all()
    seed = next(seed for seed in range(1000) if alike(seed))
    found = moved(grpo_step, start, problems[:1], 2, 1.0, seed)
    expect(found.abs().max(), 0.0, "eight right answers to one problem: the largest move")

    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    correct = grpo_step(model, optimizer, problems[:1], torch.Generator().manual_seed(0))
    wanted = verdicts(problems[:1], drawn(0))[0]
    expect(correct, wanted, "what comes back: which rollouts were right")


def accuracy(model: GPT) -> float:
    """Share of right answers to 250 fresh problems, G rollouts each."""
    problems = problems_of("exercise 6, afterwards", 250)
    rollouts = draw(model, problems, torch.Generator().manual_seed(0))
    return verdicts(problems, rollouts)[0].float().mean().item()


def train_grpo_step(grpo_step, seed: int = 0):
    model, generator = pretrained("careless"), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    steps, shares = training_steps(40), []
    for step in range(steps):
        problems = [
            TASK.draw(f"exercise 6, {seed}", 32 * step + place) for place in range(32)
        ]
        correct = grpo_step(model, optimizer, problems, generator)
        shares.append(correct.float().mean().item())
        if (step + 1) % 10 == 0:
            print(f"step {step + 1:3}   accuracy {shares[-1]:.2f}   {curve(shares)}")
    final = accuracy(model)
    print(f"after {steps} steps, fresh problems: accuracy {final:.3f}, goal {GOAL}")

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axis.plot(range(1, steps + 1), shares, color=METHODS["baseline"])
    axis.axhline(GOAL, color="black", linewidth=1, linestyle=":")
    tidy(axis, "training step", "share of right answers", "trained by my own GRPO step")
    axis.set_ylim(0, 1)
    show(figure, "exercise_06_train", "My own GRPO step; the dotted line is the goal")
    if final <= GOAL:
        raise Wrong(f"accuracy {final:.3f}: it should be above {GOAL}")


if __name__ == "__main__":
    report(globals())
