r"""Is the final answer of a word problem right? (Standard library only.)

Answers are read as exact numbers, neither evaluated by Python nor rounded: 0.75, 3/4 and \frac68 are one number, 0.333
is not 1/3. What is no number is compared as a string without spaces.
Left out: algebra (x+1 is not known to be 1+x), logarithms, factorials, number bases, approximations.

Where in doubt the verdict is False: a right answer refused costs one reward, a wrong one accepted is learnt.
The work is bounded: extraction takes one pass over the text, and whatever follows sees at most 200 characters.
"""

import re
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

MAX_LENGTH = 200  # characters of an answer
MAX_DEPTH = 20  # parentheses within parentheses
MAX_BITS = 4096  # of a power: 9^{9^9} is refused before it is computed


def verify(text: str, truth: str) -> bool:
    r"""True if the final answer of a completion is the truth, and nothing beside it. Never raises.

    truth: a bare answer, or a solution that ends in "#### 72" or holds a box.
    A unit may be left out or added, but not exchanged: 90 and 90 hours agree, 90 minutes and 90 hours do not.
    75% as the truth agrees with 75 and 0.75. A truth without a percent sign does not say what it counts: 75 agrees with
    75%, but 0.75 does not. Order matters in lists, pairs and intervals, but not in sets, \{1, 2\}.

    >>> verify(r"They cost \boxed{\$1{,}250.00} in all.", "#### 1250"), verify(r"\boxed{15 \text{ or } 18}", "15")
    (True, False)
    """
    if not isinstance(text, str) or not isinstance(truth, str):
        return False
    answer = extract_answer(text)
    truth = extract_answer(truth) or truth.strip()
    if answer is None or max(len(answer), len(truth)) > MAX_LENGTH:
        return False
    return same_answer(read_answer(answer), read_answer(truth))


# 1. Where is the answer?

BRACE_OR_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)  # but \{ and \} are no braces
PLACEHOLDER = re.compile(r"[\s.…_?]*")  # "...", "___": what prompts put into the box that they ask for
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{$][^{$\n]*)")  # \boxed 5
JOINT = re.compile(r"[\s$,;]*(?:or|and|\\text *\{ *(?:or|and) *\})?[\s$,;]*")  # "$ or $" between two boxes


def extract_answer(text: str) -> str | None:
    r"""The final answer as written: the last box that is filled in and closed, else what follows the last "####".

    What a model thinks, up to </think>, does not count. Boxes side by side, or joined by a comma, "or" or "and", are
    one answer with several parts, so that "\boxed{15} or \boxed{18}" is a hedge. None: there is no answer.
    """
    text = text.rpartition("</think>")[2]
    boxes = [box for box in find_boxes(text) if PLACEHOLDER.match(text, box.inside, box.end).end() < box.end]
    if boxes:
        parts, first = [], len(text)
        for box in reversed(boxes):
            if box.end >= first:  # a box within a box
                continue
            if parts and (first - box.end > 40 or not JOINT.fullmatch(text, box.end + 1, first)):
                break
            parts.append(text[box.inside : box.end].strip())
            first = box.start
        return ", ".join(dict.fromkeys(reversed(parts)))
    if bare := BARE_BOX.findall(text):
        return bare[-1].strip()
    before, mark, after = text.rpartition("####")
    return after.strip().partition("\n")[0].strip() or None if mark else None


class Box(NamedTuple):
    start: int  # of the backslash
    inside: int  # of the content
    end: int  # of the closing brace


def find_boxes(text: str) -> list[Box]:
    """All closed boxes in the order in which they close. One pass with a stack, however deeply they are nested."""
    boxes, opened = [], []
    for match in BRACE_OR_BOX.finditer(text):
        if match["box"] or match[0] == "{":
            opened.append(match)
        elif match[0] == "}" and opened:
            opening = opened.pop()
            if opening["box"]:
                boxes.append(Box(opening.start(), opening.end(), match.start()))
    return boxes


# 2. What does it say? "x = (1, 2 cm)" has the name "x", the brackets "()" and the elements 1 and 2 cm.


class Answer(NamedTuple):
    name: str
    brackets: str
    elements: list  # of Quantity, or of str where an element is no number


