"""FILE.py:NAME: a task of one's own, from the page's example to what goes wrong in a stranger's file."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES

from minclipo.tasks.own import own_task

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402

CHAT_MODEL = str(FIXTURES / "parity" / "smollm2_like_bf16")
SHORT = "--prompts-per-step 2 --group-size 3 --max-new-tokens 6 --eval-every 1 --eval-problems 3 --device cpu".split()


def train(task: str, out: Path, *more: str, steps: int = 1) -> int:
    return train_llm.main(
        ["--model", CHAT_MODEL, *SHORT, "--steps", str(steps), "--task", task, "--out", str(out), *more]
    )


def example(folder: Path, **changes: str) -> str:
    """FILE.py:NAME of the code block that stands in tasks/README.md, with some of its text replaced."""
    guide = (ROOT / "minclipo" / "tasks" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# runs/backwards.py\n.*?)```", guide, re.DOTALL)
    for old, new in changes.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    (folder / "backwards.py").write_text(code, encoding="utf-8")
    return f"{folder / 'backwards.py'}:backwards"


def test_the_example_on_the_page_trains(tmp_path, capsys):
    """Catches: a page that shows a task which no longer runs, questions past the chat template, no held-out problems."""
    task = example(tmp_path)
    assert train(task, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert (
        re.search(r"<\|im_start\|>user\n +Write ", printed)
        and "held-out problems" in printed
        and "held out" not in printed
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in lines] == [0]


def test_the_example_on_the_page_rewards_what_it_says(tmp_path):
    """Catches: a reward that an unfinished, a wrong, or every answer earns."""
    task = own_task(example(tmp_path), str.upper)
    problem = task.draw("training 0", 3)
    assert problem.prompt == f"WRITE {problem.truth[::-1].upper()} BACKWARDS."
    answers = [f"It is {problem.truth}", problem.truth, problem.truth[::-1], ""]
    assert task.outcomes([problem], answers, [True, False, True, True]) == [True, False, False, False]


def test_a_resumed_run_finds_its_task_again(tmp_path, capsys):
    """The same options, then another task of the same file. Catches: a task that settings.json does not know."""
    task, out = example(tmp_path), tmp_path / "run"
    assert train(task, out) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["llm"]["data"] == task
    assert (
        train_llm.main(["--model", CHAT_MODEL, *SHORT, "--data", task, "--out", str(out), "--steps", "2", "--resume"])
        == 0
    )
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    Path(tmp_path / "other.py").write_text((tmp_path / "backwards.py").read_text())
    assert train(f"{tmp_path / 'other.py'}:backwards", out, "--resume", steps=3) == 1
    assert "data" in capsys.readouterr().err


def test_eval_only_measures_on_a_task_of_ones_own(tmp_path, capsys):
    """Catches: --eval-data that takes a Python file for a file of problems."""
    task = example(tmp_path)
    assert train_llm.main(["--model", CHAT_MODEL, *SHORT, "--eval-data", task, "--eval-only"]) == 0
    assert "of 3 held-out problems" in capsys.readouterr().out


def test_problems_that_are_not_held_out_are_told(tmp_path, capsys):
    """Catches: a `draw` that knows no streams, whose evaluation is on the training problems."""
    task = example(tmp_path, **{'f"{stream} {index}"': "index"})
    assert train(task, tmp_path / "run") == 0
    assert "100 of its first 100 training problems are evaluation problems, too" in capsys.readouterr().out


def test_a_task_itself_may_be_named_and_the_file_may_import_its_neighbours(tmp_path, monkeypatch):
    """With a dataclass and late annotations. Catches: a module that nobody can look up, a neighbour out of reach."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_own.py").write_text("ANSWER = 'yes'")
    (tmp_path / "torch.py").write_text(  # its own name must not hide the library, nor the other way round
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from minclipo.tasks import Task\n"
        "from neighbour_of_own import ANSWER\n"
        "@dataclass\n"
        "class Problem:\n"
        "    prompt: str\n"
        "TASK = Task(lambda stream, index: Problem(str(index)), lambda p, text, done: text == ANSWER, size=7)\n"
    )
    task = own_task(f"{tmp_path / 'torch.py'}:TASK", str.upper)
    assert task.size == 7 and task.draw("training 0", 5).prompt == "5"
    assert task.outcomes([task.draw("x", 1)], ["yes", "no"], [True, True]) == [True, False]


