"""The toy task: chain arithmetic, the careless textbook from which the toy model learns it, and the toy's two checks.

A problem and its one faithful solution (words are separated by spaces, each word is one token):

    7 , +5 , -3 , +8 , -2 =
    +5 12 -3 9 +8 17 -2 15 # 15

Each step quotes the next operand and gives the running total; the number after # is the answer. A step takes two tokens
in the prompt and two in the solution, so that attention always looks back the same distance: a two-layer model with
rotary positions learns that in a few hundred steps.

The *outcome* check looks at the final answer only. It is the verifiable reward: every method trains on it.
The *step* check looks at the way there. It serves measurement, and the oracle that shows what process labels would buy;
GRPO and CLIPO never see it (tested in tests/test_trainer.py).
Neither evaluates text: words are compared with the words that a right solution has.
"""

import random
from dataclasses import dataclass

MAX_TOTAL = 99
OPERANDS = tuple(n for n in range(-9, 10) if n != 0)
SHARED_QUOTE = 1  # the operand that a textbook with a shared false step quotes in the second step
WORDS = (
    ["<eos>", ",", "=", "#"] + [str(n) for n in range(MAX_TOTAL + 1)] + [f"{n:+d}" for n in OPERANDS]
)  # the vocabulary: 122 words


@dataclass(frozen=True)
class ChainProblem:
    """A start and the operands to add to it one after the other; every running total is in 0..99."""

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

    @property
    def truth(self) -> str:
        return str(self.totals[-1])


def random_problem(
    rng: random.Random, operations: tuple[int, int] = (4, 4), choices: tuple[int, ...] = OPERANDS
) -> ChainProblem:
    """A start in 0..99 and operands out of `choices` that keep the total in 0..99; fewest and most operations."""
    start = total = rng.randint(0, MAX_TOTAL)
    fewest, most = operations
    operands = []
    for _ in range(rng.randint(fewest, most) if fewest < most else most):
        operand = rng.choice([n for n in choices if 0 <= total + n <= MAX_TOTAL])
        operands.append(operand)
        total += operand
    return ChainProblem(start, tuple(operands))


@dataclass
class CarelessAuthor:
    """How the textbook's author goes wrong and what else he does: probabilities, per step or per solution."""

    hallucinate: float = 0.15  # quotes a made-up operand, but gives the total that the right one leads to
    slip: float = 0.08  # is off by up to 9, and carries on from the wrong total
    shared_step: float = 0.0  # quotes SHARED_QUOTE in the second step, whatever the operand: always the same false step
    total_first: float = 0.0  # writes the total before the operand in every step: a different style, just as good
    believe: float = 0.0  # adds a made-up operand as quoted, without a slip: wrong answers, unless two of them cancel

    def solution(self, problem: ChainProblem, rng: random.Random) -> str:
        """A worked solution as this author writes it."""
        # No number is drawn for what never happens: the textbook without it stays the same to the last word.
        shared = self.shared_step and rng.random() < self.shared_step
        total_first = self.total_first and rng.random() < self.total_first
        words, total = [], problem.start
        for i, operand in enumerate(problem.operands):
            before, total = total, total + operand
            if rng.random() < self.slip or not 0 <= total <= MAX_TOTAL:  # an earlier slip may lead out of the range
                total = rng.choice([n for n in range(total - 9, total + 10) if n != total and 0 <= n <= MAX_TOTAL])
            quoted = operand
            if rng.random() < self.hallucinate:
                choices = [n for n in OPERANDS if n != operand]
                believed = self.believe and not (shared and i == 1) and rng.random() < self.believe
                if believed:
                    choices = [n for n in choices if 0 <= before + n <= MAX_TOTAL]
                quoted = rng.choice(choices)
                total = before + quoted if believed else total
            if shared and i == 1:
                quoted = SHARED_QUOTE
            step = [f"{quoted:+d}", str(total)]
            words += step[::-1] if total_first else step
        return " ".join(words + ["#", str(total)])


def check_outcome(problem: ChainProblem, completion: str, finished: bool) -> bool:
    """True if the completion ends with "# ANSWER", the answer is right, and eos followed (`finished`)."""
    words = completion.split()
    return finished and words[-2:] == ["#", problem.truth]


def check_steps(problem: ChainProblem, completion: str) -> list[bool]:
    """For each step that the problem calls for: does the completion quote the right operand and the right total there?

    Operand first in all steps, or total first in all of them. A missing step is False. Surplus words, between the steps
    and "# ANSWER" or after it, add a False at the end.
    """
    words = completion.split()
    end = words.index("#") if "#" in words else len(words)
    body, answer = words[:end], words[end:]
    expected = [[f"{operand:+d}", str(total)] for operand, total in zip(problem.operands, problem.totals)]
    if is_total_first(completion):
        expected = [step[::-1] for step in expected]
    verdicts = [body[2 * i : 2 * i + 2] == step for i, step in enumerate(expected)]
    surplus = len(body) > 2 * len(expected) or len(answer) > 2
    return verdicts + [False] * surplus


def is_total_first(completion: str) -> bool:
    """Which of the two ways of writing steps this is: a total has no sign, an operand always has one."""
    return completion[:1].isdigit()
