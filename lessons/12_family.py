# %% [markdown]
# # 12. The family: each a few lines away from GRPO
#
# **Question.** Dr. GRPO, DAPO, GSPO, GMPO: what does each of them change, and why?
#
# You need lesson 5, and lesson 10 for the last section. Each relative comes with the
# lines in which it differs from GRPO.

# %%
import difflib
import inspect
import json

import matplotlib.pyplot as plt
import torch
from common import LESSONS, METHODS, show, tidy

from minclipo.extensions.dapo import informative_groups, overlong_penalty
from minclipo.grpo import group_advantages, policy_loss, token_weights
from minclipo.runs.intervals import mean_interval
from minclipo.runs.recipes import ALGORITHMS, NAMES

# %% [markdown]
# ## GRPO, from rewards to one number
#
# As published (arXiv 2402.03300, eq. 3), without the KL penalty, which none of the
# relatives has. Rollout $y_i$ has $|y_i|$ tokens, each with a ratio
# $r_{it}=\pi/\pi_{\text{old}}$:
#
# $$\frac1N\sum_i\frac1{|y_i|}\sum_t\max\big(-A_i\thinspace r_{it},
# -A_i\thinspace\mathrm{clip}(r_{it},0.8,1.2)\big)$$


# %%
def grpo(log_ratio, mask, rewards):  # [N, T], [N, T], [B, G]
    A = rewards - rewards.mean(1, keepdim=True)
    A = A / (rewards.std(1, keepdim=True) + 1e-6)
    A = A.view(-1, 1)  # [N, 1]
    r = log_ratio.exp()  # [N, T]
    token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.2))
    return ((token_loss * mask).sum(1) / mask.sum(1)).mean()


# %% [markdown]
# ## Dr. GRPO: two fewer divisions
#
# Neither a rollout's length nor its group's spread should weigh anything
# (arXiv 2503.20783, section 3).
#
# ```diff
# - A = A / (rewards.std(1, keepdim=True) + 1e-6)
# - return ((token_loss * mask).sum(1) / mask.sum(1)).mean()
# + return ((token_loss * mask).sum(1) / MAX_LENGTH).mean()
# ```
#
# <details><summary><b>Guess first.</b> Two wrong rollouts, one of 2 tokens and one of 6.
# Whose tokens does GRPO push down harder?</summary>
#
# Those of the short one, three times as hard. A policy can learn from it to be long when
# it is wrong.
#
# </details>

# %%
MAX_LENGTH = 8  # the most tokens that a completion may have


def dr_grpo(log_ratio, mask, rewards):
    A = rewards - rewards.mean(1, keepdim=True)
    A = A.view(-1, 1)  # [N, 1]
    r = log_ratio.exp()  # [N, T]
    token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.2))
    return ((token_loss * mask).sum(1) / MAX_LENGTH).mean()


token_weight = {
    "GRPO as published": (1 / (2 * 2), 1 / (2 * 6)),
    "Dr. GRPO": (1 / (2 * 8), 1 / (2 * 8)),
    "DAPO": (1 / (2 + 6), 1 / (2 + 6)),
}
for name, (short, long) in token_weight.items():
    print(
        f"{name:18} a token: short {short:.3f}, long {long:.3f}"
        f"   the rollout: {2 * short:.3f}, {6 * long:.3f}"
    )

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
for axis, (name, (short, long)) in zip(axes, token_weight.items()):
    axis.bar([0.8, 1.8], short, width=0.4, color="black", label="rollout of 2 tokens")
    places = torch.arange(1, 7) + 0.2
    hatched = dict(color="w", edgecolor="k", hatch="////")
    axis.bar(places, long, 0.4, label="rollout of 6 tokens", **hatched)
    tidy(axis, "token", "weight" if axis is axes[0] else "", name)
