# %% [markdown]
# # 8. Four contrastive losses by hand
#
# **Question.** How does one number per rollout say "it lies with its friends and away
# from the others", and do all such numbers charge the same rollouts?
#
# You need lesson 7. CLIPO will take such a number, a loss, off a right rollout's reward:
# the rollout *pays* its loss. We write four losses and see where they part.

# %%
import json

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import LESSONS, METHODS, show, tidy

from minclipo.contrastive import contrastive_loss

# %% [markdown]
# ## A probability for each candidate
#
# Seven unit vectors on a circle, given by their angles. The first is the *anchor*,
# whose loss we want. The next three are its *positives*, in CLIPO the other right
# rollouts of its prompt. The last three are its *negatives*. All six are its
# *candidates*.
#
# Divide the cosines by a temperature $\tau$ and take the softmax over the candidates:
#
# $$
# s_{ij} = \frac{z_i \cdot z_j}{\tau} \qquad
# p_{ij} = \frac{e^{s_{ij}}}{\sum_{k \in \mathrm{cand}(i)} e^{s_{ik}}}
# $$
#
# So $p_{ij}$ is the probability that anchor $i$ picks candidate $j$ as its friend.


# %%
def log_p(s, candidates):
    """Log of the softmax over the candidates, [..., n]; -inf for all others."""
    return s.masked_fill(~candidates, -torch.inf).log_softmax(-1)


def on_circle(degrees):
    radians = torch.as_tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)  # [..., 2]


angles = torch.tensor([0.0, 20.0, 50.0, 150.0, 110.0, 200.0, 280.0])
z = on_circle(angles)  # [7, 2]
candidates = torch.arange(7) > 0
positives = candidates & (torch.arange(7) < 4)
s = z[0] @ z.T / 0.5  # [7], scores of the anchor
print("s", [f"{x:+.2f}" for x in s[1:]])
print("p", [f"{x:.3f}" for x in log_p(s, candidates)[1:].exp()])

# %% [markdown]
# ## Four ways to sum it up
#
# InfoNCE (arXiv 1807.03748, eq. 4; CLIPO's choice) draws one positive $j$ at random.
# The two SupCon losses (arXiv 2004.11362, eq. 2 and 3) average over the positives,
# outside or inside the logarithm. The soft-nearest-neighbour loss (arXiv 1902.01889,
# eq. 1, there of distances) sums over them.
#
# $$
# \begin{aligned}
# \text{InfoNCE} &= -\log p_{ij} &
# \text{SupCon-out}
# &= \frac{1}{|\mathrm{pos}(i)|}\sum_{j \in \mathrm{pos}(i)} -\log p_{ij} \cr
# \text{soft-NN} &= -\log \sum_{j \in \mathrm{pos}(i)} p_{ij} &
# \text{SupCon-in} &= -\log \frac{1}{|\mathrm{pos}(i)|}\sum_{j \in \mathrm{pos}(i)} p_{ij}
# \end{aligned}
# $$


# %%
def infonce(s, candidates, drawn):
    return -log_p(s, candidates)[..., drawn]


def supcon_out(s, positives, candidates):
    log_probs = log_p(s, candidates).masked_fill(~positives, 0.0)
    return -log_probs.sum(-1) / positives.sum(-1)


def supcon_in(s, positives, candidates):
    return soft_nn(s, positives, candidates) + positives.sum(-1).log()


def soft_nn(s, positives, candidates):
    log_probs = log_p(s, candidates).masked_fill(~positives, -torch.inf)
    return -log_probs.logsumexp(-1)


draws = torch.stack([infonce(s, candidates, j) for j in (1, 2, 3)])
by_draw = [f"{x:.3f}" for x in draws]
print("InfoNCE, by the positive drawn:", by_draw, f" mean {draws.mean():.3f}")
for loss in (supcon_out, supcon_in, soft_nn):
    print(f"{loss.__name__:10} {loss(s, positives, candidates):.3f}")
