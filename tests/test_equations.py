"""The step check: what counts as an equation, when it is right, and GSM8K's own sums."""

import gzip
import json
import random
import time

import pytest
from conftest import FIXTURES

from minclipo.tasks.equations import check_equations


@pytest.mark.parametrize(
    "text, verdicts",
    [
        ("48/2 = 24", [True]),
        ("48/2 = 25", [False]),
        ("3 * (4 + 5) = 27", [True]),
        ("2 + 3 * 4 = 20", [False]),  # products first
        ("10 - 5 - 2 = 3", [True]),  # from the left
        ("24 / 4 / 2 = 3", [True]),
        ("$5 x 3 = $15", [True]),
        ("5x3=16", [False]),
        (r"\(48 \div 2 = 24\) and \(2 \times 3 = 7\)", [True, False]),
        ("6 × 7 = 42, 6 · 7 = 43; 42 ÷ 6 = 7.", [True, False, True]),
        ("1,200 + 5 = 1,205", [True]),
        ("5 - 8 = -3", [True]),
        ("-5 + 8 = 3", [True]),
        ("4 * -3 = -12", [True]),
        ("5 - -3 = 8", [True]),
        ("5 - -3 = 2", [False]),
        ("5 + -3 = 2", [True]),
        (".5 + .25 = 0.75", [True]),
        ("5/0 = 1", [False]),
        ("0.1 + 0.2 = 0.3", [True]),  # not as floats
        ("9007199254740993 + 0 = 9007199254740992", [False]),  # equal as floats
    ],
)
def test_arithmetic(text, verdicts):
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text, verdicts",
    [
        ("10/3 = 3.33", [True]),
        ("10/3 = 3.3", [True]),
        ("10/3 = 3.34", [False]),
        ("10/3 = 3", [False]),  # without decimals nothing is rounded
        ("2/3 = 0.67", [True]),
        ("2/3 = 0.66", [False]),  # cut off, not rounded
        ("1/3 = 0.33 and 2/3 = 0.66", [True, False]),  # no mixed number
        ("1/8 = 0.13", [True]),
        ("1/8 = 0.12", [True]),  # a tie may go either way
        ("-10/3 = -3.33", [True]),
        ("1/3 = 33.3%", [True]),
        ("1/3 = 33.4%", [False]),
        ("10/3 = 0 + 3.33", [False]),  # only one number is rounded
    ],
)
def test_rounding_to_the_decimals_shown(text, verdicts):
    """Catches: a tolerance that lets a slip pass, or none, so that every money sum with thirds is wrong."""
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text, verdicts",
    [
        ("20% of 50 = 10", [True]),
        ("20 percent of 50 = 11", [False]),
        ("50 * 20% = $10", [True]),
        ("60% - 20% = 40%", [True]),
        ("1/4 * 100 = 25%", [True]),
        ("60% - 20% = 50%", [False]),
        ("50 * 20% = 1000%", [True]),
        ("50 * 20% = 10%", [False]),  # the signs of one equation are read alike
    ],
)
def test_percent_is_a_hundredth_or_a_unit(text, verdicts):
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text",
    [
        "x + 5 = 11",
        "2x + 3 = 10",
        "2 + 4 = 3y",
        "f(2) = 2 + 3",
        "2^3 + 1 = 10",
        "5! = 121",
        "√4 + 1 = 4",
        "10 apples - 5 - 1 = 5",
        "5 + twice 3 + 1 = 13",
        "1 1/2 + 1 = 3",
        "1 and 1/2 + 1 = 3",
        "4/3 = 1 and 1/3",
        "2 (3 + 4) = 15",
        "2 + 3 <= 6",
        "2 + 3 == 6",
        "2 + 3 ≈ 6",
        "9:30 - 2 = 7:30",
        "1,5 + 1 = 3",
        "0900-0130 = 0730",
        "day 2 = 8 eggs",
        "60 / 3/4 = 80",
        "2 + = 3",
        "= 5 =",
        "1" * 31 + " + 1 = 2",
        r"\frac{x}{2} + 1 = 4",
        r"2\frac{1}{2} + 1 = 2",
        r"\sqrt{16} + 1 = 6",
        r"\sin 30 + 1 = 1.5",
        r"\arccos 30 + 1 = 1.5",
        "sqrt(16) + 1 = 5",
        "log(100) = 2 + 0",
        "floor(7/2) + 1 = 4",
        "2 squared * 3 = 12",
        ".8 + . 84 + .82 = 2.46",
        "2xy + 3 = 7",
        "(5 + 3) apples * 2 = 17",
        "8 - 5 = 3pm",
        "2 + 3 =\n6",
    ],
)
def test_what_is_no_plain_arithmetic_is_left_out(text):
    """Catches: a piece of an equation, or of an expression in letters, judged as if it were all."""
    assert check_equations(text) == []


