r"""Are the equations true that a worked solution writes down?

check_equations finds equations between numbers, such as 48/2 = 24, and computes both sides exactly. It knows nothing of
the problem: a solution may compute the wrong thing without a slip, or hide a slip by writing no equation down.
Left out, not guessed: letters, powers, roots, numbers with units or words between them.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from minclipo.verifier import NumberReader, rational

MAX_TOKENS = 100  # of one side of an equation
MAX_DIGITS = 30  # of a number

ANNOTATION = re.compile(r"<<([^<>]*)>>")  # GSM8K's calculator: 48/2 = <<48/2=24>>24
LIST_MARK = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")  # the - of "- 48/2 = 24" is no minus
SPELLINGS = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", r"\times": "*", r"\cdot": "*", r"\div": "/", "**": " "}
SPELLINGS |= dict.fromkeys([r"\(", r"\)", r"\[", r"\]", r"\$", "$", "€", "£"], " ") | {r"\%": "%"}
TIMES = re.compile(r"(?<=[\d)%])\s*[xX]\s*(?=[\d(.])|(?<=%)\s+of\s+(?=[\d(.])", re.ASCII)  # 5 x 3, 20% of 50
A_B_C = re.compile(r"/[\d.]+/")
NOT_WRITTEN_OUT = re.compile(r"(?:^|\() ?\+|[\d.)] \(|\) [\d.]")  # 10 points + 14 = 24; 2 (3), a product or a remark
TOKEN = re.compile(
    r"""(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?P<percent>\ ?%)?
    | (?P<stop>[-=]>|[→⇒?"“”`] | (?<!\d)[.,:;]|[.,:;](?!\d))  # but not the comma of 1,5 and the colon of 9:30
    | (?P<operator>[-+*/()=])
    | (?P<unknown>(?<![^\W\d_])(?![aAI]\b)[^\W\d_](?!\w))  # a letter on its own, or that of 5y
    | (?P<word>(?:(?<=\d)-)?[^\W\d_][\w'’-]*)
    | (?P<space>\s+)
    | (?P<other>.)""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)


class Token(NamedTuple):
    kind: str  # "number", "operator", "word", "stop", or "unknown", next to which nothing is understood
    text: str
    percent: bool = False


END = Token("stop", "end")


def check_equations(text: str) -> list[bool]:
    """For each equation between numbers, line by line: are its sides equal?

    Equal means exactly equal; or, if the right side is one number with decimals, equal when rounded to these decimals:
    10/3 = 3.33 is right, 10/3 = 3.34 and 10/3 = 3 are not. Division by zero is wrong.
    In 2 + 3 = 5 * 4 = 20 each equals sign is an equation of its own. Without an operation it is none: day 2 = 8 eggs.
    A percent sign is a hundredth or a unit, whichever makes the equation right: 20% of 50 = 10, 60% - 20% = 40%.
    An equation that is repeated counts once, also GSM8K's 48/2 = <<48/2=24>>24.
    Nothing raises, and the time is linear in the length of the text.

    >>> check_equations("48/2 = <<48/2=24>>24 clips in May, so 48 + 24 = $71. With x = 3, 2 clips + 3 clips = 5 clips.")
    [True, False]
    """
    verdicts = {}
    for line in text.splitlines():
        for part in [ANNOTATION.sub("", line), *ANNOTATION.findall(line)]:
            tokens = tokenize(part) if "=" in part else []
            for i, token in enumerate(tokens):
                if token.text == "=":
                    left, right = side(tokens, i, -1), side(tokens, i, 1)
                    verdict = compare(left, right) if (left, right) not in verdicts else None
                    if verdict is not None:
                        verdicts[left, right] = verdict
    return list(verdicts.values())


def tokenize(line: str) -> list[Token]:
    for spelling, standard in SPELLINGS.items():
        line = line.replace(spelling, standard)
    line = TIMES.sub("*", line)
    mark = LIST_MARK.match(line)
    tokens = []
    for match in TOKEN.finditer(line, mark.end() if mark else 0):
        kind = "unknown" if match.lastgroup == "other" else match.lastgroup
        if match["number"]:
            strange = len(match[0]) > MAX_DIGITS or re.match(r"0\d", match[0])  # 0730 is a time
            kind = "unknown" if strange else "number"
            tokens.append(Token(kind, match["number"].replace(",", ""), bool(match["percent"])))
        elif kind != "space" and not (kind == "word" and tokens and tokens[-1].kind == "word"):
            tokens.append(Token(kind, match[0]))  # of several words the first
    return tokens


def side(tokens: list[Token], equals: int, step: int) -> tuple[Token, ...] | None:
    """The arithmetic that ends before (step -1) or starts after (step 1) an equals sign; None if that takes a guess."""
    opening, closing = "()"[::step]
    run, depth, i = [], 0, equals
    while len(run) <= MAX_TOKENS:
        i += step
        token = tokens[i] if 0 <= i < len(tokens) else END
        depth += (token.text == opening) - (token.text == closing)
        if token.kind not in ("number", "operator") or token.text == "=" or depth < 0:  # < 0: the ( of "(48/2 = 24)"
            break
        run.append(token)
    beyond = tokens[i + step] if 0 <= i + step < len(tokens) else END
    if len(run) > MAX_TOKENS or token.kind == "unknown":
        return None
    if token.kind == "word" and run and run[-1].text == opening:  # 24 (in May)
        run.pop()
    elif token.kind == "word" and beyond.text in "+-*/":  # 2 apples * 6
        return None
    fraction = tokens[i + 1 : i + 4] if step > 0 else run[:-4:-1]
    if token.text == "and" and beyond.kind == "number" and is_proper_fraction(fraction):  # 1 and 1/3
        return None
    if token.kind == "word" and step < 0 and run and run[-1].text == "-":  # apples - 5: a minus or a dash?
        return None
    return tuple(run[::step])


def is_proper_fraction(tokens: list[Token]) -> bool:
    if [token.kind for token in tokens] != ["number", "operator", "number"] or tokens[1].text != "/":
        return False
    return Fraction(tokens[0].text) < Fraction(tokens[2].text)


def compare(left: tuple[Token, ...] | None, right: tuple[Token, ...] | None) -> bool | None:
    """Are the two sides equal? None: this is no equation, or not understood."""
    numbers = [token for token in (left or ()) + (right or ()) if token.kind == "number"]
    if not left or not right or len(numbers) < 3:  # "day 2 = 8 eggs" is no sum
        return None
    scales = (100, 1) if any(token.percent for token in numbers) else (1,)
    try:
        if any(equal(left, right, scale) for scale in scales):
            return True
    except ZeroDivisionError:
        return False
    except ValueError:
        return None
    # 60 / 3/4 = 80: the author may mean 60 / (3/4)
    return None if any(A_B_C.search("".join(token.text for token in tokens)) for tokens in (left, right)) else False


def equal(left: tuple[Token, ...], right: tuple[Token, ...], percent: int) -> bool:
    difference = abs(value(left, percent) - value(right, percent))
    decimals = len(right[-1].text.partition(".")[2])
    if difference == 0 or len(right) > 2 or not decimals:  # 2: a number and its sign
        return difference == 0
    return difference * (percent if right[-1].percent else 1) <= Fraction(1, 2 * 10**decimals)


def value(tokens: tuple[Token, ...], percent: int) -> Fraction:
    """The number that a side comes to, by the verifier's arithmetic. ValueError: this is no arithmetic."""
    text = " ".join(f"({token.text}/{percent})" if token.percent else token.text for token in tokens)
    text = re.sub(r"(?<=[-+] )- ([\d.]+)", r"(0 - \1)", text)  # 5 - -3: the verifier takes that for a range
    if NOT_WRITTEN_OUT.search(text):
        raise ValueError("a sum that begins before this side, or a number beside a parenthesis")
    reader = NumberReader(text)
    total = rational(reader.sum())
    if reader.text[reader.position :].strip():
        raise ValueError("something is left over")
    return total