axes[2].legend(frameon=False)
show(
    figure,
    "12_weights",
    "What a token of a short rollout (black) and of a long one (hatched) weighs. Only "
    "GRPO as published makes the long one's lighter.",
)

# %% [markdown]
# Dr. GRPO's constant, here 8, scales all rollouts alike. DAPO divides by the number of
# tokens in the batch.
#
# The std is small for prompts that are nearly always or nearly never solved. Dividing by
# it gives them more weight:

# %%
rewards = torch.tril(torch.ones(16, 16))[:15]  # [B, G]: 1 of 16 is right, 2, ... 15
by_difficulty = {}
for scale, name in (("std", "GRPO"), ("none", "Dr. GRPO")):
    A = group_advantages(rewards.flatten(), 16, scale=scale).view(15, 16)
    by_difficulty[name] = A[:, 0], A.abs().sum(1)  # a right rollout, its group; [B] each
    shown = lambda values: "  ".join(f"{values[i]:5.2f}" for i in (0, 7, 14))
    one, whole = map(shown, by_difficulty[name])
    print(f"{name:8} 1, 8, 15 of 16 right: a right rollout {one}", end=", ")
    print(f"|A| of the group {whole}")

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
styles = {"GRPO": (METHODS["baseline"], "o-"), "Dr. GRPO": ("black", "^--")}
for name, values in by_difficulty.items():
    color, line = styles[name]
    for axis, value in zip(axes, values):
        axis.plot(rewards.mean(1), value, line, color=color, markersize=4, label=name)
tidy(axes[0], "share of right rollouts", "advantage", "a right rollout")
tidy(axes[1], "share of right rollouts", "sum of |advantage|", "its whole group")
axes[1].set_ylim(bottom=0)
axes[0].legend(frameon=False)
show(
    figure,
    "12_difficulty",
    "Groups of 16 with 1 to 15 right rollouts. GRPO's advantages (orange) are larger "
    "than Dr. GRPO's (black), above all where nearly all or nearly none are right.",
)

# %% [markdown]
# ## DAPO: a mean over tokens, and more room upwards
#
# Two of DAPO's four changes (arXiv 2503.14476) are in the loss.
#
# ```diff
# - token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.2))
# + token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.28))
# - return ((token_loss * mask).sum(1) / mask.sum(1)).mean()
# + return (token_loss * mask).sum() / mask.sum()
# ```
#
# With a clip at 1.2, a token of probability 0.01 may gain 0.0020 and no more. One of 0.9
# never meets the clip, as 1.2 times 0.9 is more than 1. So the upper bound holds back
# rare tokens.
#
# The other two stand around the loss. *Dynamic sampling* throws away the prompts whose
# rollouts are all right or all wrong, since their advantages are 0, and samples until the
# batch is full. The *overlong penalty* lowers the reward near the limit of tokens, here
# by up to 0.5 over the last 4 of 16.


# %%
def dapo(log_ratio, mask, rewards):
    A = rewards - rewards.mean(1, keepdim=True)
    A = A / (rewards.std(1, keepdim=True) + 1e-6)
    A = A.view(-1, 1)  # [N, 1]
    r = log_ratio.exp()  # [N, T]
    token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.28))
    return (token_loss * mask).sum() / mask.sum()


for clip in (0.2, 0.28):
    rare, common = (min(p * (1 + clip), 1.0) - p for p in (0.01, 0.9))
    print(
        f"clip {clip}: a probability of 0.01 may gain {rare:.4f}, one of 0.9 {common:.4f}"
    )
three_groups = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
print("groups that teach:", informative_groups(three_groups, group_size=3).tolist())
for share in (0.5, 0.9, 0.99):
    batches = 1 / (1 - share**16 - (1 - share) ** 16)
    print(f"{share:.0%} right: sample {batches:.2f} batches to fill one, groups of 16")
lengths = torch.tensor([11, 12, 13, 14, 15, 16])
print("overlong:", overlong_penalty(lengths, 16, buffer=4, penalty=0.5).tolist())

