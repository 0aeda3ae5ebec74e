"""A task of your own, from a Python file: FILE.py:NAME. README.md has an example."""

import dataclasses
import functools
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from minclipo.tasks import Task

OWN = re.compile(r"(.+\.py)(?::(\w*))?")


def is_own(source: str) -> bool:
    return OWN.fullmatch(source) is not None


def own_file(source: str) -> Path:
    return Path(OWN.fullmatch(source)[1]).expanduser()


def own_task(source: str, write: Callable[[str], str]) -> Task:
    """The Task NAME of FILE.py, or the one that the function NAME makes of `write`, which writes a question as the model
    expects it. What fails in that file, now or later, is a ValueError that names its line; FileNotFoundError without
    a file."""
    file, name = OWN.fullmatch(source).groups()
    path = own_file(source).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{file} does not exist, or is no file")
    module = load(path)
    found = vars(module).get(name or "")
    if found is None:
        local = lambda value: isinstance(value, Task) or getattr(value, "__module__", None) == module.__name__
        names = ", ".join(name for name, value in vars(module).items() if local(value))
        what = f"{file} has no {name!r}." if name else f"{file}: which task?"
        raise ValueError(f"{what} Name one as {file}:NAME. It has: {names or 'nothing'}")
    if not isinstance(found, Task) and callable(found):
        found = blaming(path, found)(write)
    if not isinstance(found, Task):
        raise ValueError(
            f"{source} is no minclipo.tasks.Task, and no function that takes a writer of prompts and returns one; "
            f"found {type(found).__name__}"
        )
    functions = {key: getattr(found, key) for key in ("draw", "check_outcome", "check_steps")}
    task = dataclasses.replace(found, **{key: value and blaming(path, value) for key, value in functions.items()})
    try_out(source, task)
    return task


def load(path: Path) -> ModuleType:
    """What the file defines. It may import its neighbours, as under `python FILE.py`."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)  # a file may be called torch.py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with blame(path):
        spec.loader.exec_module(module)
    return module


def try_out(source: str, task: Task) -> None:
    """ValueError now, and not in the middle of a run, for functions that cannot do what a run will ask of them."""
    problem, again = task.draw("a look", 0), task.draw("a look", 0)
    prompt = getattr(problem, "prompt", None)
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"{source}: draw must return something with a prompt, a text; found {prompt!r}")
    if prompt != again.prompt:
        raise ValueError(
            f"{source}: draw must give the same problem for the same stream and index, as "
            "random.Random(f'{stream} {index}') does"
        )
    if task.size is not None and not (type(task.size) is int and task.size > 0):
        raise ValueError(f"{source}: size must be a number of problems, or None; found {task.size!r}")
    try:
        task.outcomes([problem], [""], [False])
    except ValueError as error:
        raise ValueError(f"{source}, for an empty completion: {error}") from error
    steps = task.check_steps(problem, "") if task.check_steps else []
    if not isinstance(steps, list):
        raise ValueError(f"{source}: check_steps must return a list of True and False, found {steps!r}")


def blaming(path: Path, function: Callable) -> Callable:
    """The function; its exceptions name their line in the file at `path`."""

    @functools.wraps(function, updated=())
    def blamed(*arguments):
        with blame(path, getattr(getattr(function, "__code__", None), "co_firstlineno", None)):
            return function(*arguments)

    return blamed


@contextmanager
def blame(path: Path, line: int | None = None):
    """An exception becomes a ValueError naming the deepest line in the file at `path`; `line`: if none of them is."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        where = f"{path}, line {(lines or [line])[-1]}" if lines or line else str(path)
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where}: {message}") from error
