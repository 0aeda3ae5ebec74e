# %% [markdown]
# # 10. Agreement is not truth
#
# **Question.** CLIPO pays right rollouts for being alike (lesson 9). What does it pay for when most of them share the
# same false step?
#
# You need lesson 9. Here a second textbook breaks CLIPO's premise, and a second contrast, with other *prompts* instead
# of other rollouts, sees what the first one cannot.

# %%
import matplotlib.pyplot as plt
import torch
from minclipo.checkpoint.files import read_json
from minclipo.contrastive import center_by_group, contrastive_loss, contrastive_reward
from minclipo.extensions.prompt_contrast import logprobs_under, prompt_contrast
from minclipo.runs.intervals import mean_interval
from minclipo.runs.recipes import METHODS as OPTIONS
from minclipo.sampler import sample
from minclipo.toy import toy_tokenizer

from common import (
    KINDS,
    LESSONS,
    pretrained,
    problems_of,
    show,
    show_training,
    tidy,
    train,
    verdicts,
)

# %% [markdown]
# ## A textbook with one favourite mistake
#
# The careless author makes operands up, each time another one. This author never does. But in 70% of his solutions the
# second step quotes "+1", whatever the operand is, and goes on with the right total. (In the sums he slips as the other
# does.) A model that has read him:

# %%
tokenizer, G = toy_tokenizer(), 16
problems = problems_of("lesson 10", 32)
prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
model, generator = pretrained("shared_step"), torch.Generator().manual_seed(0)
rollouts = sample(
    model, prompts, G, 16, eos_ids=tokenizer.eos_ids, generator=generator
)  # N = 512
correct, steps_right = verdicts(problems, rollouts)  # [N] each
faithful, hallucinated = correct & steps_right, correct & ~steps_right

texts = tokenizer.decode_batch(rollouts.completion_ids())
print(problems[0].prompt)
for text in sorted(set(texts[:G]), key=lambda text: (-texts[:G].count(text), text)):
    i = texts.index(text)
    kind = "faithful" if faithful[i] else "hallucinated" if hallucinated[i] else "wrong"
    print(f"{texts[:G].count(text):2} x  {text:32}{kind}")
print(
    f"{correct.float().mean():.0%} are right, of those {hallucinated.sum() / correct.sum():.0%} hallucinated"
)

# %% [markdown]
# Right answers, and most of them say the same false thing in the same place. They agree.
#
# ## Eleven against five, by hand
#
# Sixteen right rollouts of one prompt, of which eleven quote "+1" and five are faithful. Two kinds of text, so two
# points. Centring puts two points on opposite sides of their mean: the cosine is 1 within a kind and -1 between them,
# *however similar the two had been*. With $\tau = 0.5$, and the 496 rollouts of the other prompts at a cosine of 0, the
# soft-NN loss in a kind of $n$ rollouts is
#
# $$\mathcal L = \log\frac{S + 496}{S} \qquad S = (n - 1) e^{1/\tau} + (16 - n) e^{-1/\tau}$$
#
# where $S$ sums $e^q$ over the 15 positives, and each stranger adds $e^0 = 1$.


# %%
def prices(states, strangers=496, tau=0.5, weight=0.1):
    """Contrastive rewards [G] of the right rollouts of one prompt, from their states [G, D]."""
    z = torch.nn.functional.normalize(states - states.mean(0), dim=-1)
    nearness = (
        (z @ z.T / tau).exp().fill_diagonal_(0).sum(1)
    )  # [G], to its positives; to each stranger it is exp(0)
    return (-weight * ((nearness + strangers) / nearness).log()).clamp(min=-0.5)


def kinds_of(*sizes):
    """One state a kind, as many copies of it as `sizes` says: [G, kinds]."""
    return torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), dim=0)


c = prices(kinds_of(5, 11))
print(f"faithful {c[0]:.3f}   false step {c[-1]:.3f}")

# %% [markdown]
# The larger cluster has more near neighbours, and the loss asks for nothing else. It cannot know which cluster is true.
# Now for every share of faithful rollouts, and beside it the careless textbook (lesson 3), where each of the others
# made up a step of its own:

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
shares = [k / G for k in range(1, G)]
for axis, title, alone in zip(
    axes, ("one shared false step", "each made up its own"), (False, True)
):
    cs = [
        prices(kinds_of(k, *([1] * (G - k) if alone else [G - k]))) for k in range(1, G)
    ]
    axis.plot(
        shares,
        [c[0] for c in cs],
        "o-",
        color=KINDS["faithful"],
        markersize=4,
        label="faithful",
    )
    axis.plot(
        shares,
        [c[-1] for c in cs],
        "^--",
        color=KINDS["hallucinated"],
        markersize=4,
        label="hallucinated",
    )
    axis.axvline(0.5, color="black", linewidth=1, linestyle=":")
    tidy(axis, "share of faithful rollouts", "contrastive reward c", title)
    axis.label_outer()
