# %% [markdown]
# # 3. Right answers for wrong reasons
#
# **Question.** A reward is a number that says how good a completion is. (One that the model has drawn itself is called
# a *rollout*.) What is a right answer, and what is a right way to it?
#
# You need lessons 1 and 2: a GPT, and sampling from it. Here come a task so small that every word of a solution can
# be checked, the two checks that the rest of this course lives on, and the mistakes that a model learns by reading.

# %%
import random

import matplotlib.pyplot as plt
import torch
from common import KINDS, pretrained, problems_of, show, verdicts

from minclipo.runs.intervals import share_interval
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
# Start with 7, then add the operands one after the other. Start and totals lie in 0..99; operands lie in -9..9 and
# are never 0. A solution writes two words for each operand, the operand again and the total so far: that is a *step*.
# The number after `#` is the answer. One word is one token.

# %%
problem = ChainProblem(start=7, operands=(5, -3, 8, -2))
solution = "+5 12 -3 9 +8 17 -2 15 # 15"
print(problem.prompt, problem.totals)

# %% [markdown]
# ## Two checks
#
# The **outcome check** looks at the end only: `#`, the right number, and then eos, the word that ends a completion.
# It can be had wherever answers are known: it is the *verifiable reward* of all that follows.
#
# The **step check** looks at the way: each step must quote its operand and give the true total.


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


slip, made_up = "+5 12 -3 10 +8 18 -2 16 # 16", "+5 12 -3 9 +1 17 -2 15 # 15"
for completion, finished in [
    (solution, True),
    (solution, False),
    ("# 15", True),
    (slip, True),
    (made_up, True),
]:
    print(
        f"outcome {outcome(problem, completion, finished)!s:5}  steps {steps(problem, completion)}  {completion}"
    )

# %% [markdown]
# 1. A right solution.
# 2. The same words without an end: not right. A check that is content to find the answer somewhere leaves all that
#    follows it free, and nothing would ever teach the model to stop.
# 3. The outcome check asks for no way at all.
# 4. A slip: 12 - 3 is not 10. The sums after it add up, but from a wrong total.
# 5. A made-up operand: the problem says +8, and 9 + 1 is not 17. The outcome check does not mind.
#
# A rollout that fails the outcome check is *wrong*. One that passes is *faithful* if every step is right (the word
# means no more than that), and else *hallucinated*. Three shares describe a model:
#
# * **accuracy**: of all rollouts, those that pass the outcome check;
# * **hallucination rate**: of *those that pass*, those that are hallucinated;
# * **faithful accuracy**: of all rollouts, those that are faithful; it is accuracy times (1 - hallucination rate).
#
# ## A careless author
#
# The model learns from a textbook. Its author knows how to add, and is careless in two ways, in each step anew: with
# probability 0.15 he quotes an operand that he has made up, yet gives the total that the right one leads to; with
# probability 0.08 he slips, by up to 9, and carries on from there.


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
# His rates can be had by hand: a solution is right if none of its four steps slips, and then faithful if none of its
# four operands is made up.


# %%
def describe(name, shares):
    faithful, hallucinated, wrong = shares
    rate = hallucinated / (faithful + hallucinated)
    print(
        f"{name:18} accuracy {1 - wrong:.3f}   hallucination rate {rate:.3f}   faithful accuracy {faithful:.3f}"
    )


right, clean = 0.92**4, 0.85**4  # no slip, nothing made up
by_hand = [right * clean, right * (1 - clean), 1 - right]  # in the order of KINDS
kinds, lucky = [], 0
for _ in range(20_000):
    page = random_problem(rng)
    text = author.solution(page, rng)
    kinds.append(kind_of(page, text))
    lucky += (
        kinds[-1] != "wrong"
        and [int(word) for word in text.split()[1:8:2]] != page.totals
    )
describe("by hand", by_hand)
describe("20,000 solutions", [kinds.count(kind) / len(kinds) for kind in KINDS])
print(f"a right answer after a wrong total: {lucky} of 20,000")

# %% [markdown]
# He is right in seven solutions of ten, and about half of those contain something made up. The last line is what the
# calculation leaves out: now and then a second slip takes back the first. Right by luck; the step check says so.
#
# ## The model that has read his book
#
# A GPT of lesson 1's kind with 115k parameters has read the book: 2000 training steps, 128 such solutions each. It has
# never seen a reward. (Task and model together are the *toy* of the later lessons.) (The tokenizer makes ids of words
# and words of ids.) Sixteen rollouts of one problem, at temperature 1, the faithful ones first:

# %%
tokenizer, model = toy_tokenizer(), pretrained("careless")


