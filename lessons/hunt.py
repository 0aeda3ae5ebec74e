"""A hunt: fifteen whole training programs, and you are not told what is wrong with them.

Programs 1 to 10 hold at most one bug, 11 to 15 at most two, of which some are not in the
warm-up of lesson 15. At least one program is right.

    python lessons/hunt.py                      where you stand
    python lessons/hunt.py 3                    write program 3 to runs/lessons, to read
    python lessons/hunt.py 3 --run              train it, beside the right program
    python lessons/hunt.py 3 --ring cut         ask one instrument; all: every one
    python lessons/hunt.py 3 --accuse backward  say where the bug is; nobody: it is right

Instruments and --run use the file as it is, so you can mend it and ask again. Delete it
to begin anew. lessons/hunting/slips.py gives everything away.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path

import common
from hunting.instruments import INSTRUMENTS, RIGHT, SILENT, law
from hunting.program import PARTS, load, mended
from hunting.slips import PROGRAMS, SLIPS, program_with, story

NOBODY = "nobody"


def path_of(number: int) -> Path:
    return common.RUNS / f"hunt_{number}.py"


def accused_in(number: int) -> list[str]:
    """The accusations so far, in their order."""
    notes = path_of(number).with_suffix(".json")
    try:
        return json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else []
    except ValueError as error:
        sys.exit(f"{notes} is damaged: {error}. Delete it to begin anew")


def guilty_in(number: int) -> dict[str, str]:
    """part: the slip that it holds."""
    return {SLIPS[name].part: name for name in PROGRAMS[number]}


def solved(number: int) -> bool:
    return (set(guilty_in(number)) or {NOBODY}) <= set(accused_in(number))


def write(number: int) -> Path:
    """The program's file; one that is there stays as it is."""
    path = path_of(number)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program_with(PROGRAMS[number]), encoding="utf-8")
    return path


def program_in(number: int) -> dict:
    """What the program's file defines; a file that has been spoilt ends the hunt."""
    path = write(number)
    try:
        return load(path.read_text(encoding="utf-8"), str(path))
    except Exception as error:  # the reader's own editing
        sys.exit(f"{path} does not run: {type(error).__name__}: {error}")


def begin(number: int) -> None:
    path = write(number)
    most = "one bug" if number <= 10 else "two bugs"
    print(f"{path}: a program with at most {most}. Its parts: {', '.join(PARTS)}.")
    print("Read it and ask the instruments:", ", ".join(INSTRUMENTS))
    print(f"Then accuse a part: python lessons/hunt.py {number} --accuse PART")
    print(f"or, if nothing is wrong: python lessons/hunt.py {number} --accuse {NOBODY}")


def run(number: int) -> None:
    steps = common.training_steps(60)
    curves = [found["train"](steps=steps)[1] for found in (program_in(number), RIGHT)]
    print(f"mean reward    program {number}      a right one")
    for end in range(max(1, steps // 10), steps + 1, max(1, steps // 10)):
        bars = [
            f"{curve[end - 1]:.2f} {'#' * round(10 * curve[end - 1]):10}"
            for curve in curves
        ]
        print(f"step {end:3}     ", "   ".join(bars).rstrip())


def ring(number: int, names: list[str]) -> None:
    found = program_in(number)
    for name in names:
        try:
            value = float(INSTRUMENTS[name](found))
            reading = f"{value:6.2f} rings" if value > SILENT else f"{'-':>6}      "
        except Exception as error:  # the reader's own editing
            reading = f"fails: {type(error).__name__}: {error}"
        print(f"{name:11} {reading}   {law(name)}")


def accuse(number: int, part: str) -> bool:
    """Say whether the accusation is right, count it, and show what it has found."""
    notes, guilty = path_of(number).with_suffix(".json"), guilty_in(number)
    right = part in guilty or (part == NOBODY and not guilty)
    before = accused_in(number)
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text(json.dumps([*before, part]), encoding="utf-8")
    count = f"accusation {len(before) + 1}"
    if not right:
        what = "there is a bug" if part == NOBODY else f"{part} is right"
        print(f"No: {what} ({count}).")
        return False
    if part == NOBODY:
        print(f"Yes: this program is right ({count}).")
        return True
    slip = SLIPS[guilty[part]]
    print(f"Yes: {part} holds a bug ({count}).\n")
    texts = [text.splitlines() for text in (slip.text(), mended(part))]
    print(*difflib.unified_diff(*texts, "as found", "mended", lineterm=""), sep="\n")
    print(f"\n{story(guilty[part])}\n")
    more = "" if solved(number) else " There is one more."
    print(f"Program {number}: {'solved.' if not more else 'one bug found.'}{more}")
    return True


def overview() -> None:
    for number in PROGRAMS:
        count = len(accused_in(number))
        state = "solved" if solved(number) else "open" if count else "not begun"
        print(f"{number:3}  {state:9}" + (f"  accusations: {count}" if count else ""))
    done = sum(map(solved, PROGRAMS))
    print(f"{done} of {len(PROGRAMS)} solved")
    if done == len(PROGRAMS):
        print("You have found them all. Now take somebody else's program.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("number", nargs="?", type=int, help="of the program, 1 to 15")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="train it")
    action.add_argument("--ring", metavar="INSTRUMENT", help="or all")
    action.add_argument("--accuse", metavar="PART", help=f"or {NOBODY}")
    found = parser.parse_args(argv)
    if found.number is None:
        if found.run or found.ring or found.accuse:
            parser.error("which program? Give its number first")
        overview()
        return 0
    if found.number not in PROGRAMS:
        parser.error(
            f"there is no program {found.number}; they go from 1 to {len(PROGRAMS)}"
        )
    if found.ring and found.ring not in {*INSTRUMENTS, "all"}:
        names = ", ".join(INSTRUMENTS)
        parser.error(f"there is no instrument {found.ring}; there are {names}, and all")
    if found.accuse and found.accuse not in {*PARTS, NOBODY}:
        names = ", ".join(PARTS)
        parser.error(f"there is no part {found.accuse}; there are {names}, and {NOBODY}")
    if found.run:
        run(found.number)
    elif found.ring:
        ring(found.number, list(INSTRUMENTS) if found.ring == "all" else [found.ring])
    elif found.accuse:
        return 0 if accuse(found.number, found.accuse) else 1
    else:
        begin(found.number)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
