"""Does the equation check agree with people? 300 arithmetic solutions of PaLM 2, whose first wrong step people marked.

The data is BIG-Bench Mistake (Tyen et al., arXiv 2311.08516; Apache-2.0), https://github.com/WHGTyen/BIG-Bench-Mistake:

    .venv/bin/python lessons/experiments/step_check.py multistep_arithmetic.jsonl

prints what lessons/results/step_check/mistake.json holds. A solution counts as wrong where the check finds a false
equation in it; its first wrong step is the first one with such an equation.
"""

import json
import sys

from minclipo.tasks.equations import check_equations


def first_false(steps: list[str]) -> int | None:
    """The index of the first step that holds a false equation."""
    return next((i for i, step in enumerate(steps) if False in check_equations(step)), None)


def compare(solutions: list[dict]) -> dict[str, int]:
    """How often the check and the labels agree. mistake_index: the first wrong step by the label, None if all is right."""
    pairs = [(solution["mistake_index"], first_false(solution["steps"])) for solution in solutions]
    flagged_though_right = [s for s, (label, found) in zip(solutions, pairs) if label is None and found is not None]
    return {
        "solutions": len(pairs),
        "equations": sum(len(check_equations(step)) for solution in solutions for step in solution["steps"]),
        "same_verdict": sum((label is None) == (found is None) for label, found in pairs),
        "labelled_wrong": sum(label is not None for label, _ in pairs),
        "labelled_wrong_and_flagged": sum(label is not None and found is not None for label, found in pairs),
        "labelled_wrong_and_flagged_at_that_step": sum(label is not None and label == found for label, found in pairs),
        "labelled_right_but_flagged": len(flagged_though_right),
        "of_these_with_a_wrong_answer": sum(s["answer"] != s["target"] for s in flagged_though_right),
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} multistep_arithmetic.jsonl")
    with open(sys.argv[1], encoding="utf-8") as file:
        print(json.dumps(compare([json.loads(line) for line in file]), indent=1))
