# %% [markdown]
# # 13. Find the silent bug
#
# **Question.** The code runs, the loss is finite, the reward even rises, and it is wrong. How do you find out where?
#
# You need lessons 1 to 5, and lesson 8 for one suspect. Here come nine suspects, each with one bug of a kind that
# happens, and nine instruments that ring or stay silent.

# %%
import runpy
import sys

import matplotlib.pyplot as plt
import torch
from minclipo.contrastive import contrastive_loss
from minclipo.grpo import kl_penalty, policy_loss
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.sampler import sample

from common import LESSONS, show, tidy, training_steps

# %% [markdown]
# ## A step in parts
#
# A step of GRPO has seven parts, and CLIPO one more. `generate` draws tokens. `collect` has G rollouts drawn for each
# prompt, and turns their rewards into advantages. `finish` finds the first eos of a row and makes the mask. `score`
# gives log-probs with gradient, from which `loss` makes the clipped loss and `penalty` k3. `backward` adds up the
# gradient, piece by piece where a batch is too large for the memory. `contrast` is lesson 8's soft-NN; the step below
# does without it.
#
# A suspect is a file `lessons/exercises/13_*.py` that holds one of these eight parts, with a bug, under the name of its
# user's complaint (two suspects hold a `finish`). Its mended version has the same name in `lessons/solutions/`. A
# suspect's team is its own part and the other seven mended. If you want to hunt, do the exercise now and read on
# afterwards: the table at the end says where to look.

# %%
PARTS = (
    "generate",
    "collect",
    "finish",
    "score",
    "loss",
    "penalty",
    "backward",
    "contrast",
)
SUSPECTS = [
    path.stem.removeprefix("13_")
    for path in sorted((LESSONS / "exercises").glob("13_*.py"))
]
sys.path.append(str(LESSONS / "exercises"))  # where the suspects find checking.py


def parts_in(folder, name):
    found = runpy.run_path(str(LESSONS / folder / f"13_{name}.py"))
    return {part: found[part] for part in PARTS if part in found}


mended = {
    part: function
    for name in SUSPECTS
    for part, function in parts_in("solutions", name).items()
}
teams = {name: mended | parts_in("exercises", name) for name in SUSPECTS}

# %% [markdown]
# Whoever is in the team, this is the step. A sample serves for two updates, each on half of it, cut into two pieces.

# %%
EOS, T, TEMPERATURE = (
    4,
    3,
    0.7,
)  # the words are 0 to 3, and 4 ends a completion of at most 3 tokens
ANSWERS = {
    (1, 2): [2, 0, EOS],
    (3,): [1, EOS],
    (0, 1, 2, 3): [3, 1, 0],
}  # what is right, for each prompt
PROMPTS = [list(prompt) for prompt in ANSWERS]


def gradient(team, model, prompts, tokens, old, advantages, ref=None, pieces=1):
    """The gradient of a batch of rows as one vector; it also stays in .grad."""
    tokens, mask = team["finish"](tokens, EOS)

    def loss_of(rows, weights):
        logprobs, _ = team["score"](
            model, [prompts[i] for i in rows], tokens[rows], TEMPERATURE
        )
        loss = team["loss"](logprobs, old[rows], advantages[rows], weights)
        return (
            loss
            if ref is None
            else loss + 0.02 * (weights * team["penalty"](logprobs, ref[rows])).sum()
        )

    model.zero_grad()
    team["backward"](loss_of, mask, list(torch.arange(len(mask)).chunk(pieces)))
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


# %%
def grade(prompt, drawn):
    """The share of the answer's tokens that are in place."""
    tokens, answer = drawn[0].tolist(), ANSWERS[tuple(prompt)]
    tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    return sum(a == b for a, b in zip(tokens, answer)) / len(answer)


def step(team, model, reference, optimizer, prompts, generator):
    """One training step; returns the mean reward."""
    draw = lambda rows: list(
        zip(*team["generate"](model, rows, T, TEMPERATURE, generator))
    )
    rows, drawn, advantages = team["collect"](
        prompts, 32, draw, grade
    )  # G = 32, N = 32 B
    tokens, old = (torch.stack(values) for values in zip(*drawn))  # [N, T] each
    with torch.no_grad():
        ref, _ = team["score"](reference, rows, tokens, TEMPERATURE)  # [N, T]
    for some in torch.randperm(len(rows), generator=generator).chunk(2):
        gradient(
            team,
            model,
            [rows[i] for i in some],
            tokens[some],
            old[some],
            advantages[some],
            ref[some],
            pieces=2,
        )
        optimizer.step()
    return sum(grade(*row) for row in zip(rows, drawn)) / len(rows)