def test_the_cases_of_real_solutions():
    """26 lines in the styles of Qwen, Llama and SmolLM, with the verdicts of a human reader.

    Catches: a label taken for a side, and LaTeX, units and continued lines that are not read."""
    cases = json.loads((FIXTURES / "golden" / "equations.json").read_text(encoding="utf-8"))["cases"]
    assert [(case["text"], check_equations(case["text"])) for case in cases] == [
        (case["text"], case["verdicts"]) for case in cases
    ]
    assert len(cases) == 26


@pytest.mark.parametrize(
    "label",
    [
        "Month 4",
        "**Month 4**",
        "Month 4 (April)",
        "Income in week 5",
        "Half of 70",
        "50% more than 60",
        "3/4 of 60",
        "The group (24)",
        "Days 1, 2",
        "Weeks 1-4",
        "Team 2 score",
        "5 apples",
        r"\text{Month 4}",
        "90°",
        "log(1000)",
        "log 1000",
    ],
)
def test_a_label_that_ends_in_a_number_is_no_side(label):
    """Catches: "Month 4 = 5 * 30" read as 4 = 150: most of the false equations of a model that labels its sums so."""
    assert check_equations(f"{label} = 5 * 31 = 155") == [True]


def test_a_number_without_a_label_is_a_side():
    """Catches: a rule for labels that leaves out sides."""
    assert check_equations("7 - 3 = 4 = 2 * 3; 6 = 2 * 4; total: 5 = 2 + 2") == [True, False, False, False]


