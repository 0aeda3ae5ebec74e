"""The toy's problems, its careless textbook, and the two checks."""

import random
import zlib

import pytest

from minclipo.tasks.chain import (
    MAX_TOTAL,
    OPERANDS,
    WORDS,
    CarelessAuthor,
    ChainProblem,
    check_outcome,
    check_steps,
    random_problem,
)
from minclipo.toy import toy_tokenizer


def is_faithful(problem, completion):
    return all(check_steps(problem, completion))


PROBLEM = ChainProblem(7, (5, -3, 8, -2))
FAITHFUL = "+5 12 -3 9 +8 17 -2 15 # 15"


def test_the_example_in_the_docstring():
    assert PROBLEM.prompt == "7 , +5 , -3 , +8 , -2 ="
    assert PROBLEM.totals == [12, 9, 17, 15]
    assert check_outcome(PROBLEM, FAITHFUL, True) and is_faithful(PROBLEM, FAITHFUL)


def test_problems_stay_in_range_and_reach_both_ends():
    """Catches: totals that leave the vocabulary, a start that never varies."""
    rng = random.Random(0)
    problems = [random_problem(rng) for _ in range(3000)]
    totals = [total for problem in problems for total in problem.totals]
    assert min(totals) == 0 and max(totals) == MAX_TOTAL
    assert {operand for problem in problems for operand in problem.operands} == set(OPERANDS)


def test_a_careful_author_is_faithful():
    rng = random.Random(0)
    author = CarelessAuthor(hallucinate=0.0, slip=0.0)
    assert all(is_faithful(p, author.solution(p, rng)) for p in (random_problem(rng) for _ in range(200)))


def test_the_careless_author_errs_as_often_as_stated():
    """Catches: a hallucination that changes the total, or that happens once a solution. 5 standard errors allowed."""
    rng, author, n = random.Random(0), CarelessAuthor(hallucinate=0.15, slip=0.0), 5000
    wrong_quotes = 0
    for _ in range(n):
        problem = random_problem(rng)
        text = author.solution(problem, rng)
        assert check_outcome(problem, text, True)  # hallucinations never change the outcome
        wrong_quotes += check_steps(problem, text).count(False)
    assert abs(wrong_quotes / (4 * n) - 0.15) < 5 * (0.15 * 0.85 / (4 * n)) ** 0.5


def test_a_made_up_operand_is_never_the_right_one():
    rng, author = random.Random(0), CarelessAuthor(hallucinate=1.0, slip=0.0)
    for _ in range(200):
        problem = random_problem(rng)
        assert check_steps(problem, author.solution(problem, rng)) == [False] * 4


def test_a_believed_operand_makes_the_answer_wrong():
    """Every step is made up and believed: each total is the one before plus the operand quoted, and all stay in the
    range. Two may cancel, seldom. Catches: a belief that changes the quote only, or that leaves the vocabulary."""
    rng, author, right = random.Random(0), CarelessAuthor(hallucinate=1.0, slip=0.0, believe=1.0), 0
    for _ in range(1000):
        problem = random_problem(rng)
        words, total = author.solution(problem, rng).split(), problem.start
        for quoted, written in zip(words[:8:2], words[1:8:2]):
            total += int(quoted)
            assert total == int(written) and written in WORDS
        right += check_outcome(problem, " ".join(words), True)
    assert right < 100


def test_a_quarter_of_the_made_up_operands_is_believed():
    """Two operations, both made up, without slips: right answers are those of which he believed neither, and a few that
    cancel. Four standard errors are 2%. Catches: a belief per solution (0.75 would be right)."""
    rng, author = random.Random(0), CarelessAuthor(hallucinate=1.0, slip=0.0, believe=0.25)
    problems = [random_problem(rng, (2, 2)) for _ in range(8000)]
    right = sum(check_outcome(problem, author.solution(problem, rng), True) for problem in problems)
    assert abs(right / 8000 - 0.75**2) < 0.025


def test_a_shared_step_is_never_believed():
    """Catches: a total that follows an operand which the shared false step has replaced."""
    rng, author = random.Random(0), CarelessAuthor(hallucinate=1.0, slip=0.0, shared_step=1.0, believe=1.0)
    for _ in range(200):
        words = author.solution(ChainProblem(20, (5, 3)), rng).split()
        assert words[2] == "+1" and int(words[3]) == int(words[1]) + 3


def test_a_slip_makes_the_answer_wrong():
    """All steps slip: every total is off, so the outcome check must fail nearly always (slips may cancel)."""
    rng, author = random.Random(0), CarelessAuthor(hallucinate=0.0, slip=1.0)
    problems = [random_problem(rng) for _ in range(500)]
    texts = [author.solution(problem, rng) for problem in problems]
    assert sum(check_outcome(p, t, True) for p, t in zip(problems, texts)) < 50
    assert all(int(word) <= MAX_TOTAL for text in texts for word in text.replace("#", "").split())


