# %% [markdown]
# # 3. Right answers for wrong reasons
#
# **Question.** What is a right answer, and what is a right way to get there?
#
# You need lessons 1 and 2. In this lesson's task every word of a solution can be checked.

# %%
import random

import matplotlib.pyplot as plt
import torch
from common import KINDS, mosaic, pretrained, problems_of, show, story, verdicts

from minclipo.sampler import sample
from minclipo.tasks.chain import (
    OPERANDS,
    CarelessAuthor,
    ChainProblem,
    check_outcome,
    check_steps,
    random_problem,
)
from minclipo.toy import toy_tokenizer

# %% [markdown]
# ## One problem by hand
#
# Start with 7 and add the *operands*, which lie in -9..9 and are never 0. Totals lie in
# 0..99. A *step* of the solution is two words, the operand again and the total so far.
# The number after `#` is the answer. A word is a token.

# %%
problem = ChainProblem(start=7, operands=(5, -3, 8, -2))
solution = "+5 12 -3 9 +8 17 -2 15 # 15"
print(problem.prompt, problem.totals)

# %% [markdown]
# ## Two checks
#
# The **outcome check** looks at the end only: `#`, the right number, and eos, the word
# that ends a completion. It is our *reward*, 1 or 0. The **step check** looks at the way.
# Each step must quote its operand and give the true total.


# %%
def outcome(problem, completion, finished):
    """Do the last two words give the right answer, and did eos follow (`finished`)?"""
    return finished and completion.split()[-2:] == ["#", str(problem.totals[-1])]


def steps(problem, completion):
    """For each step that the problem calls for: are its two words right?"""
    words, found, total = completion.split(), [], problem.start
    for i, operand in enumerate(problem.operands):
        total += operand
        found.append(words[2 * i : 2 * i + 2] == [f"{operand:+d}", str(total)])
    return found


completions = {  # text, finished
    "A": (solution, True),
    "B": (solution, False),
    "C": ("# 15", True),
    "D": ("+5 12 -3 10 +8 18 -2 16 # 16", True),
    "E": ("+5 12 -3 9 +1 17 -2 15 # 15", True),
}

# %% [markdown]
# <details><summary><b>Guess first.</b> Which of the five pass the outcome
# check?</summary>
#
# A, C and E. B has no end; if it passed, nothing would ever teach the model to stop. C
# has no steps, and nobody asks for them. D has a *slip*, for 12 - 3 is not 10. E has a
# *made-up operand*, +1 where the problem says +8.
#
# </details>

# %%
for name, (completion, finished) in completions.items():
    passed = outcome(problem, completion, finished)
    print(f"{name}  outcome {passed!s:5}  steps {steps(problem, completion)}")

# %% [markdown]
# What fails the outcome check is *wrong*. What passes is *faithful* if every step is
# right, else *hallucinated*. **Accuracy** is the share that passes, **faithful accuracy**
# the share that is faithful. The **hallucination rate** is the share of hallucinated ones
# *among those that pass*.
#
# ## A careless author
#
# The model learns from a textbook. In each step its author makes up the operand with
# probability 0.15, and still gives the right total. With probability 0.08 he slips, and
# carries on from there.


# %%
def kind_of(problem, completion, finished=True):
    if not outcome(problem, completion, finished):
        return "wrong"
    return "faithful" if all(steps(problem, completion)) else "hallucinated"


rng, author = random.Random(0), CarelessAuthor(hallucinate=0.15, slip=0.08)
for _ in range(8):
    text = author.solution(problem, rng)
    print(f"{text:30} {kind_of(problem, text)}")

# %% [markdown]
# His rates, from these two probabilities and from 20,000 solutions:


# %%
def describe(name, shares):
    faithful, hallucinated, wrong = shares
    rate = hallucinated / (faithful + hallucinated)
    print(
        f"{name:18} accuracy {1 - wrong:.3f}   hallucination rate {rate:.3f}   "
        f"faithful accuracy {faithful:.3f}"
    )


right, clean = 0.92**4, 0.85**4  # no slip, nothing made up in four steps
by_hand = [right * clean, right * (1 - clean), 1 - right]  # in the order of KINDS
pages = [random_problem(rng) for _ in range(20_000)]
kinds = [kind_of(page, author.solution(page, rng)) for page in pages]
describe("worked out", by_hand)
describe("20,000 solutions", [kinds.count(kind) / len(kinds) for kind in KINDS])

# %% [markdown]
# ## The model that has read his book
#
# A GPT with 115k parameters has read 256,000 such solutions. Task and model are our
# *toy*. A completion that a model draws itself is a *rollout*. Sixteen rollouts of one
# prompt:

# %%
tokenizer, model = toy_tokenizer(), pretrained("careless")
problem, rollouts = story()  # the same prompt and rollouts in every lesson
texts = tokenizer.decode_batch(rollouts.completion_ids())
notes = [
    kind_of(problem, text, finished)
    for text, finished in zip(texts, rollouts.finished.tolist())
]
print(", ".join(f"{notes.count(kind)} {kind}" for kind in KINDS))

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(7.5, 5), layout="constrained")
mosaic(axis, problem, texts, notes)
show(
    figure,
    "03_rollouts",
    "Sixteen rollouts of the prompt at the top, one per row. Blue: the word is right. "
    "Orange, framed: a made-up operand. Grey, hatched: a wrong total or answer.",
)

