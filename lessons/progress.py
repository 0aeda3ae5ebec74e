"""All exercises at a glance: how far you are, and what comes next.

    python lessons/progress.py

It runs the checks of every exercise on your files, but none that trains: of those it
remembers whether the file as it is now has reached its goal. --all trains, too (minutes),
--solution looks at the solutions instead of your files.
"""

import argparse
import contextlib
import io
import re
import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

LESSONS = Path(__file__).parent
sys.path.append(str(LESSONS / "exercises"))
from checking import SOLUTIONS, functions, grade, has_reached, trained  # noqa: E402

BLOCKS = {"right": "█", "wrong": "▒", "not yet": "░", "not run": "·"}
FACTS = re.compile(r"^Minutes: (\d+)\. Difficulty: (easy|medium|hard)\.$", re.MULTILINE)


@dataclass
class Progress:
    """How far one exercise is. As text: what stands behind its name."""

    path: Path
    states: list[str]  # of each function, and of each training: a key of BLOCKS
    minutes: int | None  # as its docstring says; None: it does not
    difficulty: str
    broken: str = ""  # why the file does not even run

    @property
    def right(self) -> int:
        return self.states.count("right")

    @property
    def done(self) -> bool:
        return self.right == len(self.states) > 0

    def __str__(self) -> str:
        bar = "".join(BLOCKS[state] for state in self.states)
        counted = f"{self.right} of {len(self.states)}" if self.states else ""
        time = f"{self.minutes} min" if self.minutes else ""
        line = f"{bar:10}{counted:9}{time:>8}  {self.difficulty:8}"
        note = "training not run" if "not run" in self.states else self.broken
        return f"{line}{note}".rstrip()


def facts(doc: str) -> tuple[int | None, str]:
    """(minutes, difficulty) as the line "Minutes: 20. Difficulty: medium." of a docstring
    says; (None, "") without."""
    found = FACTS.search(doc or "")
    return (int(found[1]), found[2]) if found else (None, "")


def progress_of(path: Path, *, solution: bool = False, train: bool = False) -> Progress:
    """Run one exercise's checks, and its training if that is asked for."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what the reader's code prints
            exercise = runpy.run_path(str(path))
            answers = runpy.run_path(str(SOLUTIONS / path.name)) if solution else exercise
            states = [state for _, state, _ in grade(exercise, answers)]
    except KeyboardInterrupt as stop:
        sys.exit(f"\nstopped in {path.name}{line_of(path, stop)}: does it ever end?")
    except (Exception, SystemExit) as error:  # half an edit: it does not run
        return Progress(path, [], None, "", f"{type(error).__name__}: {error}")
    for _ in functions(exercise, "train_"):
        if states.count("right") < len(states):
            states.append("not yet")
        elif train:
            print("training")
            states += [state for _, state, _ in trained(exercise, answers)]
            print(" " * 30, end="")  # below its name
        else:
            states.append("right" if not solution and has_reached(path) else "not run")
    gone = "" if states else "its checks are gone"
    return Progress(path, states, *facts(exercise["__doc__"]), broken=gone)


def line_of(path: Path, error: BaseException) -> str:
    """Where in this file an error came up, ", line 7"; "" if elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def summary(found: list[Progress]) -> str:
    """The total, and what comes next."""
    right, total = (
        sum(part.right for part in found),
        sum(len(part.states) for part in found),
    )
    left = [part for part in found if not part.done]
    to_write = [part for part in left if set(part.states) - {"right", "not run"}]
    minutes = sum(part.minutes or 0 for part in to_write)
    done = len(found) - len(left)
    lines = [f"{right} of {total} right, {done} of {len(found)} exercises done"]
    if not left:
        lines += ["All done: you have built GRPO and CLIPO yourself. Congratulations."]
        return "\n".join(lines)
    if minutes:
        lines[0] += f"; about {minutes / 60:.1f} hours to go"
    first = left[0]
    return "\n".join([*lines, f"Next: python lessons/exercises/{first.path.name}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="train, too")
    parser.add_argument("--solution", action="store_true", help="look at the solutions")
    chosen = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="replace")  # a console without block characters
    print("█ right   ▒ wrong   ░ not yet   · not run\n")
    found = []
    for path in sorted((LESSONS / "exercises").glob("[0-9]*.py")):
        print(f"{path.stem:30}", end="", flush=True)  # one that never ends is seen
        found.append(progress_of(path, solution=chosen.solution, train=chosen.all))
        print(found[-1], flush=True)
    print(f"\n{summary(found)}")


if __name__ == "__main__":
    main()