axes[1].legend(frameon=False, loc="lower left")
show(
    figure,
    "11_shares",
    "What agreement pays, against the share of the right rollouts that are faithful",
)
c = prices(kinds_of(2, *[1] * 14))
print(
    f"2 faithful, 14 made up each alone: faithful {c[0]:.3f}   hallucinated {c[-1]:.3f}"
)

# %% [markdown]
# On the left the lines cross at one half: below it, the false step earns more. On the right two equal ones of sixteen
# are enough: they need not be the majority, only the largest group of equal ones. That is why CLIPO worked in lesson 9.
# It rested on a property of the textbook: its right solutions are all alike, and its made-up ones are not.
#
# Do the model's states behave so? Here is the difference between the two rewards, prompt by prompt, as training
# computes it, and once more with the mean of the right rollouts only:


# %%
def rewards_of(centred):
    """CLIPO's contrastive rewards [N] without a head (lesson 9: it makes no difference here)."""
    z = torch.nn.functional.normalize(centred, dim=-1)
    options = dict(loss="soft_nn", level="cross", temperature=0.5)
    return contrastive_reward(
        contrastive_loss(z, correct, rollouts.group, **options).loss, correct, weight=0.1
    )


pooled, right = (
    rollouts.pooled.view(-1, G, 64),
    correct.view(-1, G, 1).float(),
)  # [B, G, D], [B, G, 1]
right_mean = (pooled * right).sum(1, keepdim=True) / right.sum(
    1, keepdim=True
)  # [B, 1, D]
as_trained = rewards_of(center_by_group(rollouts.pooled, rollouts.group))
right_only = rewards_of((pooled - right_mean).flatten(0, 1))

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
theory = [prices(kinds_of(k, G - k)) for k in range(1, G)]
axis.plot(
    shares, [c[0] - c[-1] for c in theory], color="black", linewidth=1, label="by hand"
)
for c, label, marker in (
    (right_only, "mean of the right ones", "s"),
    (as_trained, "mean of all, as trained", "o"),
):
    of_kind = lambda rows: (
        (c * rows).view(-1, G).sum(1) / rows.view(-1, G).sum(1)
    )  # [B], NaN where there is none
    share = faithful.view(-1, G).sum(1) / correct.view(-1, G).sum(1)
    color = "white" if marker == "s" else "#666666"
    difference = of_kind(faithful) - of_kind(hallucinated)
    axis.plot(
        share, difference, marker, color=color, markeredgecolor="black", label=label
    )
    both = difference[~difference.isnan()]  # of the prompts that have both kinds
    print(
        f"{label:24} mean difference {both.mean():+.3f}, below 0 in {int((both < 0).sum())} of {len(both)} prompts"
    )
axis.axhline(0, color="black", linewidth=1, linestyle=":")
tidy(
    axis, "share of faithful among the right rollouts", "c of faithful - c of false step"
)
axis.legend(frameon=False, fontsize=9, loc="upper left")
show(figure, "11_states", "The same on the model's own states, a mark a prompt")

# %% [markdown]
# The squares lie on the line or near it: the states are what the hand calculation took them for. As trained, the harm
# is a quarter of that at first: the wrong rollouts of a prompt move its mean, and many prompts lie near zero. But
# training leaves ever fewer wrong ones.
#
# ## Prompt contrast: ask other prompts
#
# Other rollouts cannot unmask an error that they share. Other *prompts* can. How much likelier is each word $y_t$ of
# rollout $i$ under its own prompt $x_i$ than under $K$ others $x_k$ of the batch? (It is ours, not the paper's. The same
# difference, called pointwise mutual information, was used against hallucinations in decoding by van der Poel et al.
# 2022, arXiv 2210.13210.)
#
# $$
# g_i = \mathrm{mean}_t \mathrm{clamp}\Big(\log p(y_t \mid x_i, y_{\lt t}) -
# \log \frac1K \sum_k p(y_t \mid x_k, y_{\lt t}), -6, 6\Big)
# $$
#
# A right rollout earns it on top, $R_i = \mathrm{outcome}_i + 0.2 g_i$; a wrong one gets 0. The limit of 6 nats keeps
# one impossible word from outweighing all others. There is no floor: a right answer with $g_i < -5$ would earn less
# than a wrong one.
#
# Three words by hand, $K = 2$: a total that this prompt leads to, the "+1" that the model says under any prompt, and
# the true operand, which it says rarely under this prompt and almost never under another:


