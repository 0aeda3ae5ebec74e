# %% [markdown]
# # 11. Agreement is not truth
#
# **Question.** CLIPO pays right rollouts for being alike (lesson 10). What does it pay
# for when most of them share one false step?
#
# You need lessons 8 to 10. A second textbook breaks CLIPO's premise. A second contrast,
# with other *prompts*, sees what the first cannot.

# %%
import matplotlib.pyplot as plt
import torch
from common import (
    KINDS,
    LESSONS,
    mosaic,
    pretrained,
    problems_of,
    show,
    show_training,
    story,
    tidy,
    train,
    verdicts,
)

from minclipo.checkpoint.files import read_json
from minclipo.contrastive import center_by_group, contrastive_loss, contrastive_reward
from minclipo.extensions.prompt_contrast import logprobs_under, prompt_contrast
from minclipo.grpo import group_advantages
from minclipo.runs.intervals import mean_interval, student
from minclipo.runs.recipes import METHODS as OPTIONS
from minclipo.sampler import sample
from minclipo.toy import toy_tokenizer

# %% [markdown]
# ## A textbook with one favourite mistake
#
# This author makes only one mistake. In 70% of his solutions the second step quotes "+1",
# whatever the operand is, and goes on with the right total. His slips of addition stay. A
# model that has read him, on the story's prompt:

# %%
tokenizer, G = toy_tokenizer(), 16


def draw(model, problems, seed=0):
    """N = B * G rollouts of at most 16 tokens, and their texts."""
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    generator = torch.Generator().manual_seed(seed)
    options = dict(eos_ids=tokenizer.eos_ids, generator=generator)
    rollouts = sample(model, prompts, G, 16, **options)
    return rollouts, tokenizer.decode_batch(rollouts.completion_ids())


model, (problem, _) = pretrained("shared_step"), story()
rollouts, texts = draw(model, [problem], seed=2)  # a draw in which most agree
correct, steps_right = verdicts([problem], rollouts)  # [G] each
print(f"the second operand is {problem.operands[1]:+d}; the second step quotes")
second = [text.split()[2] for text in texts]
for word in sorted(set(second), key=second.count, reverse=True):
    print(f"  {word} in {second.count(word):2} of {G} rollouts")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 4.4), layout="constrained")
goodness = correct.long() + (correct & steps_right)  # 0 wrong, 1, 2 faithful
order = goodness.argsort(descending=True, stable=True)
mosaic(axis, problem, [texts[i] for i in order])
show(
    figure,
    "11_mosaic",
    "Sixteen rollouts: faithful ones on top, then hallucinated, then wrong ones. Blue: "
    "right. Orange, framed: a false quote, in one column. Grey, hatched: a wrong "
    "total or answer.",
)

# %% [markdown]
# ## Eleven against five, by hand
#
# Of sixteen right rollouts of one prompt, eleven quote "+1" and five are faithful. Two
# texts are two points, and centring puts them on opposite sides of their mean. The
# cosine is 1 within a kind and -1 between them, *however similar they were before*. The
# 496 rollouts of other prompts are strangers, at a cosine of 0.
#
# <details><summary><b>Guess first.</b> Whom does CLIPO charge less, the eleven or the
# five?</summary>
#
# The eleven. The soft-NN loss of a rollout is
#
# $$
# \mathcal L = \log\frac{\mathrm{near} + 496}{\mathrm{near}} \qquad \mathrm{near} =
# (\mathrm{kind} - 1) e^{1/\tau} + (16 - \mathrm{kind}) e^{-1/\tau}
# $$
#
# where "kind" counts the rollouts of its kind, and $\tau = 0.5$. The loss cannot know
# which kind is true.
#
# </details>