# %% [markdown]
# ## First, look at the reward
#
# Three prompts, a tiny model, and float64, so that nobody can blame rounding. Three teams with a suspect, and the
# mended team from two seeds:


# %%
def tiny(seed):
    shape = GPTConfig(
        5, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=32
    )
    return init_weights(GPT(shape), torch.Generator().manual_seed(seed)).double()


def train(team, prompts, seed=0):
    model, reference, generator = (
        tiny(seed),
        tiny(seed),
        torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    return model, [
        step(team, model, reference, optimizer, prompts, generator)
        for _ in range(training_steps(60))
    ]


# %%
curves = [
    ("no bug, two seeds" if seed == 0 else "", "#AAAAAA", "-", mended, seed)
    for seed in range(2)
]
for name, line in (
    ("step_depends_on_the_cut", "--"),
    ("advantages_do_not_cancel", "-."),
    ("ratio_is_not_one", ":"),
):
    curves.append((name.replace("_", " "), "black", line, teams[name], 0))
figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for label, color, line, team, seed in curves:
    _, rewards = train(team, PROMPTS, seed)
    axis.plot(
        range(1, len(rewards) + 1), rewards, color=color, linestyle=line, label=label
    )
axis.legend(frameon=False, fontsize=9, loc="lower right")
tidy(axis, "training step", "mean reward", "Three of these are wrong")
show(
    figure,
    "15_curves",
    "Reward of three wrong programs, and of a right one from two seeds",
)

# %% [markdown]
# All of them learn. One suspect lies on the grey lines, one even runs ahead of them for a while, and one stays below.
# But every curve flattens somewhere, and who trains something new has no grey line to compare with.
#
# So do not watch it learn. Ask whether it keeps the laws that a right program keeps *exactly*. Each instrument below
# takes a team and returns a number that must be 0.
#
# ## Before anything moves
#
# **ratio**: to sample and to score are two ways to one number, so before the first update every ratio is 1.
# **coverage**: every sampled token has a gradient, the eos included, and what stands behind the end has none.

# %%
MODEL = tiny(0)
dice = lambda: torch.Generator().manual_seed(0)


@torch.no_grad()
def ratio(team):
    tokens, old = team["generate"](MODEL, PROMPTS * 8, T, TEMPERATURE, dice())
    logprobs, _ = team["score"](MODEL, PROMPTS * 8, tokens, TEMPERATURE)
    return ((logprobs - old).exp() - 1).abs().max()


def coverage(team):
    drawn = torch.tensor([[1, 2, EOS, 3], [0, EOS, 2, EOS], [3, 0, 2, 0], [EOS, 1, 1, 1]])
    sampled = torch.tensor(
        [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    ).bool()
    logprobs = torch.zeros(4, 4, requires_grad=True)
    loss_of = lambda rows, weights: team["loss"](
        logprobs, logprobs.detach(), torch.ones(4), weights
    )
    team["backward"](loss_of, team["finish"](drawn, EOS)[1], [torch.arange(4)])
    return ((logprobs.grad != 0) != sampled).sum()


# %% [markdown]
# ## Add up everything
#
# Five words, three places: 125 rows of tokens, so lesson 4's sum over all completions can be done. **enumeration**
# feeds the step with every row $y$ once, with $\pi(y) R(y)$ for its advantage, and compares with $\nabla J$ from
# autograd. (What a row draws behind its eos changes no reward, and adds up to nothing.) **kl** is lesson 5's sum over
# the vocabulary.


# %%
def enumeration(team):
    rows = torch.cartesian_prod(*[torch.arange(5)] * T)  # [125, T]
    ends = (rows == EOS).cumsum(1)
    counts = (ends == 0) | (ends == 1) & (
        rows == EOS
    )  # [125, T], no farther than the first eos
    R = ((rows == torch.tensor(ANSWERS[1, 2])) & counts).double().mean(1)  # [125]
    logits = MODEL.logits(
        MODEL(torch.cat([torch.tensor([[1, 2]]).expand(125, 2), rows], 1))
    )[:, 1:-1]  # [125, T, 5]
    logprobs = (
        (logits / TEMPERATURE).log_softmax(-1).gather(2, rows[..., None])[..., 0]
    )  # [125, T]
    piR = logprobs.sum(1).exp() * R  # [125], sums to J
    true = torch.cat(
        [
            part.flatten()
            for part in torch.autograd.grad(piR.sum(), list(MODEL.parameters()))
        ]
    )
    found = gradient(team, MODEL, [[1, 2]] * 125, rows, logprobs.detach(), piR.detach())
    return (
        -found * counts.sum() - true
    ).norm() / true.norm()  # a loss has the other sign, and is a mean over tokens


def kl(team):
    policy, reference = torch.randn(
        2, 5, generator=dice(), dtype=torch.float64
    ).log_softmax(1)
    return (
        (policy.exp() * (team["penalty"](policy, reference) - (policy - reference)))
        .sum()
        .abs()
    )


# %% [markdown]
# ## Change what must not matter
#
# **cut**: a batch makes the same step when it is shuffled and cut into five pieces. **company**: a prompt's greedy
# completion is the same alone and beside longer prompts. **zeros**: equal rewards teach nothing; any prompt's
# advantages sum to 0; and right rollouts that agree, with the wrong one far away, cost nothing under soft-NN.


# %%
def cut(team):
    rows, some = PROMPTS * 4, torch.randperm(12, generator=dice())
    tokens, old = mended["generate"](MODEL, rows, T, TEMPERATURE, dice())
    A = torch.randn(12, generator=dice(), dtype=torch.float64)
    whole = gradient(team, MODEL, rows, tokens, old, A)
    parts = gradient(
        team, MODEL, [rows[i] for i in some], tokens[some], old[some], A[some], pieces=5
    )
    return (parts - whole).norm() / whole.norm()


def company(team):
    together, _ = team["generate"](MODEL, PROMPTS, T, 0.0, dice())
    alone = [team["generate"](MODEL, [prompt], T, 0.0, dice())[0] for prompt in PROMPTS]
    return (together != torch.cat(alone)).sum()


def zeros(team):
    draw = lambda rows: torch.rand(len(rows), generator=dice()).tolist()
    rows, _, A = team["collect"](
        ["easy", "odd"],
        4,
        draw,
        lambda prompt, number: 1.0 if prompt == "easy" else number,
    )
    easy = torch.tensor([prompt == "easy" for prompt in rows])
    vectors, correct = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]),
        torch.tensor([True, True, False]),
    )
    cost = team["contrast"](vectors, correct, torch.zeros(3), 0.05)
    return max(A[easy].abs().max(), A[~easy].sum().abs(), cost.max())


