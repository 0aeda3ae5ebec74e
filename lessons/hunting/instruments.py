"""Twelve laws that a right program keeps exactly. Each instrument takes a program, as
`program.load` gives it, and returns a number that is 0 where the law holds.

Shapes: B prompts, N rollouts, T tokens of a completion.
"""

from collections.abc import Callable

import torch
from common import training_steps
from hunting.program import load, program
from torch import Tensor

RIGHT = load(program())
PROMPTS, ANSWERS = RIGHT["PROMPTS"], RIGHT["ANSWERS"]
EOS, T, TEMPERATURE = RIGHT["EOS"], RIGHT["T"], RIGHT["TEMPERATURE"]
MODEL = RIGHT["tiny"](0)


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def ratio(program: dict, prompts=PROMPTS, temperature=TEMPERATURE) -> Tensor:
    """Before the first update every ratio of scoring to sampling is 1."""
    rows = prompts * 8
    tokens, old = program["generate"](MODEL, rows, T, temperature, dice())
    logprobs, _ = program["score"](MODEL, rows, tokens, temperature)
    return ((logprobs - old).exp() - 1).abs().max()


def company(program: dict, prompts=PROMPTS) -> Tensor:
    """A prompt's greedy completion is the same alone and beside longer prompts."""
    greedy = lambda rows: program["generate"](MODEL, rows, T, 0.0, dice())[0]
    alone = torch.cat([greedy([prompt]) for prompt in prompts])
    return (greedy(prompts) != alone).sum()


def trained(program: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Four drawn rows: (which tokens get a gradient, which should, the tokens)."""
    drawn = torch.tensor([[1, 2, EOS, 3], [0, EOS, 2, EOS], [3, 0, 2, 0], [EOS, 1, 1, 1]])
    lengths = torch.tensor([[3], [2], [4], [1]])
    logprobs = torch.zeros(4, 4, requires_grad=True)

    def loss_of(rows, weights):
        old, advantages = logprobs.detach()[rows], torch.ones(len(rows))
        return program["loss"](logprobs[rows], old, advantages, weights)

    _, mask = program["finish"](drawn, EOS)
    program["backward"](loss_of, mask, [torch.arange(4)])
    return logprobs.grad != 0, torch.arange(4) < lengths, drawn


def coverage(program: dict) -> Tensor:
    """Every sampled word gets a gradient, what stands behind the end none."""
    found, wanted, drawn = trained(program)
    return ((found != wanted) & ~(wanted & (drawn == EOS))).sum()


def ending(program: dict) -> Tensor:
    """The eos that ends a completion gets a gradient, too."""
    found, wanted, drawn = trained(program)
    return (wanted & (drawn == EOS) & ~found).sum()


def enumeration(program: dict) -> Tensor:
    """All 125 completions, weighted with pi(y) R(y), give the gradient of E[R]."""
    rows = torch.cartesian_prod(*[torch.arange(5)] * T)  # [N, T], every row once
    texts = torch.cat([torch.tensor([[1, 2]]).expand(len(rows), 2), rows], 1)
    logits = MODEL.logits(MODEL(texts))[:, 1:-1] / TEMPERATURE  # [N, T, V]
    logprobs = logits.log_softmax(-1).gather(2, rows[..., None])[..., 0]  # [N, T]
    R = torch.tensor([RIGHT["share"]([1, 2], row) for row in rows.tolist()])
    expected = (logprobs.sum(1).exp() * R).sum()  # E[R]
    exact = torch.autograd.grad(expected, list(MODEL.parameters()), retain_graph=True)
    exact = torch.cat([part.flatten() for part in exact])
    old, advantages = logprobs.detach(), (logprobs.sum(1).exp() * R).detach()
    tokens, mask = program["finish"](rows, EOS)
    batch = ([[1, 2]] * len(rows), tokens, mask, old, advantages, old)
    found = program["gradient"](MODEL, *batch, pieces=1, beta=0.0)
    real = RIGHT["finish"](rows, EOS)[1].sum()  # a loss is a mean over so many tokens
    return (-found * real - exact).norm() / exact.norm()


def kl(program: dict) -> Tensor:
    """The mean of the penalty under the policy is KL(policy || reference)."""
    both = torch.randn(2, 5, generator=dice(), dtype=torch.float64)
    policy, reference = both.log_softmax(1)  # [V] each
    estimate = (policy.exp() * program["penalty"](policy, reference)).sum()
    return (estimate - (policy.exp() * (policy - reference)).sum()).abs()


def cut(program: dict, pieces: int = 5) -> Tensor:
    """A batch gives the same gradient when it is shuffled and cut into pieces."""
    rows, order = PROMPTS * 4, torch.randperm(12, generator=dice())
    drawn, old = RIGHT["generate"](MODEL, rows, T, TEMPERATURE, dice())
    tokens, mask = program["finish"](drawn, EOS)
    advantages = torch.randn(12, generator=dice(), dtype=torch.float64)
    batch = (tokens, mask, old, advantages, old)
    whole = program["gradient"](MODEL, rows, *batch, pieces=1, beta=0.0)
    rows, batch = [rows[i] for i in order], [values[order] for values in batch]
    parts = program["gradient"](MODEL, rows, *batch, pieces=pieces, beta=0.0)
    return (parts - whole).norm() / whole.norm()


def advantages_of(program: dict, prompts: list[str]) -> list[tuple[str, Tensor]]:
    """(prompt, advantage) of four rollouts each: "easy" earns 1 always, others by lot."""
    draw = lambda rows: torch.rand(len(rows), generator=dice()).tolist()
    grade = lambda prompt, number: 1.0 if prompt == "easy" else number
    rows, _, advantages = program["collect"](prompts, 4, draw, grade)
    return list(zip(rows, advantages))


def equal(program: dict) -> Tensor:
    """Equal rewards teach nothing: their advantages are 0."""
    found = advantages_of(program, ["easy", "odd"])
    return torch.stack([A.abs() for prompt, A in found if prompt == "easy"]).max()


def balance(program: dict, prompts=("odd", "even")) -> Tensor:
    """The advantages of each prompt's rollouts sum to 0."""
    found = advantages_of(program, list(prompts))
    sums = [sum(A for prompt, A in found if prompt == one) for one in prompts]
    return torch.stack(sums).abs().max()


def agreement(program: dict) -> Tensor:
    """Right rollouts that agree cost nothing.

    The wrong one of their prompt is far; another prompt has a wrong one beside them.
    """
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])  # [N, 2]
    right, group = torch.tensor([True, True, False, False]), torch.tensor([0, 0, 0, 1])
    return program["contrast"](z, right, group, 0.05).max()


