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


def verdict(check: Callable, answer: Callable) -> tuple[str, str]:
    """("right" | "wrong" | "not yet", why) of one function."""
    try:
        check(answer)
    except NotImplementedError as error:
        return "not yet", f"still to be written. {error}".strip()
    except Wrong as error:
        return "wrong", str(error)
    except Exception as error:  # the reader's code may fail in any way; where it did is what he wants to know
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "wrong", f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return "right", ""


def grade(exercise: dict, answers: dict) -> list[tuple[str, str, str]]:
    """(function, verdict, why) of every check in `exercise`, applied to the functions in `answers`."""
    checks = [(name.removeprefix("check_"), check) for name, check in exercise.items() if name.startswith("check_")]
    return [(name, *verdict(check, answers[name])) for name, check in checks]


def report(exercise: dict) -> None:
    """Grade the exercise, given as its globals(); exits with 0 if all is right, else with 1."""
    path = Path(exercise["__file__"])
    parser = argparse.ArgumentParser(description=exercise["__doc__"], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--solution", action="store_true", help="check the solution instead of this file")
    solution = parser.parse_args().solution
    results = grade(exercise, runpy.run_path(str(SOLUTIONS / path.name)) if solution else exercise)
    for name, verdict, why in results:
        print(f"{verdict:8} {name}" + (f": {why}" if why else ""))
    right = sum(verdict == "right" for _, verdict, _ in results)
    print(f"{right} of {len(results)} right" + ("" if right == len(results) else f"; edit {path}"))
    sys.exit(right < len(results))


def expect(found, expected, what: str, *, tolerance: float = 1e-5) -> None:
    """Wrong unless found, a number or tensor, is `expected` within `tolerance`; `what` names the case."""
    if found is None:
        raise Wrong(f"{what}: the function returned None; is a return missing?")
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    if found.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}")
    wide = torch.promote_types(torch.promote_types(found.dtype, expected.dtype), torch.float32)
    if not torch.allclose(found.detach().to(wide), expected.detach().to(wide), rtol=tolerance, atol=tolerance):
        digits = next((n for n in (4, 8) if shown(expected, n) != shown(found, n)), 16)  # enough to see a difference
        raise Wrong(f"{what}: expected {shown(expected, digits)}, found {shown(found, digits)}")


def expect_true(condition: bool, what: str) -> None:
    """Wrong, saying what is not so, unless it is."""
    if not condition:
        raise Wrong(what)


def shown(tensor: torch.Tensor, digits: int) -> str:
    """A tensor in one line, with so many digits a number, at most a dozen numbers."""
    numbers = tensor.detach().flatten().tolist()
    texts = [f"{number:.{digits}g}" if isinstance(number, float) else str(number) for number in numbers[:12]]
    return texts[0] if tensor.ndim == 0 else "[" + ", ".join(texts) + (", ...]" if len(numbers) > 12 else "]")