# %%
def gains(own, others, limit=6.0):
    """How much likelier each token is under its own prompt, [N, T] in nats, from log-probs [N, T] and [K, N, T]."""
    return (own - others.exp().mean(0).log()).clamp(-limit, limit)


own = torch.tensor([[0.9, 0.7, 0.3]]).log()
others = torch.tensor([[[0.02, 0.7, 0.01]], [[0.04, 0.7, 0.01]]]).log()
print(gains(own, others))

# %% [markdown]
# The "+1" earns nothing, although it is likely: it is as likely everywhere. The operand earns as much as the total,
# although it is unlikely. Now the model's own rollouts, each prompt against the next two of the batch.
# (`logprobs_under` puts other prompts before the same completions, and reads off the log-probs.)

# %%
own = rollouts.logprobs  # [N, T], kept by `sample`
places = torch.stack(
    [torch.arange(32).roll(-k) for k in (1, 2)]
)  # [K, B], which prompts are the others
others = logprobs_under(model, rollouts, places)  # [K, N, T]
gain = gains(own, others)  # [N, T]
mean_gain = (gain * rollouts.mask).sum(1) / rollouts.mask.sum(1)  # [N]
first = lambda rows: int(rows.nonzero()[0])
i, j = first(faithful), first(hallucinated)  # of the first prompt, shown above
words = [texts[i].split() + ["<eos>"], texts[j].split() + ["<eos>"]]
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
spots = torch.arange(len(words[0]))
axis.bar(
    spots - 0.2,
    gain[i, : len(spots)],
    0.4,
    color=KINDS["faithful"],
    label=f"faithful, mean {mean_gain[i]:.2f}",
)
label = f"false step, mean {mean_gain[j]:.2f}"
axis.bar(
    spots + 0.2,
    gain[j, : len(spots)],
    0.4,
    color=KINDS["hallucinated"],
    hatch="//",
    label=label,
)
axis.set_xticks(spots, [a if a == b else f"{a} | {b}" for a, b in zip(*words)])
tidy(axis, "word of the completion", "gain in nats (at most 6)")
axis.legend(frameon=False)
show(figure, "11_gains", "What each word of a faithful and of a false-step rollout earns")
print(
    f"mean gain: faithful {mean_gain[faithful].mean():.2f}   hallucinated {mean_gain[hallucinated].mean():.2f}"
)

# %% [markdown]
# They differ in one word, and that word earns 6 nats (the limit) or nothing. The total after it gives a little back:
# after "+2" the other prompts, too, find it likelier. Over the whole rollout the false step still earns less. No other
# rollout was asked, so it does not matter how many of them agree. The answer after # earns nothing: it copies the last
# total, under any prompt. (In training the prompts stand in a circle in random order, and each is compared with the
# next $K$. That costs $K$ forward passes a step, and needs no head.)
#
# ## The same in minclipo

# %%
assert torch.allclose(mean_gain, prompt_contrast(own, others, rollouts.mask), atol=1e-4)
best = mean_gain.where(faithful, -torch.inf).view(-1, G).amax(1)  # [B]
fooled = (mean_gain.where(~correct, -torch.inf).view(-1, G).amax(1) > best)[
    best > -torch.inf
]
print(
    f"they agree; in {int(fooled.sum())} of {len(fooled)} prompts a wrong rollout gains more than any faithful one"
)

# %% [markdown]
# > **You should know.** Prompt contrast is blind to the answer: a wrong total, too, can be far likelier under its own
# > prompt than elsewhere. That is why it is paid to *right* rollouts only, on top of the outcome reward and never
# > instead of it.
#
# ## Training
#
# GRPO, CLIPO and prompt contrast from this model, 60 steps each:

# %%
histories = {}
for method in ("baseline", "clipo", "prompt_contrast"):
    _, histories[method] = train(f"10_{method}", model, steps=60, **OPTIONS[method])

