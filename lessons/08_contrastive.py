# %% [markdown]
# # 8. Four contrastive losses by hand
#
# **Question.** Lesson 7 saw that right rollouts with made-up steps lie apart. How does one number per rollout say "it
# lies with its friends and away from the others", and do all such numbers charge the same rollouts?
#
# You need lesson 7. Here come four losses, in one line each, what they have in common, and where they part.

# %%
import json

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from minclipo.contrastive import contrastive_loss

from common import LESSONS, METHODS, show, tidy

COLORS = {
    "infonce": METHODS["clipo_paper"],
    "supcon_out": "#777777",
    "supcon_in": "black",
    "soft_nn": METHODS["clipo"],
}

# %% [markdown]
# ## A probability for each candidate
#
# Seven unit vectors on a circle, given by their angles. The first is the *anchor*, whose loss we want. The next three
# are its *positives* $P$ (in CLIPO: right rollouts of the same prompt), the last three its *negatives* (wrong ones).
# Together these six are the *candidates* $A$ (not the advantage; nor is $P$ a prompt's length here, $q$ a query, $z$ a
# logit or $\tau$ the temperature of sampling). The anchor itself is none: its cosine with itself is always 1 and says
# nothing.
#
# Divide the cosines by a temperature $\tau$ and take the softmax over the candidates:
#
# $$q_{ij} = \frac{z_i \cdot z_j}{\tau} \qquad p_{ij} = \frac{e^{q_{ij}}}{\sum_{a \in A} e^{q_{ia}}}$$
#
# So $p_{ij}$ is the probability that anchor $i$ takes candidate $j$ for its friend.


# %%
def log_p(q, A):
    """Log of the softmax over the candidates; q [..., n], A [..., n] bool. -inf outside of A."""
    return q.masked_fill(~A, -torch.inf).log_softmax(-1)


def on_circle(degrees):
    radians = torch.as_tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)  # [..., 2]


angles = torch.tensor([0.0, 20.0, 50.0, 150.0, 110.0, 200.0, 280.0])
z = on_circle(angles)  # [7, 2]
P = torch.tensor([False, True, True, True, False, False, False])
A = torch.tensor([False, True, True, True, True, True, True])
q = z[0] @ z.T / 0.5  # [7], scores of the anchor
print("q", [f"{x:+.2f}" for x in q[1:]])
print("p", [f"{x:.3f}" for x in log_p(q, A)[1:].exp()])

# %% [markdown]
# ## Four ways to sum it up
#
# InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4; CLIPO's choice) draws one positive $j$ at random. The two
# SupCon losses (Khosla et al. 2020, arXiv 2004.11362, eq. 2 and 3) take the mean over all positives, outside or inside
# of the logarithm. The soft-nearest-neighbour loss (Frosst et al. 2019, arXiv 1902.01889, eq. 1, with squared
# distances in place of cosines) takes the sum:
#
# $$\text{InfoNCE} = -\log p_{ij} \qquad \text{SupCon-out} = \frac{1}{|P|}\sum_{j \in P} -\log p_{ij}$$
#
# $$\text{SupCon-in} = -\log \frac{1}{|P|}\sum_{j \in P} p_{ij} \qquad \text{soft-NN} = -\log \sum_{j \in P} p_{ij}$$


# %%
def infonce(q, A, drawn):
    return -log_p(q, A)[..., drawn]


def supcon_out(q, P, A):
    return -log_p(q, A).masked_fill(~P, 0.0).sum(-1) / P.sum(-1)


def supcon_in(q, P, A):
    return soft_nn(q, P, A) + P.sum(-1).log()


def soft_nn(q, P, A):
    return -log_p(q, A).masked_fill(~P, -torch.inf).logsumexp(-1)


draws = torch.stack([infonce(q, A, j) for j in (1, 2, 3)])
print(
    "InfoNCE, by the positive drawn:",
    [f"{x:.3f}" for x in draws],
    f" mean {draws.mean():.3f}",
)
for loss in (supcon_out, supcon_in, soft_nn):
    print(f"{loss.__name__:10} {loss(q, P, A):.3f}")
assert torch.isclose(draws.mean(), supcon_out(q, P, A))
assert soft_nn(q, P, A) <= supcon_in(q, P, A) <= supcon_out(q, P, A)

