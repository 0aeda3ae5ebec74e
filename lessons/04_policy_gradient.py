# %% [markdown]
# # 4. The policy gradient by hand: how a mere verdict teaches
#
# **Question.** A verifier, such as lesson 3's outcome check, says right or wrong. Nothing in that verdict can be
# differentiated. How can it teach?
#
# You need lessons 1 to 3: log-probs, sampling, a verifiable reward. Here comes the gradient behind everything that
# follows, on policies so small that every mean can be worked out exactly and every estimate compared with it.

# %%
import matplotlib.pyplot as plt
import torch
from minclipo.grpo import group_advantages, policy_loss

from common import show, tidy

# %% [markdown]
# ## What we want, by enumeration
#
# "Name a prime above 3." A *policy* is what draws: so far a model, here a table. This one, $\pi$, knows four
# completions and has one logit for each. Its expected reward is a sum over all completions $y$, so autograd can do it:
#
# $$J = \sum_y \pi(y) R(y)$$

# %%
answers = ("4", "5", "6", "7")
rewards = torch.tensor([0.0, 1.0, 0.0, 1.0])
logits = (
    torch.tensor([0.4, 0.3, 0.2, 0.1]).log().requires_grad_()
)  # [V], so that softmax gives 0.4, 0.3, 0.2, 0.1
J = (logits.softmax(0) * rewards).sum()
(exact,) = torch.autograd.grad(J, logits)
p = logits.softmax(0).detach()  # [V]
print(f"J = {J:.1f}, its gradient {exact}")

# %% [markdown]
# By hand: the derivative with respect to logit $i$ is $\pi_i (R_i - J)$. For "5" it is $0.3 \cdot (1 - 0.4) = 0.18$.
# What is better than the average goes up, what is worse goes down, each in proportion to how often it is drawn.
#
# Nobody has differentiated $R$. It is a table of constants; the logits decide how often each row of it is read. But
# with a vocabulary of 100 there are $10^{40}$ completions of 20 tokens. All that we can have of that sum is a sample.
#
# ## The log-derivative trick
#
# The gradient of $\log\pi$ is $\nabla\pi / \pi$. So a factor $\pi$ can be put in, and the sum becomes a mean over what
# the policy draws (Williams 1992, REINFORCE):
#
# $$\nabla J = \sum_y R(y) \nabla\pi(y) = \sum_y \pi(y) R(y) \nabla\log\pi(y) = \mathrm{E}[R \nabla\log\pi]$$
#
# The last form needs no enumeration: draw completions, ask the verifier, average. In code it is the gradient of a loss,
# $-R \log\pi$, in which the reward is a factor and no more. (Minus, because optimisers go downhill.) From four
# rollouts:

# %%
generator = torch.Generator().manual_seed(0)
four = torch.multinomial(
    p, 4, replacement=True, generator=generator
)  # [G], which completions were drawn
loss = -(rewards[four] * logits.log_softmax(0)[four]).mean()
(gradient,) = torch.autograd.grad(loss, logits)
directions = torch.autograd.functional.jacobian(
    lambda z: z.log_softmax(0), logits
)  # [4, V], a row for each completion
for y in four:
    print(f"drew {answers[y]}, reward {rewards[y]:.0f}, direction {directions[y]}")
print("estimate from these four:  ", -gradient)
print("the mean reward has a gradient:", rewards[four].mean().requires_grad)

# %% [markdown]
# Each completion has its own $\nabla\log\pi(y)$, the *direction* in which it becomes likelier. For a softmax that is 1
# at its own place, less $\pi$ everywhere. Add up the directions of the right rollouts and divide by 4; for "5" that is
# $(-0.3 + 0.7 - 0.3) / 4 = 0.025$. The rare "7" gets by far the largest push, for it happened to be drawn twice. And
# "5", as right as "7", is pushed down by every "7", as probabilities must sum to 1. The wrong "6" says nothing: its
# reward is 0.
#
# > **You should know.** The last line of the output is the obvious first attempt. The mean reward of a sample is a fine
# > estimate of $J$, and useless as a loss: a draw gives an integer, and there the derivative ends. The log-prob, put in
# > by hand, is our way back to the policy.
#
# The exact gradient for "5" was 0.18. Four rollouts are noisy; more are less so:

# %%
for count in (4, 64, 1024, 16384):
    drawn = torch.multinomial(p, 100 * count, replacement=True, generator=generator).view(
        100, count
    )
    estimates = (rewards[drawn][..., None] * directions[drawn]).mean(
        1
    )  # [100, count, V] -> [100, V]
    error = (estimates - exact).square().sum(1).mean().sqrt()
    print(
        f"{count:5d} rollouts: error {error:.4f} (root mean square of a hundred estimates)"
    )

# %% [markdown]
# The error falls as $1/\sqrt{n}$: a quarter of it for sixteen times the rollouts.
#
# ## A baseline changes nothing on average
#
# The mean of all directions is $\sum_y \pi(y) \nabla\log\pi(y) = \nabla \sum_y \pi(y) = \nabla 1 = 0$. So a *baseline*
# $b$, any constant, can be taken off the reward: $(R - b) \nabla\log\pi$ has the same mean. What changes is the noise.
# The reward less its baseline is called the *advantage* $A$. Four rollouts of four completions make 256 possible
# groups, so mean and spread of the estimate need no sampling either.


# %%
def mean_and_spread(p, rewards, directions, advantages):
    """Mean and standard deviation, over every possible group, of the estimate from four rollouts."""
    groups = torch.cartesian_prod(*[torch.arange(len(p))] * 4)  # [K, G], all K = V^G
    probability = p[groups].prod(1)  # [K]
    estimates = (advantages(rewards[groups])[..., None] * directions[groups]).mean(
        1
    )  # [K, G, V] -> [K, V]
    mean = probability @ estimates
    return mean, (probability @ (estimates - mean) ** 2).sqrt()  # [V], [V]


def less_the_others(R):
    return R - (R.sum(1, keepdim=True) - R) / (R.shape[1] - 1)  # [K, G]


print(f"length of the mean direction: {(p @ directions).norm():.3f}")
for name, advantages in (
    ("R", lambda R: R),
    ("R + 10", lambda R: R + 10),
    ("R - J", lambda R: R - 0.4),
    ("R - mean of the group", lambda R: R - R.mean(1, keepdim=True)),
    ("R - mean of the others", less_the_others),
):
    mean, spread = mean_and_spread(p, rewards, directions, advantages)
    each = " ".join(f"{value:.3f}" for value in spread)
    print(
        f"{name:23} mean of '5' {mean[1]:.3f}   spreads {each}   together {spread.norm():.3f}"
    )

# %% [markdown]
# > **You should know.** Ten points more for everybody change neither what is best nor the gradient on average, and make
# > the estimate of "5" fourteen times as noisy. Without a baseline, "wrong pays 0" and "wrong pays -1" are different
# > algorithms.
#
# Taking off $J$ halves the spread of "5". (It does not help every logit: the wrong "6", silent so far, now pushes too.
# But it helps all four together.) In practice $J$ is unknown and the mean of the group stands in for it. Then the
# gradient shrinks: 0.135 is three quarters of 0.18. The reason, with $G$ rollouts:
#
# $$R_i - \mathrm{mean}(R) = \frac{G-1}{G} \big(R_i - \mathrm{mean}_{j \neq i}(R_j)\big)$$
#
# The bracket compares with the *other* rollouts. They are drawn without regard to rollout $i$, so to it they are a
# constant and take off nothing on average: leave-one-out, or RLOO (Ahmadian et al. 2024, arXiv 2402.14740). A rollout
# that counts in its own baseline loses $1/G$ of its push. But so do all, and the noise shrinks with them (0.162 is
# three quarters of 0.216): that is only a matter of the learning rate.
#
# Four are few: the mean of three others is noisy too, and gives back part of what it saves. With sixteen:

# %%
drawn = torch.multinomial(p, 20_000 * 16, replacement=True, generator=generator).view(
    -1, 16
)  # [K, G]
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, A, style in (
    ("R", rewards[drawn], dict(histtype="stepfilled", color="0.75")),
    (
        "R - mean of the others",
        less_the_others(rewards[drawn]),
        dict(histtype="step", color="black", linewidth=1.6),
    ),
):
    estimates = (A * directions[drawn][..., 1]).mean(1)  # [K]
    axis.hist(
        estimates,
        torch.arange(-0.140625, 0.53, 0.04375),
        weights=torch.full_like(estimates, 5e-5),
        label=name,
        **style,
    )
    print(
        f"{name:23} spread {estimates.std():.3f}   '5' is pushed down by {(estimates < -1e-6).float().mean():.1%}"
    )
axis.axvline(exact[1], color="black", linestyle=":", label="exact gradient")
axis.legend(frameon=False, fontsize=9)
tidy(
    axis,
    "gradient of the logit of '5', estimated from 16 rollouts",
    "share of the groups",
)
show(
    figure,
    "04_baseline",
    "Estimates of one component of the gradient, with and without a baseline",
)
print("four right ones:", less_the_others(torch.ones(1, 4))[0].tolist())

# %% [markdown]
# The estimates lie about half as far from the exact gradient, and the right "5" is never pushed down. The advantages of
# a group sum to 0, so the $-\pi$ of all directions cancel, and each completion gets just its own advantages, which for
# a right one are 0 or more. Where all rewards of a group are equal, all advantages are 0, and nothing moves.
#
# ## Two tokens, one verdict
#
# A completion's log-prob is the sum of its tokens' log-probs. So each token is pushed with the advantage of the *whole*
# rollout, whatever it had to do with the result. Take the first step of lesson 3's task, `66 , -4 =`: quote the
# operand, then write the total. Let the total not depend on what was quoted, as in the careless textbook, where made-up
# operands do no harm. The verdict sees the total only.


# %%
def verdict(words):
    return (words[..., 1] == 1).float()  # [..., T] -> [...]; nobody looks at the operand


def log_prob(logits):
    return logits.log_softmax(1)[torch.arange(2), words].sum(1)  # [T, V] -> [9, T] -> [9]


start = (
    torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log().requires_grad_()
)  # [T, V]: -4 +5 -3, then 61 62 63
words = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # [9, T], all completions
directions = torch.autograd.functional.jacobian(log_prob, start).flatten(1)  # [9, T * V]
p = log_prob(start).exp().detach()  # [9]
mean, spread = mean_and_spread(p, verdict(words), directions, less_the_others)
for name, m, s in zip(
    ("-4", "+5", "-3", "61", "62", "63"), mean.round(decimals=6) + 0.0, spread
):
    print(f"{name}: mean {m:+.3f}   spread {s:.3f}")

# %% [markdown]
# The total gets the gradient that we know: $0.3 \cdot (1 - 0.3) = 0.21$ for "62". The operand gets nothing. For a first
# token $a$ the gradient is $\pi(a) (\mathrm{E}[R \mid a] - J)$, and here a right total follows every operand equally
# often. *A token that does not change the outcome gets no push on average, in either direction*, be it true or made up.
# From a single group it does get one, for having been in good or bad company, and this noise is as large as that of the
# total.
#
# ## Training: the loss is not a metric
#
# Twenty runs from this start, four fresh rollouts an update, each run with its own luck:

# %%
logits, history = start.detach().repeat(20, 1, 1).requires_grad_(), []  # [20, T, V]
for _ in range(200):
    now = logits.detach().softmax(-1)
    drawn = torch.multinomial(
        now.flatten(0, 1), 4, replacement=True, generator=generator
    ).view(20, 2, 4)  # [20, T, G]
    R = verdict(drawn.mT)  # [20, G]
    logprobs = logits.log_softmax(-1).gather(2, drawn).sum(1)  # [20, T, G] -> [20, G]
    loss = -(less_the_others(R) * logprobs).mean(
        1
    )  # [20]; the runs share nothing, so their losses can be summed
    history.append(torch.stack([now[:, 1, 1], loss.detach(), now[:, 0, 0], R.mean(1)]))
    logits = (
        (logits - 0.5 * torch.autograd.grad(loss.sum(), logits)[0])
        .detach()
        .requires_grad_()
    )