BROKEN = [  # the file, NAME, what the message says
    ("import nothing_of_this_name\n", "task", r"line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("x = 1\ndef task(:\n", "task", r"line 2: SyntaxError"),
    ("import sys\nsys.exit('usage: ...')\n", "task", r"line 2: SystemExit: usage"),
    ("def one(write): pass\nONE = 1\n", "task", r"has no 'task'. Name one as .*own.py:NAME. It has: one$"),
    ("def one(write): pass\n", "", r"own.py: which task\? Name one as .*own.py:NAME. It has: one$"),
    ("def task(write): pass\n", "task", r"own.py:task is no minclipo.tasks.Task, .* found NoneType"),
    ("task = {'draw': 1}\n", "task", r"own.py:task is no minclipo.tasks.Task, .* found dict"),
    ("\ndef task():\n    pass\n", "task", r"line 2: TypeError: task\(\) takes 0 positional arguments"),
    ("def task(write):\n    return write(1, 2, 3)\n", "task", r"line 2: TypeError"),
    ("def task(write):\n    raise ValueError('two\\nlines')\n", "task", r"line 2: ValueError: two lines$"),
    ("def draw(stream, index):\n    return stream.nothing\n", "task", r"line 2: AttributeError: 'str' object has no"),
    ("def draw(stream, index): return index\n", "task", r"draw must return something with a prompt, .* found None"),
    ("def draw(stream, index): return P('')\n", "task", r"draw must return something with a prompt, .* found ''"),
    ("draw = lambda *_: P(str(random.random()))\n", "task", r"draw must give the same problem for the same stream"),
    ("check = lambda *_: 0.5\n", "task", r"empty completion: check_outcome must return True or False .* found 0.5"),
    ("def check(p, text, done):\n  return text.split()[-1] == 'a'\n", "task", r"empty.*line 2: IndexError: list index"),
    ("steps = lambda *_: True\n", "task", r"check_steps must return a list of True and False, found True"),
    ("size = 0\n", "task", r"size must be a number of problems, or None; found 0"),
]
REST = """
import random
from minclipo.tasks import Task
class P:
    def __init__(self, prompt): self.prompt = prompt
found = globals()
if {"draw", "check", "steps", "size"} & found.keys():
    right = {"draw": lambda *_: P("p"), "check_outcome": lambda *_: True, "check_steps": None, "size": None}
    names = {"draw": "draw", "check": "check_outcome", "steps": "check_steps", "size": "size"}
    task = Task(**right | {names[name]: found[name] for name in names if name in found})
"""


@pytest.mark.parametrize("code, name, message", BROKEN)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, code, name, message, capsys):
    """By file and line, before any weights are read. Catches: a traceback through our code for a slip in the user's."""
    whole = code + REST if re.match("def (draw|check)|draw|check|steps|size", code) else code
    (tmp_path / "own.py").write_text(whole)
    assert train(f"{tmp_path / 'own.py'}:{name}", tmp_path / "run") == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and str(tmp_path / "own.py") in said and re.search(message, said), said


def test_a_missing_file_is_named(tmp_path, capsys):
    """Catches: a Python file that is looked for on the hub, as a data set."""
    assert train(f"{tmp_path / 'none.py'}:task", tmp_path / "run") == 1
    assert f"{tmp_path / 'none.py'} does not exist" in capsys.readouterr().err


def test_a_reward_that_fails_in_training_names_its_line_and_can_be_repaired(tmp_path, capsys):
    """The slip shows in the second step only. Catches: a traceback, and a run that is lost with it."""
    good = example(tmp_path)
    code = (tmp_path / "backwards.py").read_text()
    slip = "    calls = []\n    def check(problem, completion, finished):\n        calls.append(1)\n"
    slip += "        return finished and len(calls) < 15 or 1 / (len(calls) < 15) == 0\n"
    broken = code.replace("    return Task(draw, ", slip + "    return Task(draw, check)\n    Task(draw, ")
    (tmp_path / "backwards.py").write_text(broken)
    assert train(good, tmp_path / "run", "--save-every", "1", steps=3) == 1
    said = capsys.readouterr().err.strip()
    line = broken.splitlines().index("        return finished and len(calls) < 15 or 1 / (len(calls) < 15) == 0") + 1
    assert said.endswith(f"backwards.py, line {line}: ZeroDivisionError: division by zero") and "\n" not in said
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (tmp_path / "backwards.py").write_text(code)
    assert 1 <= done < 3 and train(good, tmp_path / "run", "--resume", steps=3) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
