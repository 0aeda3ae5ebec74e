"""Chains in words: what a careless author writes in either way, and what the two checks say of it."""

import random
import re

import pytest

from minclipo.tasks.chain import CarelessAuthor, ChainProblem
from minclipo.tasks.stories import (
    GAINS,
    LOSSES,
    StoryProblem,
    check_outcome,
    check_steps,
    in_words,
    makes_up,
    stories_task,
)

PROBLEM = StoryProblem("prompt", ChainProblem(66, (-4, 1)), "Mia", (0, 0))
REASON_FIRST = r"Mia lost 4: 66 - 4 = 62. Mia found 1: 62 + 1 = 63. The answer is \boxed{63}."
RESULT_FIRST = r"Now it is 62, because Mia lost 4. Now it is 63, because Mia found 1. The answer is \boxed{63}."
TASK = stories_task(lambda question: question)


def test_a_chain_in_words():
    """Catches: a start that is left out, a sign that is lost, present where past is meant."""
    assert in_words(PROBLEM, "-4 62 +1 63 # 63", result_first=False) == REASON_FIRST
    assert in_words(PROBLEM, "-4 62 +1 63 # 63", result_first=True) == RESULT_FIRST


def test_the_question_tells_the_chain():
    """Its numbers are start and operands, its verbs their directions. Catches: gains told as losses."""
    gains = [present for present, _ in GAINS]
    losses = [present for present, _ in LOSSES]
    for index in range(200):
        problem = TASK.draw("training 0", index)
        start, *sizes = map(int, re.findall(r"[0-9]+", problem.prompt))
        verbs = [verb for verb in re.findall(r"[a-z]+", problem.prompt) if verb in gains + losses]
        told = [size if verb in gains else -size for size, verb in zip(sizes, verbs, strict=True)]
        assert (start, tuple(told)) == (problem.chain.start, problem.chain.operands)


def test_the_same_index_is_the_same_story():
    """Catches: a draw that depends on what was drawn before; training and evaluation with the same stories."""
    draws = [TASK.draw(stream, 7) for stream in ("training 0", "training 0", "evaluation 0")]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("result_first", [False, True])
def test_the_checks_agree_with_the_author(result_first):
    """500 solutions of a very careless author: answer and steps are right where his are. Catches: a check that reads
    one way of writing only, or that takes a true total for a true reason."""
    rng, author = random.Random(0), CarelessAuthor(0.3, 0.1)
    seen = set()
    for index in range(500):
        problem = TASK.draw("training 0", index)
        solution = author.solution(problem.chain, rng)
        numbers = solution.split("#")[0].split()
        quotes, totals = [list(map(int, numbers[place::2])) for place in (0, 1)]
        text = in_words(problem, solution, result_first)
        right = [
            (q, t) == pair for q, t, pair in zip(quotes, totals, zip(problem.chain.operands, problem.chain.totals))
        ]
        verdicts = check_steps(problem, text)
        assert check_outcome(problem, text, True) == (totals[-1] == problem.chain.totals[-1])
        assert makes_up(problem, text) is (quotes != list(problem.chain.operands))
        assert all(verdicts) == all(right)
        assert verdicts == right or totals != problem.chain.totals  # a wrong total is where the next equation begins
        seen.add((all(verdicts), makes_up(problem, text)))
    assert seen == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize(
    "text, verdicts",
    [
        (REASON_FIRST, [True, True]),
        (RESULT_FIRST, [True, True]),
        (" " + RESULT_FIRST, [True, True]),
        (REASON_FIRST.replace("lost 4", "lost 9"), [False, True]),
        (REASON_FIRST.replace("found 1", "got 1"), [True, False]),  # an event of the story's own
        (REASON_FIRST.replace("66 - 4", "67 - 4"), [False, True]),
        (RESULT_FIRST.replace("lost 4", "lost 9"), [False, True]),
        (RESULT_FIRST.replace("62", "61"), [False, True]),
        (RESULT_FIRST[:34] + REASON_FIRST[25:], [True, False]),  # a mixture of both ways
        (REASON_FIRST.replace("Mia found 1: 62 + 1 = 63. ", ""), [True, False, False]),
        (REASON_FIRST.replace("The", "Mia found 1: 63 + 1 = 64. The"), [True, True, False]),
        (REASON_FIRST + " Mia is happy.", [True, True, False]),
        (r"\boxed{63}.", [False, False, False]),
        ("", [False, False, False]),
    ],
)
def test_the_step_check_is_strict(text, verdicts):
    """Catches: a reason, verb, start, total or sentence that passes though the story has no such thing."""
    assert check_steps(PROBLEM, text) == verdicts


@pytest.mark.parametrize(
    "text, finished, right",
    [
        (REASON_FIRST, True, True),
        (r"So it is \boxed{63}", True, True),
        (REASON_FIRST, False, False),
        (r"\boxed{63} or \boxed{64}.", True, False),
        (r"\boxed{63}. I think", True, False),
        (r"\boxed{063}", True, False),
        ("63", True, False),
    ],
)
def test_the_outcome_is_the_box_at_the_end(text, finished, right):
    """Catches: an answer that is read anywhere, or from a completion that was cut off."""
    assert check_outcome(PROBLEM, text, finished) is right


@pytest.mark.parametrize(
    "text, made_up",
    [
        (REASON_FIRST, False),
        (REASON_FIRST.replace("62 + 1 = 63", "62 + 1 = 64"), False),  # a slip
        (RESULT_FIRST.replace("lost 4", "lost 5"), True),
        (RESULT_FIRST.replace("lost 4", "broke 4"), True),
        (REASON_FIRST.replace("The", "Mia won 2: 63 + 2 = 65. The"), True),
        (REASON_FIRST.replace("Mia found 1: 62 + 1 = 63. ", ""), None),
        ("", None),
    ],
)
def test_a_made_up_event_is_one_that_the_story_does_not_have(text, made_up):
    """Catches: a slip, or a sentence that is left out, taken for something made up; an event too many that passes."""
    assert makes_up(PROBLEM, text) is made_up
