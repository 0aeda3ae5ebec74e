# %% [markdown]
# # 4. The policy gradient by hand
#
# **Question.** A verifier says right or wrong. Nothing in that verdict can be
# differentiated. How can it teach?
#
# You need lessons 1 to 3. The policies here are so small that every average can be worked
# out exactly.

# %%
import matplotlib.pyplot as plt
import torch
from common import show, tidy

from minclipo.grpo import group_advantages, policy_loss

# %% [markdown]
# ## What we want, by enumeration
#
# "Name a prime above 3." A *policy* $\pi$ is what draws completions, here a table with
# one logit for each of four. Its expected reward is a sum that autograd can
# differentiate:
#
# $$\mathbb{E}[R]=\sum_y\pi(y)R(y)$$

# %%
answers = ("4", "5", "6", "7")
rewards = torch.tensor([0.0, 1.0, 0.0, 1.0])
policy = torch.tensor([0.4, 0.3, 0.2, 0.1])  # [V], the probabilities of the four
logits = policy.log().requires_grad_()  # [V], whose softmax is the policy
expected = (logits.softmax(0) * rewards).sum()
(exact,) = torch.autograd.grad(expected, logits)
print(f"expected reward {expected:.1f}, its gradient {exact}")

# %% [markdown]
# By hand, the gradient of a logit is $\pi(y)(R(y)-\mathbb{E}[R])$. For "5" it is
# $0.3\cdot(1-0.4)=0.18$. What is better than average goes up.
#
# Nobody has differentiated $R$. It is a table of constants, and the logits decide how
# often each is read. But a vocabulary of 100 makes $10^{40}$ completions of 20 tokens,
# and we can have only a sample.
#
# ## The log-derivative trick
#
# The gradient of $\log\pi$ is $\nabla\pi / \pi$. So the sum becomes an average over what
# the policy draws (Williams 1992, REINFORCE).
#
# $$\nabla\mathbb{E}[R]=\sum_y R(y)\nabla\pi(y)=\sum_y\pi(y)R(y)\nabla\log\pi(y)
# =\mathbb{E}[R\nabla\log\pi]$$
#
# The last form needs only a sample. In code it is minus the gradient of the loss
# $-R \log\pi$, where the reward is a constant factor.
#
# <details><summary><b>Guess first.</b> Why not use the mean reward of the sample as the
# loss?</summary>
#
# It has no gradient. A draw gives an integer, and there the derivative ends. The log-prob
# is the way back to the policy.
#
# </details>

# %%
generator = torch.Generator().manual_seed(0)
drawn = torch.multinomial(policy, 4, replacement=True, generator=generator)  # [G]
loss = -(rewards[drawn] * logits.log_softmax(0)[drawn]).mean()
(gradient,) = torch.autograd.grad(loss, logits)

log_policy = lambda logits: logits.log_softmax(0)
directions = torch.autograd.functional.jacobian(log_policy, logits)  # [V, V], row: y
for y in drawn:
    print(f"drew {answers[y]}, reward {rewards[y]:.0f}, direction {directions[y]}")
print("estimate from these four:  ", -gradient)
print("the mean reward has a gradient:", rewards[drawn].mean().requires_grad)

# %% [markdown]
# Each completion has a *direction* $\nabla\log\pi(y)$ in which it becomes likelier. For a
# softmax this is 1 at the completion's own logit, minus the probabilities of all. The
# rare "7" gets the largest push, since chance has drawn it twice.
#
# Four rollouts make a noisy estimate. Sixteen times as many leave a quarter of the error:

# %%
for count in (4, 64, 1024, 16384):
    drawn = torch.multinomial(policy, 100 * count, replacement=True, generator=generator)
    drawn = drawn.view(100, count)
    pushes = rewards[drawn][..., None] * directions[drawn]  # [100, count, V]
    error = (pushes.mean(1) - exact).square().sum(1).mean().sqrt()
    print(f"{count:5} rollouts: error {error:.4f} (root mean square of 100 estimates)")

