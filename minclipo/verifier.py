r"""Is the final answer of a word problem right? (Standard library only.)

Answers are read as exact numbers, neither evaluated by Python nor rounded: 0.75, 3/4 and \frac68 are one number, 0.333
is not 1/3. Sums of roots and single letters may come in any order: 1+x is x+1. The rest is compared without its spaces.
Left out: products of sums, since "expand (x+1)^2" is not answered by (x+1)^2; xy, functions, number bases, rounding.

Where in doubt the verdict is False: a right answer refused costs one reward, a wrong one accepted is learnt.
The work is bounded: extraction takes one pass over the text, and whatever follows sees at most 200 characters.
"""

import re
from fractions import Fraction
from functools import reduce
from math import factorial, isqrt
from string import ascii_letters
from typing import NamedTuple

MAX_LENGTH = 200  # characters of an answer
MAX_BITS, MAX_TERMS, MAX_DEPTH = 4096, 30, 20  # of a number, of a sum, of parentheses within parentheses


def verify(text: str, truth: str) -> bool:
    r"""True if the final answer of a completion is the truth, and nothing beside it. Never raises.

    truth: a bare answer, or a solution that ends in "#### 72" or holds a box.
    A unit may be left out or added, but not exchanged: 90 and 90 hours agree, 90 minutes and 90 hours do not.
    75% as the truth agrees with 75 and 0.75. A truth without a percent sign does not say what it counts: 75 agrees with
    75%, but 0.75 does not. Order matters in pairs, intervals and lists of words, not in sets and lists of numbers.

    >>> verify(r"They cost \boxed{\$1{,}250.00} in all.", "#### 1250"), verify(r"\boxed{15 \text{ or } 18}", "15")
    (True, False)
    """
    if not isinstance(text, str) or not isinstance(truth, str):
        return False
    answer, truth = extract_answer(text), extract_answer(truth) or truth.strip()
    if answer is None or max(len(answer), len(truth)) > MAX_LENGTH:
        return False
    return same_answer(read_answer(answer), read_answer(truth))


def is_verifiable(truth: str) -> bool:
    """Is the truth right by its own measure? If not (blank, too long, braces that do not match), no answer is."""
    return isinstance(truth, str) and verify(rf"\boxed{{{extract_answer(truth) or truth.split('####')[-1]}}}", truth)


# 1. Where is the answer?

