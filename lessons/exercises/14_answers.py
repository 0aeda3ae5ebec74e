"""Exercise 14: what stands between a completion and its reward.

Minutes: 60. Difficulty: hard.

Fill in the three functions. `python lessons/exercises/14_answers.py` tells right from
wrong; with --solution it checks lessons/solutions/14_answers.py, which is there to be
read afterwards.
"""

from fractions import Fraction

from checking import expect_true, report

# One of these after a number makes another number of it, so they are no units.
CHANGES = {"dozen", "hundred", "thousand", "million", "percent", "half", "or"}


def final_answer(text: str) -> str | None:
    r"""What is in the last \boxed{...} that is closed and not empty; None: there is none.

    Without blanks around it. Braces nest: the content of \boxed{\frac{1}{2}} is
    \frac{1}{2}. No box lies within another closed one.
    """
    raise NotImplementedError(
        "Count braces from each box's own; look at the boxes from the last to the first."
    )


def number(answer: str) -> Fraction | None:
    r"""The number that an answer says, exactly; None where it says none, or in doubt.

    A whole number, 15 or 015 or 1,250 or 1{,}250; a decimal, 15.00 or 1,250.5; or a
    fraction of whole numbers, 3/4 or \frac{3}{4}. A minus may come first, and one blank
    and a unit may follow: a word of letters only that is not in CHANGES. Commas stand
    before groups of three digits: 1,25 is None, and so is 1/0. Blanks at the ends do not
    count.
    """
    raise NotImplementedError(
        "Take a unit off first. Then one pattern for the whole text: re.fullmatch."
    )


def equations(text: str) -> list[bool]:
    """Whether each equation in the text is true, in their order.

    An equation is number, sign, number, "=", number: 12 + 30 = 42, with any number of
    blanks (or none) between them. Signs are + - * /, numbers look like 7 or 0.25, and all
    is computed exactly. In doubt there is no verdict. An equation is left out if
    * more belongs to it: 2 + 3 + 4 = 9, or 2 + 3 = 5 = 4 + 1, or x - 2 + 3 = 7;
    * a sign comes before it, as in -2 + 3 = 1;
    * a letter touches it, as in 2 + 3 = 5x;
    * it divides by 0.
    """
    raise NotImplementedError(
        "Find the longest runs of numbers with signs between them, then judge each."
    )


# The checks. Reading them is allowed.


def check_final_answer(final_answer):
    def check(text, wanted, what):
        found = final_answer(text)
        message = f"{what}: the answer of {text} is {wanted}, found {found}"
        expect_true(found == wanted, message)

    check(r"so \boxed{15}.", "15", "one box")
    check(r"\boxed{\frac{1}{2}} it is", r"\frac{1}{2}", "braces within the box")
    nested = r"\boxed{\sqrt{\frac{1}{2}}}"
    check(nested, r"\sqrt{\frac{1}{2}}", "braces within braces")
    check(r"\boxed{3}, no: \boxed{4}", "4", "two boxes: the last one counts")
    check(r"{a set} \boxed{ 5 }", "5", "blanks around the answer")
    check(r"\boxed{6}. Or \boxed{7", "6", "the last box is never closed")
    check(r"\boxed{8} as asked for, in \boxed{ }", "8", "the last box is empty")
    check(r"\boxed{1 + {2}", None, "a brace too few")
    check(r"\boxed{3 ... no, \boxed{4}", "4", "an open box before a closed one")
    check(r"\boxed{9} \boxed{", "9", "the text ends within a box")
    check("15", None, "no box")


def check_number(number):
    def check(answer, wanted, what):
        wanted = None if wanted is None else Fraction(wanted)
        found = number(answer)
        shown = "None" if wanted is None else wanted
        expect_true(found == wanted, f"{what}: {answer!r} says {shown}, found {found}")

    check("15", 15, "a whole number")
    check(" 012 ", 12, "a zero in front, blanks around")
    check("-3", -3, "a minus")
    check("15.00", 15, "a decimal")
    check("0.1", "1/10", "a decimal, exactly: float 0.1 is another number")
    check("1,250", 1250, "a comma before three digits")
    check("1{,}250.5", "2501/2", "the comma as LaTeX has it, with decimals")
    check("12,345,678", 12345678, "two commas")
    check("3/4", "3/4", "a fraction")
    check(r"-\frac{30}{8}", "-15/4", "a fraction as LaTeX has it, with a minus")
    check("15 euros", 15, "a unit")
    check("3/4 hours", "3/4", "a fraction and a unit")
    check("2 million", None, "million is no unit: the number is another one")
    check("15 or 18", None, "two numbers")
    check("about 15", None, "a word before the number")
    check("15 x 2", None, "more after the word")
    check("1,25", None, "a comma before two digits")
    check("1,2500", None, "a comma before four digits")
    check("1/0", None, "no number")
    check(r"\frac{1}{0}", None, "no number, as LaTeX has it")
    check("10**8", None, "a notation that was not agreed on")
    check("fifteen", None, "a word")
    check("", None, "nothing")


def check_equations(equations):
    def check(text, wanted, what):
        found = equations(text)
        message = f"{what}: the verdicts on {text!r} are {wanted}, found {found}"
        expect_true(found == wanted, message)

    check("12 + 30 = 42", [True], "a true one")
    check("12+30=43", [False], "a false one, without blanks")
    check("so 12 + 30 = 42, and 42 / 2 = 20.", [True, False], "two; a full stop behind")
    check("7 - 9 = 2", [False], "a difference below 0")
    check("0.1 + 0.2 = 0.3", [True], "exactly: floats say otherwise")
    check("10 / 4 = 2.5", [True], "a decimal on the right")
    check("2 * 3 = 6\n4 * 4 = 15", [True, False], "a line each")
    check("2 + 3 + 4 = 9", [], "a longer sum: 3 + 4 = 9 does not stand there")
    check("2 + 3 = 5 + 4 = 9", [], "a chain: the right side goes on")
    check("2 + 3 = 5 = 4 + 1", [], "two equals signs")
    check("x - 2 + 3 = 7", [], "a sign before it, after a letter")
    check("-2 + 3 = 1", [], "a minus before it")
    check("2 + 3 = 5x", [], "a letter behind it")
    check("x2 + 3 = 5", [], "a letter before it")
    check("2 + 3 = 5 * x", [], "a sign behind it")
    check("1 / 0 = 0", [], "a division by 0")
    check("2x + 3 = 5 and 1 + 1 = 2", [True], "an unknown in one, none in the other")
    check("the answer is 42", [], "no equation")


if __name__ == "__main__":
    report(globals())