# %% [markdown]
# Three things hold always, not only here. The mean of InfoNCE over the draw is SupCon-out. SupCon-in is soft-NN plus
# $\log|P|$. And soft-NN $\le$ SupCon-in $\le$ SupCon-out, the last because minus the logarithm of a mean is never more
# than the mean of minus the logarithms (Jensen).
#
# Now the anchor runs around the circle:

# %%
turn = torch.linspace(0, 360, 361)
scores = on_circle(turn) @ z.T / 0.5  # [361, 7]
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.4), width_ratios=(1, 2), layout="constrained"
)
left.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", alpha=0.3))
for rows, marker, color, name in (
    (P, "o", "black", "positive"),
    (A & ~P, "X", "#999999", "negative"),
):
    left.scatter(*z[rows].T, s=70, marker=marker, color=color, label=name, zorder=2)
    for angle in angles[rows]:
        right.plot(angle, -0.35, marker, color=color, markersize=7, clip_on=False)
left.scatter(
    *z[:1].T,
    s=120,
    marker="*",
    facecolor="white",
    edgecolor="black",
    label="anchor",
    zorder=2,
)
left.legend(frameon=False, fontsize=9, loc="center")
left.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
left.axis("off")
for j in (1, 2, 3):
    right.plot(
        turn,
        infonce(scores, A, j),
        ":",
        color=COLORS["infonce"],
        label="infonce" if j == 1 else None,
    )
for loss, linestyle in ((supcon_out, "--"), (supcon_in, "-."), (soft_nn, "-")):
    right.plot(
        turn,
        loss(scores, P, A),
        linestyle,
        color=COLORS[loss.__name__],
        label=loss.__name__,
        linewidth=1.8,
    )
right.legend(frameon=False, fontsize=9, loc="upper right")
right.set(ylim=(-0.5, 6.5), xticks=range(0, 361, 60))
tidy(right, "angle of the anchor, degrees", "its loss, nats")
show(
    figure,
    "08_circle",
    "The losses as the anchor goes round the circle; dotted: InfoNCE for each positive drawn",
)

# %% [markdown]
# soft-NN asks for *some* friend nearby: at 20 degrees, beside two positives, it is nearly 0, and the third one on the
# far side costs next to nothing. SupCon-out asks to be near *all* of them: its lowest point is at about 70 degrees,
# between the three and beside none. SupCon-in has soft-NN's shape, lifted by $\log 3$.
#
# ## Floors
#
# The $p_{ij}$ of the positives sum to at most 1. So the largest their mean can be is $1/|P|$, and neither SupCon loss,
# nor the mean of InfoNCE, can fall below $\log|P|$, however perfect the vectors: each positive has the others for
# competitors. Take a group of 16 rollouts in the best case, all right ones equal, all wrong ones opposite, at
# $\tau=0.5$ (the marks lie above $\log|P|$ by what the negatives still weigh):

# %%
counts = range(1, 15)  # positives of an anchor that has 15 candidates
A15, best = (
    torch.ones(15, dtype=torch.bool),
    {"supcon_out": [], "supcon_in": [], "soft_nn": []},
)
for count in counts:
    P15 = torch.arange(15) < count
    for loss in (supcon_out, supcon_in, soft_nn):
        best[loss.__name__].append(loss(torch.where(P15, 1.0, -1.0) / 0.5, P15, A15))
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(
    counts,
    best["supcon_out"],
    "s",
    color=COLORS["supcon_out"],
    markersize=9,
    label="supcon_out",
)
axis.plot(
    counts,
    best["supcon_out"],
    ":",
    color=COLORS["infonce"],
    linewidth=3,
    label="infonce (mean)",
)
axis.plot(
    counts,
    best["supcon_in"],
    "o",
    color=COLORS["supcon_in"],
    markersize=4,
    label="supcon_in",
)
axis.plot(
    counts, best["soft_nn"], "-", color=COLORS["soft_nn"], linewidth=1.8, label="soft_nn"
)
axis.plot(
    counts, torch.tensor(counts).log(), color="black", linewidth=0.8, label="log |P|"
)
axis.axhline(
    torch.tensor(15.0).log(),
    color="black",
    linestyle="--",
    linewidth=0.8,
    label="log |A|: all cosines equal",
)
axis.legend(frameon=False, fontsize=9, loc=(0.27, 0.13), ncols=2)
axis.set(ylim=(-0.1, 3), xticks=range(2, 15, 2))
tidy(axis, "positives of the anchor, of 15 candidates", "loss in the best case, nats")
show(
    figure,
    "08_floors",
    "The loss in the best case against the number of positives; three of the four coincide",
)

