# %% [markdown]
# # 7. A rollout as a vector
#
# **Question.** GRPO looks at the answer and cannot see a made-up step (lesson 6). Does
# the step leave a trace in the model that wrote it?
#
# You need lesson 6. Rollouts become vectors here, and vectors a score.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import (
    KINDS,
    mean_pool,
    pretrained,
    problems_of,
    show,
    story,
    tidy,
    toy_tokenizer,
    verdicts,
)

from minclipo.contrastive import center_by_group
from minclipo.sampler import Rollouts, sample

# %% [markdown]
# ## One vector from many states
#
# Each token becomes a hidden state $u_t$ (lesson 1). CLIPO (arXiv 2603.10101) takes the
# mean over the $T$ tokens of a completion, its *pooled state*:
#
# $$h = \frac{1}{T} \sum_{t=1}^{T} u_t$$
#
# Two rollouts, with states of width 2. The second has two tokens and then padding.

# %%
states = torch.tensor(
    [[[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]], [[4.0, 4.0], [0.0, 2.0], [9.0, 9.0]]]
)  # [N, T, D]
mask = torch.tensor([[True, True, True], [True, True, False]])  # [N, T]
means = torch.stack([row[real].mean(0) for row, real in zip(states, mask)])  # [N, D]
print(means)

# %% [markdown]
# <details><summary><b>Guess first.</b> Large models compute in bfloat16. Start at 0 and
# add 1 a thousand times: what is the sum?</summary>
#
# 256. bfloat16 has 8 significant bits: beyond 256 it holds even numbers only, and 257
# is rounded back to 256. So add states up in float32.
#
# </details>

# %%
total = torch.zeros((), dtype=torch.bfloat16)
for _ in range(1000):
    total += 1
print(f"a thousand ones, added up in bfloat16: {total:.0f}")

# %% [markdown]
# ## A thousand rollouts
#
# The careless model writes sixteen rollouts for each of 64 prompts. The first sixteen
# are the story's (lesson 3).

# %%
tokenizer, model, G = toy_tokenizer(), pretrained("careless"), 16
story_problem, story_rollouts = story()
problems = [story_problem, *problems_of("lesson 7", 63)]  # B = 64
prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
generator = torch.Generator().manual_seed(0)
options = dict(eos_ids=tokenizer.eos_ids, generator=generator)
others = sample(model, prompts[1:], G, 16, **options)
rollouts = Rollouts.join([story_rollouts, others])  # N = B G = 1024

correct, steps_right = verdicts(problems, rollouts)  # [N] each
kinds = {
    "faithful": correct & steps_right,
    "hallucinated": correct & ~steps_right,
    "wrong": ~correct,
}
faithful, hallucinated, wrong = kinds.values()
texts = tokenizer.decode_batch(rollouts.completion_ids())
prompt_of = rollouts.group  # [N], 0 to 63
for kind, rows in kinds.items():
    different = {(prompt_of[i].item(), texts[i]) for i in rows.nonzero()[:, 0].tolist()}
    print(f"{kind:12} {rows.sum():4} rollouts, {len(different):3} different ones")

# %% [markdown]
# A prompt's faithful rollouts are one text. Nearly every hallucinated one is a text of
# its own. CLIPO builds on this: right reasoning is all alike, and every made-up step is
# made up in its own way.
#
# ## Nearly parallel
#
# `sample` returns the pooled states as `rollouts.pooled`. We compare their directions
# by the cosine, the dot product of two *unit vectors* $z = h / |h|$: 1 for the same
# direction, 0 for a right angle, -1 for opposite ones.
#
# <details><summary><b>Guess first.</b> A hallucinated rollout mostly differs from a
# faithful one in one word of ten. What is their mean cosine?</summary>
#
# 0.986. Even right and wrong have 0.840. The pooled state says which *prompt* was
# answered (0.245 between prompts), and very little about how.
#
# </details>


# %%
def cosines(vectors):
    """[N, N] from [N, D]."""
    z = F.normalize(vectors, dim=1)
    return z @ z.T


def pairs(first, second, same_prompt=True):
    """[N, N] bool: rollout i is one of `first`, rollout j another one, of `second`."""
    same = prompt_of[:, None] == prompt_of[None, :]
    another = ~torch.eye(len(same), dtype=torch.bool)
    return first[:, None] & second[None, :] & (same == same_prompt) & another


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
# ## Take away what they share
#
# These three vectors are nearly parallel. Subtract their mean, and only what differs is
# left:

