"""Runs an exercise's checks and says of each function: right, wrong, or not yet.

An exercise holds functions to be written and, for each function f, a `check_f(f)` that
raises Wrong with what it found. `report(globals())` at its end runs them: on the
exercise's own functions, or with --solution on those of the file of the same name in
lessons/solutions. Where there is a `train_f(f)`, too, it trains with the function once
all checks are right, and raises Wrong if the training misses its goal.
"""

import argparse
import hashlib
import json
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

LESSONS = Path(__file__).parent.parent
SOLUTIONS = LESSONS / "solutions"
REACHED = LESSONS.parent / "runs" / "lessons" / "reached.json"  # whose training did
sys.path.append(str(LESSONS))  # exercises that train import lessons/common.py


class Wrong(Exception):
    """The answer is wrong; the message says what was asked, what was found and what was
    expected."""


def verdict(check: Callable, answer: Callable | None) -> tuple[str, str]:
    """("right" | "wrong" | "not yet", why) of one function; None: there is no such
    function."""
    if answer is None:
        return "not yet", "there is no function of this name"
    try:
        check(answer)
    except Wrong as error:
        return "wrong", str(error)
    except NotImplementedError as error:
        # torch's own say that an operation is not implemented for a dtype
        if "not implemented for" in str(error):
            return "wrong", failure(error, answer)
        return "not yet", f"still to be written. {error}".strip()
    except (Exception, SystemExit) as error:  # the reader's code may fail in any way
        return "wrong", failure(error, answer)
    return "right", ""


def failure(error: BaseException, answer: Callable) -> str:
    """What an error says, and the last line of the reader's own file on the way to it."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(answer, "__code__", None) or getattr(answer.__init__, "__code__", None)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    place = (own or frames)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {error} ({where})"


def functions(exercise: dict, prefix: str) -> dict[str, Callable]:
    """The exercise's own functions PREFIX_f by the name f; not what it has imported."""
    own = lambda function: getattr(function, "__module__", None) == exercise["__name__"]
    names = [name for name, value in exercise.items() if callable(value) and own(value)]
    names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return {name: exercise[prefix + name] for name in names}


def grade(exercise: dict, answers: dict) -> list[tuple[str, str, str]]:
    """(function, verdict, why) of every check in `exercise`, applied to the functions in
    `answers`."""
    checks = functions(exercise, "check_")
    return [(name, *verdict(check, answers.get(name))) for name, check in checks.items()]


def trained(exercise: dict, answers: dict, **options) -> list[tuple[str, str, str]]:
    """(function, verdict, why) of every training in `exercise`; options go to the
    training."""
    trainings = functions(exercise, "train_")
    return [
        (f"{name}, trained", *verdict(partial(train, **options), answers[name]))
        for name, train in trainings.items()
    ]


def has_reached(path: Path) -> bool:
    """Whether the exercise's training has reached its goal, with the file as it is
    now."""
    found = json.loads(REACHED.read_text()) if REACHED.is_file() else {}
    return found.get(path.name) == fingerprint(path)


def remember(path: Path) -> None:
    """The exercise's training has reached its goal: that need not be done again to know
    it."""
    REACHED.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(REACHED.read_text()) if REACHED.is_file() else {}
    REACHED.write_text(json.dumps(found | {path.name: fingerprint(path)}))


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hints(exercise: dict) -> dict[str, str]:
    """What --hint can tell, by function: the exercise's HINTS, else those that the lesson
    of its number folds away."""
    if "HINTS" in exercise:
        return exercise["HINTS"]
    lessons = sorted(LESSONS.glob(f"{Path(exercise['__file__']).stem[:2]}_*.py"))
    text = "\n".join(lesson.read_text(encoding="utf-8") for lesson in lessons)
    text = re.sub("^# ?", "", text, flags=re.MULTILINE)
    folded = r"<details><summary>A hint for (.*?)</summary>(.*?)</details>"
    found = re.findall(folded, text, flags=re.DOTALL)
    known = {re.sub("<.*?>|`", "", name): hint.strip() for name, hint in found}
    own = lambda name: any(word in exercise for word in name.split())  # "f and g"
    return {name: hint for name, hint in known.items() if own(name)}


