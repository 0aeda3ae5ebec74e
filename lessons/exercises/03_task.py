"""Exercise 3: what is right, and how a careless author goes wrong.

Minutes: 40. Difficulty: medium.

Fill in the four functions. `python lessons/exercises/03_task.py` tells right from wrong.
With --solution it checks lessons/solutions/03_task.py, which is there to be read
afterwards.
"""

import random

import torch
from checking import expect, expect_true, report
from torch import Tensor


def outcome(answer: int, completion: str, finished: bool) -> bool:
    """Is the answer right? Stricter than the lesson's check: two answers get nothing.

    True if the completion ended (`finished`), holds the word # exactly once, and after it
    the right number and nothing else. Compare words: "120" is not "12", and neither is
    "012". Any text may come, the empty one too.
    """
    raise NotImplementedError("completion.split() gives the words.")


def steps(start: int, operands: list[int], completion: str) -> list[bool]:
    """One verdict per operand, which forgives what follows rightly from an earlier slip.

    A step is a pair of words: the operand as "+5" or "-3", then a total. The total must
    be the total written in the step before it (for the first step: `start`) plus the
    operand. So a slip makes its own step wrong, and not the next ones.

    Compare operands and totals as words: where 12 is due, "012" is wrong. The next step
    adds to the number that was written, however it was written: after "012" it adds to
    12. After a word that is no number, as "twelve", there is nothing to add to, and the
    step is False.

    Steps end at the first word #, or with the text. A missing step is False. Surplus
    words before # add one False at the end. Any text may come.
    """
    raise NotImplementedError("Keep the total that was written, not the true one.")


def rates(correct: Tensor, faithful: Tensor) -> tuple[float, float, float]:
    """(accuracy, hallucination rate, faithful accuracy) of N rollouts.

    correct, faithful [N] bool: is the answer right, is every step right? Where the steps
    are right and the answer is not, the rollout is wrong. Without any right answer the
    hallucination rate is 0.
    """
    raise NotImplementedError("Which of the three is not a share of all the rollouts?")


def careless_step(
    total: int, operand: int, hallucinate: float, slip: float, rng: random.Random
) -> tuple[int, int]:
    """In one step from `total`: (the operand that the author quotes, the total he gives).

    With probability `slip` the total is wrong: each other number of 0..99 that is at most
    9 off is as likely. With probability `hallucinate` the operand is made up: each other
    one of -9..9 but 0 is as likely. Neither depends on the other. If the right total is
    outside 0..99 (an earlier slip may lead there), he slips for certain.
    """
    raise NotImplementedError(
        "rng.random() < p is true with probability p. rng.choice(list) takes one."
    )


# The checks. Reading them is allowed.


def check_outcome(outcome):
    for completion, finished, expected, what in (
        ("+5 12 # 12", True, True, "a right answer with its end"),
        ("# 12", True, True, "an answer without steps passes, too"),
        ("+5 12 # 12", False, False, "no end, no reward"),
        ("+5 12 # 13", True, False, "a wrong number"),
        ("+5 12 # 120", True, False, '"120" begins with 12 but is not 12'),
        ("+5 12 # 012", True, False, '"012" is another word than "12"'),
        ("+5 12 # 12 13", True, False, "a word after the answer"),
        ("# 11 # 12", True, False, "two answers, of which the last is right"),
        ("# 12 # 11", True, False, "two answers, of which the first is right"),
        ("+5 12 12", True, False, "no #"),
        ("+5 12# 12", True, False, '"12#" is another word than "#"'),
        ("+5 12 #", True, False, "nothing after #"),
        ("", True, False, "the empty text"),
    ):
        found = outcome(12, completion, finished)
        expect_true(
            found == expected,
            f"{what} ({completion!r}): expected {expected}, found {found}",
        )


