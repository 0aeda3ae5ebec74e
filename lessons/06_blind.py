# %% [markdown]
# # 6. GRPO is blind to the steps
#
# **Question.** Half of the right answers of lesson 3's model have a made-up step. GRPO
# makes right answers likelier. Does it mend the steps, too?
#
# You need lessons 2 to 5, which become one training step here. The lesson trains three
# models, a hundred steps each.

# %%
import copy
import json

import matplotlib.pyplot as plt
import torch
from common import (
    KINDS,
    LESSONS,
    METHODS,
    mosaic,
    pretrained,
    problems_of,
    show,
    show_training,
    story,
    tidy,
    train,
    training_steps,
    verdicts,
)

from minclipo.config import TrainConfig
from minclipo.grpo import group_advantages, policy_loss
from minclipo.logprobs import MicroBatch, batch_logprobs
from minclipo.runs.recipes import TOY
from minclipo.sampler import sample
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

start, tokenizer, G = pretrained("careless"), toy_tokenizer(), 16

# %% [markdown]
# ## What the reward pays for
#
# The sixteen rollouts of lesson 3, with the outcome check's reward and lesson 5's
# advantage:
#
# <details><summary><b>Guess first.</b> Which of the ten right rows has the largest
# advantage?</summary>
#
# All ten have the same. A made-up step costs nothing.
#
# </details>

# %%
problem, rollouts = story()
correct, steps_right = verdicts([problem], rollouts)  # [G] bool each
advantages = group_advantages(correct.float(), G)  # [G]
notes = [f"{R:.0f}   {A:+.2f}" for R, A in zip(correct.float(), advantages)]
for row, kind in ((0, "faithful"), (3, "hallucinated"), (10, "wrong")):
    print(f"first {kind} row: reward and advantage {notes[row]}")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
mosaic(axis, problem, tokenizer.decode_batch(rollouts.completion_ids()), notes)
axis.text(10.2, -0.3, "reward, advantage", fontsize=10)
show(
    figure,
    "06_rollouts",
    "Reward and advantage of each row. Rows with a made-up operand (orange, framed) get "
    "what the faithful ones get. Only wrong answers (grey, hatched) get less.",
)

# %% [markdown]
# For comparison, an **oracle** is told which steps are wrong, and takes 0.5 off the
# reward of a right answer that has one. Both rewards, on 500 groups:


# %%
def draw(model, problems, generator, group_size=G, temperature=1.0):
    """N = B * G rollouts of at most 16 tokens."""
    return sample(
        model,
        tokenizer.encode_batch([problem.prompt for problem in problems]),
        group_size,
        16,
        temperature=temperature,
        eos_ids=tokenizer.eos_ids,
        generator=generator,
    )


problems = problems_of("lesson 6", 500)
rollouts = draw(start, problems, torch.Generator().manual_seed(0))
correct, steps_right = verdicts(problems, rollouts)  # [N] bool each
kinds = {
    "faithful": correct & steps_right,
    "hallucinated": correct & ~steps_right,
    "wrong": ~correct,
}
rewards = {
    "outcome": correct.float(),
    "oracle": correct.float() - 0.5 * kinds["hallucinated"].float(),
}
advantages = {name: group_advantages(R, G) for name, R in rewards.items()}  # [N] each
for name, A in advantages.items():
    means = "   ".join(f"{kind} {A[rows].mean():+.3f}" for kind, rows in kinds.items())
    print(f"{name:7} reward, mean advantages: {means}")

# %% tags=["drawing"]
number_right = correct.view(-1, G).sum(1).repeat_interleave(G)  # [N], of its group
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
for axis, (name, A) in zip(axes, advantages.items()):
    for (kind, rows), marker, shift in zip(kinds.items(), "o^x", (-0.2, 0.2, 0)):
        style = dict(s=16, color=KINDS[kind], marker=marker, label=kind)
        axis.scatter(number_right[rows] + shift, A[rows], **style)
    tidy(axis, "right answers in the group of 16", "advantage", f"reward: {name}")
axes[1].legend(frameon=False, fontsize=9, loc="lower left")
show(
    figure,
    "06_advantages",
    "Advantages of 8000 rollouts. Left, circles and triangles lie at the same height: "
    "faithful and hallucinated are paid alike. Right, the oracle pulls them apart.",
)

# %% [markdown]
# Under the outcome reward the two means differ in the third digit, because the shares of
# the two kinds differ from group to group.
#
# The mean of $\nabla\log\pi$ is 0 (lesson 4). So if the mean advantage is the same
# whatever operand is quoted, the operand gets no gradient on average:
#
# $$\mathbb{E}[A \nabla\log\pi(\mathrm{operand})] =
# \mathbb{E}[A] \mathbb{E}[\nabla\log\pi(\mathrm{operand})] = 0$$
#
# Is it the same?