# %% [markdown]
# > **You should know.** Under three of the four losses the floor rises as the policy gets better: the more right
# > rollouts, the more each of them pays at least. With 14 positives the floor lies just below the dashed line, which
# > is the loss of vectors that know nothing at all.
#
# The dashed line is where all similarities are equal: each $p_{ij}$ is $1/|A|$. Nearly parallel vectors, like the raw
# ones of lesson 7, sit there under every loss (soft-NN: at $\log(|A|/|P|)$), unless the temperature is small.
#
# ## Temperature: who counts
#
# Three candidates with the cosines 0.99, 0.98 and 0.5, and their $p$:

# %%
close = torch.tensor([0.99, 0.98, 0.5])
for tau in (1.0, 0.5, 0.05, 0.005):
    print(f"tau {tau:5}:", [f"{x:.3f}" for x in (close / tau).softmax(0)])

# %% [markdown]
# At $\tau=1$ all count, at 0.05 only those nearby, and to tell 0.99 from 0.98 takes a tenth of that. (Or centred
# vectors.)
#
# ## Who pays?
#
# CLIPO (lesson 9) takes each right rollout's loss off its reward. So what matters is who of a group pays *more*. Ten
# rollouts: five right and equal, two right and each different in its own way, three wrong. The cosines are much like
# those that lesson 7 found after centring. Two anchors, one of the cluster and one outlier, each with six positives
# and three negatives:

# %%
cluster = [
    1.0,
    1.0,
    1.0,
    1.0,
    0.5,
    0.5,
    -0.4,
    -0.4,
    -0.4,
]  # to 4 others of the cluster, 2 outliers, 3 wrong ones
outlier = [
    0.5,
    0.5,
    0.5,
    0.5,
    0.5,
    0.25,
    -0.2,
    -0.2,
    -0.2,
]  # to 5 of the cluster, the other outlier, 3 wrong ones
cosine = torch.tensor([cluster, outlier])  # [2 anchors, 9]
P9, A9 = (torch.arange(9) < 6).expand(2, 9), torch.ones(2, 9, dtype=torch.bool)
for tau in (0.5, 0.05):
    rows = {
        f"infonce, {name} drawn": infonce(cosine / tau, A9, j)
        for j, name in ((0, "cluster"), (5, "outlier"))
    }
    rows |= {
        loss.__name__: loss(cosine / tau, P9, A9)
        for loss in (supcon_out, supcon_in, soft_nn)
    }
    print(f"tau {tau}")
    for name, (of_cluster, of_outlier) in rows.items():  # abs: 0 and not -0
        print(
            f"  {name:22} cluster pays {of_cluster.abs():6.3f}   outlier pays {of_outlier.abs():6.3f}"
        )

# %% [markdown]
# > **You should know.** Under SupCon-out a faithful rollout is charged for the distance to its *hallucinated* siblings:
# > they are its positives. At $\tau=0.05$ the cluster pays 4.720 and the outlier 2.444, so that a reward made of it
# > would favour made-up steps. InfoNCE does so by lot: of the cluster, two draws in three are cheap, the third costs
# > 11.386. So *mostly* the outlier pays more, and *on average* the cluster does. The outlier is about equally far from
# > everyone, which to a softmax is no news.
#
# soft-NN forgives a far positive as long as another one is near: at 0.5 the outlier pays 0.124 and the cluster 0.038.
# SupCon-in adds the same $\log 6$ to both. At 0.05 soft-NN charges nobody: the wrong ones are so far away that any
# positive looks near. A temperature can be too small.
#
# These cosines were made up to be followed by hand. The repository holds the same measured, on pretrained toys like
# lesson 7's (centred states, two seeds, compared within the prompt only): the AUC, within a prompt, that a hallucinated
# right rollout pays more than a faithful one. Below 0.5 the faithful ones pay. (In float64, which gives an order even
# to soft-NN's next-to-nothings at 0.05.)