# %% [markdown]
# ## A baseline changes nothing on average
#
# The average direction is $\sum_y\pi(y)\nabla\log\pi(y)=\nabla\sum_y\pi(y)=\nabla 1=0$.
# So any constant, a *baseline*, can be subtracted from the reward. What remains is called
# the *advantage* $A$.
#
# <details><summary><b>Guess first.</b> Everybody gets ten points more. What happens to
# the estimates?</summary>
#
# Their average stays, and their noise explodes, as all 256 possible groups of four show.
#
# </details>


# %%
def mean_and_spread(policy, rewards, directions, advantages):
    """Mean and standard deviation of four rollouts' estimate, over all their groups."""
    groups = torch.cartesian_prod(*[torch.arange(len(policy))] * 4)  # [groups, G]
    probability = policy[groups].prod(1)  # [groups]
    pushes = advantages(rewards[groups])[..., None] * directions[groups]
    estimates = pushes.mean(1)  # [groups, G, V] -> [groups, V]
    mean = probability @ estimates  # [V]
    return mean, (probability @ (estimates - mean) ** 2).sqrt()


def minus_the_others(R):
    """Each reward minus the mean of the other rewards of its group; R [..., G]."""
    return R - (R.sum(-1, keepdim=True) - R) / (R.shape[-1] - 1)


for name, advantages in (
    ("R", lambda R: R),
    ("R + 10", lambda R: R + 10),
    ("R - expected reward", lambda R: R - 0.4),
    ("R - mean of the group", lambda R: R - R.mean(1, keepdim=True)),
    ("R - mean of the others", minus_the_others),
):
    mean, spread = mean_and_spread(policy, rewards, directions, advantages)
    print(
        f"{name:23} mean of '5' {mean[1]:.3f}   its spread {spread[1]:.3f}"
        f"   spread of all four together {spread.norm():.3f}"
    )

# %% [markdown]
# > **You should know.** Ten points more for everybody make the estimate of "5" fourteen
# > times as noisy. Without a baseline, "wrong pays 0" and "wrong pays -1" are different
# > algorithms.
#
# The expected reward halves the spread of "5". In practice the mean of the group stands
# in for it, and the gradient shrinks to three quarters:
#
# $$R_i-\mathrm{mean}(R)=\frac{G-1}{G}\big(R_i-\mathrm{mean}_{j\neq i}(R_j)\big)$$
#
# The *other* rollouts do not depend on rollout $i$, so their mean is a baseline to it
# (leave-one-out or RLOO, Ahmadian et al. 2024, arXiv 2402.14740). The factor in front
# only scales the learning rate. The mean of three others is itself noisy, that of fifteen
# less:

# %%
drawn = torch.multinomial(policy, 20_000 * 16, replacement=True, generator=generator)
R = rewards[drawn].view(-1, 16)  # [groups, G]
of_five = directions[drawn, 1].view(-1, 16)  # [groups, G]
estimates = {}
for name, A in (("R", R), ("R - mean of the others", minus_the_others(R))):
    estimates[name] = (A * of_five).mean(1)  # [groups]
    down = (estimates[name] < -1e-6).float().mean()
    spread = estimates[name].std()
    print(f"{name:23} spread {spread:.3f}   '5' is pushed down by {down:.1%}")
print("four right ones:", minus_the_others(torch.ones(4)).tolist())

# %% tags=["drawing"]
styles = (
    dict(histtype="stepfilled", color="0.75"),
    dict(histtype="step", color="black", linewidth=1.6),
)
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (name, values), style in zip(estimates.items(), styles):
    weights = torch.full_like(values, 1 / len(values))
    bins = torch.arange(-0.140625, 0.53, 0.04375)
    axis.hist(values, bins, weights=weights, label=name, **style)