# %%
three = torch.tensor([[10.0, 1.0], [10.0, 1.0], [10.0, -2.0]])
print("as they are", cosines(three)[0], "  centred", cosines(three - three.mean(0))[0])

# %% [markdown]
# Centred vectors sum to 0, so they cannot all agree: the one furthest from the rest now
# points away from it. From each rollout we subtract the mean of its prompt's sixteen:

# %%
groups = rollouts.pooled.view(-1, G, 64)  # [B, G, D]
centred = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)  # [N, D]
similarity = {"as they are": raw, "centred": cosines(centred)}
for name, which in compared.items():
    before, after = (cosine[which].mean() for cosine in similarity.values())
    print(f"{name:30}  mean cosine {before:+.3f}, centred {after:+.3f}")

# %% tags=["drawing"]
colors = (*KINDS.values(), "black")
figure, axes = plt.subplots(
    4, 2, figsize=(8, 4.6), sharex=True, sharey=True, layout="constrained"
)
for row, ((name, which), color) in enumerate(zip(compared.items(), colors)):
    for axis, (title, cosine) in zip(axes[row], similarity.items()):
        shares = torch.histc(cosine[which].clamp(-1, 1), 40, -1, 1) / which.sum()
        axis.stairs(shares, torch.linspace(-1, 1, 41), fill=True, color=color)
        xlabel = "cosine of two rollouts" if row == 3 else ""
        tidy(axis, xlabel, "", title if row == 0 else "")
        axis.text(-1, 0.8, name, fontsize=9)
figure.supylabel("share of the pairs", fontsize=10)
show(
    figure,
    "07_cosines",
    "Cosines of two rollouts, a row for each kind of pair. As they are (left), pairs "
    "from one prompt crowd at 1; centred (right), each kind has a place of its own.",
)

# %% [markdown]
# ## A map
#
# The states have 64 dimensions. For each of three prompts we take the plane that keeps
# most of its centred unit vectors; the singular value decomposition (SVD) finds it.


# %%
def plane(prompt):
    """(places [G, 2] of a prompt's rollouts, share of the squared length kept)"""
    z = F.normalize(centred[prompt_of == prompt], dim=1)  # [G, D]
    _, sizes, directions = torch.linalg.svd(z, full_matrices=False)  # largest first
    return z @ directions[:2].T, (sizes[:2] ** 2).sum() / (sizes**2).sum()


maps = [plane(prompt) for prompt in range(3)]
print("kept on the map:", [f"{kept:.0%}" for _, kept in maps])

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 3, figsize=(8, 3.3), layout="constrained")
for prompt, (axis, (places, kept)) in enumerate(zip(axes, maps)):
    for (kind, rows), marker in zip(kinds.items(), "o^x"):
        own = places[rows[prompt_of == prompt]]  # [rollouts of that kind, 2]
        own, count = own.mul(100).round().unique(dim=0, return_counts=True)
        look = {} if marker == "x" else {"edgecolors": "white"}
        color = KINDS[kind]
        axis.scatter(
            *(own / 100).T, s=35 * count, color=color, marker=marker, label=kind, **look
        )
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", alpha=0.3))
    title = "the story's prompt" if prompt == 0 else f"prompt {prompt}"
    tidy(axis, "1st component", "", f"{title}, {kept:.0%} kept")
    axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axis.title.set_size(10)
axes[0].set_ylabel("2nd component")
handles = [
    plt.Line2D([], [], color=KINDS[kind], marker=marker, linestyle="", label=kind)
    for kind, marker in zip(kinds, "o^x")
]
figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
show(
    figure,
    "07_map",
    "The sixteen rollouts of three prompts; a marker's area says how many coincide. The "
    "blue circle is the faithful text. Each orange triangle has a place of its own, one "
    "of the story's close to the faithful text. Nearer to the grey circle means that "
    "less of the vector is lost.",
)

# %% [markdown]
# ## A number for it
#
# Score each right rollout by its mean cosine to the *other right* rollouts of its
# prompt. The AUC (area under the ROC curve) is the probability that a random faithful
# one scores higher than a random hallucinated one. 1 is perfect, 0.5 is chance, and a
# tie counts one half.
#
# <details><summary><b>Guess first.</b> Do we need vectors for that?</summary>
#
# Not here. Counting equal texts does it, and so does the model's own log-prob, because
# each made-up operand is rare (lesson 10 makes a reward of it). Vectors are for
# solutions that are alike without being equal.
#
# </details>


