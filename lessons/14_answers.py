# %% [markdown]
# # 14. What counts as the answer
#
# **Question.** A verifier turns a text into a reward of 1 or 0. Which texts should it
# accept, and what does a mistake of it cost?
#
# You need lessons 3 and 4.

# %%
import re
from fractions import Fraction

import matplotlib.pyplot as plt
import torch
from common import show, tidy

from minclipo.tasks.equations import check_equations
from minclipo.verifier import verify

# %% [markdown]
# ## A verifier in seven lines
#
# Models put the answer in a box. Take the last box and compare exact numbers: 15.00 is
# 15, and 0.333 is not 1/3. `verify` takes nearly 400 lines.
#
# <details><summary><b>Guess first.</b> Where is the short one wrong?</summary>
#
# It knows neither units nor LaTeX, and two boxes or a minus before the box fool it. Both
# refuse the last answer, which nothing marks. In doubt `verify` refuses: the truth 0.75
# does not say that it is a share, so 75% may be another number.
#
# </details>


# %%
def short_verify(text, truth):
    """Is the number in the last box the truth? False for whatever is no number."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    try:
        return Fraction(boxes[-1]) == Fraction(truth)
    except (IndexError, ValueError, ZeroDivisionError):
        return False


print("answer                       truth       short  verify")
for answer, true in (
    (r"\boxed{15.00}", "15"),
    (r"\boxed{012}", "12"),
    (r"\boxed{0.333}", "1/3"),
    (r"\boxed{\frac{30}{2}}", "15"),
    (r"\boxed{15 \text{ euros}}", "15"),
    (r"\boxed{90 minutes}", "90 hours"),
    (r"\boxed{1{,}250}", "1250"),
    (r"\boxed{75\%}", "0.75"),
    (r"\boxed{0.75}", "75%"),
    (r"\boxed{10^8}", "100000000"),
    (r"\boxed{10**8}", "100000000"),
    (r"\boxed{18} or \boxed{15}", "15"),
    (r"-\boxed{15}", "15"),
    ("The answer is 15.", "15"),
):
    found = [str(check(answer, true)) for check in (short_verify, verify)]
    print(f"{answer:28} {true:11} {found[0]:6} {found[1]}")

# %% [markdown]
# ## What is accepted is learnt
#
# A right answer refused costs one reward. A wrong one accepted pays a *way of
# answering*, and what pays spreads. That is a **reward hack**.
#
# A made-up policy has five ways of answering. It adds without carrying, which is right
# for half of these sums. If a way pays $R$ on average, lesson 4's gradient of its logit
# is $\pi (R - \mathbb{E}[R])$.
#
# <details><summary><b>Guess first.</b> A verifier asks only whether the truth occurs in
# the text. Its reward goes to 0.99. How much is really right?</summary>
#
# One answer in a hundred. The hedge with two boxes was rare, but pays twice as much as
# an honest try. Forbid it, and a list of all numbers takes its place.
#
# </details>

# %%
sums = [(12, 30), (41, 22), (50, 19), (64, 13), (31, 8)]
sums += [(7, 35), (28, 15), (36, 47), (23, 19), (55, 27)]
hasty = lambda a, b: 10 * (a // 10 + b // 10) + (a + b) % 10  # forgets the carry
one_box = lambda number: rf"\boxed{{{number}}}"
hedge = lambda number: f"{one_box(number)} or {one_box(number + 10)}"
all_numbers = one_box(", ".join(str(number) for number in range(10, 100)))
ways = {  # name: (probability at the start, what it writes)
    "one box": (0.75, lambda a, b: one_box(hasty(a, b))),
    "no box": (0.10, lambda a, b: f"It is {hasty(a, b)}."),
    "off by one": (0.10, lambda a, b: one_box(hasty(a, b) + 1)),
    "two boxes": (0.04, lambda a, b: hedge(hasty(a, b))),
    "a list": (0.01, lambda a, b: all_numbers),
}


# %%
def paid(accept, ways):
    """What each way earns on average, [ways]."""
    right = lambda way: sum(accept(way(a, b), str(a + b)) for a, b in sums) / len(sums)
    return torch.tensor([right(way) for _, way in ways.values()])


def learn(accept, ways, updates=120):
    """Probabilities of the ways before each update, [updates, ways]."""
    R, history = paid(accept, ways), []
    logits = torch.tensor([start for start, _ in ways.values()]).log()
    for _ in range(updates):
        history.append(logits.softmax(0))
        logits = logits + history[-1] * (R - history[-1] @ R)
    return torch.stack(history)


def report(name, accept, ways, history):
    R, really = paid(accept, ways), paid(verify, ways)
    print(f"{name:28} reward {history[0] @ R:.2f} -> {history[-1] @ R:.2f}", end="   ")
    print(f"really right {history[0] @ really:.2f} -> {history[-1] @ really:.2f}")


occurs = lambda text, truth: truth in text
histories = {
    "the truth occurs in the text": learn(occurs, ways),
    "verify": learn(verify, ways),
}
for (name, history), accept in zip(histories.items(), (occurs, verify)):
    report(name, accept, ways, history)
honest = {name: way for name, way in ways.items() if name != "two boxes"}
report("occurs, two boxes forbidden", occurs, honest, learn(occurs, honest, 400))

# %% tags=["drawing"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
styles = ("-", "0", ""), ("-", "0.3", "o"), ("-", "0.6", "s")
styles += ("--", "0", ""), (":", "0", "")
for axis, (name, history) in zip(axes, histories.items()):
    for i, (line, grey, marker) in enumerate(styles):
        style = dict(linestyle=line, color=grey, marker=marker, markersize=5)
        places = dict(markevery=(6 * (i % 2), 12))  # side by side where curves coincide
        axis.plot(history[:, i], label=list(ways)[i], **style, **places)
    tidy(axis, "update", "probability" if axis is axes[0] else "", name)
axes[1].legend(frameon=False, fontsize=9, loc="center right")
show(
    figure,
    "14_verifier",
    "One policy under two verifiers. Left, two boxes take over; right, one box. Circles "
    "and squares share one falling curve on the right: neither way is ever paid.",
)

# %% [markdown]
# > **You should know.** The broken verifier has the better reward curve. Read
# > completions, above all when the reward is high.
#
# ## Equations: a step check for real text
#
# `check_equations` judges a solution's equations. A right answer with a false one counts
# as hallucinated. The rate found is a lower bound, since a made-up number in a true
# equation passes.

# %%
for solution in ("12 + 30 = 42, 42 / 2 = 21", "12 + 30 = 43, 42 / 2 = 21", "7 * 3 = 21"):
    print(f"{solution:28} {check_equations(solution)}")

# %% [markdown]
# ## The same in minclipo

# %%
for a, b in sums:
    for number in (a + b, hasty(a, b), hasty(a, b) + 1):
        text, true = one_box(number), str(a + b)
        assert short_verify(text, true) == verify(text, true) == (number == a + b)
print("on a number in one box they agree")

# %% [markdown]
# **Now you know.**
#
# * Numbers are compared exactly, and a verifier in doubt refuses.
# * What a verifier accepts is learnt, right or not.
# * A reward curve does not show a reward hack.
#
# **Exercise.** About 60 minutes, hard. `python lessons/exercises/14_answers.py`: find
# the final answer, read a number, check equations.
#
# <details><summary>A hint for <code>equations</code></summary>
#
# Judge a run only if it is one equation and nothing touches it.
#
# </details>
#
# **What to try next.** Let `hasty` carry: does the hedge still win? Read
# `minclipo/verifier.py`. Lesson 15 hands you programs with a silent bug each.
