# %% [markdown]
# # 5. GRPO: compare with your own group, and do not move too far
#
# **Question.** Sampling takes the time. After one update the policy is another one, and
# the sample is stale. How do you take several steps on one sample without going astray?
#
# You need lesson 4.

# %%
import matplotlib.pyplot as plt
import torch
from common import METHODS, mosaic, show, story, tidy, verdicts

from minclipo.grpo import group_advantages, kl_penalty, policy_loss
from minclipo.toy import toy_tokenizer

# %% [markdown]
# ## The group is the baseline
#
# Take lesson 3's sixteen rollouts. A right answer gets reward 1, a wrong one 0. As in
# lesson 4, a rollout is compared with the mean of its group. GRPO, Group Relative Policy
# Optimization (Shao et al. 2024, arXiv 2402.03300), also divides by the standard
# deviation of the group's rewards:
#
# $$A_i=\frac{R_i-\mathrm{mean}(R)}{\mathrm{std}(R)+10^{-6}}$$
#
# <details><summary><b>Guess first.</b> Ten of sixteen are right. Who is pushed harder, a
# right or a wrong one?</summary>
#
# A wrong one. The advantages of a group sum to 0, so the six weigh as much as the ten.
#
# </details>

# %%
problem, rollouts = story()
correct, steps_right = verdicts([problem], rollouts)  # [N] bool each, N = G = 16
rewards = correct.float()  # [N]
advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)  # [N]
print(f"{correct.sum()} of 16 right, advantages from {advantages[0]:+.2f}", end="")
print(f" to {advantages[-1]:+.2f}, their sum {advantages.sum().abs():.2f}")

# %% tags=["drawing"]
texts = toy_tokenizer().decode_batch(rollouts.completion_ids())
notes = [f"reward {R:.0f}   A {A:+.2f}" for R, A in zip(rewards, advantages)]
figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
mosaic(axis, problem, texts, notes)
show(
    figure,
    "05_story",
    "One prompt, sixteen rollouts, beside each its reward and advantage. Blue: right. "
    "Orange, framed: an operand made up. Grey, hatched: a wrong total or answer.",
)

# %% [markdown]
# Where all rewards are equal, a group teaches nothing.
#
# <details><summary><b>Guess first.</b> With 95% right answers, how often does that happen
# to a group of sixteen?</summary>
#
# Nearly every second time.
#
# </details>

# %%
for G in (4, 8, 16):
    silent = [share**G + (1 - share) ** G for share in (0.5, 0.8, 0.95)]
    each = "  ".join(f"{value:.2f}" for value in silent)
    print(f"groups of {G:2} that teach nothing, at 50%, 80%, 95% right: {each}")

equal = torch.full((16,), 0.9)
difference = equal - sum(equal) / 16  # [N]; not .mean(), whose order of sums varies
plain = difference / ((difference.square().sum() / 15).sqrt() + 1e-6)
ours = group_advantages(equal, 16)
print(f"rewards of 0.9: plain formula {plain[0]:.3f}, group_advantages {ours[0]:.3f}")

# %% [markdown]
# > **You should know.** In float32 the mean of sixteen 0.9 is not 0.9, and $10^{-6}$ does
# > not hide it. `group_advantages` checks for equal rewards.
#
# ## The ratio, and the clip
#
# After an update the sample comes from an old policy. The ratio $r=\pi/\pi_{\text{old}}$
# reweights each token by how much likelier it has become. At $r=1$ its gradient is lesson
# 4's. Far from 1 the old sample says little about the new policy. So GRPO takes over the
# loss of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7), which stops paying for
# moves beyond $1\pm\epsilon$. For a token at place $t$ it is
#
# $$\max\big(-A\thinspace r_t,-A\thinspace\mathrm{clip}(r_t,1-\epsilon,1+\epsilon)\big)$$
#
# <details><summary><b>Guess first.</b> Let ε be 0.2. A token has a positive or a
# negative advantage, and a ratio of 0.5 or 1.5. In which of the four cases does it still
# get a gradient?</summary>
#
# In the two where it has moved the wrong way. A good token is pushed up until it is 1.2
# times as likely, a bad one down until 0.8, and no further. That is what the max is for.
#
# </details>