show_training(
    histories,
    "11_training",
    "Training after the textbook with the shared false step, one run each",
)
for name, lines in (
    ("first", histories["clipo"][:10]),
    ("last", histories["clipo"][-10:]),
):
    mean = lambda key: sum(line[key] for line in lines) / len(lines)
    print(f"CLIPO, {name:5} ten steps: right {mean('accuracy'):.2f}", end="   ")
    print(
        f"prompts whose right rollouts agree {1 - mean('contrastive_signal'):.2f}",
        end="   ",
    )
    print(f"hallucination rate {mean('hallucination_rate'):.2f}")

# %% [markdown]
# > **You should know.** Read these two lines as you would have to without step labels: hide the last number. More
# > answers are right, more right rollouts agree, and no other number of the log warns. In the end nearly every right
# > answer contains a false step. Only a measure that looks at the steps can tell, and CLIPO was meant to do without
# > one.
#
# This is seed 0, where GRPO alone ends nearly as badly as CLIPO. On the other seeds it ends much lower: nothing in
# GRPO's reward holds the steps in place, one way or the other. Hallucination rates of five seeds after 60 steps; then
# textbooks with other shares of the false step, read twice as long, five seeds each:

# %%
rows = read_json(LESSONS / "results/prompt_contrast/results.json")
found = {
    row["name"]: row["values"]["hallucination_rate"]
    for row in rows
    if row["textbook"] == "shared70"
}
for name in ("after pretraining", "GRPO", "CLIPO", "prompt contrast", "oracle"):
    cell, seeds = (
        mean_interval(found[name]),
        "  ".join(f"{rate:.3f}" for rate in found[name]),
    )
    print(
        f"{name:19}{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]   by seed  {seeds}"
    )
rows = read_json(LESSONS / "results/shared_step/results.json")
found = {
    (row["textbook"], row["name"]): row["values"]["hallucination_rate"] for row in rows
}
print()
for share in (10, 30, 50, 70, 90):
    by_seed = lambda name: "  ".join(
        f"{rate:.3f}" for rate in found[f"shared{share}", name]
    )
    print(
        f"{share}% share the step   GRPO  {by_seed('GRPO')}   CLIPO  {by_seed('CLIPO')}"
    )

# %% [markdown]
# In the first table CLIPO ends above GRPO on all five seeds, by 35 points on average (95% interval 6 to 64). In the
# second it makes the majority's way everybody's: a step that 10% or 30% share is gone, one that 70% or 90% share is
# everywhere on nine of ten seeds (not in every answer, since one operand in eighteen is +1). At 50% each seed goes its
# own way. So help turns into harm at a half, which fits the crossing lines.
#
# ## How blind is the outcome?
#
# All this rests on one more property of the textbooks. Their authors never *believe* what they make up: the quote is
# false, the total is true, and an answer says nothing about the quotes (lesson 6). What if it does? A third author
# makes operands up as often as the careless one, but half of the time he believes them, and adds what he has quoted.
# How often is an answer right, in models that have read the first and the third textbook?


# %%
def quotes(text):
    """The operands that a completion quotes."""
    return [word for word in text.split() if word[0] in "+-"]