def check_steps(steps):
    for completion, expected, what in (
        ("+5 12 -3 9 # 9", [True, True], "a right solution"),
        ("+5 12 +3 9 # 9", [True, False], "a made-up operand with the right total"),
        (
            "+5 13 -3 10 # 10",
            [False, True],
            "a slip in step 1; step 2 adds rightly to 13",
        ),
        ("+5 13 -3 9 # 9", [False, False], "two slips that cancel: 13 - 3 is not 9"),
        ("+5 -2 -3 -5 # -5", [False, True], "a slip to -2; step 2 adds rightly to it"),
        ("+5 12 # 12", [True, False], "a missing step"),
        ("+5 12 -3 # 9", [True, False], "a step without its total"),
        ("+5 12 -3 9 +1 10 # 10", [True, True, False], "a step too many"),
        ("+5 12 -3 9", [True, True], "no #, but every step"),
        ("5 12 -3 9 # 9", [False, True], "an operand is written with its sign"),
        ("12 +5 9 -3 # 9", [False, False], "totals before operands"),
        (
            "+5 012 -3 9 # 9",
            [False, True],
            '"012" is another word than "12", but step 2 adds to the number 12',
        ),
        (
            "+5 twelve -3 4 # 4",
            [False, False],
            "a total that is no number: step 2 has nothing to add to",
        ),
        ("# 9", [False, False], "an answer without steps"),
        ("", [False, False], "the empty text"),
    ):
        found = steps(7, [5, -3], completion)
        expect_true(
            found == expected,
            f"{what} ({completion!r}): expected {expected}, found {found}",
        )


def check_rates(rates):
    yes, no = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    correct = torch.tensor([True, True, False, True, False])
    faithful = torch.tensor([True, False, True, False, False])
    what = "one faithful, two hallucinated, two wrong, one of these with right steps"
    expect(rates(correct, faithful), (3 / 5, 2 / 3, 1 / 5), what)
    expect(rates(yes, no), (1.0, 1.0, 0.0), "all right, none faithful")
    expect(rates(yes, yes), (1.0, 0.0, 1.0), "all faithful")
    expect(rates(no, yes), (0.0, 0.0, 0.0), "no right answer at all")


def check_careless_step(careless_step):
    rng = random.Random(0)
    found = careless_step(12, -3, 0.0, 0.0, rng)
    expect_true(
        found == (-3, 9),
        f"-3 from 12 with both probabilities 0: expected (-3, 9), found {found}",
    )

    made_up = [careless_step(12, -3, 1.0, 0.0, rng) for _ in range(1000)]
    expect_true(
        all(total == 9 for _, total in made_up),
        "a made-up operand must leave the total right",
    )
    quoted = sorted({operand for operand, _ in made_up})
    expected = [n for n in range(-9, 10) if n not in (0, -3)]
    expect_true(
        quoted == expected, f"made up for -3: expected all of {expected}, found {quoted}"
    )

    slips = [careless_step(95, 2, 0.0, 1.0, rng) for _ in range(1000)]
    expect_true(
        all(operand == 2 for operand, _ in slips),
        "a slip must leave the quoted operand right",
    )
    totals = sorted({total for _, total in slips})
    expected = [n for n in range(88, 100) if n != 97]
    expect_true(
        totals == expected,
        f"slips from 95 + 2: expected all of {expected}, found {totals}",
    )

    share = sum(total == 99 for _, total in slips) / len(slips)
    expect(
        share,
        1 / 11,
        "slips from 95 + 2: share of 99, one of eleven equally likely totals",
        tolerance=0.04,
    )

    outside = sorted({careless_step(97, 9, 0.0, 0.0, rng)[1] for _ in range(200)})
    expect_true(
        outside == [97, 98, 99],
        f"97 + 9 leads out of 0..99: expected totals 97, 98 and 99, found {outside}",
    )

    drawn = [careless_step(50, 4, 0.15, 0.08, rng) for _ in range(10_000)]
    made_up = sum(operand != 4 for operand, _ in drawn) / len(drawn)
    slipped = sum(total != 54 for _, total in drawn) / len(drawn)
    both = sum(operand != 4 and total != 54 for operand, total in drawn) / len(drawn)
    what = "share of made-up operands among 10,000 steps"
    expect(made_up, 0.15, what, tolerance=0.014)
    expect(slipped, 0.08, "share of slips among 10,000 steps", tolerance=0.011)
    expect(
        both,
        0.15 * 0.08,
        "share of steps with both; they do not depend on each other",
        tolerance=0.005,
    )


if __name__ == "__main__":
    report(globals())