def rollouts_of(problems, group_size):
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    generator = torch.Generator().manual_seed(0)
    rollouts = sample(
        model, prompts, group_size, 16, eos_ids=tokenizer.eos_ids, generator=generator
    )
    texts, finished = (
        tokenizer.decode_batch(rollouts.completion_ids()),
        rollouts.finished.tolist(),
    )
    return rollouts, [
        (problems[i // group_size], text, finished[i]) for i, text in enumerate(texts)
    ]


problem = problems_of("lesson 3", 1)[0]
rows = sorted(
    rollouts_of([problem], 16)[1], key=lambda row: list(KINDS).index(kind_of(*row))
)
truth = (
    CarelessAuthor(hallucinate=0, slip=0).solution(problem, rng).split()
)  # by an author who takes care

figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
for y, row in enumerate(rows):
    axis.text(-0.2, y + 0.46, kind_of(*row), ha="right", va="center", fontsize=10)
    for x, (word, true_word) in enumerate(zip(row[1].split(), truth)):
        fault = (
            "hallucinated" if x in (0, 2, 4, 6) else "wrong"
        )  # operands stand at even places
        color = KINDS["faithful" if word == true_word else fault]
        axis.add_patch(plt.Rectangle((x, y), 0.95, 0.88, color=color))
        axis.text(x + 0.48, y + 0.46, word, ha="center", va="center", fontsize=10)
axis.set(xlim=(-2.2, 10), ylim=(16, 0), title=problem.prompt)
axis.axis("off")
show(
    figure,
    "03_rollouts",
    "Blue: the word is right. Orange: an operand made up. Grey: a wrong total or answer",
)

# %% [markdown]
# It has learnt to add, and to be careless. A reward of 1 or 0 tells the six wrong rows from the others, and that is
# all it can see. Now 2000 problems, one rollout each:

# %%
_, rows = rollouts_of(problems_of("lesson 3", 2000), 1)
kinds = [kind_of(*row) for row in rows]
of_model = [kinds.count(kind) / len(kinds) for kind in KINDS]
describe("the model", of_model)
found = share_interval(kinds.count("hallucinated"), len(kinds) - kinds.count("wrong"))
print(
    f"95% interval of the model's hallucination rate: {found.low:.3f} to {found.high:.3f}"
)

figure, axis = plt.subplots(figsize=(8, 1.9), layout="constrained")
for name, shares in (("model", of_model), ("author", by_hand)):
    left = 0.0
    for kind, share in zip(KINDS, shares):
        axis.barh(name, share, left=left, color=KINDS[kind], edgecolor="white")
        axis.text(left + share / 2, name, f"{kind} {share:.2f}", ha="center", va="center")
        left += share
axis.set(xlim=(0, 1), xlabel="share of the solutions")
axis.spines[["top", "right", "left"]].set_visible(False)
show(
    figure,
    "03_rates",
    "Three kinds of solutions: the author's, and those of the model that has read them",
)

# %% [markdown]
# It imitates him, mistakes included, at about his rates. What does a made-up operand do to the total that comes after
# it? Write each of the 17 wrong ones into the first step of the problem above, and look at the next word:

# %%
false = [operand for operand in OPERANDS if operand != problem.operands[0]]
ids = torch.tensor(
    tokenizer.encode_batch([f"{problem.prompt} {operand:+d}" for operand in false])
)  # [17, P + 1]
with torch.no_grad():
    probabilities = model.logits(model(ids)[:, -1]).softmax(-1)  # [17, V]
for name, operands in (
    ("the prompt's", [problem.operands[0]] * 17),
    ("the quoted", false),
):
    totals = tokenizer.encode_batch(
        [str(problem.start + operand) for operand in operands]
    )  # 17 rows of one token
    print(
        f"total with {name} operand: {probabilities.gather(1, torch.tensor(totals)).mean():.3f}"
    )

# %% [markdown]
# > **You should know.** What the model writes is not what it computes with. The total comes from the prompt, whatever
# > the step says, so a right answer tells next to nothing about the operands quoted on the way to it. Larger models
# > have been tested like this: Lanham et al. 2023 (arXiv 2307.13702) put mistakes into their reasoning, and in some
# > tasks few answers changed.
#
# ## All alike, or each in its own way
#
# Sixteen rollouts of each of 64 problems: how many *different* texts does each kind have?

# %%
problems = problems_of("lesson 3", 64)
rollouts, rows = rollouts_of(problems, 16)
for kind in KINDS:
    texts = [
        (problem, text)
        for problem, text, finished in rows
        if kind_of(problem, text, finished) == kind
    ]
    print(f"{kind:12} {len(texts)} rollouts, {len(set(texts))} different ones")

# %% [markdown]
# The faithful rollouts of a problem are the same text, letter for letter. Of the hallucinated ones nearly all differ:
# one made-up operand can stand in 4 places and be any of 17. That can be seen *without* knowing which steps are
# right; CLIPO is built on it (lesson 9).
#
# ## The same in minclipo
#
# `minclipo/tasks/chain.py` has both checks. Its step check adds a False for words too many, and takes steps that are
# written total first. `verdicts` of `common.py` applies both to a batch: is the answer right, is every step right?

# %%
assert [outcome(*row) for row in rows] == [check_outcome(*row) for row in rows]
assert all(
    steps(problem, text) == check_steps(problem, text)[:4] for problem, text, _ in rows
)
correct, steps_right = verdicts(
    problems, rollouts
)  # [N] bool each: N = B * G rollouts of B prompts
assert [kind_of(*row) == "faithful" for row in rows] == (correct & steps_right).tolist()
print(f"they agree on {len(rows)} rollouts")

# %% [markdown]
# **Exercise.** `python lessons/exercises/03_task.py`: the outcome check against tricky completions, a step check that
# forgives what follows from a slip, the three rates, and one step of the careless author.
#
# **What to try next.** Give `sample` above `temperature=0.5`: both kinds of mistakes nearly vanish. Why? (How likely
# is each single one?) Keep it in mind for lesson 6. Then read `minclipo/tasks/chain.py`. Lesson 4 turns a reward into
# a gradient.
