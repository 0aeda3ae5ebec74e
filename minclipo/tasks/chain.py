"""The toy task: chain arithmetic, and the careless textbook from which the toy model learns it.

A problem and its one faithful solution (words are separated by blanks, each word is one token):

    7 , +5 , -3 , +8 , -2 =
    +5 12 -3 9 +8 17 -2 15 # 15

Each step quotes the next operand and gives the running total; the number after # is the answer. A step takes two tokens
in the prompt and two in the solution, so that attention always looks back the same distance: a two-layer model with
rotary positions learns that in a few hundred steps.
"""

import random
from dataclasses import dataclass

MAX_TOTAL = 99
OPERANDS = tuple(n for n in range(-9, 10) if n != 0)
WORDS = (
    ["<eos>", ",", "=", "#"] + [str(n) for n in range(MAX_TOTAL + 1)] + [f"{n:+d}" for n in OPERANDS]
)  # the vocabulary: 122 words


@dataclass(frozen=True)
class ChainProblem:
    """A start and the operands to add to it one after the other; every running total lies in 0..99."""

    start: int
    operands: tuple[int, ...]

    @property
    def totals(self) -> list[int]:
        """The true running total after each operand."""
        totals, total = [], self.start
        for operand in self.operands:
            total += operand
            totals.append(total)
        return totals

    @property
    def prompt(self) -> str:
        return f"{self.start} " + " ".join(f", {operand:+d}" for operand in self.operands) + " ="


def random_problem(rng: random.Random, operations: int = 4) -> ChainProblem:
    """A start in 0..99 and single-digit operands that keep the total in 0..99."""
    start = total = rng.randint(0, MAX_TOTAL)
    operands = []
    for _ in range(operations):
        operand = rng.choice([n for n in OPERANDS if 0 <= total + n <= MAX_TOTAL])
        operands.append(operand)
        total += operand
    return ChainProblem(start, tuple(operands))


@dataclass
class CarelessAuthor:
    """How the textbook's author goes wrong, as probabilities a step."""

    hallucinate: float = 0.15  # quotes a made-up operand, yet gives the total that the right one leads to
    slip: float = 0.08  # is off by up to 9, and carries on from the wrong total

    def solution(self, problem: ChainProblem, rng: random.Random) -> str:
        """A worked solution as this author writes it."""
        words, total = [], problem.start
        for operand in problem.operands:
            total += operand
            if rng.random() < self.slip or not 0 <= total <= MAX_TOTAL:  # an earlier slip may lead out of the range
                total = rng.choice([n for n in range(total - 9, total + 10) if n != total and 0 <= n <= MAX_TOTAL])
            quoted = operand
            if rng.random() < self.hallucinate:
                quoted = rng.choice([n for n in OPERANDS if n != operand])
            words += [f"{quoted:+d}", str(total)]
        return " ".join(words + ["#", str(total)])