assert torch.isclose(draws.mean(), supcon_out(s, positives, candidates))

# %% [markdown]
# SupCon-out is always InfoNCE on average over the draw, and SupCon-in is soft-NN plus
# $\log |\mathrm{pos}(i)|$. Always, too, soft-NN $\le$ SupCon-in $\le$ SupCon-out.
#
# <details><summary><b>Guess first.</b> Move the anchor around the circle. Where is
# soft-NN lowest, and where SupCon-out?</summary>
#
# soft-NN asks for *some* friend nearby: it is lowest at 21 degrees, beside a positive.
# SupCon-out asks to be near *all*: it is lowest at 69 degrees, beside none.
#
# </details>

# %%
turn = torch.linspace(0, 360, 361)
around = on_circle(turn) @ z.T / 0.5  # [361, 7]
curves = {
    loss.__name__: loss(around, positives, candidates)
    for loss in (supcon_out, supcon_in, soft_nn)
}
for name, curve in curves.items():
    print(f"{name:10} lowest at {turn[curve.argmin()]:.0f} degrees: {curve.min():.2f}")

# %% tags=["drawing"]
COLORS = {
    "infonce": METHODS["clipo_paper"],
    "supcon_out": "#777777",
    "supcon_in": "black",
    "soft_nn": METHODS["clipo"],
}
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.4), width_ratios=(1, 2), layout="constrained"
)
left.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", alpha=0.3))
for rows, marker, color, name in (
    (positives, "o", "black", "positive"),
    (candidates & ~positives, "X", "#999999", "negative"),
):
    left.scatter(*z[rows].T, s=70, marker=marker, color=color, label=name, zorder=2)
    for angle in angles[rows]:
        right.plot(angle, -0.35, marker, color=color, markersize=7, clip_on=False)
star = dict(marker="*", facecolor="white", edgecolor="black", zorder=2)
left.scatter(*z[:1].T, s=120, label="anchor", **star)
left.legend(frameon=False, fontsize=9, loc="center")
left.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
left.axis("off")
for j in (1, 2, 3):
    curve, label = infonce(around, candidates, j), "infonce" if j == 1 else None
    right.plot(turn, curve, ":", color=COLORS["infonce"], label=label)
for (name, curve), style in zip(curves.items(), ("--", "-.", "-")):
    right.plot(turn, curve, style, color=COLORS[name], label=name, linewidth=1.8)
right.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
right.set(ylim=(-0.5, 6), xticks=range(0, 361, 60))
tidy(right, "angle of the anchor, degrees", "its loss, nats")
show(
    figure,
    "08_circle",
    "Left: the seven vectors. Right: the losses as the anchor goes round the circle; the "
    "marks below are positives and negatives. The three dotted curves are InfoNCE, one "
    "for each positive that it may draw.",
)

# %% [markdown]
# ## Floors
#
# <details><summary><b>Guess first.</b> The policy gets better, and a group has more
# right rollouts. They agree perfectly. Does each of them pay less?</summary>
#
# Under soft-NN yes. Under the others each pays *more*. The $p_{ij}$ of the positives
# sum to at most 1, so their mean is at most $1 / |\mathrm{pos}(i)|$ and the loss, for
# InfoNCE on average, at least $\log |\mathrm{pos}(i)|$.
#
# </details>
#
# Sixteen rollouts in the best case, at $\tau=0.5$: right ones equal, wrong ones
# opposite.

# %%
counts = range(1, 15)  # positives of an anchor that has 15 candidates
best = {"supcon_out": [], "supcon_in": [], "soft_nn": []}
for count in counts:
    chosen = torch.arange(15) < count
    for loss in (supcon_out, supcon_in, soft_nn):
        perfect = torch.where(chosen, 1.0, -1.0) / 0.5
        best[loss.__name__].append(loss(perfect, chosen, torch.ones(15).bool()))
for name, losses in best.items():
    print(f"{name:10}", *(f"  positives {i}: {losses[i - 1]:.2f}" for i in (1, 4, 14)))