# %% [markdown]
# ## GSPO and GMPO: one ratio per rollout
#
# The reward judges the whole rollout, so let the ratio be the rollout's. The product of
# its tokens' ratios is soon near 0 or huge. Its $|y_i|$-th root is of a token's size:
#
# $$r_i=\Big(\prod_t r_{it}\Big)^{1/|y_i|}=\exp\Big(\frac1{|y_i|}\sum_t\log r_{it}\Big)$$
#
# GSPO (arXiv 2507.18071, eqs. 5 and 7) clips this ratio.
#
# ```diff
# - r = log_ratio.exp()  # [N, T]
# + r = ((log_ratio * mask).sum(1) / mask.sum(1)).exp()[:, None]  # [N, 1]
# - token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.2))
# + token_loss = torch.maximum(-A * r, -A * r.clamp(1 - 3e-4, 1 + 4e-4))
# ```
#
# GMPO (arXiv 2507.20673, eq. 4) first clips each token's log-ratio, and only on the side
# where lesson 5's max would have cut it off.
#
# ```diff
# - r = log_ratio.exp()  # [N, T]
# - token_loss = torch.maximum(-A * r, -A * r.clamp(0.8, 1.2))
# + bounded = torch.where(A > 0, log_ratio.clamp(max=0.4), log_ratio.clamp(min=-0.4))
# + r = ((bounded * mask).sum(1) / mask.sum(1)).exp()[:, None]  # [N, 1]
# + token_loss = -A * r
# ```
#
# <details><summary><b>Guess first.</b> A right and a wrong rollout of 20 tokens. Only
# token 0 of each is now seven times as likely. What does each algorithm do?</summary>
#
# In the wrong one GRPO pushes the wild token down with 7.39 times the usual force, while
# GSPO and GMPO spread that over the rollout, 1.11 for all. In the right one GRPO and GMPO
# stop only the wild token. GSPO stops the whole rollout, since its mean ratio $e^{0.1}$
# is above 1.0004.
#
# </details>


# %%
def gspo(log_ratio, mask, rewards):
    A = rewards - rewards.mean(1, keepdim=True)
    A = A / (rewards.std(1, keepdim=True) + 1e-6)
    A = A.view(-1, 1)  # [N, 1]
    r = ((log_ratio * mask).sum(1) / mask.sum(1)).exp()[:, None]  # [N, 1]
    token_loss = torch.maximum(-A * r, -A * r.clamp(1 - 3e-4, 1 + 4e-4))
    return ((token_loss * mask).sum(1) / mask.sum(1)).mean()


def gmpo(log_ratio, mask, rewards):
    A = rewards - rewards.mean(1, keepdim=True)
    A = A / (rewards.std(1, keepdim=True) + 1e-6)
    A = A.view(-1, 1)  # [N, 1]
    bounded = torch.where(A > 0, log_ratio.clamp(max=0.4), log_ratio.clamp(min=-0.4))
    r = ((bounded * mask).sum(1) / mask.sum(1)).exp()[:, None]  # [N, 1]
    token_loss = -A * r
    return ((token_loss * mask).sum(1) / mask.sum(1)).mean()


def gradient(loss, log_ratio, mask, rewards):  # [N, T], as for the log-probs
    leaf = log_ratio.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, mask, rewards), leaf)[0]


rewards = torch.tensor([[1.0, 0.0]])  # [B, G]
still, mask = torch.zeros(2, 20), torch.ones(2, 20)  # [N, T]
wild = still.index_fill(1, torch.tensor([0]), 2.0)  # [N, T], a ratio of 7.39
for loss in (grpo, gspo, gmpo):
    before = gradient(loss, still, mask, rewards)
    right, wrong = (gradient(loss, wild, mask, rewards) / before).abs()  # [T] each
    print(
        f"{loss.__name__}  right: wild {right[0]:.2f}, others {right[1]:.2f}"
        f"   wrong: wild {wrong[0]:.2f}, others {wrong[1]:.2f}"
    )