SPELLINGS = {"−": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ", "²": "^2"}
SPELLINGS |= {"³": "^3", "°": r"^\circ ", "±": r"\pm ", "∞": r"\infty ", "{,}": ",", r"\$": "$", r"\%": "%", r"\!": ""}
SPELLINGS |= {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\{": "⟨", r"\}": "⟩"}
WRAPPER = re.compile(r"\\(?:boxed|fbox|mbox|text(?:bf|it|rm)?|math(?:bf|it|rm)|boldsymbol) *\{([^{}]*)\}")  # \text{cm}
STYLE = re.compile(r"\\(?:[()\[\]]|(?:left|right|[bB]igg?[lr]?|displaystyle|bf|rm)(?![A-Za-z]))")  # \left( \right)
SPACES = re.compile(r"(?:\\[ ,;:]|\\q?quad(?![A-Za-z])|~|\s)+")  # "\, " "\quad"
DEGREES = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))")  # ^\circ, ^{\circ}
ANSWER_IS = re.compile(r"^(?:the )?(?:final |correct )?answer ?(?:is|:|=) ?", re.IGNORECASE)  # "The final answer is 5"
# 1,234,567 and 1 234 567; but 1, 234 is a list, 1 100/200 a mixed number, and 0,123 a decimal in half the world
GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+)(?! ?[\d/])", re.ASCII)
NAME = re.compile(  # x, x_1, f(x), \alpha; but not sin(x)
    r"(?!.*\b(?:not|sin|cos|tan|log|ln)\b)\\?[a-z][a-z' ]*(?:_\{?\w+\}?)?(?:\([^()]*\))?", re.ASCII | re.I
)


def read_answer(text: str) -> Answer:
    """Takes an answer apart."""
    name, text = split_name(clean(text))
    brackets, inner = text[:1] + text[-1:], split_list(text[1:-1])
    if brackets in ("()", "[]", "(]", "[)", "⟨⟩") and inner:
        if brackets == "()" and len(inner) == 1:  # (90) is 90, (B) is B
            brackets, inner = "", [text[1:-1]]
    else:
        brackets, inner = "", split_list(GROUPED.sub(lambda match: re.sub("[ ,]", "", match[0]), text)) or [text]
    parts = []
    for part in inner:
        parts += [part[3:], "-" + part[3:]] if part.startswith(r"\pm") else [part]
    return Answer(name, brackets, [read_quantity(part) or plain(part) for part in parts])


def clean(text: str) -> str:
    """One spelling for each symbol, and nothing that only styles the text."""
    for spelling, standard in SPELLINGS.items():
        text = text.replace(spelling, standard)
    before = None
    while text != before:  # from the innermost wrapper outwards
        before, text = text, WRAPPER.sub(r" \1 ", text)
    text = DEGREES.sub(" degrees", SPACES.sub(" ", STYLE.sub("", text)))
    text = text.strip(" *").rstrip(" .,;")
    if text.count("$") == 2 and text[0] == text[-1] == "$":  # a formula, not a price
        text = text[1:-1]
    return ANSWER_IS.sub("", text.strip(), count=1)


def split_name(text: str) -> tuple[str, str]:
    """("x", "5") for "x = 5" and "5 = x"; ("", "9") for "4 + 5 = 9". Other equations, 2x = 5 or 4 = 5, stay whole."""
    if "=" not in text:
        return "", text
    sides = [side.strip() for side in text.split("=")]
    names = [side for side in sides if NAME.fullmatch(side) and not read_quantity(side)]
    values = [side for side in sides if side not in names]
    readings = [read_quantity(value) for value in values]
    if len(values) == 1 or readings and all(r and r[:2] == readings[0][:2] for r in readings):
        return "".join(names), values[-1]
    return "", text


