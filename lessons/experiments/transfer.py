"""Does what a model has learnt hold on other problems? Two or more checkpoints on several problem sets, side by side.

    python lessons/experiments/transfer.py --models BEFORE AFTER --data SOURCE SOURCE --problems 0 --out runs/transfer

--models and --data take what --model and --data of train_llm.py take; minclipo/tasks/README.md has the command for
GSM8K and GSM-Symbolic. Completions are greedy. Each model is compared with the first one, problem by problem. OUT then
holds table.md, results.json, and OUT/measured with all completions. Ctrl-C keeps each (model, set) pair that is
finished; the same command does the rest. A greedy completion is the most likely one: a made-up step that a model writes
now and then when it samples does not show.

Problems made from one template are not independent: GSM-Symbolic has 50 of each. Where a file says what a problem was
made from (its field original_id), the intervals treat templates, not problems, as independent: see
transfer_intervals.py. They speak of other problems of this kind, not of another training run.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from tables import points, table, write_results
from transfer_intervals import difference, share
from transfer_measure import Subject

from minclipo.runs.command_line import add_options
from minclipo.runs.llm_config import LLMConfig
from minclipo.runs.report import cell

COLUMNS = ("problems (templates)", "accuracy", "− first's, points", "hallucination rate")
COLUMNS += ("− first's where both are right, points", "steps checked (per right answer)", "finished")


def summary(source: str, name: str, found: dict) -> dict:
    """What a model does with a problem set, in numbers."""
    rows = found["problems"]
    right = [row for row in rows if row["right"]]
    templates = [row["template"] for row in rows]
    return {
        "data": source,
        "model": name,
        "problems": len(rows),
        "templates": len(set(templates)),
        "right": len(right),
        "accuracy": vars(share([row["right"] for row in rows], templates)),
        "hallucination_rate": vars(share([row["false_step"] for row in right], [row["template"] for row in right])),
        "steps_checked": sum(row["steps_checked"] for row in right),
        "finished": found["finished"],
    }


def differences(found: dict, first: dict) -> dict:
    """A model against the first one: accuracy on all problems, hallucination rate where both are right."""
    pairs = list(zip(found["problems"], first["problems"]))
    both = [(row, other) for row, other in pairs if row["right"] and other["right"]]
    result = {"both_right": len(both)}
    for name, verdict, chosen in (("accuracy", "right", pairs), ("hallucination_rate", "false_step", both)):
        values, others = ([pair[side][verdict] for pair in chosen] for side in (0, 1))
        result[f"{name}_difference"] = vars(difference(values, others, [row["template"] for row, _ in chosen]))
    return result


def compare(models: dict[str, dict[str, dict]]) -> list[dict]:
    """The rows of the results, set by set. models: {model: {source: what Subject.measured says}}."""
    (first, measured), results = next(iter(models.items())), []
    for source in measured:
        for name, found in models.items():
            results.append(summary(source, name, found[source]))
            if name != first:
                results[-1] |= differences(found[source], measured[source])
    return results


def cells(result: dict) -> list[str]:
    """A row of the table."""
    row = [f"{result['data']}: {result['model']}", f"{result['problems']} ({result['templates']})"]
    for name in ("accuracy", "hallucination_rate"):
        row += [cell(result[name] | {"seeds": 1}, 1), points(result.get(f"{name}_difference"))]
    per_answer = f" ({result['steps_checked'] / result['right']:.1f})" if result["right"] else ""
    return [*row, f"{result['steps_checked']}{per_answer}", f"{result['finished']:.2f}"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="the others are compared with the first")
    parser.add_argument(
        "--data", nargs="+", required=True, help="files, ORGANISATION/NAME:PATTERN, sums, stories or chain"
    )
    parser.add_argument("--problems", type=int, default=200, help="problems per set; 0: all there are (default: 200)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest completion, in tokens (default: 512)")
    parser.add_argument("--sampling-rows", type=int, default=64, help="completions sampled in parallel (default: 64)")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="default: runs/transfer")
    evaluation = [field.name for field in fields(LLMConfig) if field.metadata["group"] == "evaluation"]
    add_options(parser, LLMConfig, skip=("model", "data", "gradient_checkpointing", "compile", *evaluation))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        if len(set(arguments.models)) < 2 or arguments.problems < 0 or arguments.sampling_rows < 1:
            raise ValueError("give two or more --models, --problems of 0 or more, --sampling-rows of 1 or more")
        subjects, measured = [Subject(name, arguments) for name in dict.fromkeys(arguments.models)], {}
        for subject in subjects:
            subject.check_same_problems(subjects[0])
        for subject in subjects:
            measured[subject.name] = {source: subject.measured(source) for source in subject.tasks}
            subject.model = None  # makes room for the next one
        results = compare(measured)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        return 130
    except (ValueError, OSError) as error:
        print(f"transfer.py: {error}", file=sys.stderr)
        return 1
    how = (
        f"Greedy, at most {arguments.max_new_tokens} new tokens. 95% intervals, for templates as independent draws.\n\n"
    )
    write_results(results, how + table("", COLUMNS, [cells(result) for result in results]) + "\n", arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
