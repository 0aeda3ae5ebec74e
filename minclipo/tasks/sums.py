"""A task within reach of the smallest chat models: sums of two numbers, asked in words.

    What is 7 + 35? Answer with the number only.

A fifth of all pairs of numbers is held out: training never asks for them, and evaluation asks for nothing else.
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from minclipo.tasks import Task
from minclipo.tasks.equations import check_equations

NUMBER = re.compile(r"(?<!\w)-?[0-9]+(?!\w)")  # not those in the name of a special token


@dataclass(frozen=True)
class SumProblem:
    prompt: str  # as the model reads it, chat template applied
    a: int
    b: int

    @property
    def question(self) -> str:
        return question(self.a, self.b)

    @property
    def truth(self) -> str:
        return str(self.a + self.b)


def question(a: int, b: int) -> str:
    return f"What is {a} + {b}? Answer with the number only."


def is_held_out(a: int, b: int) -> bool:
    """True for a fifth of all pairs, chosen by a checksum that knows no arithmetic; a + b is treated as b + a."""
    return zlib.crc32(f"{min(a, b)}+{max(a, b)}".encode()) % 5 == 0


def random_pair(rng: random.Random, held_out: bool, digits: int = 2) -> tuple[int, int]:
    """Two numbers of up to `digits` digits, each length as likely as the others, from one side of the split."""
    while True:
        a, b = (rng.randrange(10 ** rng.randint(1, digits)) for _ in range(2))
        if is_held_out(a, b) == held_out:
            return a, b


def check_outcome(problem: SumProblem, completion: str, finished: bool) -> bool:
    """True if the completion is finished and the last number in it is the sum."""
    numbers = NUMBER.findall(completion)
    return finished and numbers[-1:] == [problem.truth]


def check_steps(problem: SumProblem, completion: str) -> list[bool]:
    """The verdict on each equation of numbers that the completion writes down."""
    return check_equations(completion)


def sums_task(render: Callable[[str], str]) -> Task:
    """Streams whose name begins with "evaluation" get held-out pairs, others the rest; `render` makes the prompt."""

    def draw(stream: str, index: int) -> SumProblem:
        a, b = random_pair(random.Random(f"{stream} {index}"), held_out=stream.startswith("evaluation"))
        return SumProblem(render(question(a, b)), a, b)

    return Task(draw, check_outcome, check_steps)