# %%
operands = [" ".join(f"{operand:+d}" for operand in p.operands) for p in problems]
asked = torch.tensor(tokenizer.encode_batch(operands))  # [B, 4] tokens
made_up = rollouts.completions[:, 0:8:2] != asked.repeat_interleave(G, 0)  # [N, 4]
for name, A in advantages.items():
    A = A[:, None].expand(-1, 4)  # [N, 4], an advantage per operand
    parts = A[~made_up], A[made_up]
    error = 1.96 * sum(part.var() / len(part) for part in parts).sqrt()
    difference = f"{parts[0].mean() - parts[1].mean():.3f} +- {error:.3f}"
    print(f"{name:7} reward: rightly quoted minus made up {difference}")

# %% [markdown]
# The oracle's advantages favour the right quote. Those of the outcome reward, as far as
# 8000 rollouts can tell, favour neither.
#
# ## A training step
#
# `batch_logprobs` does for many rollouts what lesson 2's `score` did for one. The
# rollouts are cut into two random halves, and each makes an optimizer step. A gradient
# longer than 1 is scaled down to 1.


# %%
def grpo_step(model, optimizer, problems, reward, generator):
    rollouts = draw(model, problems, generator)  # 1. sample
    rewards = reward(problems, rollouts)  # 2. verify, [N]
    advantages = group_advantages(rewards, G)  # 3. compare with the group, [N]
    for rows in torch.randperm(len(rewards), generator=generator).chunk(2):  # 4. update
        logprobs, _ = batch_logprobs(model, MicroBatch.some(rollouts, rows))  # [rows, T]
        T = logprobs.shape[1]  # of the longest of them
        old, mask = rollouts.logprobs[rows, :T], rollouts.mask[rows, :T]
        loss = policy_loss(logprobs, old, advantages[rows], mask).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def right_answer(problems, rollouts):
    return verdicts(problems, rollouts)[0].float()  # the steps are not looked at


def adamw(model):
    # fused: the kind of AdamW that the Trainer uses. The default kind rounds differently.
    rate = TOY["learning_rate"]
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)


# %% [markdown]
# ## A hundred steps
#
# `train` takes such steps. `process_penalty` makes the oracle's reward, and
# `informative_prompts` is the share of groups that hold right and wrong rollouts.
#
# <details><summary><b>Guess first.</b> Where does GRPO's hallucination rate
# end?</summary>
#
# Nothing decides that. In this run it drifts upwards.
#
# </details>

# %%
histories, labels = {}, {"baseline": "GRPO", "oracle": "oracle"}
grpo, histories["baseline"] = train("06_grpo", start)
oracle, histories["oracle"] = train("06_oracle", start, process_penalty=0.5)
watched = ("accuracy", "hallucination_rate", "informative_prompts")
for name, history in histories.items():
    for metrics in history[::20] + history[-1:]:
        values = "  ".join(f"{key} {metrics[key]:.2f}" for key in watched)
        print(f"{labels[name]:6}  step {metrics['step']:3}  {values}")

# %% tags=["drawing"]
show_training(
    histories,
    "06_training",
    "From the same start. Both learn to answer (left). GRPO's right answers keep their "
    "made-up steps, the oracle's lose them (middle). With better answers, fewer groups "
    "hold right and wrong rollouts (right).",
    watched,
)

# %% [markdown]
# The model *can* learn to quote, but nobody tells it to. As answers get better, more
# groups are all right. These teach nothing (lesson 5), however much they have made up.
#
# One run says little. The README has five, each with its own pretraining and tested on
# 2000 fresh problems. Means, with 95% intervals:

# %%
summary = json.loads((LESSONS / "results" / "toy" / "summary.json").read_text())
for name, label in ({"pretrained": "before"} | labels).items():
    rate = summary[name]["hallucination_rate"]
    mean, low, high = rate["mean"], rate["low"], rate["high"]
    print(f"{label:6}   hallucination rate {mean:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# GRPO's average has not clearly changed. Its interval is fifteen times as wide as before.
#
# ## What drift looks like
#
# A gradient that is 0 on average still moves the weights, by the noise of each sample.
# AdamW divides a gradient by its usual size, so noise moves the weights as far as a
# signal would.
#
# <details><summary><b>Guess first.</b> At temperature 0 the start makes nothing up. And
# after GRPO?</summary>
#
# It does. For one operand, a made-up one is now often the likeliest word.
#
# </details>

# %%
values = [operand for operand in range(-9, 10) if operand != 0]
models = {"before": start, "GRPO": grpo, "oracle": oracle}
prompt_words, shares = asked.repeat_interleave(4, 0), {}  # [4 B, 4]
for name, model in models.items():
    words = draw(model, problems, torch.Generator().manual_seed(1), 4).completions
    false = (words[:, 0:8:2] != prompt_words).float()  # [4 B, 4]
    tokens = [tokenizer.encode(f"{value:+d}")[0] for value in values]
    shares[name] = [false[prompt_words == token].mean() for token in tokens]
    worst = max(range(18), key=shares[name].__getitem__)
    most = f"most often false: {values[worst]:+d}, {shares[name][worst]:4.0%}"

    likeliest = draw(model, problems, None, group_size=1, temperature=0)
    correct, steps_right = verdicts(problems, likeliest)
    accuracy, rate = correct.float().mean(), (~steps_right[correct]).float().mean()
    zero = f"at temperature 0: accuracy {accuracy:.2f}, hallucination rate {rate:.2f}"
    print(f"{name:6}  {most}   {zero}")

# %% tags=["drawing"]
styles = {"before": ("#777777", "s"), "GRPO": (METHODS["baseline"], "o")}
styles["oracle"] = (METHODS["oracle"], "v")
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, (color, marker) in styles.items():
    axis.plot(shares[name], color=color, marker=marker, linestyle="", label=name)
axis.set_xticks(range(18), [f"{value:+d}" for value in values])
tidy(axis, "operand in the prompt", "share quoted falsely")
axis.set_ylim(-0.03, 1.03)
axis.legend(frameon=False, ncols=3, loc="upper right")
show(
    figure,
    "06_drift",
    "How often each operand is quoted falsely. Before training (squares) all are alike. "
    "GRPO (circles) has scattered them. The oracle (triangles) has mended all.",
)

# %% [markdown]
# GRPO quotes -4 falsely most of the time, and at temperature 0 its accuracy is 1.00.
# Which operands go is chance, and in some runs none does. On nine of twenty fresh seeds,
# 4% or more of the right answers at temperature 0 are hallucinated
# (`lessons/results.md`). Biology calls this genetic drift.
#
# > **You should know.** Training also moves what its reward does not hold in place. No
# > curve of rewards shows it.
#
# How far does noise alone carry a model? Let a biased coin give the rewards.
#
# <details><summary><b>Guess first.</b> After a hundred steps, how good are the
# answers?</summary>
#
# Far worse. On average the gradient is 0, but its noise adds up and nothing corrects it.
#
# </details>


# %%
tossed, generator = copy.deepcopy(start), torch.Generator().manual_seed(0)


def coin(problems, rollouts):
    return (torch.rand(len(rollouts.mask), generator=generator) < 0.7).float()  # [N]


optimizer, steps = adamw(tossed), training_steps(100)
stream = problems_of("training 0", 32 * steps)
for step in range(steps):
    grpo_step(tossed, optimizer, stream[32 * step :][:32], coin, generator)
for name, model in (("before", start), ("after", tossed)):
    rollouts = draw(model, problems, torch.Generator().manual_seed(1), group_size=1)
    print(f"{name:6} accuracy {right_answer(problems, rollouts).mean():.2f}")

# %% [markdown]
# ## The same in minclipo
#
# `Trainer.step` in `minclipo/trainer.py` has more stages, which are off here. It
# and `grpo_step` take two steps from the same start, with the same random numbers:

# %%
ours, generator = copy.deepcopy(start), torch.Generator().manual_seed(0)
optimizer = adamw(ours)
trainer = Trainer(copy.deepcopy(start), tokenizer, TASK, TrainConfig(**TOY))
stream = problems_of("training 0", 64)
for first in (0, 32):
    grpo_step(ours, optimizer, stream[first : first + 32], right_answer, generator)
    trainer.step()


def largest_difference(one, other):
    pairs = zip(one.parameters(), other.parameters())
    return max((a - b).abs().max().item() for a, b in pairs)


assert largest_difference(ours, start) > 1e-4
assert largest_difference(ours, trainer.model) == 0
print("after two steps the two models' weights agree to the last bit")

# %% [markdown]
# **Now you know.**
#
# * Faithful and hallucinated rollouts have the same reward, and so the same advantage.
# * On average nothing pushes the steps, and nothing holds them in place, so they drift.
# * Watch what the reward does not see. Its own curve will not tell you.
#
# **Exercise.** About 20 minutes, easy. `python lessons/exercises/06_blind.py`: an oracle
# that counts, the share of groups with a signal, mean advantages. Then about 40 minutes,
# medium. `python lessons/exercises/06_train.py`: write the training step, and train with
# it until more than 85% of the answers are right.
#
# <details><summary>A hint for <code>oracle_rewards</code></summary>
#
# Divide by the number of steps, but by no less than 1.
#
# </details>
#
# **What to try next.** Train with `train("06_seed1", start, seed=1)`, then with seeds 2
# and 3. Which operands does each lose? Lesson 7 looks for made-up steps in the hidden
# states.
