"""Whole training programs as text: the frame, and in it the eight parts, mended or not.

The mended parts are those of lessons/solutions/15_*.py. In the program they have no type
hints, one line of docstring, and of the comments only those that give shapes.
"""

import ast
import io
import re
import runpy
import sys
import tokenize
from pathlib import Path

LESSONS = Path(__file__).parent.parent
SUSPECTS = {  # the user's complaint: the part that holds the bug
    "advantages_do_not_cancel": "collect",
    "agreement_costs": "contrast",
    "never_stops": "finish",
    "one_word_stands_still": "finish",
    "penalty_is_not_the_kl": "penalty",
    "ratio_is_not_one": "score",
    "runs_away": "loss",
    "short_prompts_suffer": "generate",
    "step_depends_on_the_cut": "backward",
}
MENDED = {
    part: name for name, part in SUSPECTS.items() if name != "one_word_stands_still"
}
PARTS = (
    "generate",
    "finish",
    "score",
    "contrast",
    "collect",
    "loss",
    "penalty",
    "backward",
)


def solution_of(suspect: str) -> str:
    """The text of a suspect's mended file."""
    return (LESSONS / "solutions" / f"15_{suspect}.py").read_text(encoding="utf-8")


def part_of(source: str, part: str) -> str:
    """The function of this name as it stands in a program."""
    lines, tree = source.split("\n"), ast.parse(source)
    node = next(node for node in tree.body if getattr(node, "name", None) == part)
    for argument in [*node.args.args, *node.args.kwonlyargs]:
        argument.annotation = None
    head = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    head += [f"def {part}({ast.unparse(node.args)}):"]
    if summary := ast.get_docstring(node):
        head += [f'    """{summary.splitlines()[0]}"""']
    body = node.body[1:] if summary else node.body
    text = "\n".join(lines[body[0].lineno - 1 : node.end_lineno])
    return "\n".join(head) + "\n" + without_remarks(text)


def without_remarks(text: str) -> str:
    """The text without its comments, but with the shapes that they begin with."""
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(f"if 1:\n{text}\n").readline):
        if token.type == tokenize.COMMENT:
            row, start = token.start[0] - 2, token.start[1]
            shapes = re.match(r"# \[[\w, *]+\](, \[[\w, *]+\])*", token.string)
            lines[row] = (lines[row][:start] + (shapes[0] if shapes else "")).rstrip()
    return "\n".join(line for line in lines if line.strip())


def mended(part: str) -> str:
    return part_of(solution_of(MENDED[part]), part)


def imports_of(sources: list[str]) -> str:
    """What all of them import from the package, and torch."""
    names = {}
    for module, some in re.findall(
        r"^from (minclipo\S*) import (.+)$", "\n".join(sources), re.MULTILINE
    ):
        names.setdefault(module, set()).update(some.split(", "))
    lines = [
        f"from {module} import {', '.join(sorted(names[module]))}" for module in names
    ]
    return "\n".join(["import torch", "", *sorted(lines)])


def program(**parts: str) -> str:
    """The text of a program; parts: by name, those that are not the mended ones."""
    texts = {part: mended(part) for part in PARTS} | parts
    frame = (LESSONS / "hunting" / "frame.py").read_text(encoding="utf-8")
    nodes, lines = ast.parse(frame).body, frame.split("\n")
    doc = "\n".join(lines[: nodes[0].end_lineno])
    constants = [node for node in nodes if isinstance(node, ast.Assign)]
    rest = "\n".join(lines[constants[-1].end_lineno :]).strip() + "\n"
    first, last = constants[0].lineno - 1, constants[-1].end_lineno
    imports = imports_of([frame, *map(solution_of, SUSPECTS)])
    head = "\n\n".join([doc, imports, "\n".join(lines[first:last])])
    return "\n\n\n".join([head, *(texts[part] for part in PARTS), rest])


def load(text: str, path: str = "program") -> dict:
    """What a program defines. Its functions look each other up there: exchange one, and
    the others call the new one."""
    found = {"__name__": "program"}
    exec(compile(text, path, "exec"), found)
    return found


def suspect(name: str, folder: str = "exercises") -> dict:
    """The program with this suspect in it, as its file holds it now."""
    sys.path.append(str(LESSONS / "exercises"))  # where the suspects find checking.py
    own = runpy.run_path(str(LESSONS / folder / f"15_{name}.py"))
    sys.path.pop()
    found = load(program())
    found[SUSPECTS[name]] = own[SUSPECTS[name]]
    return found


def show_code(text: str) -> None:
    """Print code; in a notebook, show it in colours."""
    if "ipykernel" not in sys.modules:
        print(text)
        return
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{text.strip()}\n```"))
