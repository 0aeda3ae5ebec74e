"""The equation check beside people: does it find their first wrong step, and how many right answers hide one?

The data is BIG-Bench Mistake (Tyen et al., arXiv 2311.08516), https://github.com/WHGTyen/BIG-Bench-Mistake: chains of
thought of PaLM 2 in which people marked the first wrong step. Of its five tasks, this one writes equations:

    python lessons/experiments/human_labels.py multistep_arithmetic.jsonl --out lessons/results/human_labels

writes OUT/table.md and results.json. A record has the fields steps, answer, target and mistake_index: the marked step,
counted from 0, or null. The check flags a solution that has a false equation. The steps are checked as they are.
"""

import argparse
import hashlib
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

from tables import table, write_results

from minclipo.runs.intervals import share_interval
from minclipo.runs.report import cell
from minclipo.tasks.data_files import records
from minclipo.tasks.equations import check_equations

VERSIONS = {  # SHA-256 of a file: where it is from
    "b3f9a99e62bdcb758d6cafc531a43f6d6bca6812190cce4f982d1c01ac0767d3": "commit "
    "270683a4ecce6f3b22c4ab28a204ab8fa09f2517 of WHGTyen/BIG-Bench-Mistake, 2024-01-25, Apache-2.0"
}
WRONG, RIGHT = "answer wrong", "answer right"
FLAGGED, MARKED = "flagged, not marked", "marked, not flagged"
EARLIER, LATER = "flagged in an earlier step than marked", "flagged in a later step than marked"
READ = {  # how they disagree: the lines of that file that were read on 2026-11-26, and what was found
    f"{FLAGGED}; {WRONG}": (
        (2, 25, 35, 105, 121, 140, 148, 236, 238, 249, 262, 274, 284, 300),
        "the equation is false in all 14, people overlooked it: 10 wrong sums or products, 4 signs lost in rewriting",
    ),
    f"{FLAGGED}; {RIGHT}": ((126,), "two slips that cancel: brackets put where they do not belong, then a wrong sum"),
    f"{MARKED}; {WRONG}": (
        (71, 98, 130),
        "A - B with B = -8 becomes -12 - 8: a sign lost in putting in a letter's value. The equation after it is true",
    ),
    f"{MARKED}; {RIGHT}": ((12,), "all equations of the marked step are true: we see no mistake"),
    f"{EARLIER}; {WRONG}": ((160, 163), "two slips that cancel within a step; people passed it and marked the next"),
    f"{LATER}; {WRONG}": (
        (149,),
        "all equations of the marked step are true, one bracket has no partner; the step after it has a wrong sum",
    ),
}
SUMMARY = """
In 17 of the 22 the equation is false and people passed it. In 2 we see no mistake in what people marked. In 3
the check is blind: it knows no letters. None of the 22 is an equation that the check misread. Only 45 answers are
right, so the shares of these are rough."""


def first_false(steps: list[str]) -> int | None:
    """The index of the first step that holds a false equation."""
    return next((i for i, step in enumerate(steps) if False in check_equations(step)), None)


def solution_of(place: str, record: dict) -> dict:
    """First wrong step by the label and by the check (None: there is none), and whether the answer is right."""
    expected = {"steps": list, "answer": str, "target": str, "mistake_index": int | None}
    for field, kind in expected.items():
        if not isinstance(record, dict) or field not in record or not isinstance(record[field], kind):
            raise ValueError(
                f"{place}: no field {field!r} as BIG-Bench Mistake has it: give multistep_arithmetic.jsonl"
            )
    steps, label = record["steps"], record["mistake_index"]
    if not all(isinstance(step, str) for step in steps) or label is not None and not 0 <= label < len(steps):
        raise ValueError(f"{place}: 'steps' must be texts, 'mistake_index' null or the index of one of them")
    return {"label": label, "found": first_false(steps), "right": record["answer"] == record["target"]}


def disagreement(solution: dict) -> str | None:
    """How people and check disagree about a solution; None if they do not."""
    label, found = solution["label"], solution["found"]
    if label == found:
        return None
    how = FLAGGED if label is None else MARKED if found is None else EARLIER if found < label else LATER
    return f"{how}; {RIGHT if solution['right'] else WRONG}"


def shares(solutions: list[dict]) -> dict[str, dict]:
    """What is said of the check, each a count, of how many, and Wilson's interval of the share."""
    marked = [s for s in solutions if s["label"] is not None]
    passed = [s for s in solutions if s["label"] is None]
    right = [s for s in solutions if s["right"]]
    agree = lambda s: (s["label"] is None) == (s["found"] is None)
    counted = {
        "all: the same verdict": (solutions, agree),
        "marked by people: flagged": (marked, lambda s: s["found"] is not None),
        "marked by people: flagged first in that step": (marked, lambda s: s["found"] == s["label"]),
        "not marked by people: flagged": (passed, lambda s: s["found"] is not None),
        "answer right: marked by people": (right, lambda s: s["label"] is not None),
        "answer right: flagged": (right, lambda s: s["found"] is not None),
        "answer right: the same verdict": (right, agree),
    }
    found = {}
    for name, (among, holds) in counted.items():
        count = sum(map(holds, among))
        found[name] = {"count": count, "of": len(among)} | vars(share_interval(count, len(among)))
    return found


def report(path: Path, out: Path) -> None:
    """Compare, write and show."""
    version = VERSIONS.get(hashlib.sha256(path.read_bytes()).hexdigest())
    solutions, kinds = [solution_of(place, record) for place, record in records(path)], defaultdict(list)
    if not solutions:
        raise ValueError(f"{path} holds no solutions: give multistep_arithmetic.jsonl")
    for line, solution in enumerate(solutions, 1):
        kinds[disagreement(solution)].append(line)
    kinds.pop(None, None)
    notes = {kind: note for kind, (lines, note) in READ.items() if version and list(lines) == kinds.get(kind)}
    found, today = shares(solutions), date.today().isoformat()
    counts = [[name, f"{row['count']} of {row['of']}", cell(row | {"seeds": 1}, 1)] for name, row in found.items()]
    rows = [[kind, str(len(lines)), " ".join(map(str, lines)), notes.get(kind, "")] for kind, lines in kinds.items()]
    text = (
        f"{path.name}, {version or 'an unknown version'}; checked on {today}. Shares with 95% intervals (Wilson):\n\n"
    )
    text += table("solutions", ("count", "share"), counts) + "\n\nWhere they disagree:\n\n"
    text += table("", ("solutions", "lines of the file", "what reading them showed"), rows) + "\n"
    if len(notes) == len(READ):
        text += f"{SUMMARY}\n"
    results = {"file": path.name, "version": version, "date": today, "shares": found, "disagreements": kinds}
    write_results(results, text, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="multistep_arithmetic.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/human_labels"), help="default: runs/human_labels")
    arguments = parser.parse_args(argv)
    try:
        report(arguments.file, arguments.out)
    except (ValueError, OSError) as error:
        print(f"human_labels.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