# %% [markdown]
# It has learnt to add, and to be careless. The reward tells the six wrong rows from the
# others, and no more. The course will follow these sixteen. Now 2000 problems, one
# rollout each, at two temperatures:


# %%
def rollouts_of(problems, group_size, temperature=1.0):
    rollouts = sample(
        model,
        tokenizer.encode_batch([problem.prompt for problem in problems]),
        group_size,
        16,
        temperature=temperature,
        eos_ids=tokenizer.eos_ids,
        generator=torch.Generator().manual_seed(0),
    )
    texts = tokenizer.decode_batch(rollouts.completion_ids())
    prompts = [problem for problem in problems for _ in range(group_size)]
    return rollouts, list(zip(prompts, texts, rollouts.finished.tolist()))


bars = {"author": by_hand}
for temperature in (1.0, 0.5):
    _, rows = rollouts_of(problems_of("lesson 3", 2000), 1, temperature)
    kinds = [kind_of(*row) for row in rows]
    name = f"temperature {temperature}"
    bars[name] = [kinds.count(kind) / len(kinds) for kind in KINDS]
    describe(name, bars[name])

# %% tags=["drawing"]
figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
for name, shares in reversed(bars.items()):
    left = 0.0
    for kind, share in zip(KINDS, shares):
        axis.barh(name, share, left=left, color=KINDS[kind], edgecolor="white")
        label = f"{kind} {share:.2f}" if share > 0.1 else ""
        axis.text(left + share / 2, name, label, ha="center", va="center")
        left += share
axis.set(xlim=(0, 1), xlabel="share of the solutions")
axis.spines[["top", "right", "left"]].set_visible(False)
show(
    figure,
    "03_rates",
    "Blue, orange and grey: faithful, hallucinated and wrong. From the top: the "
    "author, the model at temperature 1, and the same model at temperature 0.5.",
)

# %% [markdown]
# At temperature 1 it makes the author's mistakes at about his rates.
#
# <details><summary><b>Guess first.</b> Why do both mistakes nearly vanish at
# 0.5?</summary>
#
# Mistakes are frequent together, but each single one is rare. A given made-up operand has
# a probability of about 0.15 / 17. Temperature 0.5 squares the odds between two words
# (lesson 2).
#
# </details>
#
# <details><summary><b>Guess first.</b> After a made-up operand, which total does it
# write: that of the prompt's operand, or of the made-up one?</summary>
#
# The prompt's. Below, each of the 17 false operands is put into the first step.
#
# </details>

# %%
false = [operand for operand in OPERANDS if operand != problem.operands[0]]
ids = tokenizer.encode_batch([f"{problem.prompt} {operand:+d}" for operand in false])
with torch.no_grad():
    hidden = model(torch.tensor(ids))[:, -1]  # [17, P + 1, D] -> [17, D]
    probabilities = model.logits(hidden).softmax(-1)  # [17, V]
for name, operands in (
    ("the prompt's", [problem.operands[0]] * 17),
    ("the quoted", false),
):
    totals = [str(problem.start + operand) for operand in operands]
    chosen = torch.tensor(tokenizer.encode_batch(totals))  # [17, 1], a token each
    share = probabilities.gather(1, chosen).mean()
    print(f"probability of the total with {name} operand: {share:.3f}")

# %% [markdown]
# > **You should know.** What the model writes is not what it computes with. So a right
# > answer says little about the steps. Lanham et al. 2023 (arXiv 2307.13702) put mistakes
# > into the reasoning of larger models. In some tasks few answers changed.
#
# ## All alike, or each in its own way
#
# How many *different* texts has each kind, in sixteen rollouts of each of 64 problems?

# %%
problems = problems_of("lesson 3", 64)
rollouts, rows = rollouts_of(problems, 16)
for kind in KINDS:
    texts = [row[:2] for row in rows if kind_of(*row) == kind]
    print(f"{kind:12} {len(texts)} rollouts, {len(set(texts))} different ones")

# %% [markdown]
# The faithful rollouts of a prompt are one text. Nearly all hallucinated ones differ,
# because one made-up operand can stand in 4 places and be any of 17. This can be seen
# *without* knowing which steps are right. CLIPO is built on it (lesson 9).
#
# ## The same in minclipo
#
# `minclipo/tasks/chain.py` has both checks. `verdicts` of `common.py` applies them to a
# batch.

# %%
assert [outcome(*row) for row in rows] == [check_outcome(*row) for row in rows]
for problem, text, _ in rows:
    assert steps(problem, text) == check_steps(problem, text)[:4]  # a 5th: surplus words
correct, steps_right = verdicts(problems, rollouts)  # [N] bool each: B prompts, G each
assert [kind_of(*row) == "faithful" for row in rows] == (correct & steps_right).tolist()
print(f"they agree on {len(rows)} rollouts")

# %% [markdown]
# **Now you know.**
#
# * The outcome check sees the answer, the step check the way.
# * The toy is right in seven of ten, and makes up a step in half of those.
# * Faithful rollouts of a prompt are alike, hallucinated ones differ.
#
# **Exercise.** About 40 minutes, medium. `python lessons/exercises/03_task.py`: two
# stricter checks, three rates, a careless step.
#
# <details><summary>A hint for <code>steps</code></summary>
#
# Cut the words at the first `#`. Keep the last written total, as a word.
#
# </details>
#
# **What to try next.** How often does a second slip take back a first, so that the answer
# is right after a wrong total? Lesson 4 turns a reward into a gradient.