print(f"the first two where all cosines are equal: {torch.tensor(15.0).log():.2f}")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, key, look in (
    ("supcon_out", "supcon_out", dict(marker="s", ms=10, fillstyle="none")),
    ("infonce", "supcon_out", dict(marker="x", ms=8)),
    ("supcon_in", "supcon_in", dict(marker="o", ms=3.5)),
    ("soft_nn", "soft_nn", dict(marker="v", ms=5)),
):
    label = "infonce, on average" if name == "infonce" else name
    axis.plot(counts, best[key], ls="", color=COLORS[name], label=label, **look)
axis.plot(
    counts,
    torch.tensor(counts).log(),
    color="black",
    linewidth=0.8,
    label="log of their number",
)
axis.axhline(torch.tensor(15.0).log(), color="black", linestyle="--", linewidth=0.8)
axis.text(1, 2.77, "all cosines equal", fontsize=9)
axis.legend(frameon=False, fontsize=9, loc=(0.27, 0.13), ncols=2)
axis.set(ylim=(-0.1, 3), xticks=range(2, 15, 2))
tidy(axis, "positives of the anchor, of 15 candidates", "loss in the best case, nats")
show(
    figure,
    "08_floors",
    "The loss in the best case against the number of positives. Squares, crosses and "
    "circles coincide and rise; soft_nn (triangles) falls to 0. Dashed: what the "
    "rising three cost where all cosines are equal.",
)

# %% [markdown]
# > **You should know.** Under three of the four losses the floor rises as the policy
# > gets better.
#
# ## Temperature: who counts
#
# Three candidates with cosines of 0.99, 0.98 and 0.5, and their $p$:

# %%
close = torch.tensor([0.99, 0.98, 0.5])
for tau in (1.0, 0.5, 0.05, 0.005):
    print(f"tau {tau:5}:", [f"{x:.3f}" for x in (close / tau).softmax(0)])

# %% [markdown]
# At $\tau=1$ all count, at 0.05 only those nearby. To tell 0.99 from 0.98 takes a tenth
# of that, or centred vectors, whose cosines lie further apart.
#
# ## Who pays?
#
# What matters is who in a group pays *more*. Of ten rollouts, five are right and equal,
# a cluster. Two right ones are outliers, three are wrong. Take two anchors, one of the
# cluster and one outlier.
#
# <details><summary><b>Guess first.</b> Faithful rollouts are the cluster, hallucinated
# ones the outliers. Who pays more under SupCon-out at temperature 0.05?</summary>
#
# The faithful ones, 4.720 against 2.444. They are charged for the distance to their
# *hallucinated* siblings, which are their positives. An outlier is about equally far
# from all positives, and a softmax sees differences only.
#
# </details>

# %%
cluster = [1.0] * 4 + [0.5] * 2 + [-0.4] * 3  # cosines to cluster, outliers, wrong ones
outlier = [0.5] * 5 + [0.25] + [-0.2] * 3
cosine = torch.tensor([cluster, outlier])  # [2 anchors, 9 candidates]
candidates = torch.ones(2, 9, dtype=torch.bool)
positives = candidates & (torch.arange(9) < 6)
for tau in (0.5, 0.05):
    s = cosine / tau
    rows = {
        "infonce, cluster drawn": infonce(s, candidates, 0),
        "infonce, outlier drawn": infonce(s, candidates, 5),
    }
    for loss in (supcon_out, supcon_in, soft_nn):
        rows[loss.__name__] = loss(s, positives, candidates)
    print(f"tau {tau}")
    for name, paid in rows.items():
        one, other = paid.abs()  # abs: 0 and not -0
        print(f"  {name:22}   cluster pays {one:6.3f}   outlier pays {other:6.3f}")