total, losses, operand, share_right = torch.stack(history, -1)  # [20, updates] each

figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
pictures = {
    "probability of 62": total,
    "loss of one run": losses[:1],
    "probability of -4": operand,
}
for axis, (title, lines) in zip(axes, pictures.items()):
    axis.plot(lines.T, color="black", linewidth=0.9, alpha=0.5 if len(lines) > 1 else 1)
    tidy(axis, "update", title)
plt.setp(axes[::2], ylim=(0, 1.02))
show(
    figure,
    "04_training",
    "Twenty runs: the reward rises, the loss does not tell, the operand drifts",
)
for name, values in (("62", total[:, -1]), ("-4", operand[:, -1])):
    print(f"probability of {name} at the end: {values.min():.0%} to {values.max():.0%}")
print(
    f"the lowest loss of the one run: from a sample with {share_right[0, losses[0].argmin()]:.0%} right"
)

# %% [markdown]
# Left: every run learns the total, and so the expected reward rises to nearly 1. Middle: the loss does not tell. It
# ends mostly at 0, where it also would be if every rollout were wrong.
#
# > **You should know.** The lowest loss of the run, the one that looks best, comes from its mistakes. Once the policy
# > is nearly always right, a wrong total is a rare draw: its log-prob is far below 0, its advantage is negative, and so
# > $-A \log\pi$ is far below 0 too. Every sample makes a loss of its own, built to have the right *slope* where the
# > policy stands, and good for one update. Its *value* measures nothing. Watch the reward.
#
# Right: the operand drifts. Zero on average does not mean that nothing happens: each update is a small random step,
# nothing pushes back, and once the rewards are all equal the operand stays where chance has left it. The runs end far
# apart, and by their reward all are equally good.
#
# ## The same in minclipo
#
# `policy_loss` in `minclipo/grpo.py` is written with a ratio: $\pi$ now, divided by $\pi$ when the sample was drawn. On
# a fresh sample it is 1 and has the gradient $\nabla\log\pi$. `group_advantages(..., scale="none")` takes off the mean
# of the group.

# %%
drawn = words[
    torch.multinomial(p, 16, replacement=True, generator=generator)
]  # [N, T], four groups of four
R = verdict(drawn)  # [N]
A = group_advantages(R, 4, scale="none")  # [N]
assert torch.allclose(A * 4 / 3, less_the_others(R.view(4, 4)).flatten())

logprobs, mask = (
    start.log_softmax(1)[torch.arange(2), drawn],
    torch.ones(16, 2, dtype=torch.bool),
)  # [N, T]
for name, factor in (("R", R), ("A", A)):
    ours = -(factor[:, None] * logprobs).mean()
    theirs = policy_loss(logprobs, logprobs.detach(), factor, mask).loss
    gradients = [
        torch.autograd.grad(loss, start, retain_graph=True)[0] for loss in (ours, theirs)
    ]
    assert torch.allclose(*gradients, atol=1e-6)
    print(
        f"with {name} their gradients agree; the values of the losses are {ours:+.3f} and {theirs + 0.0:+.3f}"
    )

# %% [markdown]
# One gradient, two values: once more, only the slope means something. (Both losses are means over tokens, the training
# above had sums over a rollout's tokens. Where all completions have one length, that is a constant factor.)
#
# **Exercise.** `python lessons/exercises/04_policy_gradient.py`: write the loss for completions of any length, the
# baseline, and two exact gradients without autograd.
#
# **What to try next.** Let `verdict` see the operand too, `(words == torch.tensor([0, 1])).all(-1).float()`: now "-4"
# has a gradient, and all twenty runs end there. Or take a tenth of the learning rate and ten times the updates: the
# same reward, less drift. Then read `group_advantages` in `minclipo/grpo.py`; lesson 5 makes GRPO of it.
