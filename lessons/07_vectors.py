# %% [markdown]
# # 7. A rollout as a vector
#
# **Question.** GRPO looks at the answer and cannot see a made-up step (lesson 6). Does the step leave a trace in the
# model that wrote it, where we could look?
#
# You need lesson 6. Here come a vector for each rollout, the cosine of two of them, what centring brings to light, and
# a number that says how well a score tells two kinds apart.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from minclipo.contrastive import center_by_group
from minclipo.sampler import sample

from common import (
    KINDS,
    mean_pool,
    pretrained,
    problems_of,
    show,
    tidy,
    toy_tokenizer,
    verdicts,
)

# %% [markdown]
# ## One vector from many states
#
# The model turns each token into a state $u_t$, lesson 1's hidden state: the output of its final norm, from which the
# next token is predicted. A rollout of $T$ tokens has $T$ of them. CLIPO (arXiv 2603.10101) takes their mean, over the
# completion's own tokens and no others:
#
# $$h = \frac{1}{T} \sum_{t=1}^{T} u_t$$
#
# Two rollouts, states of width 2. The second has two tokens; what stands in its third place is padding.

# %%
states = torch.tensor(
    [[[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]], [[4.0, 4.0], [0.0, 2.0], [9.0, 9.0]]]
)  # [N, T, D]
mask = torch.tensor([[True, True, True], [True, True, False]])  # [N, T]
means = torch.stack([row[real].mean(0) for row, real in zip(states, mask)])  # [N, D]
print(means)

# %% [markdown]
# > **You should know.** Large models compute in bfloat16, which has 8 significant bits. A sum that is kept in it stops
# > growing early: from 256 on it knows even numbers only, and 256 + 1 is rounded back to 256. Add states up in float32.

# %%
total = torch.zeros((), dtype=torch.bfloat16)
for _ in range(1000):
    total += 1
print(f"a thousand ones, added up in bfloat16: {total:.0f}")

# %% [markdown]
# ## A thousand rollouts
#
# The model that has read the careless textbook, 64 prompts, 16 rollouts each. A right rollout is faithful if all its
# steps are right, else hallucinated (lesson 3). What do they write?

# %%
tokenizer, model = toy_tokenizer(), pretrained("careless")
problems = problems_of("lesson 7", 64)
prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
generator = torch.Generator().manual_seed(0)
rollouts = sample(model, prompts, 16, 24, eos_ids=tokenizer.eos_ids, generator=generator)

correct, steps_right = verdicts(problems, rollouts)  # [N] each, N = 64 * 16
faithful, hallucinated, wrong = correct & steps_right, correct & ~steps_right, ~correct
texts, prompt_of = (
    tokenizer.decode_batch(rollouts.completion_ids()),
    rollouts.group,
)  # [N], 0 to 63
for kind, rows in zip(KINDS, (faithful, hallucinated, wrong)):
    different = {(prompt_of[i].item(), texts[i]) for i in rows.nonzero()[:, 0].tolist()}
    print(f"{kind:12} {rows.sum():4} rollouts, {len(different):3} different ones")

# %% [markdown]
# This is what CLIPO builds on: a prompt's faithful rollouts are all one text, nearly every hallucinated one is a text
# of its own. Right reasoning is all alike; every made-up step is made up in its own way.
#
# ## Nearly parallel
#
# `sample` has the mean states already (`rollouts.pooled`): it feeds every token back into the model anyway, eos
# included, and adds up what comes out. How alike are two of them? The cosine compares directions and ignores lengths:
# 1 for the same direction, 0 for a right angle, -1 for opposite ones. It is the dot product of the two after each is
# divided by its length.


# %%
def cosines(vectors):
    """[N, N] from [N, D]."""
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T


def pairs(first, second, same_prompt=True):
    """[N, N] bool: rollout i is one of `first`, rollout j another one of `second`; both [N] bool."""
    same = prompt_of[:, None] == prompt_of[None, :]
    return (
        first[:, None]
        & second[None, :]
        & (same == same_prompt)
        & ~torch.eye(len(same), dtype=torch.bool)
    )


compared = {
    "faithful, faithful": pairs(faithful, faithful),
    "faithful, hallucinated": pairs(faithful, hallucinated),
    "right, wrong": pairs(correct, wrong),
    "right, right of another prompt": pairs(correct, correct, same_prompt=False),
}
raw = cosines(rollouts.pooled)
for name, which in compared.items():
    print(f"{name:30}  mean cosine {raw[which].mean():.3f}")