# %% [markdown]
# Such a narrow range suits long rollouts, where noise averages out. With noise of 0.02 in
# each log-ratio:

# %%
generator = torch.Generator().manual_seed(0)
for T in (11, 100, 1000, 10000):
    r = (0.02 * torch.randn(400, T, generator=generator)).mean(1).exp()  # [N]
    share = (r > 1.0004).float().mean()
    print(f"{T:5} tokens: spread of the ratio {r.std():.5f}, above 1.0004 {share:.0%}")

# %% [markdown]
# **The token form.** One ratio per rollout gives all its tokens the same gradient. Where
# each token has an advantage of its own, these are averaged. So the paper has a
# second form. Its sg, "stop gradient", is torch's `detach`.
#
# $$r_{it}=\mathrm{sg}(r_i)\thinspace\frac{\pi(y_{it})}{\mathrm{sg}(\pi(y_{it}))}$$
#
# The fraction is 1, so the *value* is the rollout's ratio. The *gradient* goes to this
# token's log-prob alone. Three tokens with advantages 1, 2 and 6:


# %%
def one_ratio(log_ratio):
    return log_ratio.mean().exp().expand(3)  # [T]


def token_form(log_ratio):
    return (log_ratio.mean().detach() + log_ratio - log_ratio.detach()).exp()  # [T]


for ratio in (one_ratio, token_form):
    leaf = torch.tensor([0.3, 0.0, -0.3], requires_grad=True)  # [T], their mean is 0
    r = ratio(leaf)
    (own,) = torch.autograd.grad((r * torch.tensor([1.0, 2.0, 6.0])).sum(), leaf)
    print(f"{ratio.__name__:10} values {r.detach()}   gradients {own}")

# %% [markdown]
# > **You should know.** On the first mini-batch of a step all ratios are 1, nothing is
# > clipped, and a token's gradient is $-A_i$ times its weight. With *one* update per
# > sample GSPO and GMPO **are** GRPO as published. Dr. GRPO and DAPO still differ, by
# > lengths and stds:

# %%
mask = torch.arange(MAX_LENGTH) < torch.tensor([2, 6, 4, 3, 8, 5])[:, None]  # [N, T]
rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])  # [B, G]
still = torch.zeros(6, MAX_LENGTH)  # [N, T]
of_grpo = gradient(grpo, still, mask, rewards)
for loss in (dr_grpo, dapo, gspo, gmpo):
    factor = gradient(loss, still, mask, rewards) / of_grpo  # [N, T], NaN in the padding
    assert all(torch.allclose(row[real], row[0]) for row, real in zip(factor, mask))
    print(f"{loss.__name__:8} GRPO's gradient, each rollout times {factor[:, 0]}")

# %% [markdown]
# ## The same in minclipo
#
# `minclipo/grpo.py` has one `policy_loss` for all, `minclipo/runs/recipes.py` their
# settings. Its plain `grpo` has DAPO's mean over tokens and a clip of 0.2.

# %%
losses = dict(grpo_published=grpo, dr_grpo=dr_grpo, dapo=dapo, gspo=gspo, gmpo=gmpo)
for name, loss in losses.items():
    options = ALGORITHMS[name]
    A = group_advantages(rewards.flatten(), 3, scale=options["advantage_scale"])  # [N]
    weights = token_weights(mask, options["aggregation"], max_length=MAX_LENGTH)  # [N, T]
    clip = {key: options[key] for key in ("ratio", "clip_low", "clip_high")}

    def theirs(log_ratio, *_):
        return policy_loss(log_ratio, still, A, mask, weights=weights, **clip).loss

    for spread in (1e-4, 0.5):  # within GSPO's range, and beyond everybody's
        moved = spread * torch.randn(6, MAX_LENGTH, generator=generator), mask, rewards
        assert torch.allclose(loss(*moved), theirs(*moved), atol=1e-6)
        assert torch.allclose(gradient(loss, *moved), gradient(theirs, *moved), atol=1e-6)