@pytest.mark.parametrize(
    "text, verdicts",
    [
        (r"\dfrac12 + \frac{1}{2} = 1", [True]),
        (r"\frac{1}{\frac{1}{2}} = 3", [False]),
        (r"\frac{1}{2}(10) = 6", [False]),
        (r"\frac{3 \text{ apples}}{2} = 1.6", [False]),
        (r"\text{Total} = 5 \times 3 = \mathbf{16}", [False]),
        (r"\boxed{\frac{1}{2} + \frac{1}{2} = 2}", [False]),
        (r"12 \, \text{apples} \times 2 = 25 \, \text{apples}", [False]),
        (r"\(5 + 3 = 8\) \quad \(2 + 2 = 5\)", [True, False]),
        (r"10 \% \text{ of } 50 = 6", [False]),
        (r"12,\!500 + 500 = 12,000", [False]),
        (r"5 + 3 = 8 \\ 2 + 2 = 5", [True, False]),
        (r"48^{\circ} + 2^{\circ} = 51^{\circ}", [False]),
        ("\\begin{align}\n5 \\times 3 \\\\\n&= 15 \\\\\n&= 20 - 4\n\\end{align}", [True, False]),
        ("Total: 5 x 3\n\n= 15\n= 16 - 2", [True, False]),
        ("(2)(3) = 7, 3(4) = 13", [False, False]),
        ("2(3 + 4) = 15", [False]),
        ("2 (3 + 4) = 15", []),  # a remark?
        ("20/3 ≈ 6.67 = 6 + 0.68", [False]),
    ],
)
def test_latex_and_continued_lines(text, verdicts):
    """Catches: the half of a solution's equations that a model writes in LaTeX or over several lines."""
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text, verdicts",
    [
        ("3 apples * 2 = 6 apples", [True]),
        ("2 apples * 3 = 7", [False]),
        ("3 * 4 = 2 apples * 6", [True]),
        ("6 km/day * 9 days = 56 km", [False]),
        ("$5 per hour x 3 hours = $16", [False]),
        ("5kg * 2 = 11kg", [False]),
        ("3 * 4 = 12 apples = 12 * $2 = $25", [True, False]),
        ("5 friends x 3 cookies each = 16 cookies", [False]),
        # a unit may be exchanged for another on the way
        ("1 hour + 30 minutes = 90 minutes", []),
        ("2 hours + 3 hours = 300 minutes", []),
        ("60 mph * 30 minutes = 30 miles", []),
        ("$1 / 2 = 50 cents", []),
        ("5 * 20 cents = $1", []),
        ("2 * 30 = 1 hour = 60 / 60", []),
        ("7 minutes x 60 = 420 seconds + 23 seconds", []),
        # the number may belong to a name, or to the number before it
        ("Week 1 sales * 3 = 16", []),
        ("8 hours a day for 5 days * 2 = 80", []),
        ("50 + 10% = 55", []),
    ],
)
def test_units_between_the_numbers(text, verdicts):
    """Catches: a unit that hides an equation, and a change of units called false."""
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text",
    [
        "Half of 70 + 5 = 40",
        "40% of the 50 + 1 = 21",
        "3 times 5 + 2 = 17",
        "twice 4 + 1 = 9",
        "5 * 200,000 = 1 million",
        "7 / 2 = 3 and a half",
        "100 / 6 = 16 and (2/3)",
        "7 / 2 = 3 R1",
        "7 / 2 = 3, remainder 1",
        "13 / 6 = 2 full cycles with a remainder of 1 hour",
        "130 minutes / 60 = 2 hours 10 minutes",
        "30 / 7 = 4 weeks and 2 days",
        "10 halves of burgers: 5 * 1/2 = 10 halves",
        "20/3 = 6.66...",
        "100 / 7 = 14 (rounded)",
        "Month 4 - 5 * 30 = 150 visits",
        "Fee - 5 * 30 = 150",
        "the group (3 + 4) = 2 * 6",
        "14, 400 / 80 = 180",
        "100 + (100 * (10/100) = 110",
        "6/2(3) = 8",
    ],
)
def test_what_can_be_read_in_two_ways_is_not_called_false(text):
    """Catches: words beside an equation that change its numbers, taken for the names of what is counted."""
    assert check_equations(text) == []


def test_a_doubt_does_not_hide_a_true_equation():
    """Catches: a rule for doubts that leaves out more than false equations."""
    assert check_equations("twice: half of 7 + 5 = 12; 60 / 3/4 = 5; 1 hour + 2 minutes = 3") == [True] * 3


@pytest.mark.parametrize("text, verdicts", [("1.200 + 300 = 1.500", [True]), ("1.200 + 300 = 1.600", [False])])
def test_a_point_may_group_thousands(text, verdicts):
    """Catches: a European solution called false; or a reading in which everything is true."""
    assert check_equations(text) == verdicts


@pytest.mark.parametrize(
    "text, verdicts",
    [
        ("She sold 48/2 = <<48/2=24>>24 clips", [True]),
        ("She made 12*3 = $<<12*3=36>>36.", [True]),
        ("There are <<12*2=24>>24 pages.", [True]),
        ("She sold 48/2 = <<48/2=24>>25 clips", [False, True]),  # miscopied
        ("She sold 48/2 = <<48/3=24>>24 clips", [True, False]),
        ("12 pages x 2 = <<12*2=25>>25 pages", [False]),
    ],
)
def test_annotations_of_gsm8k(text, verdicts):
    """Catches: the annotation read as part of the number after it (48/2 = 2424), or its equation counted twice."""
    assert check_equations(text) == verdicts


def test_chains_are_checked_link_by_link():
    assert check_equations("2 + 3 = 5 * 4 = 20 = 40 / 2") == [False, True, True]


def test_a_repeated_equation_counts_once():
    """Catches: a share of right steps that grows by repeating an easy one."""
    assert check_equations("1 + 1 = 2\n1+1 = 2\n1 + 1 = $2\n1 + 1 = 3") == [True, False]


