"""Where strangers' chat templates run: they reach nothing of Python, and what they do has a limit.

Jinja's sandbox keeps them from Python's internals. It limits neither time nor memory, so here every value is counted
when it is made, and so is every turn of a loop and every call. What could make a value much larger than what it is made
of (a width, a repetition, a replacement) is judged before it runs.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

WORK = 10_000_000  # characters
TURN, ITEM = 100, 10  # characters that a turn or a call, an item of a list, count like
WIDTH = re.compile(r"\d{5,}|%[^%a-zA-Z]*\*|\{[^{}]+\{")  # in a format: a very large one, or one that is computed
ABSENT = ("striptags", "urlize", "wordwrap", "xmlattr")  # filters for web pages; slow on a text made for it


def weight(value, most: int) -> int:
    """Characters and items of a value, with all that it holds; counting stops when they are more than `most`."""
    total, rest = 1, [value]
    while rest and total <= most:
        item = rest.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, range):
            total += ITEM * len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 8
        elif isinstance(item, Collection):
            held = [*item, *item.values()] if isinstance(item, Mapping) else item
            total += ITEM * len(held)
            rest.extend(held)
    return total


def _listed(values) -> list:
    """The values, with those that only show their size when they have run out as lists."""
    return [list(x) if isinstance(x, Iterator) and not isinstance(x, LoopContext) else x for x in values]


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's words for some trainers. Here it does nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ClosedNamespace(Namespace):
    def __repr__(self):
        return "<Namespace>"  # Jinja's prints all it holds, which may be namespaces that hold namespaces


class CountedNodes(NodeTransformer):
    """Sends what Jinja does without a call through one, so that `Sandbox.call` sees it."""

    @staticmethod
    def _call(name: str, arguments: list, lineno: int) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=lineno)

    def visit_For(self, node):
        self.generic_visit(node)
        turn = self._call("turn", [], node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        node.test = node.test and nodes.And(turn, node.test, lineno=node.lineno)  # turns that the test leaves out
        return node

    def visit_Concat(self, node):
        return self._call("joined", self.generic_visit(node).nodes, node.lineno)

    def visit_List(self, node):
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._call("made", [node], node.lineno)

    visit_Tuple = visit_Dict = visit_List

    def visit_Operand(self, node):  # the right side of in, ==, <
        self.generic_visit(node)
        node.expr = self._call("made", [node.expr], node.lineno)
        return node

    def visit_Getitem(self, node):
        self.generic_visit(node)
        return self._call("made", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node


class Sandbox(ImmutableSandboxedEnvironment):
    """filters: more than Jinja's own, or others in their place."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self, filters: dict[str, Callable]):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
        self.spent, self.limit = 0, WORK
        filters = {name: function for name, function in self.filters.items() if name not in ABSENT} | filters
        self.filters = {name: self._watched(name, function) for name, function in filters.items()}
        self.globals["dict"] = lambda *pairs, **items: dict(*pairs, **items)  # the type has an update that changes any
        self.globals["namespace"] = ClosedNamespace
        del self.globals["lipsum"]  # pages of text without sense

    def template(self, source: str):
        return self.from_string(CountedNodes().visit(self.parse(source)))

    def start(self, given) -> None:
        """Begin to count anew: a long chat may cost more."""
        self.spent, self.limit = 0, WORK + 100 * weight(given, WORK)

    def spend(self, amount: int) -> None:
        self.spent += amount
        self.afford(self.spent)

    def afford(self, amount: int) -> None:
        if amount > self.limit:
            turns, size = f"{self.limit // TURN:,} loop turns and calls", f"{self.limit:,} characters"
            raise SecurityError(f"it does more than is allowed: {turns}, {size} in all")

    def paid(self, value):
        self.spend(TURN + weight(value, self.limit))
        return value

    def judge(self, name: str, first, *others) -> None:
        """SecurityError if `name`, an operator, method or filter of `first`, could make too much of its operands."""
        if name in ("%", "format", "format_map") and isinstance(first, str) and WIDTH.search(first):
            raise SecurityError(f"the width in {first[:40]!r} is too large, or computed")
        size = lambda x: abs(x) if isinstance(x, int) else weight(x, self.limit)
        self.afford(weight(first, self.limit) * (1 + sum(map(size, others))))

    def turn(self) -> bool:
        return True  # the call counts

    def made(self, value):
        return value

    def joined(self, *values) -> str:
        return self.concat(map(str, values))

    def concat(self, parts) -> str:
        """Also what Jinja joins its own output with: the whole text, the text of a macro, of a block."""
        kept = []
        for part in parts:
            self.spend(len(part))
            kept.append(part)
        return "".join(kept)

    def call(self, context, function, /, *arguments, **named):
        arguments = _listed(arguments)
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if owner not in (None, self):
            self.judge(function.__name__, owner, *arguments, *named.values())
        return self.paid(super().call(context, function, *arguments, **named))

    def call_binop(self, context, operator, left, right):
        operands = [right, left] if operator == "*" and isinstance(left, int) else [left, right]
        if operator != "+":
            self.judge(operator, *operands)
        return self.paid(super().call_binop(context, operator, left, right))

    def unsafe_undefined(self, obj, attribute):
        """Jinja's own prints nothing unless the forbidden attribute is used; here, asking for it is an error."""
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is forbidden")

    def _watched(self, name: str, function: Callable) -> Callable:
        @wraps(function)
        def watched(*arguments, **named):
            arguments = _listed(arguments)
            operands = [x for x in arguments if not isinstance(x, (Context, EvalContext, Environment))]
            self.judge(name, *operands, *named.values())
            return self.paid(function(*arguments, **named))

        return watched