# %%
def prices(states, strangers=496, tau=0.5, weight=0.1):
    """Contrastive rewards [G] of the right rollouts of one prompt, from their states."""
    z = torch.nn.functional.normalize(states - states.mean(0), dim=-1)  # [G, D]
    near = (z @ z.T / tau).exp().fill_diagonal_(0).sum(1)  # [G]; a stranger adds exp(0)
    return (-weight * ((near + strangers) / near).log()).clamp(min=-0.5)


def kinds_of(*sizes):
    """One state a kind, as many copies of it as `sizes` says: [G, kinds]."""
    return torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), dim=0)


def show_prices(*sizes):
    c = prices(kinds_of(*sizes))
    print(f"faithful {c[0]:.3f}   false step {c[-1]:.3f}   {sizes}")


show_prices(5, 11)

# %% [markdown]
# <details><summary><b>Guess first.</b> Now six are faithful, and two different false
# steps have five each. Ten of sixteen are false. Who earns most?</summary>
#
# The six. They need no majority, only to be the largest group of equal ones. If the
# others make up a step each, two are enough.
#
# </details>

# %%
show_prices(6, 5, 5)
show_prices(2, *[1] * 14)

# %% [markdown]
# So CLIPO worked in lesson 10: the careless textbook's right solutions are alike, and
# its made-up ones are not.

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
shares = [kind / G for kind in range(1, G)]
for axis, title, alone in zip(
    axes, ("one shared false step", "each made up its own"), (False, True)
):
    rests = [[1] * (G - kind) if alone else [G - kind] for kind in range(1, G)]
    paid = [prices(kinds_of(G - sum(rest), *rest)) for rest in rests]
    style = dict(color=KINDS["faithful"], markersize=4, label="faithful")
    axis.plot(shares, [c[0] for c in paid], "o-", **style)
    style = dict(color=KINDS["hallucinated"], markersize=4, label="hallucinated")
    axis.plot(shares, [c[-1] for c in paid], "^--", **style)
    axis.axvline(0.5, color="black", linewidth=1, linestyle=":")
    tidy(axis, "share of faithful rollouts", "contrastive reward c", title)
    axis.label_outer()
axes[1].legend(frameon=False, loc="lower left")
show(
    figure,
    "11_shares",
    "What agreement pays, against the share of faithful rollouts among sixteen right "
    "ones. Left, the lines cross at one half; right, two equal ones are ahead already.",
)

# %% [markdown]
# Do the model's states behave so? Subtract the mean of the right rollouts, as by hand,
# or the mean of all, as in training:


# %%
def rewards_of(centred):
    """CLIPO's contrastive rewards [N] without a head, from centred states [N, D]."""
    z = torch.nn.functional.normalize(centred, dim=-1)
    options = dict(loss="soft_nn", level="cross", temperature=0.5)
    found = contrastive_loss(z, correct, rollouts.group, **options)
    return contrastive_reward(found.loss, correct, weight=0.1)


def mean_of(values, rows):
    """Mean of values [N] over such rows of each prompt: [B], NaN where it has none."""
    return (values * rows).view(-1, G).sum(1) / rows.view(-1, G).sum(1)


problems = problems_of("lesson 10", 32)
rollouts, texts = draw(model, problems)  # N = 512
correct, steps_right = verdicts(problems, rollouts)  # [N] each
faithful, hallucinated = correct & steps_right, correct & ~steps_right
pooled, right = rollouts.pooled.view(-1, G, 64), correct.view(-1, G, 1).float()
right_mean = (pooled * right).sum(1, keepdim=True) / right.sum(1, keepdim=True)
paid = {
    "mean of the right ones": rewards_of((pooled - right_mean).flatten(0, 1)),
    "mean of all, as trained": rewards_of(
        center_by_group(rollouts.pooled, rollouts.group)
    ),
}
differences = {}
for label, c in paid.items():
    differences[label] = mean_of(c, faithful) - mean_of(c, hallucinated)  # [B]
    both = differences[label][~differences[label].isnan()]
    below = f"below 0 in {int((both < 0).sum())} of {len(both)} prompts"
    print(f"{label:24} faithful minus false step {both.mean():+.3f}, {below}")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