def clip(program: dict) -> Tensor:
    """Of tokens that have moved far, those that went the right way have no gradient.

    Two good and two bad ones, at half and at twice their old probability.
    """
    logprobs = torch.tensor([[0.5], [2.0], [0.5], [2.0]]).log().requires_grad_()
    advantages, weights = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4, 1)
    program["loss"](logprobs, torch.zeros(4, 1), advantages, weights).backward()
    return ((logprobs.grad[:, 0] != 0) != torch.tensor([True, False, False, True])).sum()


def bandit(program: dict, seed: int = 0) -> Tensor:
    """Training on one prompt brings its answer above probability 0.9."""
    model, _ = program["train"](PROMPTS[:1], training_steps(60), seed)
    with torch.no_grad():
        answer = torch.tensor([ANSWERS[1, 2]])
        logprobs, _ = RIGHT["score"](model, PROMPTS[:1], answer, TEMPERATURE)
    return (0.9 - logprobs.sum().exp()).clamp(min=0)


EXACT = {  # without training
    function.__name__: function
    for function in (
        *(ratio, company, coverage, ending, enumeration, kl),
        *(cut, equal, balance, agreement, clip),
    )
}
INSTRUMENTS: dict[str, Callable] = EXACT | {"bandit": bandit}
SILENT = 1e-6  # what rounding leaves


def law(name: str) -> str:
    """What an instrument tests, in one line."""
    return INSTRUMENTS[name].__doc__.splitlines()[0]


def readings(found: dict, names=INSTRUMENTS) -> dict[str, float]:
    """The number of each instrument on a program."""
    return {name: float(INSTRUMENTS[name](found)) for name in names}
