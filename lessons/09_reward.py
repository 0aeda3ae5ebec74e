# %% [markdown]
# # 9. Agreement as a reward
#
# **Question.** A reward that sees only the answer cannot tell a faithful rollout from a
# hallucinated one (lesson 6). Can the right rollouts tell on each other, so that nobody
# has to look at the steps?
#
# You need lessons 6 to 8. The contrastive loss becomes a reward here; lesson 10 trains
# with it.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import mosaic, pretrained, problems_of, show, story, verdicts

from minclipo.contrastive import (
    ContrastiveHead,
    center_by_group,
    contrastive_loss,
    contrastive_reward,
)
from minclipo.grpo import group_advantages
from minclipo.sampler import Rollouts, sample
from minclipo.toy import toy_tokenizer

# %% [markdown]
# ## From a loss to a reward
#
# Lesson 8 gave each right rollout a loss $\mathcal L_i$: small if it lies near the
# other right ones of its prompt. CLIPO (arXiv 2603.10101) makes a price $c_i$ of it, a
# reward below 0 with a floor, and adds that to the outcome:
#
# $$c_i = \max(-\lambda \mathcal L_i, -0.5) \qquad\qquad R_i = \mathrm{outcome}_i + c_i$$
#
# Wrong rollouts have earned nothing and pay nothing.
#
# <details><summary><b>Guess first.</b> Can a right rollout get a negative
# advantage?</summary>
#
# Yes. Below, the fourth rollout is right, but its siblings did better. The floor only
# makes sure that a right rollout's reward is at least 0.5. A wrong one's is 0.
#
# </details>

# %%
loss = torch.tensor([2.2, 2.2, 3.5, 6.0, 0.0])
outcome = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
c = (-0.1 * loss).clamp(min=-0.5)
print("reward   ", outcome + c)
print("advantage", group_advantages(outcome + c, 5))

# %% [markdown]
# ## The story's prices
#
# All of CLIPO's reward in one function, in the setting that lesson 10 trains with. Pooled
# states, minus their prompt's mean (lesson 7), go through a small linear *head* and
# become unit vectors. The loss is soft-NN. Positives are the other right rollouts of the
# prompt, candidates all other rollouts of the *batch*.


# %%
def contrastive_rewards(pooled, correct, group, head, weight=0.1, floor=-0.5, tau=0.5):
    """(c [N], L [N], mean of L) from pooled states [N, D], verdicts and prompts [N]."""
    z = F.normalize(head(center_by_group(pooled, group)), dim=-1)  # [N, E]
    near = (z @ z.T / tau).exp() * (1 - torch.eye(len(z)))  # e^s, and 0 to itself
    positive = correct[:, None] & correct & (group[:, None] == group)  # [N, N]
    share = (near * positive).sum(1) / near.sum(1)  # [N], of the positives
    anchor = share > 0  # a right rollout that is alone has nobody to agree with
    losses = torch.zeros(len(z)).masked_scatter(anchor, -share[anchor].log())
    return (-weight * losses.detach()).clamp(min=floor), losses, losses[anchor].mean()


tokenizer, model, G = toy_tokenizer(), pretrained("careless"), 16
story_problem, story_rollouts = story()
problems = [story_problem, *problems_of("lesson 9", 31)]  # B = 32
prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
options = dict(eos_ids=tokenizer.eos_ids, generator=torch.Generator().manual_seed(0))
others = sample(model, prompts[1:], G, 16, **options)
rollouts = Rollouts.join([story_rollouts, others])  # N = 512
pooled, group = rollouts.pooled, rollouts.group  # [N, D], [N]
correct, steps_right = verdicts(problems, rollouts)  # [N] each
faithful, hallucinated = correct & steps_right, correct & ~steps_right

torch.manual_seed(0)
random_head = torch.nn.Linear(64, 32, bias=False)  # it has learnt nothing yet
c, losses, _ = contrastive_rewards(pooled, correct, group, random_head)
rewards = {"outcome": correct.float(), "outcome and c": correct + c}
before, after = (group_advantages(R, G) for R in rewards.values())  # [N] each

print("                L        c   advantage   without c")
for i in range(G):
    kind = "faithful" if faithful[i] else "halluc." if hallucinated[i] else "wrong"
    price = f"{losses[i]:8.2f} {c[i]:8.3f}" if correct[i] else " " * 17
    print(f"{kind:9}{price} {after[i]:11.2f} {before[i]:11.2f}")

# %% tags=["drawing"]
texts = tokenizer.decode_batch(story_rollouts.completion_ids())
notes = [
    f"L {losses[i]:.2f}  c {c[i]:+.2f}  A {after[i]:+.2f}"
    if correct[i]
    else f"wrong  A {after[i]:+.2f}"
    for i in range(G)
]
figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
mosaic(axis, story_problem, texts, notes)
axis.set_xlim(0, 15.5)
show(
    figure,
    "09_prices",
    "The story's sixteen rollouts with loss L, price c and advantage A. Orange, framed: "
    "an operand made up. Grey, hatched: a wrong total. The faithful rows pay least.",
)

# %% [markdown]
# With the price, the three faithful rows come first: they are equal, and each made-up
# step is made up in its own way. Over the whole batch, with lesson 7's AUC:


# %%
def auc(rewards):
    """How often a faithful rollout earns more than a hallucinated one of its prompt."""
    difference = rewards.view(-1, G, 1) - rewards.view(-1, 1, G)  # [B, G, G]
    pairs = faithful.view(-1, G, 1) & hallucinated.view(-1, 1, G)
    return ((difference > 1e-6) + 0.5 * (difference.abs() <= 1e-6))[pairs].mean().item()


for name, R in rewards.items():
    print(f"AUC of {name:13} {auc(R):.3f}")

# %% [markdown]
# ## The head learns, the policy is only paid
#
# The head has an optimizer of its own and makes the mean loss small. No gradient of it
# reaches the policy, which only gets other rewards.
#
# <details><summary><b>Guess first.</b> The head learns a hundred times from this batch.
# How much better does it rank?</summary>
#
# Hardly: 0.993 becomes 1.000. A random head, or none, ranks nearly the whole batch
# right, because the pooled states know the difference already. Learning lowers the
# mean loss, and that matters near the floor.
#
# </details>

# %%
head = ContrastiveHead(64, 32)  # minclipo's: a linear layer, then length 1
head.projection[0].load_state_dict(random_head.state_dict())
optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
for update in range(100):
    optimizer.zero_grad()
    contrastive_rewards(pooled, correct, group, head)[2].backward()
    optimizer.step()
heads = {"random head": random_head, "trained head": head, "no head": torch.nn.Identity()}
for name, its_head in heads.items():
    c, _, mean_loss = contrastive_rewards(pooled, correct, group, its_head)
    print(f"{name:12}  mean loss {mean_loss:.2f}   AUC {auc(c):.3f}")
learning = sum(parameter.grad is not None for parameter in model.parameters())
print("weights of the policy that have a gradient:", learning)

# %% [markdown]
# ## Too large a weight is silent
#
# A rollout whose loss is beyond $0.5 / \lambda$ pays the floor. Where all do, right ones
# are paid alike, and training is GRPO again, without a warning:

# %%
for weight in (0.1, 0.2, 0.3):
    for name in ("trained head", "random head"):
        c, _, _ = contrastive_rewards(pooled, correct, group, heads[name], weight)
        cut = (c[correct] <= -0.5).float().mean()
        print(f"weight {weight}, {name:12}  {cut:4.0%} at the floor   AUC {auc(c):.3f}")

# %% [markdown]
# ## A tiny one is loud
#
# <details><summary><b>Guess first.</b> A weight of 0.001 instead of 0.1: does agreement
# count for a hundredth?</summary>
#
# Beside a wrong rollout it hardly counts. But where all are right, the price is the
# only difference, and dividing by the group's standard deviation makes any difference
# full-sized. As the policy gets better, more prompts are like that.
#
# </details>
#
# The story's sixteen, then its ten right ones as if they were a group:

# %%
right = correct[:G]
for weight in (0.1, 0.001):
    R = (correct + contrastive_rewards(pooled, correct, group, head, weight)[0])[:G]
    for name, rows in (("all sixteen", range(G)), ("right ones", right.nonzero()[:, 0])):
        A = group_advantages(R[rows], len(rows))[right[rows]]  # of the right ones
        print(f"weight {weight:<6} {name:12} best {A.max():+.2f}   worst {A.min():+.2f}")

# %% [markdown]
# > **You should know.** A tiny weight is no gentle one. It waits until a prompt is
# > solved, and then acts with full force.
#
# ## The same in minclipo
#
# `contrastive_loss` in `minclipo/contrastive.py` has every loss and level;
# `Trainer.contrast` in `minclipo/trainer.py` makes rewards of it and trains the head.

# %%
z = head(center_by_group(pooled, group))  # [N, E]
setting = dict(loss="soft_nn", level="cross", temperature=0.5)
found = contrastive_loss(z, correct, group, **setting)
c, losses, mean_loss = contrastive_rewards(pooled, correct, group, head)
assert torch.allclose(losses, found.loss, atol=1e-5)
assert torch.allclose(mean_loss, found.mean, atol=1e-5)
assert torch.allclose(c, contrastive_reward(found.loss, correct, weight=0.1), atol=1e-5)
print(f"they agree: a right rollout pays {-c[correct].mean():.3f} on average")

# %% [markdown]
# **Now you know.**
#
# * A right rollout pays for being far from the other right ones, but right beats wrong.
# * Faithful rollouts agree, so they pay least, although nobody has checked a step.
# * Too large a weight is GRPO again; however small it is, solved prompts feel it in full.
#
# **Exercise.** About 20 minutes, medium. `python lessons/exercises/09_reward.py`: a
# reward that survives a NaN, which prompts have a signal, the largest weight that cuts
# nobody off, and the anchors at cross level.
#
# <details><summary>A hint for <code>has_signal</code></summary>
#
# Fill the wrong ones with -inf before a maximum, and with inf before a minimum.
#
# </details>
#
# <details><summary>A hint for <code>cross_anchors</code></summary>
#
# A right rollout counts itself among the right ones of its prompt: take 1 off.
#
# </details>
#
# **What to try next.** Give `contrastive_rewards` a batch of the story alone,
# `pooled[:16]` and so on: which losses change, and which prices? Then read
# `Trainer.contrast`. Lesson 10 trains.