# %%
measured = json.loads((LESSONS / "results" / "separation" / "results.json").read_text())[
    "separation"
]
for loss in ("infonce", "supcon_out", "supcon_in", "soft_nn"):
    print(f"{loss:10}", end="")
    for tau in (2.0, 0.5, 0.05):
        wanted = dict(
            level="group", center=True, loss=loss, temperature=tau, head="no head"
        )
        found = [
            row["auc"]
            for seed in measured.values()
            for row in seed
            if wanted.items() <= row.items()
        ]
        print(f"   tau {tau}: AUC {sum(found) / len(found):.2f}", end="")
    print()

# %% [markdown]
# At the lower temperatures InfoNCE lies above SupCon-out, its own mean: *mostly* and *on average* are two things. At
# 2.0 SupCon-out finds the made-up steps, too: then far positives weigh little more than near ones.
#
# ## No epsilon
#
# A logarithm of a sum of exponentials is computed by first taking out the largest score. Take out the largest
# *candidate's* and the sum is at least 1. The official code takes the largest of the whole row instead, where the
# anchor's cosine of 1 with itself stands, and adds $10^{-8}$ to keep the logarithm finite. One positive, one negative
# 0.1 further away, $\tau=0.02$:

# %%
for nearest in (0.9, 0.7, 0.6, 0.3):
    q2 = torch.tensor([nearest, nearest - 0.1]) / 0.02
    with_epsilon = ((q2 - 1 / 0.02).exp().sum() + 1e-8).log() + 1 / 0.02 - q2[0]
    print(
        f"positive at {nearest}: with epsilon {with_epsilon:6.3f}, exactly {q2.logsumexp(0) - q2[0]:.3f}"
    )

# %% [markdown]
# The loss depends on nothing but the difference, which is always the same. As long as somebody lies close, as raw
# states do, the epsilon is invisible; where all are far away it charges more than 16 nats for nothing.
#
# ## The same in minclipo
#
# `contrastive_loss` computes the loss of every rollout of a batch. At `level="group"` positives are the other right
# rollouts of the prompt, candidates all its other rollouts. Who has no positive or no negative is no *anchor* and gets
# 0. Our functions take whole matrices of masks as they are:

# %%
generator = torch.Generator().manual_seed(0)
z = F.normalize(
    torch.randn(16, 8, generator=generator), dim=1
)  # [N, E], E numbers each; four groups of four
group = torch.arange(16) // 4
correct = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1]).bool()

A = (group[:, None] == group[None, :]) & ~torch.eye(16, dtype=torch.bool)  # [N, N]
P = A & correct[None, :]
is_anchor = correct & P.any(1) & (A & ~P).any(1)  # [N]
print("anchors", is_anchor.int().view(4, 4).tolist())
for loss in (supcon_out, supcon_in, soft_nn):
    ours = loss(z @ z.T / 0.5, P, A)[is_anchor]
    found = contrastive_loss(
        z, correct, group, loss=loss.__name__, level="group", temperature=0.5
    )
    assert torch.equal(found.anchors, is_anchor) and torch.allclose(
        ours, found.loss[is_anchor], atol=1e-5
    )

drawn = P.float().argmax(1)  # the first positive of each row
ours = infonce(z @ z.T / 0.5, A, drawn).diagonal()[
    is_anchor
]  # row i's loss with row i's positive
found = contrastive_loss(
    z, correct, group, loss="infonce", level="group", temperature=0.5, positive=drawn
)
assert torch.allclose(ours, found.loss[is_anchor], atol=1e-5)
print("they agree")

# %% [markdown]
# The third group's one right rollout has no positive: soft-NN would be infinite. The fourth group is all right and has
# no negative: soft-NN would be 0 for all, and the SupCon losses would charge for something that is no contrast.
#
# **Exercise.** `python lessons/exercises/08_contrastive.py`: a logsumexp that survives everything, two of the losses,
# and who is an anchor.
#
# **What to try next.** Move the third positive of the circle from 150 degrees to 30: SupCon-out comes down to
# SupCon-in. In "Who pays?" set the two 0.5 of `cluster` to 0, as if the outliers were still further away: SupCon-out
# charges the cluster more than before, soft-NN hardly. Then read `contrastive_loss` in `minclipo/contrastive.py` from
# "From here on". Lesson 9 turns the loss into a reward.