def test_every_text_is_in_the_vocabulary_and_comes_back():
    """Catches: a word that is not one token, spaces lost in decoding."""
    tokenizer, rng, author = toy_tokenizer(), random.Random(0), CarelessAuthor(0.5, 0.5)
    for _ in range(200):
        problem = random_problem(rng)
        text = f"{problem.prompt} {author.solution(problem, rng)}"
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split())
        assert tokenizer.decode_batch([ids]) == [text]
    assert len(WORDS) == len(set(WORDS)) == tokenizer.vocab_size


def test_an_unknown_word_is_an_error():
    """Catches: unknown words turned into eos without a sound."""
    with pytest.raises(Exception, match="UNK"):
        toy_tokenizer().encode("7 , +5 = ?")


@pytest.mark.parametrize(
    "text, finished, right",
    [
        (FAITHFUL, True, True),
        (FAITHFUL, False, False),  # no eos
        ("+5 12 -3 9 +8 17 -2 15 # 16", True, False),
        ("+9 12 -3 9 +8 17 -2 15 # 15", True, True),  # a made-up operand does not change the outcome
        ("# 15", True, True),
        ("15", True, False),
        ("# 15 # 16", True, False),
        ("# 15 3", True, False),
        ("", True, False),
        ("#", True, False),
    ],
)
def test_outcome_check(text, finished, right):
    assert check_outcome(PROBLEM, text, finished) == right


@pytest.mark.parametrize(
    "text, verdicts",
    [
        (FAITHFUL, [True] * 4),
        ("+9 12 -3 9 +8 17 -2 15 # 15", [False, True, True, True]),  # made-up operand
        ("+5 13 -3 9 +8 17 -2 15 # 15", [False, True, True, True]),  # wrong total, repaired later
        ("+5 12 -3 9 # 15", [True, True, False, False]),  # steps left out
        ("# 15", [False] * 4),
        ("+5 12 -3 9 +8 17 -2 15 +1 16 # 16", [True] * 4 + [False]),  # a step too many
        ("+5 12 -3 9 +8 17 -2 15 # 99 # 15", [True] * 4 + [False]),  # an answer too many
        ("-3 9 +5 12 +8 17 -2 15 # 15", [False, False, True, True]),  # the right words in the wrong order
        ("", [False] * 4),
    ],
)
def test_step_check(text, verdicts):
    assert check_steps(PROBLEM, text) == verdicts


def test_the_shared_false_step_stands_in_its_share_of_the_solutions():
    """Only the second quote is touched, totals stay right. 4000 draws; 3% is 4 standard errors. Catches: another step,
    a probability per step instead of per solution."""
    rng, author, shared = random.Random(0), CarelessAuthor(0.0, 0.0, shared_step=0.7), 0
    for _ in range(4000):
        problem = ChainProblem(20, (5, 3, -4, 2))
        words = author.solution(problem, rng).split()
        shared += words[2] == "+1"
        assert words[2] in ("+1", "+3") and words[:2] + words[3:] == "+5 25 28 -4 24 +2 26 # 26".split()
    assert abs(shared / 4000 - 0.7) < 0.03


def test_both_ways_of_writing_are_right_and_a_mixture_is_not():
    """Catches: a second way that is written or checked step by step, or that counts as hallucinated."""
    problem, rng, author = ChainProblem(7, (5, -3)), random.Random(0), CarelessAuthor(0.0, 0.0, total_first=0.5)
    written = {author.solution(problem, rng) for _ in range(100)}
    assert written == {"+5 12 -3 9 # 9", "12 +5 9 -3 # 9"}
    assert all(is_faithful(problem, text) for text in written)
    assert check_steps(problem, "12 +5 -3 9 # 9") == [True, False]
    assert check_steps(problem, "12 +4 9 -3 # 9") == [False, True]


def test_the_toys_textbook_has_not_changed():
    """A probability of 0 draws no random number: a page from before there were such probabilities. Catches: another
    textbook, and so other results, from the same seed."""
    rng = random.Random(3)
    page = " ".join(CarelessAuthor().solution(random_problem(rng), rng) for _ in range(50))
    assert zlib.crc32(page.encode()) == 2598670767


def test_chains_keep_to_their_lengths_and_operands():
    """Catches: a longest chain that never comes, operands that were left out."""
    rng = random.Random(0)
    problems = [random_problem(rng, (3, 5), (-7, 4)) for _ in range(300)]
    assert {len(problem.operands) for problem in problems} == {3, 4, 5}
    assert {n for problem in problems for n in problem.operands} == {-7, 4}
    assert all(0 <= total <= 99 for problem in problems for total in problem.totals)
