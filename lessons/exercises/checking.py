"""Runs an exercise's checks and says of each function: right, wrong, or not yet.

An exercise holds functions to be written and, for each function f, a `check_f(f)` that raises Wrong with what it found.
`report(globals())` at its end runs them: on the exercise's own functions, or with --solution on those of the file of
the same name in lessons/solutions.
"""

import argparse
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

SOLUTIONS = Path(__file__).parent.parent / "solutions"


class Wrong(Exception):
    """The answer is wrong; the message says what was asked, what was found and what was expected."""


def verdict(check: Callable, answer: Callable | None) -> tuple[str, str]:
    """("right" | "wrong" | "not yet", why) of one function; None: there is no such function."""
    if answer is None:
        return "not yet", "there is no function of this name"
    try:
        check(answer)
    except Wrong as error:
        return "wrong", str(error)
    except NotImplementedError as error:
        if "not implemented for" in str(
            error
        ):  # torch's own: an operation that a dtype lacks
            return "wrong", failure(error, answer)
        return "not yet", f"still to be written. {error}".strip()
    except (Exception, SystemExit) as error:  # the reader's code may fail in any way
        return "wrong", failure(error, answer)
    return "right", ""


def failure(error: BaseException, answer: Callable) -> str:
    """What an error says, and the last line of the reader's own file on the way to it."""
    frames, code = (
        traceback.extract_tb(error.__traceback__),
        getattr(answer, "__code__", None),
    )
    place = (
        [frame for frame in frames if code and frame.filename == code.co_filename]
        or frames
    )[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def grade(exercise: dict, answers: dict) -> list[tuple[str, str, str]]:
    """(function, verdict, why) of every check in `exercise`, applied to the functions in `answers`."""
    own = lambda check: (
        getattr(check, "__module__", None) == exercise["__name__"]
    )  # not what the reader has imported
    checks = {
        name: check
        for name, check in exercise.items()
        if name.startswith("check_") and own(check)
    }
    names = [name.removeprefix("check_") for name in checks]
    return [
        (name, *verdict(check, answers.get(name)))
        for name, check in zip(names, checks.values())
    ]


def report(exercise: dict) -> None:
    """Grade the exercise, given as its globals(); exits with 0 if all is right, else with 1."""
    path = Path(exercise["__file__"])
    parser = argparse.ArgumentParser(
        description=exercise["__doc__"], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--solution", action="store_true", help="check the solution instead of this file"
    )
    solution = parser.parse_args().solution
    results = grade(
        exercise, runpy.run_path(str(SOLUTIONS / path.name)) if solution else exercise
    )
    for name, state, why in results:
        print(f"{state:8} {name}" + (f": {why}" if why else ""))
    right = sum(state == "right" for _, state, _ in results)
    print(
        f"{right} of {len(results)} right"
        + ("" if right == len(results) else f"; edit {path}")
    )
    sys.exit(right < len(results))


def expect(found, expected, what: str, *, tolerance: float = 1e-5) -> None:
    """Wrong unless found, a number or tensor, is `expected` within `tolerance` (whole numbers: exactly); `what` names
    the case."""
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