def right_shares(model):
    """How often the answer is right: where an operand is made up, and where none is."""
    rollouts = sample(
        model,
        prompts,
        64,
        16,
        eos_ids=tokenizer.eos_ids,
        generator=torch.Generator().manual_seed(0),
    )
    texts, correct = (
        tokenizer.decode_batch(rollouts.completion_ids()),
        verdicts(problems, rollouts)[0],
    )
    true = [[f"{operand:+d}" for operand in problem.operands] for problem in problems]
    made_up = torch.tensor(
        [quotes(text) != true[i // 64] for i, text in enumerate(texts)]
    )
    return correct[made_up].float().mean().item(), correct[~made_up].float().mean().item()


shares_of = {name: right_shares(pretrained(name)) for name in ("careless", "believed")}
for name, (q, p) in shares_of.items():
    print(f"{name:9} right if made up {q:.2f}   right if not {p:.2f}")

# %% [markdown]
# In a large group in which a share $h$ makes something up, is right with probability $q$ if it does, and with $p$ if it
# does not, GRPO's advantages (lesson 5) differ by
#
# $$A_{\text{not made up}} - A_{\text{made up}} = \frac{p - q}{\sqrt{R (1 - R)}} \qquad R = h q + (1 - h) p$$
#
# on average: each reward minus the same mean, over the same standard deviation.


# %%
def pull(q, p, h):
    """How much more GRPO pays, on average, for a rollout that makes nothing up."""
    mean = h * q + (1 - h) * p
    return (p - q) / (mean * (1 - mean)) ** 0.5


for name, (q, p) in shares_of.items():
    print(f"{name:9} pull {pull(q, p, h=0.48):+.2f}")
trained, history = train("10_believed", pretrained("believed"), steps=100)
rate = lambda lines: sum(line["hallucination_rate"] for line in lines) / len(lines)
first, last = rate(history[:10]), rate(history[-10:])
print(
    f"GRPO alone, hallucination rate: {first:.2f} in the first ten steps, {last:.2f} in the last ten"
)
q, p = right_shares(trained)
print(
    f"and then: right if made up {q:.2f}, right if not {p:.2f}, pull {pull(q, p, h=0.05):+.2f}"
)

# %% [markdown]
# No contrast was needed. Where a made-up step costs the answer, GRPO drops it. But look at the last line. There are two
# ways to be right again: to make nothing up, or not to believe it. GRPO took both. Most of the made-up operands that
# are left do no harm any more, and the pull on them has nearly halved.
#
# Five seeds each, 100 steps, for authors who believe ever more of what they make up:

# %%
rows = read_json(LESSONS / "results/blindness/results.json")
found = {(row["textbook"], row["name"]): row for row in rows}
mean = lambda values: mean_interval(values).mean
print("believed   right if made up, if not   hallucination rate of GRPO   CLIPO")
for book, share in (
    ("toy", 0),
    ("believed10", 10),
    ("believed20", 20),
    ("believed50", 50),
    ("believed100", 100),
):
    start = found[book, "after pretraining"]["look"]
    q, p = (
        mean([look[key] for look in start])
        for key in ("right_if_made_up", "right_if_not_made_up")
    )
    rates = [
        mean(found[book, name]["values"]["hallucination_rate"])
        for name in ("GRPO", "CLIPO")
    ]
    print(f"{share:7}%   {q:16.2f}   {p:6.2f}   {rates[0]:26.3f}   {rates[1]:5.3f}")

# %% [markdown]
# Where the outcome is blind, CLIPO has everything to do; where it sees nearly every made-up step, GRPO does it alone.
# (At 50%, CLIPO does harm on two of the five seeds. Their steps are right, and then comes `# 57 # 57`, the answer
# twice, which the step check counts as a false step. The outcome reward accepts it. Once all right rollouts have the
# same steps, the number of answers is what still differs, and agreement may speed the drift up.)
#
# > **You should know.** A language model may compute with what it has just written: "Mia lost 7: 66 - 7 = 59". After
# > SmolLM2-135M-Instruct had read such stories, its answers with a made-up step were right in 2% of the cases, and
# > others in 30%. Where the stories gave the total first, "Now it is 62, because Mia lost 7", it was 29% and 23%:
# > blind. In a first run of the first kind, GRPO alone took the hallucination rate from one half to one fiftieth in 21
# > steps, and CLIPO in 14 (`lessons/results.md`). Before you add a contrast, measure how often answers are right in
# > spite of a wrong step.
#
# ## When does it help?
#
# From `lessons/results.md`, all of it measured on this toy:
#
# * CLIPO helps where the outcome is blind, right solutions are alike and errors differ. It helps later where only a
#   fifth of the rollouts are right at first, and less where right rollouts are rare. What it
#   teaches mostly carries over to longer chains, not to operands that training left out.
# * It hurts where most right solutions share an error. No variant of it that removed made-up steps well was free of
#   that harm on average.
# * Where two ways of writing are both right, one of them died out, but under GRPO and the oracle just as well.
# * Prompt contrast did both jobs, on the two textbooks on which it had been found. Its weaknesses: it cannot see the
#   answer. It punishes right but rare ways of writing. An operand that the other prompts happen to share earns nothing.
#   Once learnt, copying the prompt once more pays a little. None of that took over in our runs; other models may find
#   the way.
#
# **Exercise.** `python lessons/exercises/11_agreement.py`: which cluster wins, prompt contrast that survives padding
# and impossible words, and other prompts of which none is its own.
#
# **What to try next.** Train with `contrastive_weight=0.05, prompt_contrast_weight=0.5`: on five seeds CLIPO's harm was
# gone. Try `prices(kinds_of(6, 5, 5))`, six faithful rollouts against two false steps: who earns most, though ten of
# sixteen are false? Read `minclipo/extensions/prompt_contrast.py`. Lesson 12 will put other algorithms in GRPO's place.