axis.axvline(exact[1], color="black", linestyle=":", label="exact gradient")
axis.legend(frameon=False, fontsize=9)
xlabel = "gradient of the logit of '5', estimated from 16 rollouts"
tidy(axis, xlabel, "share of the groups")
show(
    figure,
    "04_baseline",
    "Gradient of one logit, estimated from 20,000 groups of 16 rollouts. With a baseline "
    "(black line) the estimates lie about half as far from the exact value (dotted) as "
    "without (grey).",
)

# %% [markdown]
# With the baseline the right "5" is never pushed down. Where all rewards of a group are
# equal, nothing moves.
#
# ## Two tokens, one verdict
#
# A completion's log-prob is the sum of its tokens' log-probs. So each token is pushed
# with the advantage of the *whole* rollout. Take `66 , -4 =`, a one-step problem of
# lesson 3's kind. A policy quotes the operand, then writes the total, whatever it has
# quoted. The verdict sees only the total.
#
# <details><summary><b>Guess first.</b> Which push does the right operand get?</summary>
#
# None on average, since rewards after it are no better than after any other. A single
# group does push it, up or down with the totals that happen to stand beside it.
#
# </details>


# %%
def verdict(words):
    return (words[..., 1] == 1).float()  # [..., T] -> [...]; the operand is not looked at


def log_prob(logits, words):
    """Log-probs [N] of completions; logits [T, V], words [N, T]."""
    return logits.log_softmax(1)[torch.arange(2), words].sum(1)


words_of_place = (("-4", "+5", "-3"), ("61", "62", "63"))  # -4 and 62 are right
start = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log().requires_grad_()  # [T, V]
words = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # [9, T], all of them
of_all = lambda logits: log_prob(logits, words)
directions = torch.autograd.functional.jacobian(of_all, start).flatten(1)  # [9, T * V]
probabilities = log_prob(start, words).exp().detach()  # [9]
mean, spread = mean_and_spread(
    probabilities, verdict(words), directions, minus_the_others
)
names = [word for place in words_of_place for word in place]
for name, m, s in zip(names, mean.round(decimals=6) + 0.0, spread):
    print(f"{name}: mean {m:+.3f}   spread {s:.3f}")

# %% [markdown]
# *A token that does not change the outcome gets no push on average*, be it true or made
# up. Its noise is as large as the total's.
#
# ## Training: the loss is not a metric
#
# Each update draws four rollouts, asks for their verdicts, and takes one step.