# %% [markdown]
# Under InfoNCE chance decides. The cluster's draws cost 1.386 twice in three times,
# else 11.386. So the outlier pays more *mostly*, and the cluster *on average*.
#
# soft-NN forgives a far positive if another is near. At 0.5 the outlier pays 0.124, the
# cluster 0.038. At 0.05 nobody pays: next to wrong ones so far away any positive looks
# near.
#
# These cosines were made up. Now pretrained toys: the AUC says how often a hallucinated
# rollout pays more than a faithful one of its prompt. Below 0.5 the faithful ones pay
# more.

# %%
separation = LESSONS / "results" / "separation" / "results.json"
seeds = json.loads(separation.read_text())["separation"]
wanted = dict(level="group", center=True, head="no head")
for loss in ("infonce", "supcon_out", "supcon_in", "soft_nn"):
    print(f"{loss:10}", end="")
    for tau in (2.0, 0.5, 0.05):
        setting = wanted | dict(loss=loss, temperature=tau)
        rows = [row for seed in seeds.values() for row in seed]
        aucs = [row["auc"] for row in rows if setting.items() <= row.items()]
        print(f"   tau {tau}: AUC {sum(aucs) / len(aucs):.2f}", end="")
    print()

# %% [markdown]
# At the lower temperatures InfoNCE ranks better than SupCon-out, its own average:
# *mostly* and *on average* are two things. SupCon-in ranks as soft-NN does, because
# $\log |\mathrm{pos}(i)|$ is the same for all right rollouts of a prompt.
#
# ## The same in minclipo
#
# At `level="group"` the candidates are all other rollouts of the prompt. A right
# rollout without a positive or without a negative is no anchor and gets 0.

# %%
generator = torch.Generator().manual_seed(0)
z = F.normalize(torch.randn(16, 8, generator=generator), dim=1)  # [N, E], four groups
group = torch.arange(16) // 4
correct = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1]).bool()
s = z @ z.T / 0.5  # [N, N]

same_prompt = group[:, None] == group[None, :]
candidates = same_prompt & ~torch.eye(16, dtype=torch.bool)  # [N, N]
positives = candidates & correct[None, :]
is_anchor = correct & positives.any(1) & (candidates & ~positives).any(1)  # [N]
print("anchors", is_anchor.int().view(4, 4).tolist())
options = dict(level="group", temperature=0.5)
for loss in (supcon_out, supcon_in, soft_nn):
    ours = loss(s, positives, candidates)[is_anchor]
    found = contrastive_loss(z, correct, group, loss=loss.__name__, **options)
    assert torch.equal(found.anchors, is_anchor)
    assert torch.allclose(ours, found.loss[is_anchor], atol=1e-5)

drawn = positives.float().argmax(1)  # the first positive of each row
ours = infonce(s, candidates, drawn).diagonal()[is_anchor]  # row i with its own positive
options |= dict(loss="infonce", positive=drawn)
found = contrastive_loss(z, correct, group, **options)
assert torch.allclose(ours, found.loss[is_anchor], atol=1e-5)
print("they agree")

# %% [markdown]
# The third group's right rollout has no positive. The fourth group has no negative.
#
# **Now you know.**
#
# * A contrastive loss is minus the log of the probability of picking a friend.
# * SupCon and InfoNCE have a floor that rises with the number of right rollouts.
# * SupCon-out may charge the faithful more than the hallucinated; soft-NN rarely does.
#
# **Exercise.** About 30 minutes, hard. `python lessons/exercises/08_contrastive.py`: a
# logsumexp that survives everything, two of the losses, and who is an anchor.
#
# <details><summary>A hint for <code>soft_nn</code> and <code>supcon_out</code></summary>
#
# With `has_both` [N], rows with a positive and a negative, take
# `rows = has_both.nonzero()[:, 0]`, compute on `scores[rows]` alone, and put the results
# back with `zeros.index_put((rows,), losses)`.
#
# </details>
#
# **What to try next.** Move the third positive of the circle from 150 degrees to 30:
# SupCon-out comes down to SupCon-in. Then read `contrastive_loss` in
# `minclipo/contrastive.py` from "From here on". Lesson 9 turns the loss into a reward.