# %% [markdown]
# ## Move, then look; and the slow one
#
# While all ratios are 1, a clip has nothing to do. **clip** puts two good and two bad tokens at half and at twice their
# old probability, and asks which have a gradient (the dotted lines of lesson 5). **bandit** is what everybody tries
# first: train on one prompt, whose answer must end near probability 1. It rings where that probability ends below 0.9,
# with what is missing.


# %%
def clip(team):
    logprobs = torch.tensor([[0.5], [2.0], [0.5], [2.0]]).log().requires_grad_()
    team["loss"](
        logprobs,
        torch.zeros(4, 1),
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
        torch.ones(4, 1),
    ).backward()
    return ((logprobs.grad[:, 0] != 0) != torch.tensor([True, False, False, True])).sum()


def bandit(team):
    model, _ = train(team, PROMPTS[:1])
    with torch.no_grad():
        logprobs, _ = mended["score"](
            model, PROMPTS[:1], torch.tensor([ANSWERS[1, 2]]), TEMPERATURE
        )
    return (1 - logprobs.sum().exp() - 0.1).clamp(min=0)


# %% [markdown]
# ## Which rings for whom
#
# Of the numbers below, those of **ratio**, **enumeration** and **cut** are relative errors; **coverage**, **company**
# and **clip** count tokens; **kl** is in nats, and **zeros** the largest of its three.

# %%
exact, everyone = (
    [ratio, coverage, enumeration, kl, cut, company, zeros, clip],
    teams | {"no bug": mended},
)
table = {
    name: [float(check(team)) for check in [*exact, bandit]]
    for name, team in everyone.items()
}
names = [check.__name__ for check in [*exact, bandit]]
print(" " * 25 + "".join(f"{name:>12}" for name in names))
figure, axis = plt.subplots(figsize=(8.5, 3.8), layout="constrained")
rings = torch.tensor(list(table.values())) > 1e-6  # [10 teams, 9 instruments]
axis.imshow(rings.numpy(), cmap="Greys", vmax=1.4, aspect="auto")
for i, (name, row) in enumerate(table.items()):
    print(
        f"{name:25}"
        + "".join(
            f"{number:12.2f}" if rings[i, j] else f"{'-':>12}"
            for j, number in enumerate(row)
        )
    )
    for j, ring in enumerate(rings[i]):
        axis.text(
            j,
            i,
            "rings" if ring else "-",
            ha="center",
            va="center",
            color="white" if ring else "black",
        )
axis.set_xticks(range(len(names)), names, fontsize=8.5)
axis.set_yticks(range(len(table)), [name.replace("_", " ") for name in table])
show(
    figure,
    "15_matrix",
    "Nine suspects, nine instruments: the bandit trains, the others take a moment",
)
print(f"the bandit lets {(~rings[:-1, -1]).sum()} of {len(SUSPECTS)} suspects pass")
print(
    f"the others, without training, find {rings[:-1, :-1].any(1).sum()} of {len(SUSPECTS)}"
)
assert all(
    check(mended | parts_in("solutions", name)) < 1e-6
    for check in exact
    for name in SUSPECTS
)  # all silent