# %%
def clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    """Mean of the masked tokens' clipped losses; [N, T] three times, advantages [N]."""
    ratio = (logprobs - old_logprobs).exp()  # [N, T]
    A = advantages[:, None]  # [N, 1]
    token_loss = torch.maximum(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
    return token_loss[mask].mean()


ratios = torch.cat([torch.tensor([0.5, 1.0, 1.5]), torch.linspace(0.4, 2.6, 221)])
curves = {}
for A in (1.0, -1.0):
    log_ratio = ratios.log().requires_grad_()
    loss = torch.maximum(-A * log_ratio.exp(), -A * log_ratio.exp().clamp(0.8, 1.2))
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    curves[A] = loss.detach()[3:], gradient[3:]
    each = "  ".join(f"{value + 0.0:+.1f}" for value in gradient[:3])
    print(f"advantage {A:+.0f}, gradient of the log-prob at ratios 0.5, 1, 1.5: {each}")

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axis, (A, (loss, gradient)) in zip(axes, curves.items()):
    axis.plot(ratios[3:], loss, color=METHODS["baseline"], label="loss of the token")
    axis.plot(ratios[3:], gradient, "k:", label="its gradient in the log-prob")
    axis.axvspan(0.8, 1.2, color="black", alpha=0.07, linewidth=0)
    tidy(axis, "ratio", "loss, gradient", f"advantage {A:+.0f}")
axes[1].legend(frameon=False, fontsize=9, loc="lower right")
show(
    figure,
    "05_clip",
    "The clipped loss of a token (line) and its gradient (dotted), for a good and a bad "
    "token. Grey: within the clip range.",
)

# %% [markdown]
# ## Sixteen steps on one sample
#
# Lesson 4's policy, with twenty words for each of two places. Only the total is rewarded.
# Sixteen updates per sample, in 64 runs:
#
# <details><summary><b>Guess first.</b> Which earns more, with the clip or
# without?</summary>
#
# Without it. But look at the operand, which nothing rewards. The totals that a sample
# happens to hold push it the same way sixteen times, and without the clip one of the
# twenty takes over. The clip holds it near its start. The price is that a rare right word
# gains only about a fifth per sample. Fresh samples do best, at sixteen times the
# sampling.
#
# </details>


# %%
def logprobs_of(logits, words):
    """Log-probs [runs * G, T]; logits [runs, T, V], words [runs, T, G]."""
    return logits.log_softmax(-1).gather(2, words).mT.flatten(0, 1)


def learn(samples, updates, clip, runs=64):
    """Train `runs` policies at once, each on its own groups; they end as [runs, T, V]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(runs, 2, 20, requires_grad=True)  # all words equally likely
    optimizer = torch.optim.SGD([logits], lr=1.0)
    mask = torch.ones(runs * 4, 2, dtype=torch.bool)
    for _ in range(samples):
        policy = logits.detach().softmax(-1).flatten(0, 1)  # [runs * T, V]
        words = torch.multinomial(policy, 4, replacement=True, generator=generator)
        words = words.view(runs, 2, 4)  # [runs, T, G]
        rewards = (words[:, 1] == 0).float().flatten()  # [runs * G]; word 0 is right
        advantages = group_advantages(rewards, 4)  # a run's group is like a prompt's
        old = logprobs_of(logits, words).detach()
        for _ in range(updates):
            loss = clipped_loss(logprobs_of(logits, words), old, advantages, mask, clip)
            optimizer.zero_grad()
            (runs * loss).backward()  # times runs: each has the gradient of its own mean
            optimizer.step()
    return logits.detach().softmax(-1)


ends = {}
for name, options in {
    "640 samples, 1 update each": (640, 1, 0.2),
    "40 samples, 1 update each": (40, 1, 0.2),
    "40 samples, 16 updates, clip": (40, 16, 0.2),
    "40 samples, 16 updates, no clip": (40, 16, float("inf")),
}.items():
    policies = learn(*options)
    ends[name] = policies[:, 1, 0], policies[:, 0].amax(1)  # [runs] each
    reward, likeliest = ends[name]
    print(
        f"{name:32} reward {reward.mean():.2f}   likeliest operand in the median run"
        f" {likeliest.median():.2f}, at most {likeliest.max():.2f}"
    )

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
for (name, values), style in zip(ends.items(), ("k:", "k-.", "-", "--")):
    color = {} if style[0] == "k" else {"color": METHODS["baseline"]}
    for axis, value in zip(axes, values):
        axis.plot(range(1, 65), value.sort().values, style, label=name, **color)
tidy(axes[0], "runs, sorted", "probability", "the right total")
tidy(axes[1], "runs, sorted", "", "the likeliest operand")
figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=2,
    frameon=False,
)
show(
    figure,
    "05_several",
    "64 runs each, sorted. Left: with the clip (orange line) some have not learnt the "
    "total yet. Right: without it (dashed) one operand that nothing rewards takes over.",
)

# %% [markdown]
# ## "Why is my loss 0?"
#
# In the first step on a sample all ratios are 1, and the loss is the mean of $-A$, which
# is 0 where completions are equally long. Its *gradient* moves the policy.

# %%
old, mask = rollouts.logprobs, rollouts.mask  # [N, T] each
unmoved = old.clone().requires_grad_()  # every ratio is 1
loss = clipped_loss(unmoved, old, advantages, mask)
loss.backward()
print(f"loss {loss.abs():.4f}   norm of its gradient {unmoved.grad.norm():.4f}")

# %% [markdown]
# ## Three ways to estimate a KL divergence
#
# How far is the policy from a reference, usually the model before training? The KL
# divergence is the average of $d=\log\pi-\log\pi_{\text{ref}}$ over what the policy
# draws. Weighted by $\beta$, it is a penalty. Schulman 2020 ([approximating
# KL](http://joschu.net/blog/kl-approx.html)) has three estimates:
#
# $$k_1=d\qquad k_2=d^2/2\qquad k_3=e^{-d}+d-1$$


# %%
def estimates(logprobs, ref_logprobs):
    """The three estimates of each token; same shape in and out."""
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}


policy = torch.tensor([0.5, 0.3, 0.2])  # [V]
reference = torch.tensor([0.4, 0.25, 0.35])  # [V]
print(f"true KL   {(policy * (policy / reference).log()).sum():.4f}")
for name, estimate in estimates(policy.log(), reference.log()).items():
    mean = (policy * estimate).sum()  # by enumeration, no sampling
    spread = (policy * (estimate - mean) ** 2).sum().sqrt()
    print(
        f"{name}: mean {mean:.4f}   spread {spread:.4f}   smallest {estimate.min():+.4f}"
    )

# %% [markdown]
# k3 has the right average, little spread, and is never negative. GRPO takes it.
#
# <details><summary><b>Guess first.</b> Which of the three is the best loss?</summary>
#
# k2. In a loss only the gradient counts, and no gradient goes through the draw. k1 does
# nothing on average (lesson 4). k2 has the gradient of the true KL, k3 that of the KL the
# other way round.
#
# </details>

# %%
logits = policy.log().requires_grad_()
logprobs = logits.log_softmax(0)  # [V]
penalties = estimates(logprobs, reference.log())
losses = {name: (policy * penalty).sum() for name, penalty in penalties.items()}
losses["KL(policy || reference)"] = (logprobs.exp() * penalties["k1"]).sum()
losses["KL(reference || policy)"] = (reference * -penalties["k1"]).sum()
for name, loss in losses.items():
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    each = " ".join(f"{value + 0.0:+.4f}" for value in gradient.round(decimals=6))
    print(f"gradient of {name:24}{each}")

# %% [markdown]
# > **What PPO has that GRPO left out.** PPO trains a second network, the *critic*. From
# > the tokens so far it predicts the reward still to come, the *value function*. An
# > advantage is what came minus what was predicted. GAE (arXiv 1506.02438) mixes near and
# > far predictions, trading noise for bias. With one reward at the end, and many rollouts
# > per prompt, the group's mean does the critic's work. The price is that all tokens of a
# > rollout share one advantage.
#
# Together this is GRPO. Sample, compare within groups, then step against the gradient of
# the clipped loss plus $\beta k_3$, averaged over all tokens. Often $\beta$ is 0, as in
# lesson 6.
#
# ## The same in minclipo

# %%
generator = torch.Generator().manual_seed(0)
moved = old + 0.4 * torch.randn(old.shape, generator=generator)  # [N, T]
ours = clipped_loss(moved, old, advantages, mask)
found = policy_loss(moved, old, group_advantages(rewards, 16), mask)
assert torch.allclose(ours, found.loss)
assert torch.allclose(advantages, group_advantages(rewards, 16), atol=1e-5)
for name, penalty in penalties.items():
    assert torch.allclose(penalty, kl_penalty(logprobs, reference.log(), name), atol=1e-6)
print(f"they agree; the clip has cut off {found.clip_fraction:.0%} of these tokens")

# %% [markdown]
# **Now you know.**
#
# * GRPO's advantage compares a rollout with its own group, so it needs no critic.
# * The clip keeps several steps on one sample from moving what nothing rewards.
# * A good estimate of the KL need not be a good loss.
#
# **Exercise.** About 20 minutes, medium. `python lessons/exercises/05_grpo.py`: the three
# formulas, safe against padding and equal rewards.
#
# <details><summary>A hint for <code>advantages</code></summary>
#
# Compare a group's largest and smallest reward.
#
# </details>
#
# **What to try next.** Give `policy_loss` `clip_low=0.01, clip_high=0.01`. Nearly all
# ratios lie outside, yet only half of the tokens are cut off. Why? Then read
# `Trainer.update_on` in `minclipo/trainer.py`.