theory = [prices(kinds_of(kind, G - kind)) for kind in range(1, G)]
by_hand = [c[0] - c[-1] for c in theory]
axis.plot(shares, by_hand, color="black", linewidth=1, label="by hand")
share = faithful.view(-1, G).sum(1) / correct.view(-1, G).sum(1)  # [B]
for (label, difference), marker, color in zip(
    differences.items(), "so", ("white", "#666666")
):
    style = dict(color=color, markeredgecolor="black", label=label)
    axis.plot(share, difference, marker, **style)
axis.axhline(0, color="black", linewidth=1, linestyle=":")
tidy(
    axis, "share of faithful among the right rollouts", "c of faithful - c of false step"
)
axis.legend(frameon=False, fontsize=9, loc="upper left")
show(
    figure,
    "11_states",
    "The same on the states of the model, one mark per prompt. Squares lie on the line "
    "or near it; circles, as trained, lie nearer to zero.",
)

# %% [markdown]
# They do: false steps mostly earn more. With the mean of all, the difference is a quarter
# of that, since wrong rollouts move the mean.
#
# ## Would GRPO do the same?
#
# <details><summary><b>Guess first.</b> GRPO pays every right rollout of a group alike.
# Do eleven with the false step outvote five without it?</summary>
#
# No. The step is as common among the wrong rollouts, which push it down as hard as the
# right ones push it up. The average advantage is 0, after "+1" as after the true
# operand, so neither gains (lesson 4).
#
# </details>


# %%
def quotes(text):
    """The operands that a completion quotes."""
    return [word for word in text.split() if word[0] in "+-"]