def show_hint(exercise: dict, function: str) -> None:
    """Print the hint for a function, or which hints there are."""
    known = hints(exercise)
    found = [f"{name}: {hint}" for name, hint in known.items() if function in name]
    others = f"; there are hints for {', '.join(known)}" if known else ""
    print("\n".join(found) or f"no hint for {function}{others}")


def report(exercise: dict, **options: tuple[str, ...]) -> None:
    """Grade the exercise, given as its globals(); exits with 0 if all is right, else with
    1.

    options: further ones of the command line, for the training, and what each may be; the
    first is the default, and the goal is for the defaults only.
    """
    path = Path(exercise["__file__"])
    parser = argparse.ArgumentParser(
        description=exercise["__doc__"], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--solution", action="store_true", help="check the solution instead of this file"
    )
    parser.add_argument("--hint", metavar="FUNCTION", help="say a little more about it")
    for name, values in options.items():
        parser.add_argument(
            f"--{name}", choices=values, default=values[0], help=f"default: {values[0]}"
        )
    chosen = vars(parser.parse_args())
    solution, hint = chosen.pop("solution"), chosen.pop("hint")
    sys.stdout.reconfigure(errors="replace")  # a console without block characters
    if hint is not None:
        show_hint(exercise, hint)
        sys.exit()
    answers = runpy.run_path(str(SOLUTIONS / path.name)) if solution else exercise
    results = grade(exercise, answers)
    show(results)
    if functions(exercise, "train_"):
        if all(state == "right" for _, state, _ in results):
            results += (training := trained(exercise, answers, **chosen))
            show(training)
            defaults = all(chosen[name] == values[0] for name, values in options.items())
            if training[-1][1] == "right" and defaults and not solution:
                remember(path)
        else:
            results.append(("training", "not yet", "it begins once all checks are right"))
            show(results[-1:])
    right = sum(state == "right" for _, state, _ in results)
    more = "" if right == len(results) else f"; edit {path}"
    print(f"{right} of {len(results)} right{more}")
    sys.exit(right < len(results))


def show(results: list[tuple[str, str, str]]) -> None:
    for name, state, why in results:
        print(f"{state:8} {name}" + (f": {why}" if why else ""), flush=True)


def curve(values: list[float]) -> str:
    """Numbers from 0 to 1 as a line of blocks, for the terminal."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value))] for value in values)


def expect(found, expected, what: str, *, tolerance: float = 1e-5) -> None:
    """Wrong unless found, a number or tensor, is `expected` within `tolerance` (whole
    numbers: exactly); `what` names the case."""
    if found is None:
        raise Wrong(f"{what}: the function returned None; is a return missing?")
    try:
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what}: expected numbers, found {found!r}") from None
    if found.shape != expected.shape:
        raise Wrong(
            f"{what}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
        )
    if not (found.is_floating_point() or expected.is_floating_point()):
        tolerance = 0.0
    if not torch.allclose(
        found.detach().double(),
        expected.detach().double(),
        rtol=tolerance,
        atol=tolerance,
    ):
        digits = next(
            (n for n in (4, 8) if shown(expected, n) != shown(found, n)), 16
        )  # enough to see a difference
        raise Wrong(
            f"{what}: expected {shown(expected, digits)}, found {shown(found, digits)}"
        )


def expect_true(condition: bool, what: str) -> None:
    """Wrong, saying what is not so, unless it is."""
    if not condition:
        raise Wrong(what)


def shown(tensor: torch.Tensor, digits: int) -> str:
    """A tensor in one line, with so many digits a number, at most a dozen numbers."""
    numbers = tensor.detach().flatten().tolist()
    texts = [
        f"{number:.{digits}g}" if isinstance(number, float) else str(number)
        for number in numbers[:12]
    ]
    return (
        texts[0]
        if tensor.ndim == 0
        else "[" + ", ".join(texts) + (", ...]" if len(numbers) > 12 else "]")
    )