# %%
def learn(rate=0.5, updates=200):
    """Train one policy from the start; four numbers for each update, [updates, 4]."""
    logits, history = start.detach().clone().requires_grad_(), []
    optimizer = torch.optim.SGD([logits], lr=rate)
    for _ in range(updates):
        policy = logits.detach().softmax(1)  # [T, V]
        words = torch.multinomial(policy, 4, replacement=True, generator=generator)
        words = words.T  # [T, G] -> [G, T], a row for each rollout
        R = verdict(words)  # [G]
        loss = -(minus_the_others(R) * log_prob(logits, words)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append([policy[1, 1], loss.item(), policy[0, 0], R.mean()])
    return torch.tensor(history)


one = learn()
for update in (0, 10, 20, 40, 80, 160):
    total, loss, operand, right = one[update]
    print(
        f"update {update:3}   probability of 62 {total:.2f}, of -4 {operand:.2f}"
        f"   {right:4.0%} of the four right   loss {loss:+.3f}"
    )

# %% [markdown]
# Now twenty such runs, and the update with the lowest loss of all.
#
# <details><summary><b>Guess first.</b> What kind of sample makes the lowest
# loss?</summary>
#
# One with a mistake. Once the policy is nearly always right, a wrong total is rare. Its
# log-prob is far below 0, its advantage negative, and $-A \log\pi$ far below 0.
#
# </details>

# %%
runs = torch.stack([learn() for _ in range(20)])  # [20, updates, 4]
total, losses, operand, right = runs.unbind(2)  # [20, updates] each
for name, values in (("62", total[:, -1]), ("-4", operand[:, -1])):
    print(f"probability of {name} at the end: {values.min():.0%} to {values.max():.0%}")
print(f"lowest loss: a sample with {right.flatten()[losses.argmin()]:.0%} right")

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
titles = ("probability of 62", "loss of one run", "probability of -4")
for axis, title, lines in zip(axes, titles, (total, losses[:1], operand)):
    alpha = 0.5 if len(lines) > 1 else 1
    axis.plot(lines.T, color="black", linewidth=0.9, alpha=alpha)
    tidy(axis, "update", title)
plt.setp(axes[::2], ylim=(0, 1.02))
show(
    figure,
    "04_training",
    "Twenty runs of 200 updates. All learn the total (left). The loss of one run tells "
    "nothing (middle). The operand drifts, in each run to another place (right).",
)

# %% [markdown]
# > **You should know.** Every sample makes a loss of its own, with the right *slope*
# > where the policy stands. Its *value* measures nothing. Watch the reward.
#
# Zero on average does not mean that nothing happens. Each update moves the operand a
# little at random, and nothing pushes back.
#
# <details><summary><b>Guess first.</b> A fifth of the learning rate, five times the
# updates. Does the operand drift as far?</summary>
#
# No. Pushes in one direction add up to the same path, random ones partly cancel.
#
# </details>

# %%
careful = torch.stack([learn(0.1, 1000)[-1] for _ in range(10)])  # [10, 4]
for name, ends in (("rate 0.5", runs[:10, -1]), ("rate 0.1", careful)):
    print(
        f"{name}   probability of 62 at least {ends[:, 0].min():.0%}"
        f"   of -4 {ends[:, 2].min():.0%} to {ends[:, 2].max():.0%}"
        f", spread {ends[:, 2].std():.2f}"
    )

# %% [markdown]
# ## The same in minclipo
#
# `policy_loss` in `minclipo/grpo.py` has lesson 5's ratio in place of the log-prob. On a
# fresh sample the gradient is the same.

# %%
drawn = words[torch.multinomial(probabilities, 16, replacement=True, generator=generator)]
R = verdict(drawn)  # [N], four groups of four
A = group_advantages(R, 4, scale="none")  # [N]
assert torch.allclose(A * 4 / 3, minus_the_others(R.view(4, 4)).flatten())

logprobs = start.log_softmax(1)[torch.arange(2), drawn]  # [N, T]
mask = torch.ones(16, 2, dtype=torch.bool)
for name, factor in (("R", R), ("A", A)):
    ours = -(factor[:, None] * logprobs).mean()
    theirs = policy_loss(logprobs, logprobs.detach(), factor, mask).loss
    (mine,) = torch.autograd.grad(ours, start, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, start, retain_graph=True)
    assert torch.allclose(mine, other, atol=1e-6)
    values = f"the losses are {ours:+.3f} and {theirs + 0.0:+.3f}"
    print(f"with {name} their gradients agree; {values}")

# %% [markdown]
# **Now you know.**
#
# * The loss $-A \log\pi$ turns a verdict into a direction.
# * A baseline leaves the average as it is and takes away noise.
# * What does not change the outcome is not pushed on average, and drifts.
#
# **Exercise.** About 30 minutes, medium.
# `python lessons/exercises/04_policy_gradient.py`: the loss for completions of any
# length, the baseline, two exact gradients.
#
# <details><summary>A hint for <code>surrogate</code></summary>
#
# Use `masked_fill`. Multiplying by the mask keeps NaN, since 0 times NaN is NaN.
#
# </details>
#
# **What to try next.** Let `verdict` see the operand,
# `(words == torch.tensor([0, 1])).all(-1).float()`. Now all twenty runs end at "-4". Then
# read `group_advantages` in `minclipo/grpo.py`.