def changes(relative):
    """The lines in which a relative differs from grpo, as they stand on this page."""
    old, new = (inspect.getsource(loss).splitlines()[1:] for loss in (grpo, relative))
    lines = (line for line in difflib.ndiff(old, new) if line[0] in "+-")
    return "".join(f"# {line[0]} {line[2:].strip()}\n" for line in lines)


page = (LESSONS / "12_family.py").read_text(encoding="utf-8")
assert all(changes(relative) in page for relative in (dr_grpo, dapo, gspo, gmpo))
print("they agree in value and gradient, and the diffs above are those of the code")

# %% [markdown]
# ## Do they mend the steps?
#
# Each relative can be trained with the contrastive reward and without. Five seeds, 100
# steps on the toy (lessons/results.md). GRPO as published has its KL penalty here.
#
# <details><summary><b>Guess first.</b> Which of the six removes made-up steps on its
# own?</summary>
#
# None. Nothing that they change has seen the steps. With CLIPO all six do, three of them
# less well.
#
# </details>

# %%
load = lambda name: json.loads(
    (LESSONS / "results" / name / "results.json").read_text(encoding="utf-8")
)
rates = {
    row["name"]: mean_interval(row["values"]["hallucination_rate"])
    for row in load("gspo_clip") + load("algorithms")
}
for name in NAMES.values():
    alone, clipo = rates[name].mean, rates[name + " + CLIPO"].mean
    print(f"{name:18} hallucination rate {alone:.3f}   with CLIPO {clipo:.3f}")
wide = rates["GSPO, wide clip + CLIPO"].mean
print(f"GSPO with a hundred times its clip range, three seeds: with CLIPO {wide:.3f}")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for suffix, method, marker, label in (
    ("", "baseline", "o", "alone"),
    (" + CLIPO", "clipo", "s", "with CLIPO"),
):
    for place, name in enumerate(NAMES.values()):
        rate, color = rates[name + suffix], METHODS[method]
        axis.plot(rate.mean, place, marker, color=color, label=None if place else label)
        axis.plot([rate.low, rate.high], [place, place], color=color)
before = rates["after pretraining"].mean
axis.axvline(before, color="black", linestyle=":", label="before training")
axis.set_yticks(range(len(NAMES)), NAMES.values())
axis.invert_yaxis()
tidy(axis, "hallucination rate", "")
figure.legend(frameon=False, loc="outside upper center", ncols=3)
show(
    figure,
    "12_rates",
    "Hallucination rates of six algorithms alone (circles) and with CLIPO (squares), "
    "means of five seeds with 95% intervals. Dotted: before training.",
)

# %% [markdown]
# GSPO's narrow range cuts whole rollouts. With a wider one CLIPO works there, too. Dr.
# GRPO does not divide by the std, so a small difference between right rollouts stays
# small. DAPO drops the prompts that are always right, where that difference would be all
# there is. The reasons for Dr. GRPO and DAPO are not tested.
#
# **Now you know.**
#
# * Each relative changes what divides the advantage, the ratio, or the mean over tokens.
# * With one update per sample, GSPO and GMPO are GRPO.
# * No change of the loss sees a made-up step, if the reward does not.
#
# **Exercise.** About 40 minutes, hard. `python lessons/exercises/12_family.py`: a formula
# of each relative.
#
# <details><summary>A hint for <code>gspo_log_ratio</code></summary>
#
# Fill the padding with 0 first. Then it is `token_form` without the `exp`.
#
# </details>
#
# **What to try next.** In the cell with the noise, let GSPO's range end a hundred times
# as far from 1. Then read `dynamic_sampling` in `minclipo/extensions/dapo.py`.
