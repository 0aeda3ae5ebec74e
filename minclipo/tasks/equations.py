r"""Are the equations true that a worked solution writes down?

check_equations finds equations between numbers, such as 48/2 = 24, and computes both sides exactly. It knows nothing of
the problem: a solution may compute the wrong thing without a slip, or hide a slip by writing no equation down.
Left out, not guessed: letters, powers, roots, mixed numbers, numbers in words, and labels: "Month 4 = 5 * 30".
Where the text allows a second reading, an equation counts if the first reading is true, and is left out if it is false.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from minclipo.verifier import NumberReader, rational

MAX_TOKENS, MAX_DIGITS = 100, 30  # of one side of an equation, of a number
ANNOTATION = re.compile(r"<<([^<>]*)>>")  # GSM8K's calculator: 48/2 = <<48/2=24>>24
LIST_MARK = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")  # the - of "- 48/2 = 24" is no minus
SPELLINGS = {"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "**": " ", r"\\": ";", ", rem": " rem"}
SPELLINGS |= {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\approx": "≈", r"\qquad": ";", r"\quad": ";", "{,}": ","}
SPELLINGS |= dict.fromkeys([r"\(", r"\)", r"\[", r"\]", r"\$", "$", "€", "£", "&", "~"], " ")
SPELLINGS |= dict.fromkeys([r"\,", r"\:", r"\;", r"\ "], " ") | dict.fromkeys([r"\!", r"\left", r"\right"], "")
SPELLINGS |= dict.fromkeys(["°", r"^\circ", r"^{\circ}"], " degrees ") | {r"\%": "%", " percent ": "% "}
WRAPPER = re.compile(r"\\(?:boxed|mbox|text(?:bf|it|rm)?|math(?:bf|it|rm))\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))", re.ASCII)
# 5 x 3, 5 apples x 3, 20% of 50
TIMES = re.compile(r"(?:(?<=[\d)%])\s*|(?<=[a-z])\s)[xX]\s*(?=[\d(.])|(?<=%)\s+of\s+(?=[\d(.])", re.ASCII)
PRODUCT = re.compile(r"(?<=[\d)])\((?=[\s\d(.-])", re.ASCII)  # 3(4 + 5), but not 24 (3 + 5)
A_B_C = re.compile(r"/[\d.]+/")
NOT_WRITTEN_OUT = re.compile(r"(?:^|\() ?\+|[\d.)] \(|\) [\d.]")  # 10 points + 14 = 24; 2 (3), a product or a remark
THOUSANDS = re.compile(r"(\d{1,3})\.(\d{3})", re.ASCII)  # in half the world 1.200 is 1,200
CONVERSIONS = {7, 12, 16, 24, 30, 52, 60, 100, 365, 1000, 3600}  # of one unit to another
SHORT_UNIT = r"(?:[ckm]m|[km]?g|m[lL]|lb|oz|mph|hr|min|ft|yd)s?"
UNIT = re.compile(rf"(?:{SHORT_UNIT}|[A-Za-z][\w'’-]{{2,}})(?: [\w'’-]+){{0,2}}")  # apples, dollars per hour
# Words that make another number of the one beside them: half of 70, 50% more than 60, log 100; 3 million, 3 and a half,
# 3 R1, 3 bags with a remainder of 1. An added 1 says that more follows: 2 hours and 10 minutes, 1 and 1/3.
PART = r"""half|halves|thirds?|fourths?|quarters?|fifths?|sixths?|eighths?|tenths?|hundred|thousand|million|billion
    |trillion|dozen|percent|point|of|times|plus|minus|mod|squared?|cubed?|root|choose|pi"""
BEFORE = rf"{PART}|twice|double|triple|thrice|than|from|by|to|over|sqrt|log\w*|ln|sin|cos|tan"
BEFORE = rf"(?:\b(?:{BEFORE})(?:\ the)?|\(|1)$"
AFTER = rf"(?:and\ an?\ )?(?:{PART}|r\d*)\b|\w+(?:\ and)?\ 1$|\.|.*\b(?:remainder|round|rough|about|approx)"
BEFORE, AFTER = [re.compile(words, re.VERBOSE | re.IGNORECASE) for words in (BEFORE, AFTER)]
WORD = r"[^\W\d_](?:(?<=[aAI])|[\w'’-])[\w'’-]*(?![\w'’(-])"
TOKEN = rf"""
    (?P<number>(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?P<percent>\ ?%)?
    | (?P<stop>[-=]>|[→⇒≈—?"“”`] | (?<!\d)[.,:;]|[.,:;](?!\d))  # but not the comma of 1,5 and the colon of 9:30
    | (?P<operator>[-+*/()=⋅])
    | (?P<unknown>\\[A-Za-z]*  # \sqrt
        | (?<![^\W\d_])(?![aAI]\b)[^\W\d_](?!\w)  # a letter on its own, or that of 5y
        | (?<=\d)(?!{SHORT_UNIT}\b)[^\W\d_]{{2,3}}(?!\w)  # the letters of 5xy
        | [^\W\d_][\w'’-]*(?=\())  # sqrt(16)
    | (?P<word>(?:(?<=\d)-)?{WORD}(?:\s+{WORD})*)
    | (?P<space>\s+) | ."""
TOKEN = re.compile(TOKEN, re.VERBOSE | re.ASCII | re.DOTALL)


class Token(NamedTuple):
    kind: str  # number, operator, word (several are one token), stop; or unknown: nothing beside it is understood
    text: str
    percent: bool = False
    unit: str = ""  # apples, for a number in the middle of an equation: 3 apples * 2 = 6


class Side(NamedTuple):
    tokens: tuple[Token, ...]
    words: str  # beside it, away from the equals sign; or a sign that the side does not end there


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
    [True, False, True]
    """
    verdicts = {}
    for line in join_lines(text):
        for part in [ANNOTATION.sub("", line), *ANNOTATION.findall(line)]:
            tokens = tokenize(part) if "=" in part else []
            for i, token in enumerate(tokens):
                if token.text == "=":
                    left, right = side(tokens, i, -1), side(tokens, i, 1)
                    equation = left and right and f"{written(left)} = {written(right)}"
                    if equation and verdicts.get(equation) is None:
                        verdicts[equation] = compare(left, right)
    return [verdict for verdict in verdicts.values() if verdict is not None]


def join_lines(text: str) -> list[str]:
    r"""The lines without LaTeX's & and \\ at their ends; one that starts with "=" goes on with the one before it."""
    lines = (line.lstrip(" \t&").rstrip(" \t\\") for line in text.splitlines())
    return "\n".join(filter(None, lines)).replace("\n=", " =").split("\n")


def tokenize(line: str) -> list[Token]:
    line = plain(line)
    mark = LIST_MARK.match(line)
    tokens = [END, END]
    for match in TOKEN.finditer(line, mark.end() if mark else 0):
        kind = match.lastgroup or "unknown"
        if match["number"]:
            kind = "unknown" if len(match[0]) > MAX_DIGITS or re.match(r"0\d", match[0]) else "number"  # 0730: a time
            tokens.append(Token(kind, match["number"].replace(",", ""), bool(match["percent"])))
        elif kind != "space":
            tokens.append(Token(kind, match[0]))
    return join_units([*tokens, END, END, END])


def plain(line: str) -> str:
    """The same line without LaTeX."""
    for spelling, standard in SPELLINGS.items():
        line = line.replace(spelling, standard)
    for _ in range(4):  # from the innermost braces outwards; the blank keeps 2\frac{1}{2} from being a product
        line = FRACTION.sub(r" ((\1\2)/(\3\4))", WRAPPER.sub(r" \1 ", line))
    return PRODUCT.sub("⋅(", TIMES.sub("*", line))


def join_units(tokens: list[Token]) -> list[Token]:
    """3 apples * 2 and 12/hour * 2: what stands between a number and an operator becomes the unit of the number."""
    joined = tokens[:2]
    for token, following in zip(tokens[2:], tokens[3:] + [END]):
        per = 1 if joined[-1].text == "/" else 0
        number = joined[-1 - per]
        is_unit = token.kind == "word" and UNIT.fullmatch(token.text) and not AFTER.match(token.text)
        if is_unit and following.text in "+-*/=)" and number.kind == "number":
            joined[-1 - per :] = [number._replace(unit=number.unit + per * "/" + token.text)]
        else:
            joined.append(token)
    return joined


def side(tokens: list[Token], equals: int, step: int) -> Side | None:
    """The arithmetic that ends before (step -1) or starts after (step 1) an equals sign; None if that takes a guess."""
    opening, closing = "()"[::step]
    run, depth, i = [], 0, equals
    while len(run) <= MAX_TOKENS:
        i += step
        token = tokens[i]
        depth += (token.text == opening) - (token.text == closing)
        if token.kind not in ("number", "operator") or token.text == "=" or depth < 0:  # < 0: the ( of "(48/2 = 24)"
            break
        run.append(token)
    beyond = tokens[i + step]
    if token.kind == "word" and run and run[-1].text == opening:  # 24 (in May)
        run.pop()
    elif beyond.text in "+-*/" and (token.kind == "word" or token.text == "."):  # 5 + twice 6
        return None
    dash = token.kind == "word" and step < 0 and run and run[-1].text == "-"  # apples - 5: or a minus?
    if len(run) > MAX_TOKENS or not run or token.kind == "unknown" or dash:
        return None
    words = token.text if token.kind == "word" else ""
    compound = step > 0 and beyond.kind == "number" and tokens[i + 2].kind != "operator"  # 2 hours 10 minutes
    whole, fraction = (run[-1], tokens[i + 1 : i + 4]) if step > 0 else (beyond, run[:-4:-1])
    mixed = words == "and" and whole.text.isdigit() and "/" in [token.text for token in fraction]  # 1 and 1/3
    if words and compound or mixed:
        words += " 1"
    elif token.text + beyond.kind == ",number" or token.text + beyond.text in ("..", "(+", "(-", "(*", "(/"):
        words = token.text  # 14, 400 / 80; 3.33...; 5 + (6 = 11
    return Side(tuple(run[::step]), words)


def compare(left: Side, right: Side) -> bool | None:
    """Are the two sides equal? None: this is no equation, or not understood."""
    operands = [token for token in left.tokens if token.kind == "number"]
    numbers = operands + [token for token in right.tokens if token.kind == "number"]
    label = len(operands) == 1 and (left.words or operands[0].unit)  # "Month 4 = 5 * 30", "half of 70 = 70 / 2"
    if label or len(numbers) < 3:  # "day 2 = 8 eggs" is no sum
        return None
    scales = (100, 1) if any(token.percent for token in numbers) else (1,)
    whole = [[token._replace(text=THOUSANDS.sub(r"\1\2", token.text)) for token in s.tokens] for s in (left, right)]
    try:
        if any(equal(left.tokens, right.tokens, scale) for scale in scales) or equal(*whole, 1):
            return True
        return None if may_mean_another(left, right) else False
    except ZeroDivisionError:
        return False
    except ValueError:
        return None


def may_mean_another(left: Side, right: Side) -> bool:
    """Has a false equation a second reading?"""
    texts = [token.text for token in left.tokens]
    units = {(token.unit, token.percent) for token in left.tokens if token.kind == "number"}
    named = any(token.unit for token in right.tokens)
    a, b = sorted(abs(value(side.tokens, 1)) for side in (left, right))
    dashed = texts[1:2] == ["-"] and (len(texts) > 3 or Fraction(texts[0]) < Fraction(texts[2]))
    return bool(
        BEFORE.search(left.words)
        or AFTER.match(right.words)
        or any(A_B_C.search(written(side)) for side in (left, right))  # 60 / 3/4 = 80: 60 / (3/4)?
        or (left.words and (dashed or texts[0] + texts[-1] == "()"))  # Weeks 1-4 = 4 * 7, the group (3 + 4) = 2 * 7
        or (left.words == "," and len(texts[0]) == 3)  # 14, 400 / 80
        or (len(units) > 1 and (left.words or {"+", "-"} & {*texts}))  # 1 hour + 30 minutes = 90, 50 + 10% = 55
        or (named and len(right.tokens) > 2)  # 7 minutes * 60 = 420 seconds + 23 seconds
        or ((named or right.words or max(units)[0]) and a and b / a in CONVERSIONS)  # 60 mph * 30 minutes = 30 miles
    )


def written(part: Side) -> str:
    return "".join(token.text + "%" * token.percent for token in part.tokens)


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
    reader = NumberReader(text.replace("⋅", ""))
    total = rational(reader.sum())
    if NOT_WRITTEN_OUT.search(text) or reader.text[reader.position :].strip():
        raise ValueError("a sum that begins before this side, a number beside a parenthesis, or something left over")
    return total