@pytest.mark.parametrize("start", ["- ", "* ", "1. ", "2) ", "So ", "Step 3: ", "", "(", "-> ", "**"])
def test_what_stands_before_an_equation(start):
    """Catches: the dash of a list read as a minus, its number as a factor."""
    assert check_equations(f"{start}48/2 = 24") == [True]


@pytest.mark.parametrize(
    "end", [".", ", so", " clips", " (in May)", ")", "?", "**", "\n5", " and more", " and 4/2 = 2"]
)
def test_what_stands_after_an_equation(end):
    """Catches: an equation lost to the words after it."""
    assert check_equations(f"48/2 = 24{end}")[:1] == [True]


def test_gsm8k_hardly_ever_adds_wrongly():
    """Catches: misread notations. Of all 8,792 solutions 27 hold a false equation; nearly all of them are slips."""
    rows = []
    for split, number in ("test", 1319), ("train", 2000):
        with gzip.open(FIXTURES / "gsm8k" / f"{split}.jsonl.gz", "rt") as file:
            rows += [json.loads(line) for line, _ in zip(file, range(number))]
    verdicts = [check_equations(row["answer"]) for row in rows]
    assert 0 < sum(False in verdict for verdict in verdicts) <= 0.004 * len(rows)
    assert sum(map(bool, verdicts)) >= 0.97 * len(rows)


def test_a_corrupted_sum_is_found():
    """Catches: a check that is true of anything. One is added to the results of 500 solutions of GSM8K."""
    with gzip.open(FIXTURES / "gsm8k" / "test.jsonl.gz", "rt") as file:
        sums = [part.partition(">>")[0] for line, _ in zip(file, range(500)) for part in line.split("<<")[1:]]
    right = [sum for sum in sums if check_equations(sum) == [True]]
    assert len(right) > 0.98 * len(sums)  # 1,600; the others, such as 5=5, are no sums
    assert all(check_equations(f"{sum}+1") == [False] for sum in right)


HOSTILE = [
    "(" * 10**5 + "= 1",
    "1" * 10**5 + " + 1 = 2",
    "1 + " * 30_000 + "1 = 5",
    "1 + 1 = 2 = " * 5_000,
    "-" * 10**5 + "1 + 1 = 2",
    "1 - " + "-" * 90 + "1 = 2",
    "(" * 45 + "1" + ")" * 45 + " + 1 = 2",
    "5" + " " * 10**5 + "x",
    "1,111" * 10_000 + " = 1",
    "=" * 30_000,
    "<<" * 50_000,
    "<<1=1" * 10_000,
    "/1" * 30_000 + "= 1",
    "1 + 1 = \ud800\0 2",
    "1" * 29 + "*1" * 45 + " = " + "1" * 29 + "/3" * 45,
    "=\n" * 50_000,
    "\n" * 10**5 + "=",
    r"\text{" * 20_000 + "= 1",
    r"\frac{1}{" * 10_000 + "= 1",
    r"\frac" * 20_000 + " = 1 + 1",
    "a " * 50_000 + "= 1 + 1",
    "a" * 10**5 + "(= 1 + 1 = 2",
    "ab'" * 40_000 + "(= 1 + 1 = 2",
    "3 apples * " * 20_000 + "1 = 5",
    "1/a" * 30_000 + " = 1 + 1",
    "1 = 1 + 1 apples " * 10_000,
    "of " * 30_000 + "1 + 1 = 3 " + "foo " * 30_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].encode("unicode_escape").decode())
def test_hostile_text_neither_raises_nor_hangs(text):
    """Catches: recursion, int() of 5,000 digits, sides that are read again for each equals sign."""
    start = time.perf_counter()
    check_equations(text)
    assert time.perf_counter() - start < 20  # each takes less than a second; a hang would never end


def test_random_text_never_raises():
    """Catches: an IndexError or ValueError in a corner. 3,000 texts of the pieces that have a meaning."""
    pieces = "= = + - * / ( ) 1 2 3.5 1,000 % $ and of x clips << >> , . : 0 00 y \\times ** \n \\frac{1}{2} { } ° f("
    rng = random.Random(0)
    for _ in range(3000):
        check_equations("".join(rng.choices([" ", *pieces.split(" ")], k=rng.randint(0, 25))))