# %% [markdown]
# A made-up step hardly turns the vector: 0.986 instead of 1. Even right and wrong have 0.844. The vector tells which
# *prompt* was answered (0.237 between prompts), and very little of how. Large models have their version of this: the
# states of GPT-2 lie in a narrow cone whatever the text (Ethayarajh 2019, arXiv 1909.00512).
#
# ## Take away what they share
#
# Three vectors, nearly parallel. Subtract their mean, and only what differs is left:

# %%
three = torch.tensor([[10.0, 1.0], [10.0, 1.0], [10.0, -2.0]])
print("as they are", cosines(three)[0], "  centred", cosines(three - three.mean(0))[0])

# %% [markdown]
# Centred vectors sum to 0, so they cannot all agree: whoever lies furthest from the rest now points away from it. The
# same for the rollouts, each minus the mean of its own prompt's sixteen, right or wrong:

# %%
groups = rollouts.pooled.view(64, 16, -1)  # [B, G, D]
centred = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)  # [N, D]
similarity = {"as they are": raw, "centred": cosines(centred)}
for name, which in compared.items():
    print(
        f"{name:30}  mean cosine {raw[which].mean():+.3f}, centred {similarity['centred'][which].mean():+.3f}"
    )

styles = (
    (KINDS["faithful"], "-"),
    (KINDS["hallucinated"], "-"),
    (KINDS["wrong"], "-"),
    ("black", ":"),
)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for axis, (title, cosine) in zip(axes, similarity.items()):
    for (name, which), (color, linestyle) in zip(compared.items(), styles):
        shares = torch.histc(cosine[which].clamp(-1, 1), 40, -1, 1) / which.sum()
        axis.stairs(
            shares,
            torch.linspace(-1, 1, 41),
            color=color,
            linestyle=linestyle,
            linewidth=1.8,
            label=name,
        )
    tidy(
        axis,
        "cosine of two rollouts",
        "share of the pairs" if axis is axes[0] else "",
        title,
    )
axes[0].legend(frameon=False, fontsize=9, loc="upper left")
show(
    figure,
    "07_cosines",
    "Cosines of pairs of rollouts by kind, before and after centring",
)

# %% [markdown]
# What shared the last bar on the left (orange on blue) is now spread from -0.5 to 1. Faithful pairs stay at 1, being
# equal.
#
# ## A map
#
# 64 dimensions do not fit on paper. For each of the first three prompts we take the plane in which its sixteen centred
# vectors, each scaled to length 1, lose least of their squared length; the singular value decomposition finds it. (PCA
# does the same after taking off the mean once more.) The closer a point to the circle, the less of it is lost.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 3.3), layout="constrained")
for prompt, axis in enumerate(axes):
    points = F.normalize(centred[prompt_of == prompt], dim=1)  # [G, D]
    _, sizes, directions = torch.linalg.svd(
        points, full_matrices=False
    )  # directions [G, D], the most important first
    kept = (sizes[:2] ** 2).sum() / (sizes**2).sum()
    for kind, rows in zip(KINDS, (faithful, hallucinated, wrong)):
        own = (
            points[rows[prompt_of == prompt]] @ directions[:2].T
        )  # [rollouts of that kind, 2]
        places, count = (
            own.mul(100).round().unique(dim=0, return_counts=True)
        )  # those that coincide make one marker
        axis.scatter(
            *(places / 100).T,
            s=30 * count,
            color=KINDS[kind],
            edgecolors="white",
            label=kind,
            zorder=2,
        )
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", alpha=0.3))
    tidy(
        axis,
        "1st component",
        "2nd component" if prompt == 0 else "",
        f"prompt {prompt}: {kept:.0%} kept",
    )
    axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=3,
    frameon=False,
)
show(
    figure,
    "07_map",
    "The rollouts of three prompts; a marker's area says how many coincide",
)

# %% [markdown]
# The large marker is the faithful text, written several times over. The hallucinated ones lie off it, most of them on
# its side of the circle, each in a place of its own.
#
# ## A number for it
#
# Score each right rollout by its mean cosine to the *other right* rollouts of its prompt. Does that score tell
# faithful from hallucinated? Draw one of each at random: the probability that the faithful one scores higher is the
# AUC (area under the ROC curve). 1 is perfect, 0.5 a coin's; a tie counts one half.


# %%
def auc(scores, positive):
    """scores [n], positive [n] bool"""
    difference = (
        scores[positive][:, None] - scores[~positive][None, :]
    )  # [positive ones, negative ones]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