def split_list(text: str) -> list[str]:
    """The parts between commas, semicolons, "and", "or" outside all brackets; [] if the brackets do not match."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{⟨]|[)\]}⟩]|[,;]|\b(?:and|or)\b", text):
        depth += (match[0] in "([{⟨") - (match[0] in ")]}⟩")
        if depth < 0:
            return []
        if depth == 0 and match[0] not in ")]}⟩":
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return parts + [text[start:].strip()] if depth == 0 else []


def plain(text: str) -> str:
    """What is compared where no number can be read: no spaces, x for {x}, pi for \\pi, monday for Monday."""
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"(?<!\\)\{(\w)\}", r"\1", text, flags=re.ASCII)
    text = re.sub(r"\\(?=[A-Za-z])", "", text)
    return text.casefold() if text.isalpha() and len(text) > 1 else text


# 3. Which number is it?


class Quantity(NamedTuple):
    """The number x * pi ** power, x kept as x * |x|: so square roots are exact, too, and equal numbers look equal."""

    square: Fraction
    power: int = 0
    unit: str = ""


PRICE = re.compile(r"([-+]? ?)([$€£]?)([^$€£]*)([$€£]?)")  # -$5, 5€
CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds"}
MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNIT = re.compile(r" ?[A-Za-z](?:[A-Za-z /.-]|\^ ?\(?[23]\)?)*")  # " hours", "cm^2", " miles/hour"
SHORT_UNITS = set("m cm mm km g kg mg l L ml mL s ms h hr hrs min in ft yd mi mph lb lbs oz sq cu".split())
# Words that make another number, or none, of the one before them
NO_UNITS = set(
    """squared cubed factorial half halves third fourth quarter fifth sixth eighth tenth hundredth thousandth mil mln
    lakh crore not approx approximately about around roughly maybe perhaps possibly probably plus minus times over mod
    modulo base root least most than more less fewer through versus negative below above under beyond choose wrong
    right correct log ln exp sin cos tan""".split()
)


def read_quantity(text: str) -> Quantity | None:
    """A number and what it counts: "-3/4", "$2.5 million", "15 cm^2", "75%". None for anything else."""
    if (price := PRICE.fullmatch(text)) and (currency := price[2] or price[4]):
        text = f"{price[1]}{price[3]} {CURRENCIES[currency]}"
    reader = NumberReader(one_line(text))
    try:
        number = reader.sum()
    except (ValueError, ZeroDivisionError):
        return None
    rest = reader.text[reader.position :]
    while (word := rest.strip().partition(" ")[0]).lower().removesuffix("s") in MAGNITUDES:
        number = times(number, exact(MAGNITUDES[word.lower().removesuffix("s")]))
        rest = rest.strip()[len(word) :]
    unit = read_unit(rest)
    return None if unit is None else number._replace(unit=unit)


def read_unit(text: str) -> str | None:
    """hour for " hours", % for "%" and " percent"; None if this can be no unit: 15x is a product, 15th is not 15."""
    if text.strip() in ("", "%", "percent"):
        return "%" if text.strip() else ""
    words = re.findall("[A-Za-z]+", text)
    singular = [word.lower().removesuffix("s") if len(word) > 3 else word for word in words]
    if not UNIT.fullmatch(text) or len(words) > 4 or NO_UNITS & {*singular, *text.lower().split()}:
        return None
    apart = text[0] == " "  # 6 pens, but 6abc; 5 m, but 5m
    if not all(len(word) >= 4 - apart or word in SHORT_UNITS for word in words) or len(words[0]) + apart < 2:
        return None
    return "".join(re.findall("[/^23]", text) + singular)


SYMBOLS = {r"\\times|\\cdot": "*", r"\\sqrt(?![A-Za-z])": "√", r"(?<![A-Za-z])\\?pi(?![A-Za-z])": "π"}
FRACTION = re.compile(r"\\frac *(\d|\{[^{}]*\}) *(\d|\{[^{}]*\})", re.ASCII)  # \frac12, \frac{1}{2}
MIXED = re.compile(r"(?<![\d./])(\d+) ?(?:\\frac *\{(\d+)\} *\{(\d+)\}| (\d+) ?/ ?(\d+))", re.ASCII)  # 2 1/2


def one_line(text: str) -> str:
    r"""Arithmetic without commands: ((1)/(√(2))) for \frac{1}{\sqrt{2}}, and (2+1/2) for the mixed number 2\frac12."""
    for symbol, replacement in SYMBOLS.items():
        text = re.sub(symbol, replacement, text)
    text = re.sub(r"\\frac *(\d) *(\d)", r"\\frac{\1}{\2}", text, flags=re.ASCII)
    text = MIXED.sub(mixed_number, text)
    before = None
    while text != before:  # from the innermost braces outwards
        before = text
        text = re.sub(r"([√^]) *\{([^{}]*)\}", r"\1(\2)", text)
        text = FRACTION.sub(r"((\1)/(\2))", text)
    return text.replace("{", "(").replace("}", ")")


def mixed_number(match: re.Match) -> str:
    whole, numerator, denominator = filter(None, match.groups())
    return f"({whole}+{numerator}/{denominator})" if int(numerator) < int(denominator) else "?"


class NumberReader:
    """Reads the number that a text starts with, by recursive descent; ValueError where there is none."""

    def __init__(self, text: str):
        self.text, self.position, self.depth = text, 0, 0

    def take(self, pattern: str) -> str:
        """Moves past the pattern, and past spaces before it, if it comes next; "" if it does not."""
        match = re.compile(f" *({pattern})", re.ASCII).match(self.text, self.position)
        self.position = match.end() if match else self.position
        return match[1] if match else ""

    def sum(self) -> Quantity:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too many parentheses within parentheses")
        total = times(exact(-1 if self.take("[-+]") == "-" else 1), self.product())
        while sign := self.take("[-+]"):
            term = rational(self.product())
            total = exact(rational(total) + (term if sign == "+" else -term))
        self.depth -= 1
        return total

    def product(self) -> Quantity:
        value, divided = self.power(), False
        while True:
            if sign := self.take("[*/]"):
                factor = times(exact(-1), self.power()) if self.take("-") else self.power()  # 2 * -3
                value = times(value, factor if sign == "*" else raised(factor, -1))
                divided |= sign == "/"
            elif self.text[self.position :].lstrip()[:1] in ("√", "π", "("):  # 2√2
                if divided:
                    raise ValueError("1/2 pi may be (1/2) pi or 1/(2 pi)")
                value = times(value, self.power())
            else:
                return value

    def power(self) -> Quantity:
        base = self.atom()
        if not self.take(r"\^"):
            return base
        digits = self.take(r"-?\d+")
        exponent = Fraction(digits) if digits else rational(self.atom())
        if exponent.denominator != 1:
            raise ValueError("a root in the exponent")
        return raised(base, int(exponent))

    def atom(self) -> Quantity:
        if self.take("√"):
            radicand = rational(self.atom())
            if radicand < 0:
                raise ValueError("root of a negative number")
            return Quantity(radicand)
        if self.take("π"):
            return Quantity(Fraction(1), 1)
        if self.take(r"\("):
            value = self.sum()
            if not self.take(r"\)"):
                raise ValueError("a parenthesis is not closed")
            return value
        return exact(Fraction(self.take(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?")))  # "" is a ValueError


def exact(value: Fraction | int) -> Quantity:
    return Quantity(Fraction(value) * abs(value))


def rational(number: Quantity) -> Fraction:
    """The number as a fraction; ValueError if it is not one, such as the square root of 2."""
    size = abs(number.square)
    root = Fraction(isqrt(size.numerator), isqrt(size.denominator))
    if number.power or root * root != size:
        raise ValueError("not rational")
    return -root if number.square < 0 else root


def times(a: Quantity, b: Quantity) -> Quantity:
    square = a.square * b.square
    return Quantity(square, a.power + b.power if square else 0)


def raised(base: Quantity, exponent: int) -> Quantity:
    if base.square == 0 and exponent <= 0:
        raise ZeroDivisionError("0^0 and 1/0 are no numbers")
    bits = base.square.numerator.bit_length() + base.square.denominator.bit_length()
    if abs(exponent) > 1 and abs(exponent) * bits > MAX_BITS:
        raise ValueError("too large a power")
    return Quantity(base.square**exponent, base.power * exponent)


# 4. Is it the same?


def same_answer(answer: Answer, truth: Answer) -> bool:
    if answer.brackets != truth.brackets or len(answer.elements) != len(truth.elements):
        return False
    if answer.name and truth.name and plain(answer.name) != plain(truth.name):
        return False
    if truth.brackets != "⟨⟩":
        return all(map(same_element, answer.elements, truth.elements))
    missing = list(truth.elements)
    for element in answer.elements:
        found = [i for i, other in enumerate(missing) if same_element(element, other)]
        if not found:
            return False
        del missing[found[0]]
    return True


def same_element(answer: Quantity | str, truth: Quantity | str) -> bool:
    if isinstance(answer, str) or isinstance(truth, str):
        return answer == truth != ""
    units, equal = {answer.unit, truth.unit} - {""}, answer[:2] == truth[:2]
    if units != {"%"}:
        return equal and len(units) < 2
    if not truth.unit:  # where the truth may be a share, 0.5% is not 0.5
        return equal and abs(truth.square) > 1
    return equal or (not answer.unit and times(answer, exact(100))[:2] == truth[:2])
