"""Solution of exercise 3.

Compare minclipo/tasks/chain.py, whose step check forgives nothing after a slip.
"""

import random

from torch import Tensor


def outcome(answer: int, completion: str, finished: bool) -> bool:
    words = completion.split()
    # With one # in all, the last two words can only be that one and what follows it.
    return finished and words.count("#") == 1 and words[-2:] == ["#", str(answer)]


def steps(start: int, operands: list[int], completion: str) -> list[bool]:
    words = completion.split()
    body = words[: words.index("#")] if "#" in words else words
    verdicts, before = [], str(start)
    for i, operand in enumerate(operands):
        quoted, total = (body[2 * i :] + ["", ""])[:2]  # "" where the text is too short
        is_number = before.removeprefix("-").isdecimal()
        adds_up = is_number and total == str(int(before) + operand)
        verdicts.append(quoted == f"{operand:+d}" and adds_up)
        before = total  # as it was written, right or not
    return verdicts + [False] * (len(body) > 2 * len(operands))


def rates(correct: Tensor, faithful: Tensor) -> tuple[float, float, float]:
    right, both = correct.sum().item(), (correct & faithful).sum().item()
    hallucinated = (right - both) / max(right, 1)  # 0 / 1 where none is right
    return right / len(correct), hallucinated, both / len(correct)


def careless_step(
    total: int, operand: int, hallucinate: float, slip: float, rng: random.Random
) -> tuple[int, int]:
    quoted, total = operand, total + operand
    if rng.random() < slip or not 0 <= total <= 99:
        near = range(max(0, total - 9), min(99, total + 9) + 1)
        total = rng.choice([n for n in near if n != total])
    if rng.random() < hallucinate:  # no elif: he may do both
        quoted = rng.choice([n for n in range(-9, 10) if n not in (0, operand)])
    return quoted, total