print(
    auc(torch.tensor([0.9, 0.8, 0.8, 0.7]), torch.tensor([True, True, False, False]))
)  # of 4 pairs 3 and a tie


def agreement(similarity, among):
    """Mean similarity of each rollout to the others of its prompt that are `among` [N] bool; [N]."""
    others = pairs(torch.ones_like(among), among)
    return (similarity * others).sum(1) / others.sum(1)


def report(name, scores):
    """Means over the prompts, each of which has both kinds here."""
    groups = [correct & (prompt_of == prompt) for prompt in range(64)]
    aucs = torch.stack([auc(scores[rows], faithful[rows]) for rows in groups])  # [B]
    gaps = torch.stack(
        [
            scores[rows & faithful].mean() - scores[rows & hallucinated].mean()
            for rows in groups
        ]
    )  # [B]
    print(
        f"{name:37}  AUC {aucs.mean():.3f}   faithful - hallucinated {gaps.mean():+.3f}"
    )


for title, cosine in similarity.items():
    report(f"{title}: cosine to the right ones", agreement(cosine, correct))
    report(f"{title}: cosine to all others", agreement(cosine, torch.ones_like(correct)))
same_text = torch.tensor(
    [[float(one == other) for one in texts] for other in texts]
)  # [N, N]
report("same text, among the right ones", agreement(same_text, correct))
report("log-prob of the rollout", rollouts.logprobs.sum(1))

# %% [markdown]
# > **You should know.** No step was labelled, nothing trained, and yet the made-up steps stand out. Not because
# > somebody knows the truth: because right reasoning is all alike. The score finds the largest cluster (in lesson 11
# > that will be a false one).
#
# Raw cosines give the right order, too (AUC 0.981), but by differences of 0.010 (last column: the two kinds' mean
# scores), of which centring makes 0.258. With the wrong rollouts let in, so that the score uses not even a verdict on
# the answer, the raw one falls to 0.902. The centred one does not.
#
# Do we need vectors for that? Not here, as the last two lines say. Counting equal texts does it. So does the model's
# own probability of what it wrote: a made-up operand is one of many, each of them rare. The toy is easier than the
# world, for its right solutions are equal word for word; vectors are for solutions that are alike without being equal.
# Whether a large model's vectors serve there, nothing on this page shows.
#
# ## The same in minclipo
#
# `rollouts.pooled` holds the means that `sample` has added up on the way; one forward pass gives the same.
# `center_by_group` is what training calls.

# %%
tokens = torch.cat(
    [torch.tensor(prompts).repeat_interleave(16, 0), rollouts.completions], 1
)  # [N, P + T]
with torch.no_grad():
    hidden = model(tokens)[
        :, len(prompts[0]) :
    ]  # [N, T, D], the state at each token of the completion
assert torch.allclose(mean_pool(hidden, rollouts.mask), rollouts.pooled, atol=1e-5)
assert torch.equal(mean_pool(states, mask), means)
assert torch.allclose(center_by_group(rollouts.pooled, prompt_of), centred, atol=1e-5)
print("they agree")

four = torch.tensor(
    [[0.2, 0.7], [0.3, 0.4], [0.4, 0.3], [0.7, 0.2]]
)  # the states of one rollout, [T, D]
twice = (
    torch.stack([sum(four), sum(four.flip(0))]) / 4
)  # added up from the front and from the back, [2, D]
print(f"plain: cosine {cosines(twice - twice.mean(0))[0, 1]:.0f}")
print(f"guarded: {center_by_group(twice, torch.zeros(2)).tolist()}")

# %% [markdown]
# The last lines show a guard. Two rollouts with equal states differ in the last bit of their means, by the order of
# summation. Centring leaves that rounding and nothing else, and to a cosine short vectors are as good as long ones:
# equal rollouts become opposite. So `center_by_group` makes exactly 0 of what is shorter than $10^{-5}$ of the mean.
#
# **Exercise.** `python lessons/exercises/07_vectors.py`: pooling, centring and the AUC for rollouts as they come:
# padded with NaN, in bfloat16, in any order.
#
# **What to try next.** Compute one AUC over the right rollouts of all prompts together: about 0.8. Agreement, like a
# reward in lesson 5, means something within a group only. Then take the state at eos, `hidden[:, 10]`, instead of the
# mean: centred it does nearly as well. Read `decode` in `minclipo/sampler.py`, which keeps the sum. Lesson 8 turns "it
# lies with its friends" into a loss.
