# %% [markdown]
# # 0. Guess which steps are made up
#
# **Question.** An answer is right. Is the way to it right, too?
#
# You need adding and five minutes. The problem says: start with 23, then add four
# numbers. A small language model wrote the solutions. Each step repeats a number and
# gives the total so far. After `#` comes the answer.

# %%
import json

import matplotlib.pyplot as plt
from common import LESSONS, METHODS, mosaic, show, show_file, story, tidy, verdicts

from minclipo.toy import toy_tokenizer

problem, rollouts = story()  # sixteen solutions that the model has drawn at random
texts = toy_tokenizer().decode_batch(rollouts.completion_ids())
right, steps_right = verdicts([problem], rollouts)

print(problem.prompt)
for name, row in zip("ABCD", (5, 1, 7, 2)):
    print(f"{name}  {texts[row]}")

# %% [markdown]
# All four end in 23, the right answer.
#
# <details><summary><b>Guess first.</b> Which of them have a made-up step?</summary>
#
# A and C. A says -4 where the problem has -7, and C says +7 for -2. B and D are equal.
#
# </details>

# %%
made_up = right & ~steps_right
print(f"{right.sum()} of {len(texts)} answers are right")
print(f"{made_up.sum()} of these have a made-up step")

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
notes = ["answer right" if good else "answer wrong" for good in right]
mosaic(axis, problem, texts, notes)
show(
    figure,
    "00_rollouts",
    "All sixteen. Blue: right. Orange, framed: a made-up number. Grey, hatched: a wrong "
    "total or answer. The words at the right are all that a reward sees.",
)

# %% [markdown]
# ## A hundred steps later
#
# A *reward* is 1 for a right answer here, and 0 for a wrong one. Training makes solutions
# that earned more than others likelier. **GRPO** compares the rewards of several
# solutions to one problem. **CLIPO** also takes a little reward from a right solution
# that is unlike the other right ones. Neither is told which steps are right.
#
# <details><summary><b>Guess first.</b> Which of the two gets rid of the made-up
# steps?</summary>
#
# CLIPO. Solutions without made-up steps are all alike, as B and D are. The others differ.
#
# </details>
#
# All of this was recorded once, by `lessons/experiments/moving.py`:

# %%
recorded = json.loads((LESSONS / "results" / "toy" / "rollouts.json").read_text())
frames, labels = recorded["frames"], {"baseline": "GRPO", "clipo": "CLIPO"}
curves = {}
for method, label in labels.items():
    shares = [frame[method]["shares"] for frame in frames]
    accuracy = [1 - share["wrong"] for share in shares]
    rates = [share["hallucinated"] / (1 - share["wrong"]) for share in shares]
    curves[method] = {"right answers": accuracy, "made up, of the right ones": rates}
    print(
        f"{label:5}  right answers {accuracy[0]:.0%} -> {accuracy[-1]:.0%}   "
        f"made up, of these {rates[0]:.0%} -> {rates[-1]:.0%}"
    )

# %% tags=["drawing"]
show_file(
    LESSONS / "results" / "toy" / "rollouts.gif",
    800,
    "Sixteen new solutions of the same problem every four steps, GRPO left, CLIPO right. "
    "The bars above them show 2000 other problems.",
)

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
steps = [frame["step"] for frame in frames]
for axis, name in zip(axes, curves["clipo"]):
    for method, label in labels.items():
        linestyle = "--" if label == "GRPO" else "-"
        shares = curves[method][name]
        axis.plot(steps, shares, linestyle, color=METHODS[method], label=label)
    tidy(axis, "training step", "share", name)
    axis.set_ylim(-0.02, 1.02)
axes[0].legend(frameon=False, loc="lower right")
show(
    figure,
    "00_curves",
    "Left: both learn to answer. Right: the share of right answers with a made-up step. "
    "One run each. That GRPO's share (dashed) rises is chance, as lesson 6 shows. That "
    "CLIPO's falls is not.",
)

# %% [markdown]
# **Now you know.**
#
# * A reward for answers cannot see a made-up step.
# * Here both make answers right, and only CLIPO makes their steps right, too.
# * Agreement can show what a reward cannot see. Lesson 11 shows when it fails.
#
# **What to try next.** Begin with lesson 1, or with 3 if you know GPTs. For the
# algorithms alone take 4, 5 and 12, for CLIPO 7 to 10. If your own training does not
# learn, take 15.
