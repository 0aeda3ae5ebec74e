"""The answer check: golden completions with hand labels, all of GSM8K, and one property after the other."""

import gzip
import itertools
import json
import random
import time

import pytest
from conftest import FIXTURES

from minclipo.verifier import extract_answer, is_verifiable, verify

CASES = json.loads((FIXTURES / "golden" / "verifier.json").read_text())["cases"]
REPORTS = [json.loads(line) for line in (FIXTURES / "golden" / "verifier_reports.jsonl").read_text().splitlines()]


def gsm8k(split: str) -> list[dict]:
    with gzip.open(FIXTURES / "gsm8k" / f"{split}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def agrees(answer: str, truth: str) -> bool:
    return verify(rf"\boxed{{{answer}}}", truth)


def test_no_wrong_answer_is_accepted():
    """Catches: hedges, other units, rounding, near misses, dropped signs: whatever training would learn to exploit."""
    accepted = [
        case["id"] for case in CASES if case["truth"] is False and verify(case["completion"], case["ground_truth"])
    ]
    assert accepted == []


def test_which_right_answers_are_refused():
    """Catches: a change that loses, or wins, a notation. What is listed is left out on purpose."""
    refused = {case["id"] for case in CASES if case["truth"] and not verify(case["completion"], case["ground_truth"])}
    assert refused == (
        {"p120", "p121"}  # 75% for 0.75: a truth without percent sign leaves open what it counts
        | {"p133", "p154"}  # (x+1)^2, (x+3)^2: whoever is asked to expand them must not be paid for the question
        | {"p146", "p150"}  # a logarithm, a number in another base
        | {"p163", "p164", "p165", "p232"}  # neither box nor ####
        | {"p210", "p211"}  # thousands of brackets, thousands of summands
        | {"p228", "p230"}  # "B. bank" and "b" for B: the option's letter is wanted as it stands
    )


def test_what_other_graders_bug_reports_and_real_files_have_shown():
    """Catches: each fault that was found there. In three cases we do not give the verdict that the report asks for."""
    other = {case["id"] for case in REPORTS if verify(case["text"], case["truth"]) != case["expected"]}
    assert other == (
        {"v091"}  # 8:12 for 2:3. Both may be times, and then 2:05 would be 4:10
        | {"v078"}  # b(a+2) for (a+2)b. Products of sums are not multiplied out: see p133
        | {"v092"}  # 53 for 53_7. These are two numbers, and p150 wants the value: without the question nobody can tell
    )


def test_every_solution_of_gsm8k_has_its_own_answer():
    """Catches: thousands commas and decimals misread, a truth given as a whole solution not understood."""
    test = gsm8k("test")
    assert all(verify(row["answer"], row["answer"]) for row in test)
    assert all(verify(row["answer"], row["final"]) for row in test + gsm8k("train"))


def test_solutions_of_other_problems_are_right_only_by_coincidence():
    """Catches: a check that is true of anything. 2,000 pairs; some 15 problems happen to share an answer."""
    rows, rng = gsm8k("test"), random.Random(0)
    pairs = [(rng.choice(rows), rng.choice(rows)) for _ in range(2000)]
    number = [[float(row["final"].replace(",", "")) for row in pair] for pair in pairs]
    assert [verify(a["answer"], b["answer"]) for a, b in pairs] == [a == b for a, b in number]


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"first \boxed{18}, no: \boxed{15}.", "15"),
        (r"\boxed{15} as asked, within \boxed{} or \boxed{...}", "15"),  # the prompt's words again
        (r"\boxed{15} and then \boxed{18", "15"),  # cut off by the length limit
        (r"\boxed {15}", "15"),
        (r"\fbox{15}", "15"),
        (r"$\boxed 5$ is the answer", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not close the box
        (r"} \boxed{15}}", "15"),
        (r"<think>\boxed{18}</think> \boxed{15}", "15"),
        (r"<think>\boxed{18}</think> none", None),
        ("6 * 7 = 42\n#### 42", "42"),
        ("#### 18\n#### 42\nthat is all", "42"),
        (r"#### 18 but \boxed{15}", "15"),
        (r"\boxed{18} or \boxed{15}", "18, 15"),  # one answer with two parts
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{15}, \boxed{15}", "15"),
        (r"\boxed{1} or \boxed{\boxed{2}}", r"1, \boxed{2}"),
        ("The answer is 15", None),
        ("####", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "answer, truth",
    [
        (r"\$1{,}250.00", "1250"),
        ("1 250", "1,250"),
        (r"1\,250\,000", "1250000"),
        (r"\dfrac12", "0.5"),
        (r"\frac{6}{8}", "3/4"),
        (r"-2\frac{1}{2}", "-5/2"),
        ("2 1/2", "2.5"),
        (r"1.5 \times 10^{-3}", "0.0015"),
        ("2e3", "2000"),
        ("2^{10}", "1024"),
        ("(2)(3)", "6"),
        ("(1) + " * 25 + "1", "26"),  # many brackets, but none within another
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"\frac12\pi", r"\frac{\pi}{2}"),
        (r"\left( \frac{1}{2}, 3 \right)", "(0.5,3)"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        (r"1 \text{ and } 2", "1, 2"),
        (r"\pm 2", "2, -2"),
        ("x = 5", "5"),
        (r"30 = \theta", "30"),
        ("45 + 45 = 90", "90"),
        ("2.5 million dollars", "2,500,000"),
        (r"15\text{ cm}^2", "15"),
        ("15", "15 hours"),
        ("1 hour", "1 hours"),
        ("$15", "15 dollars"),
        (r"90^\circ", "90 degrees"),
        (r"75\%", "75 percent"),
        ("0.75", r"75\%"),
        ("75", r"75\%"),
        (r"75\%", "75"),
        ("−5", "-5"),
        ("**5**", "5"),
        ("5.", "5"),
        (r"\text{(B)}", "B"),
        ("monday", r"\text{Monday}"),
        (r"x^{2} + 1", "x^2+1"),
        (r"(-\infty, 5]", r"(-\infty,5]"),
        (r"\text{The answer is } 15", "15"),
        ("15", r"First $\boxed{18}$ seems right, however $\boxed{15}$."),
        ("72", "48 + 24 = <<48+24=72>>72\n#### 72"),
        ("2 * -3^2", "-18"),
        ("6/-3", "-2"),
        ("1 point", "1"),
        ("5 dollars for Tom", "5"),
        ("-US$5", "-5 dollars"),
        ("6 feet", "6 ft"),
        ("3 dozen eggs", "36"),
        ("2 + 3 million", "3000002"),
        ("7 (apples)", "7 apples"),
        (r"8 \div 2", "4"),
        ("3.2 x 10^4", "32000"),
        (r"\frac{\frac{3}{4}}{2}", "3/8"),
        ("sqrt13", r"\sqrt{13}"),
        (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
        (r"\sqrt{2} \cdot \sqrt{6}", r"2\sqrt{3}"),
        (r"0.1\overline{6}", "1/6"),
        (r"1,\!234", "1234"),
        (r"2\cdot x", "2x"),
        (r"4\pi r^2", r"4 r^2 \pi"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\\n 3 & 4 \\end{pmatrix}"),
        (r"\begin{pmatrix} \frac{1}{2} \\ 3 \\ \end{pmatrix}", r"\begin{bmatrix} 1/2 \\ 3 \end{bmatrix}"),
        (r"x \in \{1, 2\}", "2, 1"),
        ("3 ≤ x", r"3 \leqslant x"),
        ("(1, 2), (3, 4)", "(3, 4), (1, 2)"),
        ("x = 1, y = 2", "y = 2 and x = 1"),
        (r"\\sqrt{2}", r"\sqrt{2}"),  # a backslash that was escaped twice
        ("5", r"So $\\boxed{5}$."),
        ("–5", "-5"),
        ("$5 per hour", "5"),
        (r"\$5/\text{hour}", "5"),
        (r"\$2.50 \text{ each}", "2.5"),
        (r"\$1{,}800 \text{ dollars}", "$1800"),
        (r"\$1,200/\text{month}", "1200"),
        (r"1,000/3", r"\frac{1000}{3}"),
        ("$2.5 million per year", "2500000"),
        (r"\frac{3}{4} \text{ cups of flour}", "3/4"),
    ],
)
def test_the_same_in_other_words(answer, truth):
    assert agrees(answer, truth)


@pytest.mark.parametrize(
    "answer, truth",
    [
        ("15 or 18", "15"),
        (r"15 \text{ or } 18", "15"),
        ("15, 18", "15"),
        ("15 18", "15"),
        ("15/18", "15"),
        ("15 (or 18)", "15"),
        ("between 15 and 18", "15"),
        (r"\pm 15", "15"),
        ("18 = 15", "15"),
        ("14 + 2 = 15", "15"),
        ("about 15", "15"),
        ("15 at most", "15"),
        (r"x \neq 15", "15"),
        ("x > 15", "15"),
    ],
)
def test_a_hedge_is_not_an_answer(answer, truth):
    """Catches: rules that keep the part of an answer which happens to be right."""
    assert not agrees(answer, truth)


@pytest.mark.parametrize(
    "answer, truth",
    [
        ("-15", "15"),
        ("15.00000001", "15"),
        ("0.3333333333333333", "1/3"),
        ("12345678901234567891", "12345678901234567890"),  # equal as floats
        (r"-2\frac{1}{2}", "-3/2"),  # -(2 + 1/2), not -2 + 1/2
        (r"2\frac{3}{2}", "3"),  # neither a mixed number nor clearly a product
        ("90 minutes", "90 hours"),
        ("15 cents", "$15"),
        ("15 m", "15 s"),
        ("15 ms", "15 m"),
        (r"0.5\%", "0.5"),
        (r"50\%", "0.5"),
        ("15 thousand", "15"),
        ("15 squared", "15"),
        ("15th", "15"),
        ("15x", "15"),
        ("6abc", "6"),
        ("2x = 15", "15"),
        (r"2\pi", "2"),
        (r"\sqrt{2} + 1", "2"),
        (r"\sqrt{-4}", "-2"),
        ("4^{1/2}", "1"),
        ("2 3/2", "7/2"),
        ("(" * 30 + "15" + ")" * 30, "15"),  # deeper than MAX_DEPTH
        ("y = 5", "x = 5"),
        ("1, 250", "1250"),  # a list
        ("7{,}5", "75"),
        ("1,5", "1.5"),
        ("0,123", "123"),
        ("15_000", "15000"),
        ("１５", "15"),
        ("(2, 1)", "(1, 2)"),
        ("[1, 2]", "(1, 2)"),
        ("1, 2, 2", "1, 2"),
        (r"\{1, 1\}", r"\{1, 2\}"),
        ("ab", "ba"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"1/2\pi", r"\frac{\pi}{2}"),
        ("2^3^2", "512"),
        ("2 * -3^2", "18"),  # the power first
        ("10--15", "25"),  # a range or a dash, not a difference
        ("5--3", "8"),
        ("--5", "5"),
        (".", "0"),
        (",", ""),
        ("10–15", "-5"),  # a range
        ("x = 2, y = 1", "x = 1, y = 2"),
        ("x = 1, y = 2", "1, 2"),
        ("Monday, Tuesday", "Tuesday, Monday"),  # a ranking
        ("C, A, B", "A, B, C"),
        ("(2 or 3)", "(2, 3)"),
        ("A B", "B A"),
        (r"\pm 1 \pm \sqrt{2}", r"1 + \sqrt{2}, -1 - \sqrt{2}"),  # four numbers
        (r"[\pm 2]", "[2, -2]"),
        ("2:30", "1:15"),
        ("53_7", "53"),
        ("2f", "f(2)"),
        ("xy", "yx"),
        (r"\sqrt{x^2}", "x"),
        (r"\frac{1}{\sqrt{2}}\%", r"\frac{1}{\sqrt{2}}"),
        (r"\begin{vmatrix} 1 & 2 \end{vmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        ("(x+1)(x-1)", "x^2-1"),  # "expand ..." and "factor ..." are not answered by the question
        ("x^2-1", "(x+1)(x-1)"),
        ("2(x+1)", "2x+2"),
        ("2 + 3(x^y)", "5(x^y)"),
        (r"x^2\frac{1}{2}", r"x^{5/2}"),
        ("25^\\circ C", "25^\\circ F"),
        ("5 dollars", "5 euros"),
        ("15 percent of them", "15%"),
        ("5 of ten", "5"),
        ("5 lots of x", "5"),
        ("$5 m", "5"),  # million
        ("$5/2", "5"),
        ("1 100/200", r"\frac{1100}{200}"),  # a mixed number
    ],
)
def test_another_answer_is_another_answer(answer, truth):
    assert not agrees(answer, truth)


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so $x = -\boxed{6}$", "-6"),
        (r"so -$\boxed{6}$", "-6"),
        (r"$\boxed{6}^2$", "36"),
        (r"$\boxed{3}$ million", "3000000"),
        (r"\$\boxed{6}\text{ million dollars}", "6000000"),
        (r"$\boxed{\$6}\ \mathrm{thousand}$", "6000"),
        (r"a loss of -\$\boxed{6}", "-6"),
        (r"$-\boxed{\$6}$", "-6"),
        (r"$x = \pm\boxed{6}$", "6, -6"),
        (r"$\boxed{5}\sqrt{2}$", r"5\sqrt{2}"),
        (r"- \boxed{6}", "6"),  # a list
        (r"10 - \boxed{6} = 4", "6"),
        (r"$x^2 = \frac{12}{2} = \boxed{6}$", "6"),
        (r"\textcolor{red}{\boxed{6}}", "6"),
        (r"\boxed{6} is right, 7 is not", "6"),
        (r"\boxed{6} months", "6"),
        (r"\boxed{6} \text{ months of it}", "6"),
        (r"- \$\boxed{6}", "6"),  # a list
    ],
)
def test_what_stands_outside_the_box(text, answer):
    """Catches: signs, powers and magnitudes that are dropped, and words that are taken for one."""
    assert verify(text, answer) and verify(text, "6") == (answer == "6")


@pytest.mark.parametrize(
    "text", [r"$\sqrt{\boxed{6}}$", r"$2^{\boxed{6}}$", r"$\boxed{7}/\boxed{6}$", r"not \boxed{6}"]
)
def test_a_box_that_is_a_part_is_no_answer(text):
    assert not verify(text, "6")


@pytest.mark.parametrize("tail", [" or so", " and a half", " and forty five", ", 45", " and x", " and that is wrong"])
def test_a_remark_is_dropped_only_if_it_says_nothing(tail):
    """Catches: a hedge after #### that passes as a remark."""
    assert not verify(f"#### 44{tail}", "44") and verify("#### 44, all in all.", "44")


def test_which_truths_can_be_right():
    """Catches: a problem that no completion can solve and that the data loader does not see."""
    right = [
        "4, 9, and 11",
        r"4, 9,\text{ and }11",
        "7 (pears)",
        "... #### 5",
        r"$\boxed{\frac12}$ or $\boxed{0.5}$",
        "x",
    ]
    never = ["", "  ", "5}", "{5", ",", r"\boxed{}", r"so \boxed{5", "so ####", "a" * 201, 5, None]
    assert [is_verifiable(truth) for truth in right + never] == [True] * len(right) + [False] * len(never)


def pairs_of_different_answers():
    """Pairs made by rules: whatever the two have in common, they say different things."""
    words = """sevenths ninths twelfths twentieths hundredths millionths thirds halves tenth quadrillion million hundred
        dozen score lakh cubed doubled tripled halved factorial hex binary sqrt root log mod remainder times plus twenty
        five twice negative never"""
    phrases = ["point five", "remainder two", "and a half", "or six", "or so", "at most", "thirty five", "choose two"]
    for word, number in itertools.product(words.split() + phrases, ("3", "7.5", r"\frac{1}{2}", "-4")):
        yield from ((form, number) for form in (f"{number} {word}", rf"{number}\text{{ {word}}}", f"{number} ({word})"))
    units = "m|cm|kg|s|ms|h|minutes|miles|feet|apples|dollars|euros|cents|degrees|%|cm^2|cm^3|m/s|square meters"
    yield from ((f"8 {a}", f"8 {b}") for a, b in itertools.permutations(units.split("|"), 2))
    for name in r"half x|twice x|minus x|\exp x|x cannot|never|x isn't|square of x|2x|x^2|-x|1/x|x or y".split("|"):
        yield f"{name} = 9", "9"
    ends = itertools.combinations(["-\\infty", "-2", "0", "1/2", "\\infty"], 2)
    intervals = [f"{left}{a}, {b}{right}" for a, b in ends for left in "([" for right in "])"]
    yield from itertools.permutations(intervals, 2)
    yield from ((rf"{a} \cup {b}", rf"{a} \cap {b}") for a, b in itertools.pairwise(intervals))
    rng = random.Random(0)
    for _ in range(60):
        numbers = [rng.randint(-9, 9) for _ in range(rng.randint(2, 4))]
        other = [numbers[0] + rng.choice([-2, -1, 1, 2]), *numbers[1:]]
        for opening, closing in (("", ""), (r"\{", r"\}"), ("(", ")"), (r"\begin{pmatrix}", r"\end{pmatrix}")):
            a, b = (opening + ", ".join(map(str, row)) + closing for row in (numbers, other))
            yield from [(a, b), (b, a)]
        yield from [(", ".join(map(str, row)), ", ".join(map(str, numbers))) for row in (numbers[1:], [0, *numbers])]
    expressions = r"""5|-5|5^2|\sqrt{5}|-\sqrt{5}|5\sqrt{5}|5\pi|\frac{\pi}{5}|5+\sqrt{5}|5-\sqrt{5}|\sqrt{5}-5|5!|5^5
        |\sqrt[3]{5}|5i|5+i|5-i|5x|x+5|x-5|5-x|x^5|5^x|x/5|5/x|5x^2|5(x+1)|5x+1|(x+1)^5|0.\overline{5}
        |0.0\overline{5}|555|5 thousand|5 \pm 1|\pm 5|\infty|-\infty|f(5)|5f|\log 5|5_6|5:6|(5,6)|[5,6]|5,6|x<5|x>5
        |x\le 5|x\ne 5|x^2=5|ab|ba"""
    yield from itertools.permutations([text.strip() for text in expressions.split("|")], 2)


def test_no_rule_makes_two_answers_one():
    """Catches: a rewriting that goes too far. 5,000 pairs."""
    pairs = list(pairs_of_different_answers())
    assert len(pairs) > 5000 and [pair for pair in pairs if agrees(*pair)] == []


HOSTILE = [
    "{" * 10**5,
    r"\boxed{" * 50_000,
    r"\boxed{" * 20_000 + "1" + "}" * 20_000,
    r"\boxed{1} or " * 20_000,
    r"\boxed" + " " * 10**5,
    r"\boxed " * 20_000,
    "\\" * 10**5,
    "#" * 10**5,
    "</think>" * 20_000,
    "#### " + "9" * 10**5,
    r"\boxed{9**9**9**9}",
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{((9^{99})^{9})^{9}}",
    r"\boxed{1e999999999}",
    r"\boxed{" + "9e999*" * 30 + "9e999}",
    r"\boxed{" + "9" * 199 + "}",
    r"\boxed{" + r"\frac{1}{" * 15 + "1" + "}" * 15 + "}",
    r"\boxed{" + "(" * 99 + "1" + ")" * 99 + "}",
    r"\boxed{" + "√" * 190 + "2}",
    r"\boxed{" + "1 " * 99 + "}",
    r"\boxed{" + "a=" * 99 + "}",
    r"\boxed{" + "a'" * 99 + "}",
    r"\boxed{0^{-1}}",
    "\\boxed{\ud800}",
    "\\boxed{\0}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].encode("unicode_escape").decode())
def test_hostile_text_neither_raises_nor_hangs(text):
    """Catches: eval, powers without bound, int() of 5,000 digits, regular expressions that backtrack, recursion."""
    start = time.perf_counter()
    assert not verify(text, "15")
    verify(text, text)
    assert not verify(r"\boxed{15}", text)
    assert time.perf_counter() - start < 20  # each takes less than three seconds; a hang would never end


def test_random_text_never_raises():
    """Catches: an IndexError or ZeroDivisionError in a corner. 1,000 texts of the pieces that the reader knows."""
    pieces = (
        r"\boxed{ } { \frac \sqrt 1 2 0 . , ( ) [ ] \{ \} ^ - + * / \pm % $ = or and \text{ π e #### _ m hours million"
    )
    rng = random.Random(0)
    for _ in range(1000):
        text, truth = ("".join(rng.choices([" ", *pieces.split()], k=rng.randint(0, n))) for n in (25, 8))
        verify(text, truth)
        verify(r"\boxed{" + text + "}", truth)


@pytest.mark.parametrize("answer", ["x + 1", "2x + 3y", "3 + 2i", "1e999 * 1e233"])
def test_no_answer_raises_where_a_percentage_is_wanted(answer):
    """Catches: a run that ends where a model answers a formula, or a number that is too long when times a hundred."""
    assert not agrees(answer, r"75\%") and agrees("0.75", r"75\%") and agrees(r"\frac{\sqrt{2}}{2}", r"50\sqrt{2}\%")


@pytest.mark.parametrize("text, truth", [(None, "5"), (r"\boxed{5}", 5), (b"\\boxed{5}", "5"), (r"\boxed{5}", None)])
def test_what_is_no_text_is_no_answer(text, truth):
    """Catches: a reward loop that dies on one strange record."""
    assert verify(text, truth) is False


@pytest.mark.parametrize(
    "answer", ["10 wrong guess", "10 below zero", "10 negative", "10 log", "10 choose two", "10 cos"]
)
def test_words_that_change_a_number_are_no_units(answer):
    """Catches: an answer that says something else than 10, and is paid for it."""
    assert not verify(rf"\boxed{{{answer}}}", "10") and verify(r"\boxed{10 pencils}", "10")


def test_zero_to_the_zero_is_no_number():
    assert not verify(r"\boxed{0^0}", "1") and not verify(r"\boxed{0^{-1}}", "0")