# %%
def auc(of_faithful, of_hallucinated):
    """How often the first score is higher, over all pairs."""
    difference = of_faithful[:, None] - of_hallucinated[None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


print(auc(torch.tensor([0.9, 0.8]), torch.tensor([0.8, 0.7])))  # of 4 pairs 3 and a tie


def agreement(similarity):
    """Mean similarity of each right rollout to its prompt's other right ones, [N]."""
    counted = pairs(correct, correct)
    return (similarity * counted).sum(1) / counted.sum(1)  # NaN for wrong ones


def report(name, scores):
    """Means over the prompts, each of which has both kinds here."""
    own = [prompt_of == prompt for prompt in range(len(problems))]
    high, low = (
        [scores[rows & kind] for rows in own] for kind in (faithful, hallucinated)
    )
    aucs = torch.stack([auc(*both) for both in zip(high, low)])  # [B]
    gaps = torch.stack([a.mean() - b.mean() for a, b in zip(high, low)])  # [B]
    print(f"{name:37}  AUC {aucs.mean():.3f}   faithful - halluc. {gaps.mean():+.3f}")


for title, cosine in similarity.items():
    report(f"cosine to the right ones, {title}", agreement(cosine))
same_text = torch.tensor([[one == two for one in texts] for two in texts]).float()
report("share of equal texts among them", agreement(same_text))
report("log-prob of the rollout", rollouts.logprobs.sum(1))

# %% [markdown]
# > **You should know.** No step was labelled and nothing was trained, yet made-up steps
# > stand out. The score does not know the truth. It finds the largest cluster, which in
# > lesson 11 will be a false one.
#
# Raw cosines work, too (AUC 0.973), but by differences of 0.010, which are little
# beside a reward of 0 or 1. Centring makes them 0.267.
#
# <details><summary><b>Guess first.</b> One AUC over the right rollouts of all prompts
# together: is the centred cosine still that good?</summary>
#
# No, 0.832. Where few are faithful, these have few friends. Agreement, like a reward in
# lesson 5, means something within a group only.
#
# </details>

# %%
scores = agreement(similarity["centred"])
print(f"all prompts in one heap: AUC {auc(scores[faithful], scores[hallucinated]):.3f}")

# %% [markdown]
# ## The same in minclipo
#
# One forward pass gives what `sample` has added up. `center_by_group` also guards
# against rounding. Equal rollouts may differ in a last bit, and where centring leaves
# nothing else, their cosine can be -1. So what is shorter than $10^{-5}$ of the mean
# becomes exactly 0.

# %%
tokens = torch.cat(
    [torch.tensor(prompts).repeat_interleave(G, 0), rollouts.completions], 1
)
with torch.no_grad():
    hidden = model(tokens)[:, len(prompts[0]) :]  # [N, T, D], at the completion's tokens
assert torch.allclose(mean_pool(hidden, rollouts.mask), rollouts.pooled, atol=1e-5)
assert torch.equal(mean_pool(states, mask), means)
assert torch.allclose(center_by_group(rollouts.pooled, prompt_of), centred, atol=1e-5)
print("they agree")

four = torch.tensor([[0.2, 0.7], [0.3, 0.4], [0.4, 0.3], [0.7, 0.2]])  # [T, D]
twice = torch.stack([sum(four), sum(four.flip(0))]) / 4  # forwards, backwards: [2, D]
print(f"plain: cosine {cosines(twice - twice.mean(0))[0, 1]:.0f}")
print(f"guarded: {center_by_group(twice, torch.zeros(2)).tolist()}")

# %% [markdown]
# **Now you know.**
#
# * A rollout becomes a vector: the mean of its hidden states, minus its group's mean.
# * Faithful rollouts lie in one place; each hallucinated one lies in its own.
# * So agreement among right rollouts finds made-up steps, without a label.
#
# **Exercise.** About 20 minutes, medium. `python lessons/exercises/07_vectors.py`:
# pooling, centring and the AUC for rollouts padded with NaN, in bfloat16, in any order.
#
# <details><summary>A hint for <code>centred</code></summary>
#
# The matrix of who belongs with whom, as 0 and 1, times the states sums each group.
#
# </details>
#
# **What to try next.** Take the state at eos, `hidden[:, 10]`, instead of the mean:
# centred, the AUC is 0.94. Lesson 8 turns "it lies with its friends" into a loss.
