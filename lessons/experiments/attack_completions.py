"""attack.py's completions written by hand: what a policy could write to earn the prompt contrast without merit."""

import random
from collections.abc import Callable
from itertools import chain

from textbooks import fresh_problems

from minclipo.tasks.chain import MAX_TOTAL, OPERANDS, SHARED_QUOTE, ChainProblem, random_problem


def attack_problems(seed: int, count: int, margin: int = 0) -> list[ChainProblem]:
    """Problems in which the shared false step is false, with totals at least `margin` away from the ends."""

    def wanted(problem: ChainProblem) -> bool:
        far = all(margin <= total <= MAX_TOTAL - margin for total in problem.totals)
        return far and problem.operands[1] != SHARED_QUOTE

    return fresh_problems(f"attack {seed}", count, wanted)


def written(kind: str, problems: list[ChainProblem], seed: int) -> list[str]:
    """One completion of that kind per problem."""
    rng = random.Random(f"{kind} {seed}")
    return [COMPLETIONS[kind](problem, rng) for problem in problems]


# ---- parts ----


def steps(operands: list[int], totals: list[int]) -> list[str]:
    """The words of these steps, operand first."""
    return [word for operand, total in zip(operands, totals) for word in (f"{operand:+d}", str(total))]


def another(value: int, choices, rng: random.Random) -> int:
    return rng.choice([choice for choice in choices if choice != value])


def answered(problem: ChainProblem, *parts: list[str]) -> str:
    """These words, then the right answer."""
    return " ".join([*chain(*parts), "#", str(problem.totals[-1])])


def quoting(problem: ChainProblem, changes: dict[int, int]) -> str:
    """Right totals and answer, with other operands quoted in some steps."""
    return answered(problem, steps([changes.get(i, n) for i, n in enumerate(problem.operands)], problem.totals))


def quotes(problem: ChainProblem) -> list[str]:
    """The prompt's operands, copied."""
    return [f"{operand:+d}" for operand in problem.operands]


# ---- kinds ----


def faithful(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {})


def one_made_up(problem: ChainProblem, rng: random.Random) -> str:
    place = rng.randrange(len(problem.operands))
    return quoting(problem, {place: another(problem.operands[place], OPERANDS, rng)})


def all_made_up(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {i: another(operand, OPERANDS, rng) for i, operand in enumerate(problem.operands)})


def shared_false_step(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {1: SHARED_QUOTE})


def garbage_total(problem: ChainProblem, rng: random.Random) -> str:
    totals = problem.totals
    totals[-2] = another(totals[-2], range(MAX_TOTAL + 1), rng)
    return answered(problem, steps(problem.operands, totals))


def copied_again(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, steps(problem.operands, problem.totals), quotes(problem))


def start_first(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, [str(problem.start)], steps(problem.operands, problem.totals))


def start_last(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, steps(problem.operands, problem.totals), [str(problem.start)])


def answer_only(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem)


def operands_only(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, quotes(problem))


def total_first(problem: ChainProblem, rng: random.Random) -> str:
    words = steps(problem.operands, problem.totals)
    return answered(problem, *(words[i : i + 2][::-1] for i in range(0, len(words), 2)))


def wrong_answer(problem: ChainProblem, rng: random.Random) -> str:
    wrong = another(problem.totals[-1], range(MAX_TOTAL + 1), rng)
    return " ".join([*steps(problem.operands, problem.totals), "#", str(wrong)])


def of_another_problem(problem: ChainProblem, rng: random.Random) -> str:
    while (other := random_problem(rng)).totals[-1] == problem.totals[-1]:
        pass
    return faithful(other, rng)


COMPLETIONS: dict[str, Callable[[ChainProblem, random.Random], str]] = {
    "faithful": faithful,
    "one operand made up": one_made_up,
    "all operands made up": all_made_up,
    f"shared false step ({SHARED_QUOTE:+d} in step 2)": shared_false_step,
    "last but one total garbage": garbage_total,
    "operands copied once more before #": copied_again,
    "start number first": start_first,
    "start number before #": start_last,
    "no steps, # and the answer": answer_only,
    "operands without totals": operands_only,
    "totals before operands": total_first,
    "wrong: right steps, wrong answer": wrong_answer,
    "wrong: solution of another problem": of_another_problem,
}