BRACE_OR_BOX = re.compile(r"(?P<box>\\{1,3}(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)  # but \{ and \} are no braces
PLACEHOLDER = re.compile(r"[\s.…_?]*")  # "...", "___": what prompts put into the box that they ask for
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{$][^{$\n]*)")  # \boxed 5
JOINT = re.compile(r"[\s$,;]*(?:or|and|\\text *\{ *(?:or|and) *\})?[\s$,;]*")  # "$ or $" between two boxes
# What changes the number from outside: -\boxed{6}, \frac{1}{\boxed{6}}, \boxed{6}^2; but not the dash of "- \boxed{6}"
BEFORE = r"(?:[=$({\[]\s*|(?:^|[\s:])(?=[-−–]\\?\$?$))[-−–][\s$\\]*$|(?:[/√≠±]|\\neq?|\\pm|\bnot)\s*$|\d$"
BEFORE = re.compile(BEFORE + r"|(?:\\[dtc]?frac *(?:\{[^{}]*\})?|\\sqrt|[\^_]) *(?:\{[^{}]*)?$|$")
AFTER = r" *(?:[\^/%√π]|\\(?:times|cdot|div|sqrt|pi|frac|%))[^\s$]*|(?:[A-Za-z0-9]|_[a-z0-9{])[^\s$]*"
NUMERAL = r"(?:hundred|thousand|[a-z]+illion|dozen)s?\b|(?!months)[a-z]+ths\b"  # a group without its \text{
AFTER = re.compile(rf"{AFTER}|(?:[\s$~]|\\[ ,;:]|\\(?:text|math)[a-z]* *\{{)*({NUMERAL})|")
REMARK = re.compile(r"(?<=\d)(?:,| and)(?: [a-z]+){2,}\.?$")  # 44, in total


def extract_answer(text: str) -> str | None:
    r"""The final answer as written: the last box that is filled in and closed, else what follows the last "####".

    What a model thinks, up to </think>, does not count. Boxes side by side, or joined by a comma, "or" or "and", are
    one answer with several parts, so that "\boxed{15} or \boxed{18}" is a hedge. None: there is no answer.
    """
    text = text.rpartition("</think>")[2]
    parts, first = [], len(text)
    for start, inside, end in reversed(find_boxes(text)):
        if end >= first or PLACEHOLDER.fullmatch(text, inside, end):  # a box within a box, or an empty one
            continue
        if parts and (first - end > 40 or not JOINT.fullmatch(text, end + 1, first)):
            break
        before = BEFORE.search(text[max(0, start - 40) : start])[0].lstrip("=({[: \n$")
        after = "" if parts else (found := AFTER.match(text, end + 1))[1] or found[0]
        content, first = text[inside:end].strip(), start
        parts.append(re.sub(r"\\?\$", "", f"{before}{{{content}}}{after}") if before or after else content)
    if parts:
        parts = list(dict.fromkeys(reversed(parts)))
        if len(parts) == 2 and sum(map(len, parts)) < MAX_LENGTH and read_answer(parts[0]) == read_answer(parts[1]):
            parts.pop()  # one number in two notations
        return ", ".join(parts)
    if bare := BARE_BOX.findall(text):
        return bare[-1].strip()
    line = text.rpartition("####")[2].strip().partition("\n")[0].strip() if "####" in text else ""
    return REMARK.sub(lambda remark: remark[0] if CHANGES.search(remark[0]) else "", line) or None


def find_boxes(text: str) -> list[tuple[int, int, int]]:
    """(start, start of the content, end) of all closed boxes, in the order in which they close. One pass."""
    boxes, opened = [], []
    for match in BRACE_OR_BOX.finditer(text):
        if match["box"] or match[0] == "{":
            opened.append(match)
        elif match[0] == "}" and opened and (opening := opened.pop())["box"]:
            boxes.append((opening.start(), opening.end(), match.start()))
    return boxes


# 2. What does it say? "x = (1, 2 cm)" has the name "x", the brackets "()" and the elements 1 and 2 cm.


class Answer(NamedTuple):
    name: set[str]  # at most one
    brackets: str  # none where the answer is a set
    ordered: bool
    elements: list  # of Quantity, or of tuple where an element is no number


NO = "(?![A-Za-z])"  # follows the name of a command
SPELLINGS = {"−": "-", "×": r"\\times ", "·": r"\\cdot ", rf"÷|⁄|\\div{NO}": "/", "√": r"\\sqrt ", "π": r"\\pi "}
SPELLINGS |= {r"\\\}": "⟩", "²": "^2", "³": "^3", "°": r"^\\circ ", "±": r"\\pm ", "∞": r"\\infty ", "∪": r"\\cup "}
SPELLINGS |= {"≤": r"\\leq ", "≥": r"\\geq ", "≠": r"\\neq ", rf"\\([lgn]e)q?(?:slant)?{NO}": r"\\\1q"}
SPELLINGS |= {r"\\{2,} ?(?=\\end)": "", r"(?<!\\)\\\\(?=[$%{}]|[A-Za-z]{2})": r"\\"}  # \\frac: escaped once too often
SPELLINGS |= {r"\{,\}|,\\! ": ",", r"\\!": "", r"\\[dtc]frac": r"\\frac", r"\\([$%])": r"\1", r"\\\{": "⟨"}
SPELLINGS |= {r"\\(?:boxed|[fm]box|(?:text|math)[a-z]*|boldsymbol) *\{([^{}]*)\}": r" \1 "}  # \text{cm}
SPELLINGS |= {rf"(?<!\\)\\(?:[()\[\]]|(?:left|right|[bB]igg?[lr]?|displaystyle|bf|rm){NO})": ""}  # \left( \right)
SPELLINGS |= {rf"(?:(?<!\\)\\[ ,;:]|\\q?quad{NO}|~|\s)+": " "}  # "\, " "\quad", but \\ is a line break
SPELLINGS |= {rf"\^ ?(?:\{{ ?\\circ ?\}}|\\circ{NO}) ?([CF]\b)?": r" degrees\1"}
SPELLINGS |= {rf"\\in{NO}|∈": "=", r"\+ ?\\infty": r"\\infty", r"((?:^|[(\[⟨,=]) ?)[–—](?=[\d.\\])": r"\1-"}
SPELLINGS |= {r"(?<=\d) ?\(([A-Za-z]{2}[A-Za-z ]*)\)$": r" \1", r"^\$([^$]*)\$$": r"\1", r"\{bmatrix\}": "{pmatrix}"}
SPELLINGS |= {r"^[ *]+|[ *.,;]+$": "", r"(?i)^(?:the )?(?:final |correct )?answer ?(?:is|:|=) ?": ""}
# 1,234,567 and 1 234 567; but 1, 234 is a list, (1,234) a pair, 1 100/200 mixed, 0,123 a decimal in half the world
GROUPED = r"(?<![\d.,])(?!(?<=[(\[⟨])[\d, ]+[)\]⟩])[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+(?! ?/))(?! ?\d)"
SPELLINGS |= {GROUPED: lambda match: re.sub("[ ,]", "", match[0])}
NAME = re.compile(r"\\?[a-z][a-z' ]*(?:_\{?\w+\}?)?(?:\([^()]*\))?", re.ASCII | re.I)  # x, x_1, f(x), \alpha
RELATION = r"[&=<>:,]|\\\\+|\\(?:cup|cap|[lgn]eq)(?![A-Za-z])|\\(?:begin|end) *\{\w+\}"
SEPARATOR = re.compile(rf"([)\]⟩]* *(?:{RELATION}) *[(\[⟨]*|^[(\[⟨]+|[)\]⟩]+$)")  # the brackets beside it


def read_answer(text: str) -> Answer:
    """Takes an answer apart."""
    parts = split_list(text := rewrite(text, SPELLINGS)) or [text]
    names, values = zip(*(split_name(part) if "=" in part else ("", part) for part in parts))
    if len(name := {plain(name) for name in names if name}) > 1:  # x = 1, y = 2
        name, values = set(), parts
    value = values[0] if len(values) == 1 else ""
    brackets, inner = value[:1] + value[-1:], split_list(value[1:-1])
    if brackets not in ("()", "[]", "(]", "[)", "⟨⟩") or not any(inner) or re.search(r"\b(?:and|or)\b", value):
        brackets, inner = "", values
    brackets = brackets if (brackets, len(inner)) != ("()", 1) else ""  # (90) is 90, (B) is B
    unordered = brackets == "⟨⟩" or not brackets and all(re.search(r"\d|\\pi", part) for part in inner)
    if unordered:  # 2 \pm 1 is 3, 1
        inner = [p.replace(r"\pm", sign) for p in inner for sign in ("+-" if p.count(r"\pm") == 1 else [r"\pm"])]
    return Answer(name, brackets.strip("⟨⟩"), not unordered, [read_element(part) for part in inner])


def rewrite(text: str, rules: dict) -> str:
    """Applies all rules until nothing changes: from the innermost braces outwards."""
    rewritten = reduce(lambda text, rule: re.sub(*rule, text), rules.items(), text)
    return text if rewritten == text else rewrite(rewritten, rules)


def split_name(text: str) -> tuple[str, str]:
    """("x", "5") for "x = 5" and "5 = x"; ("", "9") for "4 + 5 = 9". Other equations, 2x = 5 or 4 = 5, stay whole."""
    sides = [side.strip() for side in text.split("=")]
    names = [side for side in sides if NAME.fullmatch(side) and not CHANGES.search(side) and not read_quantity(side)]
    values = [side for side in sides if side not in names]
    readings = [read_quantity(value) for value in values]
    if len(values) == 1 or values and all(r and r[0] == readings[0][0] for r in readings):
        return "".join(names), values[-1]
    return "", text


def split_list(text: str) -> list[str]:
    """The parts between commas, semicolons, "and", "or" outside all brackets; [] if the brackets do not match."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{⟨]|[)\]}⟩]|[,;](?: *(?:and|or)\b)?|\b(?:and|or)\b", text):
        depth += (match[0] in "([{⟨") - (match[0] in ")]}⟩")
        if depth < 0:
            return []
        if depth == 0 and match[0] not in ")]}⟩":
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return parts + [text[start:].strip()] if depth == 0 else []


def read_element(text: str) -> "Quantity | tuple":
    """A number with its unit, an expression with letters, or the pieces of a matrix, an inequality, a word."""
    read = lambda text: read_quantity(text) or read_quantity(text, letters=True)
    return read(text) or tuple(read(piece.strip()) or plain(piece) for piece in SEPARATOR.split(text))


def plain(text: str) -> str:
    """What is compared where no number can be read: no spaces, x for {x}, pi for \\pi, monday for Monday."""
    text = re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s|\\(?=[A-Za-z])", "", text))
    return text.casefold() if text.isalpha() and len(text) > 1 else text


# 3. Which number is it?


class Quantity(NamedTuple):
    """A sum {powers of primes and letters: coefficient} and what it counts: 3√2 x is {{(2, 1/2), (x, 1)}: 3}."""

    number: dict[frozenset, Fraction]
    unit: str = ""


MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNIT = re.compile(r"(?: |(?=[A-Za-z]{2}))[A-Za-z$€£]+(?:[ /.-]+[A-Za-z]+| ?\^ ?\(?[23]\)?){0,3} ?")  # " km/h"
UNITS = """m meter,cm centimeter,mm millimeter,km kilometer,g gram gm,kg kilogram,mg milligram,l L liter
    ,ml mL milliliter,s second sec,ms,h hour hr,min minute,in inch inche,ft foot feet,yd yard,mi mile,mph,lb lbs
    ,oz ounce,sq square,cu cubic,$ dollar,€ euro,£ sterling,of"""  # cups of flour
SHORT_FORM = {word: group.split()[0] for group in UNITS.split(",") for word in group.split()}
CHANGES = re.compile(  # words that make another number, or none, of the one before them
    r"(?i)\b(?:(?:zero|one|two|thir|three|four|for(?=t)|fif|five|six|seven|eigh|eight|nin|nine|ten|eleven|twel[fv]e?"
    r"|twen|hundred|thousand|[a-z]*illion|dozen|lakh|crore|gross|score)(?:teen|ty|tie)?(?:th|fold)?s?|hal(?:f|ve)s?"
    r"|thirds?|quarters?|percent|pct|permille|base|root|inverse|reciprocal|factorial|square of|cube of|double|triple"
    r"|twice|mil|(?:squar|cub|doubl|tripl|quadrupl|halv|negat|invert)ed|mln|sqrt|log|ln|exp|sin|cos|tan|mod(?:ulo)?"
    r"|hex\w*|binary|octal|point \w+|rem|remainder|plus|minus|over|through|versus|choose|not|cannot|never|no|\w+n't"
    r"|without|or|about|least|most|than|more|less|fewer|above|below|under|beyond|negative|wrong|right|correct"
    r"|approx\w*|around|roughly|maybe|perhaps|possibly|probably|thrice|times)\b"
)


def read_quantity(text: str, letters: bool = False) -> Quantity | None:
    """A number and what it counts: "-3/4", "$2.5 million", "15 cm^2", "75%". None for anything else."""
    try:
        reader = NumberReader(rewrite(text, ARITHMETIC).replace("{", "(").replace("}", ")"), letters)
        number = reader.sum()
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    unit = read_unit(reader.text[reader.position :])
    return None if unit is None or letters and unit else Quantity(number, unit)


def read_unit(text: str) -> str | None:
    """h for " hours", % for "%" and " percent"; None if this can be no unit: 15x is a product, 15th is not 15."""
    if text.strip() in ("", "%", "percent"):
        return "%" if text.strip() else ""
    words, short = re.findall("[A-Za-z$€£]+", text), 3 if text[0] != " " else 2  # 6 pen, but 6abc
    if not UNIT.fullmatch(text) or CHANGES.search(text) or any(len(w) <= short and w not in SHORT_FORM for w in words):
        return None
    singular = [word.lower().removesuffix("s") if len(word) > 3 else word for word in words]
    return "".join(re.findall("[/^23]", text) + [SHORT_FORM.get(word, word) for word in singular])


# Arithmetic without commands: ((1)/(√(2))) for \frac{1}{\sqrt{2}}
ARITHMETIC = {r"^([-+]? ?)(?:US)?([$€£])([^$€£]+?)(?: dollars?| USD)?( each| per .*|/ ?[a-z].*)?$": r"\1\3 \2\4"}  # -$5
ARITHMETIC |= {rf"\\times{NO}|\\cdot{NO}|(?<=\d) ?[xX] ?(?=10 ?\^)": "*", rf"(?<![A-Za-z])\\?sqrt{NO} *": "√"}
ARITHMETIC |= {rf"(?<![A-Za-z])\\?pi{NO}": "π", r"\^ +": "^", r"\\frac *(\d) *(\d)": r"\\frac{\1}{\2}"}
ARITHMETIC |= {rf"(?i)(?<=[\d)}}]) ?{word}s?\b": f"*{number}" for word, number in MAGNITUDES.items()}
ARITHMETIC |= {r"(?<![\d./^_√])(\d+) (\d+) ?/ ?(\d+)": r"\1\\frac{\2}{\3}"}  # 2 1/2 is 2\frac{1}{2}, which is (2+1/2)
MIXED, RECURRING = r"(?<![\d./^_√])(\d+) ?\\frac *\{(\d+)\} *\{(\d+)\}", r"(\d+)\.(\d*)\\overline *\{ *(\d+) *\}"
ARITHMETIC |= {MIXED: lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else "?"}
ARITHMETIC |= {RECURRING: lambda m: f"(({m[1]}{m[2]}{m[3]}-{m[1]}{m[2]})/{10 ** len(m[2] + m[3]) - 10 ** len(m[2])})"}
ARITHMETIC |= {r"√\[(\d+)\] *\{([^{}]*)\}": r"((\2)^(1/\1))", r"([√^]) *\{([^{}]*)\}": r"\1(\2)"}  # \sqrt[3]{8}
ARITHMETIC |= {r"\\frac *(?:(\d)|\{([^{}]*)\}) *(?:(\d)|\{([^{}]*)\})": r"((\1\2)/(\3\4))", r"(?<=\d)([$€£])$": r" \1"}


class NumberReader:
    """Reads the number that a text starts with, by recursive descent; ValueError where there is none."""

    def __init__(self, text: str, letters: bool = False):
        self.text, self.position = text, 0
        self.symbol = "π|(?![fghCFGHOP] *\\()[A-Za-z](?![A-Za-z])" if letters else "π"  # f(2) is no product
        self.next_factor = re.compile(rf" *[√π(]|(?<=[\d)π]) ?(?:{self.symbol})", re.ASCII)  # 2√2, 2x, but not A B

    def take(self, pattern: str) -> str:
        """Moves past the pattern, and past spaces before it, if it comes next; "" if it does not."""
        match = re.compile(f" *({pattern})", re.ASCII).match(self.text, self.position)
        self.position = match.end() if match else self.position
        return match[1] if match else ""

    def sum(self) -> dict:
        total, sign = {}, self.take("[-+]") or "+"
        while sign:
            total = plus(total, times(exact(int(sign + "1")), self.product()))
            sign = self.take("[-+]")
        return total

    def product(self) -> dict:
        value, divided = self.power(), False
        # 1/2 pi is not read on: it may be (1/2) pi or 1/(2 pi)
        while (sign := self.take("[*/]")) or not divided and self.next_factor.match(self.text, self.position):
            factor = times(exact(-1), self.power()) if sign and self.take("-") else self.power()  # 2 * -3
            value = times(value, raised(factor, Fraction(-1)) if sign == "/" else factor)
            divided |= sign == "/"
        return value

    def power(self) -> dict:
        base = self.atom()
        if self.take("!"):
            base = exact(factorial(range(MAX_TERMS).index(rational(base))))  # ValueError where that is not
        if not self.take(r"\^"):
            return base
        digits = self.take(r"-?\d+")
        return raised(base, Fraction(digits) if digits else rational(self.atom()))

    def atom(self) -> dict:
        if self.take("√"):
            return raised(self.atom(), Fraction(1, 2))
        if letter := self.take(self.symbol):
            return {frozenset({(letter, 1)}): Fraction(1)}
        if self.take(r"\("):
            value = self.sum()
            depth = self.text.count("(", 0, self.position) - self.text.count(")", 0, self.position)
            if depth > MAX_DEPTH or not self.take(r"\)"):
                raise ValueError("too many parentheses within parentheses, or one that is not closed")
            return value
        return exact(Fraction(self.take(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?")))  # "" is a ValueError


def exact(value: Fraction | int) -> dict:
    return {frozenset(): Fraction(value)} if value else {}


def rational(number: dict) -> Fraction:
    """The number as a fraction; ValueError if it is not one, such as the square root of 2."""
    if any(number.keys()):
        raise ValueError("not rational")
    return number.get(frozenset(), Fraction(0))


def plus(a: dict, b: dict) -> dict:
    total = {powers: x for powers in {**a, **b} if (x := a.get(powers, 0) + b.get(powers, 0))}
    if len(total) > MAX_TERMS or any(max(map(int.bit_length, x.as_integer_ratio())) > MAX_BITS for x in total.values()):
        raise ValueError("too large")
    return total


def times(a: dict, b: dict) -> dict:
    letters = {str(symbol) for powers in [*a, *b] for symbol, _ in powers} & {*ascii_letters}
    if letters and max(len(a), len(b)) > 1 and a not in (exact(1), exact(-1)):
        raise ValueError("a product of sums")
    total = {}
    for left, x in a.items():
        for right, y in b.items():
            powers, coefficient = dict(left), x * y
            for symbol, exponent in right:
                powers[symbol] = powers.get(symbol, 0) + exponent
                if isinstance(symbol, int):  # √2 √2 = 2
                    whole, powers[symbol] = divmod(powers[symbol], 1)
                    coefficient *= Fraction(symbol) ** whole
            total = plus(total, {frozenset(item for item in powers.items() if item[1]): coefficient})
    return total


def raised(base: dict, exponent: Fraction) -> dict:
    if not base and exponent <= 0:
        raise ZeroDivisionError("0^0 and 1/0 are no numbers")
    if len(base) != 1:  # 0, or a sum
        return reduce(times, [base] * range(MAX_TERMS).index(exponent), exact(1))
    [(powers, x)] = base.items()
    if max(1, abs(exponent)) * sum(map(int.bit_length, x.as_integer_ratio())) > MAX_BITS:
        raise ValueError("too large a power")
    if exponent.denominator > 1:
        if x < 0 or any(isinstance(symbol, str) for symbol, _ in powers):
            raise ValueError("the root of a negative number or of a letter")
        above, below = map(prime_factors, x.as_integer_ratio())
        powers, x = [*powers, *((prime, 1) for prime in above), *((prime, -1) for prime in below)], 1
    factors = [{frozenset({(symbol, n * exponent)}): Fraction(1)} for symbol, n in powers]
    return reduce(times, factors, exact(x**exponent))


def prime_factors(n: int):
    """What has none below 5,000 stands for itself."""
    for prime in range(2, min(isqrt(n), 5000) + 1):
        while n % prime == 0:
            yield prime
            n //= prime
    if n > 1:
        yield n


# 4. Is it the same?


def same_answer(answer: Answer, truth: Answer) -> bool:
    if answer.brackets != truth.brackets or len({*answer.name, *truth.name}) > 1:
        return False
    missing = list(truth.elements)
    for element in answer.elements:
        found = [other for other in missing[: 1 if truth.ordered else None] if same_element(element, other)]
        if not found:
            return False
        missing.remove(found[0])
    return not missing


def same_element(answer: Quantity | tuple, truth: Quantity | tuple) -> bool:
    if not isinstance(answer, Quantity) or not isinstance(truth, Quantity):
        return answer == truth != ("",)
    units, equal = {answer.unit, truth.unit} - {""}, answer.number == truth.number
    if units != {"%"}:
        return equal and len(units) < 2
    if not truth.unit:  # where the truth may be a share, 0.5% is not 0.5
        return equal and not any(truth.number) and abs(rational(truth.number)) > 1
    return equal or (not answer.unit and {powers: 100 * x for powers, x in answer.number.items()} == truth.number)