def look(model, problems):
    """How often rollouts with and without a made-up operand are right; what GRPO pays."""
    rollouts, texts = draw(model, problems)
    correct, _ = verdicts(problems, rollouts)
    A = group_advantages(correct.float(), G)  # [N]
    true = [[f"{operand:+d}" for operand in problem.operands] for problem in problems]
    made_up = torch.tensor([quotes(text) != true[i // G] for i, text in enumerate(texts)])
    for name, rows in (("made up", made_up), ("nothing made up", ~made_up)):
        print(f"{name:15} right {correct[rows].float().mean():.2f}", end="   advantage:")
        print(f" right ones {A[rows & correct].mean():+.2f}", end="")
        print(f"   wrong ones {A[rows & ~correct].mean():+.2f}", end="")
        print(f"   all {A[rows].mean():+.2f}")


many = problems_of("lesson 10", 256)
look(model, many)

# %% [markdown]
# Without a push the rate drifts (lesson 6). Five seeds for each of five textbooks,
# before training and after 60 steps, from `lessons/results.md`:

# %%
rows = read_json(LESSONS / "results/shared_step/results.json")
found = {(row["textbook"], row["name"]): row["values"] for row in rows}


def rates(share, name):
    return found[f"shared{share}", name]["hallucination_rate"]  # of each seed


before_after = []
for share in (10, 30, 50, 70, 90):
    print(f"{share}% of the solutions share the step", end="")
    print(f"   before {mean_interval(rates(share, 'after pretraining')).mean:.2f}")
    for name in ("GRPO", "CLIPO"):
        print(f"   {name:5}", "  ".join(f"{rate:.3f}" for rate in rates(share, name)))
    before_after += zip(rates(share, "after pretraining"), rates(share, "GRPO"))
ups = sum(after > before for before, after in before_after)
print(f"GRPO: up on {ups} of {len(before_after)} runs")
pairs = zip(rates(70, "CLIPO"), rates(70, "GRPO"))
more, half = student([clipo - grpo for clipo, grpo in pairs])
interval = f"95% interval {more - half:+.2f} to {more + half:+.2f}"
print(f"at 70%, CLIPO minus GRPO: {more:+.2f}, {interval}")

# %% [markdown]
# CLIPO makes the way of most the way of all. Help turns into harm at one half, where
# the lines cross. GRPO ends anywhere, more often below its start.
#
# ## Prompt contrast: ask other prompts
#
# Other rollouts cannot unmask an error that they share. Other *prompts* can. How much
# likelier is each word under its own prompt than under others? This contrast is ours,
# not the paper's; arXiv 2210.13210 used a like quantity in decoding. A right rollout
# earns 0.2 times its mean gain on top.
#
# Three words by hand: a total that this prompt leads to, a "+1" likely anywhere, and a
# true operand, unlikely here and far more so elsewhere.


# %%
def gains(own, others, limit=6.0):
    """How much likelier each token is under its own prompt, [N, T] in nats.

    own [N, T] and others [others, N, T] are log-probs.
    """
    return (own - others.exp().mean(0).log()).clamp(-limit, limit)


own = torch.tensor([[0.9, 0.7, 0.3]]).log()
others = torch.tensor([[[0.02, 0.7, 0.01]], [[0.04, 0.7, 0.01]]]).log()
print(gains(own, others))

# %% [markdown]
# The "+1" gains nothing. The operand gains as much as the total. Now the model's
# rollouts, each prompt against the next two of the batch:

# %%
own = rollouts.logprobs  # [N, T], kept by `sample`
next_two = torch.stack([torch.arange(32).roll(-k) for k in (1, 2)])  # [others, B]
others = logprobs_under(model, rollouts, next_two)  # [others, N, T]
gain = gains(own, others)  # [N, T]
mean_gain = (gain * rollouts.mask).sum(1) / rollouts.mask.sum(1)  # [N]
for name, rows in (("faithful", faithful), ("hallucinated", hallucinated)):
    print(f"mean gain of {name:12} {mean_gain[rows].mean():.2f}")

# %% tags=["drawing"]
i, j = int(faithful.nonzero()[0]), int(hallucinated.nonzero()[0])  # of the first prompt
words = [texts[i].split() + ["<eos>"], texts[j].split() + ["<eos>"]]
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
spots = torch.arange(len(words[0]))
style = dict(color=KINDS["faithful"], label=f"faithful, mean {mean_gain[i]:.2f}")
axis.bar(spots - 0.2, gain[i, : len(spots)], 0.4, **style)
label = f"false step, mean {mean_gain[j]:.2f}"
style = dict(color=KINDS["hallucinated"], hatch="//", label=label)
axis.bar(spots + 0.2, gain[j, : len(spots)], 0.4, **style)
axis.set_xticks(spots, [a if a == b else f"{a} | {b}" for a, b in zip(*words)])
tidy(axis, "word of the completion", "gain in nats (at most 6)")
axis.legend(frameon=False)
show(
    figure,
    "11_gains",
    "What each word of two right rollouts gains: they differ in the second quote, which "
    "earns the limit or nothing.",
)

# %% [markdown]
# No other rollout was asked, so it does not matter how many agree.
#
# ## The same in minclipo

# %%
assert torch.allclose(mean_gain, prompt_contrast(own, others, rollouts.mask), atol=1e-4)
best = mean_gain.where(faithful, -torch.inf).view(-1, G).amax(1)  # [B]
best_wrong = mean_gain.where(~correct, -torch.inf).view(-1, G).amax(1)
fooled = (best_wrong > best)[best > -torch.inf]
print(f"they agree; in {int(fooled.sum())} of {len(fooled)} prompts", end=" ")
print("a wrong rollout gains more than any faithful one")

# %% [markdown]
# > **You should know.** Prompt contrast is blind to the answer. A wrong total, too, can
# > be far likelier under its own prompt. So only *right* rollouts are paid.
#
# ## Training
#
# GRPO, CLIPO and prompt contrast, all from the model with the shared step:

# %%
histories = {}
for method in ("baseline", "clipo", "prompt_contrast"):
    _, histories[method] = train(f"11_{method}", model, steps=60, **OPTIONS[method])
lines = histories["clipo"]
for name, ten in (("first", lines[:10]), ("last", lines[-10:])):
    watched = ("accuracy", "contrastive_signal", "hallucination_rate")
    right, signal, rate = (sum(line[key] for line in ten) / len(ten) for key in watched)
    print(f"CLIPO, {name:5} ten steps: right {right:.2f}", end="   ")
    print(f"prompts that agree {1 - signal:.2f}   hallucination rate {rate:.2f}")

# %% tags=["drawing"]
show_training(
    histories,
    "11_training",
    "Training after the textbook with the shared step, one run each. Accuracy (left) is "
    "the same; only prompt contrast removes the false step (right).",
)

# %% [markdown]
# > **You should know.** Read CLIPO's two lines without their last number, as in a run
# > without step labels. More answers are right, more right rollouts agree, and nothing
# > warns.
#
# ## How blind is the outcome?
#
# The authors so far never *believe* what they make up, and add the true operand. A third
# author believes half of it, and adds what he has quoted. A model that has read him:

# %%
look(pretrained("believed"), many)

# %% [markdown]
# Here a made-up step mostly costs the answer, and its advantage is negative on average.
#
# <details><summary><b>Guess first.</b> GRPO will take these steps out. Which second way
# to be right does it find?</summary>
#
# To make things up and not believe them. In the table, answers with a made-up step
# become right more often. So the push against these steps weakens.
#
# </details>
#
# Five seeds, 100 steps, and authors who believe ever more of what they make up:

# %%
rows = read_json(LESSONS / "results/blindness/results.json")
found = {(row["textbook"], row["name"]): row for row in rows}
print("           right if made up    if nothing is    hallucination rate")
print("believed   before  after GRPO   before  after      GRPO    CLIPO")
for share in (0, 10, 20, 50):
    book, numbers = f"believed{share}" if share else "toy", []
    for key in ("right_if_made_up", "right_if_not_made_up"):
        for name in ("after pretraining", "GRPO"):
            numbers.append([seed[key] for seed in found[book, name]["look"]])
    for name in ("GRPO", "CLIPO"):
        numbers.append(found[book, name]["values"]["hallucination_rate"])
    numbers = [mean_interval(of_seeds).mean for of_seeds in numbers]
    line = "{:7}%   {:6.2f}  {:10.2f}   {:6.2f}  {:5.2f}    {:6.3f}   {:6.3f}"
    print(line.format(share, *numbers))

# %% [markdown]
# Where the outcome is blind, CLIPO has everything to do. Where it sees most made-up
# steps, GRPO does it alone, as on a language model (`lessons/results.md`). At 50% two of
# CLIPO's five seeds write the answer twice, which counts as a false step. Before you add
# a contrast, measure how often answers are right in spite of a wrong step.
#
# **Now you know.**
#
# * CLIPO pays for agreement. It helps if right solutions are alike and errors differ.
# * A false step that most right rollouts share earns more than the truth, and spreads.
# * Where made-up steps cost the answer, GRPO alone removes them.
#
# **Exercise.** About 30 minutes, medium. `python lessons/exercises/11_agreement.py`:
# which cluster wins, prompt contrast with padding, other prompts.
#
# <details><summary>A hint for <code>cluster_losses</code></summary>
#
# A whole cluster adds one term to a logsumexp,
# $\log(\mathrm{count}) + \mathrm{cosine} / \tau$. A rollout sees one fewer of its own
# cluster.
#
# </details>
#
# **What to try next.** Train with `contrastive_weight=0.05,
# prompt_contrast_weight=0.5`: the harm was gone on five seeds. Read
# `minclipo/extensions/prompt_contrast.py`. Lesson 12 puts other algorithms in the place
# of GRPO.