# %% [markdown]
# > **You should know.** A rising reward proves nothing. Six of the nine end near probability 1, and three of these six
# > (`penalty_is_not_the_kl`, `runs_away`, `step_depends_on_the_cut`) took other steps all the while. A step that is
# > wrong in its size, its penalty or its limits still goes uphill. What the bandit does catch, it catches partly by
# > luck: from five other seeds it let `never_stops` pass twice and `ratio_is_not_one` once.
#
# Read a row, and you have the place: **ratio** with **enumeration** accuses the distribution that is scored, **ratio**
# with **company** the padding, **coverage** the mask. Read a column, and you have what an instrument does *not* see:
#
# * **ratio** knows no mask, no advantage, no loss. What sampling and scoring do wrong *alike*, it takes for right.
# * **enumeration**, the strictest, finds three of nine: it is handed its advantages, stays on policy, and cuts nothing.
# * Nothing on policy finds `runs_away`. With one update a sample that bug does not even exist.
# * **bandit** has one prompt: no neighbour's rollouts to be mixed up with, and no padding.
# * **zeros** and **coverage** know no sign and no owner: advantages that are negated, or handed to a sibling, pass all
#   eight, and only the **bandit** rings. A contrast that is always 0 passes, too.
# * **kl** sees a value and no gradient: k1, which as a loss does nothing (lesson 5), passes all nine.
# * **clip** tries two ratios only: a range that ends anywhere below the second passes.
#
# And a row of silence says only that nothing has broken *these* laws. In a program that does not come in parts you can
# still log the largest $|r-1|$ of each step's first mini-batch, count the tokens sampled and those in the loss, and cut
# one batch in two ways and compare the gradients. These three alone would have found five of the nine.
#
# ## The same in minclipo
#
# The mended `collect` and `backward` call `group_advantages` and `token_weights`. With five more parts from the package
# (`finish` stays ours: `sample` makes its mask itself):


# %%
def package_generate(model, prompts, length, temperature, generator):
    found = sample(
        model,
        prompts,
        1,
        length,
        temperature=temperature,
        eos_ids=[],
        generator=generator,
    )
    return found.completions, found.logprobs


package = mended | {
    "generate": package_generate,
    "score": lambda model, prompts, y, tau: completion_logprobs(
        model, prompts, y, y >= 0, temperature=tau
    ),
    "loss": lambda new, old, A, weights: (
        policy_loss(new, old, A, weights > 0, weights=weights).loss
    ),
    "penalty": kl_penalty,
    "contrast": lambda z, correct, group, tau: (
        contrastive_loss(z, correct, group, loss="soft_nn").loss
    ),  # tau 0.05
}
assert all(check(package) < 1e-6 for check in exact)
print("they agree: all eight are silent")

# %% [markdown]
# These tests hold the laws after every change. `test_trainer.py`: `test_the_first_mini_batch_is_on_policy` (ratio),
# `test_rewards_are_outcome_plus_contrast` (zeros), `test_training_raises_the_reward` (bandit). `test_llm.py`:
# `test_the_step_does_not_depend_on_its_micro_batches` (cut). `test_sampler.py`:
# `test_logprobs_equal_one_plain_forward_pass` (ratio), `test_a_row_ends_with_its_first_eos` (coverage),
# `test_greedy_rows_do_not_depend_on_their_batch` (company). `test_grpo.py`:
# `test_on_policy_the_gradient_is_the_policy_gradient` (what enumeration finds, token by token),
# `test_kl_estimators_are_unbiased_by_enumeration` (kl, its value),
# `test_the_gradients_of_the_kl_estimators_by_enumeration` (its gradient), `test_advantages_of_a_group_sum_to_zero`
# (zeros), `test_the_clip_stops_the_gradient_on_one_side_only` (clip). `test_contrastive.py`:
# `test_the_floor_is_log_positives_except_for_soft_nn` (zeros).
#
# **Exercise.** `python lessons/exercises/15_never_stops.py` and its eight siblings: each says what is wrong, you where.
# Then run this lesson again: the row of a suspect that you have mended falls silent.
#
# **What to try next.** Draw `short_prompts_suffer` into the first picture: it rises, too, and only the others tell by
# how much too little. Let the bandit train on all three prompts (`train(team, PROMPTS)` in its first line): two more
# suspects are caught. Then turn the instruments on somebody else's training program; that is what these thirteen
# lessons were for.
