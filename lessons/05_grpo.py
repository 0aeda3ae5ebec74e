# %% [markdown]
# # 5. GRPO: compare with your own group, and do not move too far
#
# **Question.** Lesson 4's policy gradient is good for one update: then the policy is another one, and the sample is
# stale. But sampling is what takes the time. How do you take several steps on one sample without going astray?
#
# You need lesson 4. Here come four things: an advantage in units of the group's own spread, a ratio that corrects for
# the policy having moved, a clip that stops paying for moving far, and a KL penalty that ties it to its start.

# %%
import matplotlib.pyplot as plt
import torch
from minclipo.grpo import group_advantages, kl_penalty, policy_loss

from common import METHODS, show, tidy

# %% [markdown]
# ## The group is the baseline
#
# Two prompts, four rollouts each. A reward is 1 for a right answer, else 0. As in lesson 4, a rollout is compared with
# the mean *of its own prompt's* group. GRPO (Group Relative Policy Optimization, Shao et al. 2024, arXiv 2402.03300,
# section 4.1.2) measures the difference in units of that group's spread:
#
# $$A_i = \frac{R_i - \mathrm{mean}(R_g)}{\mathrm{std}(R_g) + 10^{-6}}$$
#
# ($R_g$: the rewards of its group. The $10^{-6}$ is there against 0/0. The std divides by $G-1$.)

