"""Solution of exercise 14. Compare minclipo/verifier.py, tasks/equations.py."""

import re
from fractions import Fraction
from operator import add, mul, sub, truediv

CHANGES = {"dozen", "hundred", "thousand", "million", "percent", "half", "or"}
WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<plain>{WHOLE}(?:\.\d+)?)|(?P<above>{WHOLE})/(?P<below>{WHOLE}))"
)
LATEX_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")

PLAIN = r"\d+(?:\.\d+)?"
RUN = re.compile(rf"{PLAIN}(?: *[-+*/=] *{PLAIN})*")  # the longest there is
EQUATION = re.compile(rf"({PLAIN}) *([-+*/]) *({PLAIN}) *= *({PLAIN})")
SIGNS = {"+": add, "-": sub, "*": mul, "/": truediv}


def final_answer(text: str) -> str | None:
    for box in reversed(list(re.finditer(r"\\boxed\{", text))):
        depth = 1
        for i in range(box.end(), len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                break
        content = text[box.end() : i].strip() if depth == 0 else ""
        if content:
            return content
    return None


def number(answer: str) -> Fraction | None:
    text, _, unit = answer.strip().replace("{,}", ",").partition(" ")
    if unit and (not unit.isalpha() or unit in CHANGES):
        return None
    found = NUMBER.fullmatch(LATEX_FRACTION.sub(r"\1/\2", text))
    if not found:
        return None
    parts = [found[part] or "1" for part in ("plain", "above", "below")]
    plain, above, below = (Fraction(part.replace(",", "")) for part in parts)
    value = plain * above / below if below else None
    return -value if value is not None and found["sign"] else value


def equations(text: str) -> list[bool]:
    verdicts = []
    for run in RUN.finditer(text):
        before, after = text[: run.start()], text[run.end() :]
        touched = (before[-1:] + after[:1]).strip()
        signs = before.rstrip(" ")[-1:] + after.lstrip(" ")[:1]
        found = EQUATION.fullmatch(run[0])
        if not found or re.search(r"\w", touched) or re.search(r"[-+*/=]", signs):
            continue
        left, sign, right, result = found.groups()
        if sign == "/" and Fraction(right) == 0:
            continue
        computed = SIGNS[sign](Fraction(left), Fraction(right))
        verdicts.append(computed == Fraction(result))
    return verdicts