# %%
rewards = torch.tensor(
    [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
)  # [N] = [B * G], B = 2 prompts of G = 4 rollouts

groups = rewards.view(2, 4)  # [B, G]
advantages = (groups - groups.mean(1, keepdim=True)) / (
    groups.std(1, keepdim=True) + 1e-6
)
print(advantages)

# %% [markdown]
# The first prompt is hard: its one right rollout stands out and gets 1.5. The second is easy: there being right is
# nothing special, and being wrong is what stands out. The advantages of a group always sum to 0.
#
# Now a prompt that is always solved:

# %%
print(group_advantages(torch.tensor([1.0, 1.0, 1.0, 1.0]), group_size=4))

# %% [markdown]
# Nothing to compare, nothing to learn: such a group has no signal, and neither has one that is always wrong. If a
# rollout is right with probability $p$, a group of $G$ teaches nothing with probability $p^G + (1-p)^G$.

# %%
share_right = torch.linspace(0, 1, 201)
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for group_size, linestyle in ((4, ":"), (8, "--"), (16, "-")):
    without = share_right**group_size + (1 - share_right) ** group_size
    axis.plot(
        share_right,
        without,
        color=METHODS["baseline"],
        linestyle=linestyle,
        label=f"G = {group_size}",
    )
axis.legend(frameon=False)
tidy(
    axis,
    "share of right rollouts",
    "probability of no signal",
    "A group that is all right or all wrong",
)
show(figure, "05_no_signal", "How often a group teaches nothing, against the accuracy")
print(f"at 95% right, {0.95**16 + 0.05**16:.2f} of the groups of 16 teach nothing")

# %% [markdown]
# > **You should know.** In float32 the mean of sixteen rewards of 0.9 is not 0.9, and a difference of rounding is not
# > small any more once it is divided by little more than $10^{-6}$. `group_advantages` checks for equal rewards and
# > gives exactly 0; the plain formula does not:

# %%
equal = torch.full((16,), 0.9)
difference = (
    equal - sum(equal) / 16
)  # one after the other: torch's own order of summation depends on the machine
plain = difference / ((difference.square().sum() / 15).sqrt() + 1e-6)
print(
    f"plain formula: {plain[0]:.3f}   group_advantages: {group_advantages(equal, 16)[0]:.3f}"
)

# %% [markdown]
# ## The ratio: a sample of yesterday's policy, corrected
#
# After one update the rollouts come from a policy that no longer exists. The ratio $r = \pi/\pi_{\text{old}}$ reweights
# each token by how much likelier it has become. (Exact would be the ratio of the whole completion; lesson 12 comes back
# to it.) Its gradient at $r=1$ is lesson 4's: $\nabla r = r \nabla\log\pi$.
#
# The further $r$ is from 1, the less the old sample says about the new policy. So PPO (Schulman et al. 2017, arXiv
# 1707.06347, eq. 7) stops paying for moves beyond $1\pm\epsilon$:
#
# $$L_t = \max\big(-A r_t, -A \mathrm{clip}(r_t, 1-\epsilon, 1+\epsilon)\big)$$


# %%
def clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    """Mean over the real tokens of max(-A r, -A clip(r)); [N, T] three times, advantages [N]."""
    ratio = (logprobs - old_logprobs).exp()  # [N, T]
    A = advantages[:, None]  # [N, 1]
    token_loss = torch.maximum(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
    return token_loss[mask].mean()


log_ratio = torch.linspace(-1, 1, 401, requires_grad=True)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axis, A in zip(axes, (1.0, -1.0)):
    loss = torch.maximum(-A * log_ratio.exp(), -A * log_ratio.exp().clamp(0.8, 1.2))
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    ratio = log_ratio.detach().exp()
    axis.plot(ratio, loss.detach(), color=METHODS["baseline"], label="loss of the token")
    axis.plot(
        ratio,
        gradient,
        color="black",
        linestyle=":",
        label="its gradient in the log-prob",
    )
    axis.axvspan(0.8, 1.2, color="black", alpha=0.07, linewidth=0)
    tidy(axis, "ratio", "loss, gradient", f"advantage {A:+.0f}")
axes[1].legend(frameon=False, fontsize=9, loc="lower right")
show(figure, "05_clip", "The clipped loss and its gradient; grey: within the clip range")

# %% [markdown]
# Read the dotted lines. A good token ($A=+1$) is pushed up until it has become 1.2 times as likely, then the gradient
# is 0: enough for this sample. A bad one is pushed down until 0.8. On the *other* side nothing is cut off: a good token
# that has become less likely is still pulled back. That is what the max is for.
#
# ## "Why is my loss 0?"

# %%
generator = torch.Generator().manual_seed(0)
old_logprobs = -torch.rand(8, 5, generator=generator)  # [N, T]
mask = torch.ones(8, 5, dtype=torch.bool)
unmoved = (
    old_logprobs.clone().requires_grad_()
)  # the policy has not moved yet: every ratio is 1
loss = clipped_loss(unmoved, old_logprobs, group_advantages(rewards, 4), mask)
loss.backward()
print(f"loss {abs(loss.item()):.4f}   norm of its gradient {unmoved.grad.norm():.4f}")

# %% [markdown]
# A sample is cut into mini-batches, with an optimizer step for each. On the first of them the ratio is 1 for all
# tokens, so the loss is a mean of $-A$: 0 where all completions are equally long, as here. (GRPO as published takes the
# mean of each rollout first: then it is 0 whatever the lengths, if the mini-batch holds whole groups. In a mean over
# tokens long rollouts count more, and the first loss is some other number, which says as little.) Its *gradient* is
# what moves the policy. Look at the reward.
#
# ## Three ways to estimate a KL divergence
#
# How far is the policy from a reference, usually the model that training started from? The KL divergence is the mean of
# $\log\pi-\log\pi_{\text{ref}}$ over what the policy draws: 0 if the two are equal, else positive. As a penalty, times
# a weight $\beta$, it keeps the policy near. From tokens that the policy has drawn, with
# $d=\log\pi-\log\pi_{\text{ref}}$ (Schulman 2020, a note on [approximating KL](http://joschu.net/blog/kl-approx.html)):
#
# $$k_1 = d \qquad k_2 = d^2/2 \qquad k_3 = e^{-d} + d - 1$$


# %%
def estimates(logprobs, ref_logprobs):
    """The three estimates of each token; same shape in and out."""
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}


policy, reference = (
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([0.4, 0.25, 0.35]),
)  # [V] each
true_kl = (policy * (policy / reference).log()).sum()
for name, estimate in estimates(policy.log(), reference.log()).items():
    mean = (policy * estimate).sum()  # by enumeration, no sampling
    spread = (policy * (estimate - mean) ** 2).sum().sqrt()
    print(
        f"{name}: mean {mean:.4f}   spread of a single token {spread:.4f}   smallest {estimate.min():+.4f}"
    )
print(f"true KL   {true_kl:.4f}")

# %% [markdown]
# k1 and k3 have the right mean; k3 is never negative, the reason that GRPO's authors give for it, and scatters far less
# than k1. k2's mean is only close.
#
# As a *loss* they rank otherwise, because there only the gradient counts. The tokens are drawn and stay fixed; what is
# differentiated is the estimate. Averaged over all tokens, again by enumeration:

# %%
logits = policy.log().requires_grad_()
logprobs = logits.log_softmax(0)  # [V]
penalties = estimates(logprobs, reference.log())
losses = {
    name: (policy * penalty).sum() for name, penalty in penalties.items()
}  # policy: a constant, it only drew
losses["KL(policy || reference)"] = (logprobs.exp() * penalties["k1"]).sum()
losses["KL(reference || policy)"] = (reference * -penalties["k1"]).sum()
gradients = {
    name: torch.autograd.grad(loss, logits, retain_graph=True)[0]
    for name, loss in losses.items()
}
for name, gradient in gradients.items():
    print(
        f"{name:24}"
        + " ".join(f"{value + 0.0:+.4f}" for value in gradient.round(decimals=6))
    )

# %% [markdown]
# > **You should know.** A k1 penalty in the loss does nothing on average (lesson 4: the mean of $\nabla\log\pi$ is 0),
# > whatever its weight. k2 has the gradient of the true KL. And k3, GRPO's choice, the best of the three as an
# > *estimate*, has the gradient of the KL the other way round.
#
# Together this is GRPO: draw a sample, compare within groups, cut the sample into mini-batches, and on each take a step
# against the gradient of $\mathrm{mean}(L_t + \beta k_{3,t})$. The ratio and the clip make the later of these steps
# safer; $\beta$ is small, and often 0, as in lesson 6.
#
# ## The same in minclipo
#
# `minclipo/grpo.py` holds these functions with checks and a few more choices. They agree:

# %%
moved = old_logprobs + 0.4 * torch.randn(
    8, 5, generator=generator
)  # [N, T], beyond the clip range here and there
ours = clipped_loss(moved, old_logprobs, group_advantages(rewards, 4), mask)
found = policy_loss(moved, old_logprobs, group_advantages(rewards, 4), mask)
assert torch.allclose(ours, found.loss)
assert torch.allclose(advantages.flatten(), group_advantages(rewards, 4), atol=1e-5)
for name, penalty in penalties.items():
    assert torch.allclose(penalty, kl_penalty(logprobs, reference.log(), name), atol=1e-6)
print(f"they agree; the clip has cut off {found.clip_fraction:.0%} of these tokens")

# %% [markdown]
# **Exercise.** `python lessons/exercises/05_grpo.py`: write the three formulas so that they survive padding and equal
# rewards.
#
# **What to try next.** Give `clipped_loss` above `clip=0.01` and `policy_loss` `clip_low=0.01, clip_high=0.01`: nearly
# all ratios lie outside, yet only half of the tokens are cut off. Why? (On which side of 1 does the clip act?) Then
# read `policy_loss` in `minclipo/grpo.py`, and `Trainer.update_on` in `minclipo/trainer.py`, where it is called. Lesson
# 6 trains with it.
