"""What came out of the toy's runs: summary, table, examples with their wrong steps marked, curves."""

import dataclasses
import os
import sys
from pathlib import Path

from minclipo.checkpoint.files import lines_of, read_json, write_json
from minclipo.runs.intervals import Interval, seeds_interval, share_interval
from minclipo.runs.measure import number
from minclipo.runs.plots import STYLES, plot_training
from minclipo.runs.recipes import NAMES
from minclipo.tasks.chain import ChainProblem, check_steps

DRAWN = ("step", "accuracy", "accuracy_sampled", "hallucination_rate")
MEASURES = ("accuracy", "hallucination_rate", "faithful_accuracy")
Results = dict[str, dict[int, dict]]  # results[method][seed]: what result.json says


def report(out: Path, algorithm: str) -> None:
    """Table, examples, summary.json and curves.png of all that has been finished. A damaged file is named and left
    out, so that hours of work do not end in a traceback."""
    results = finished(out)
    summary = summarize(results)
    if not summary:
        print("nothing has been finished yet")
        return
    print("\n" + table(summary))
    several = max(map(len, results.values())) > 1
    print("(mean and 95% interval over seeds)" if several else "(95% interval of the evaluation's sample: one seed)")
    show_solutions(results, min(min(by_seed) for by_seed in results.values() if by_seed))
    write_json(out / "summary.json", summary)
    curves = histories(out)
    if curves:
        plot_training(curves, out / "curves.png", NAMES[algorithm])
    print(f"\nin {out}: summary.json, curves.png; for each seed and method metrics.jsonl and model/")


def finished(out: Path) -> Results:
    """Everything that `out` has finished, of this call and of earlier ones."""
    names = (path.name.removeprefix("seed") for path in out.glob("seed*"))
    seeds = sorted(int(name) for name in names if name.isdecimal())
    found = {
        method: {seed: read_result(out / f"seed{seed}" / method / "result.json") for seed in seeds}
        for method in ["pretrained", *STYLES]
    }
    return {method: {seed: run for seed, run in by_seed.items() if run} for method, by_seed in found.items()}


def read_result(path: Path) -> dict | None:
    """What a result.json says; None if there is none or if it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        result = read_json(path)
        check_result(result)
        return result
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        print(
            f"\n{path} is damaged and left out: {type(error).__name__}: {error}. Remove it and --resume, to measure anew"
        )
        return None


def check_result(result: dict) -> None:
    """An error unless everything that is shown is there and of the right type."""
    for name in ("problems", "correct", "faithful", "seconds", "peak_memory_mib", *MEASURES):
        if not is_number(result[name]) and not (name in MEASURES and result[name] is None):
            raise ValueError(f"{name} is {result[name]!r}")
    if not 0 <= result["faithful"] <= result["correct"] <= result["problems"] != 0:
        raise ValueError("problems, correct and faithful contradict each other")
    for fields, text in result["examples"]:
        marked(ChainProblem(fields["start"], tuple(fields["operands"])), text, colour=False)


def is_number(value) -> bool:
    return isinstance(value, int | float)


def histories(out: Path) -> dict[str, list[list[dict]]]:
    """The metrics that runs have written so far, finished or not: for each method a list of runs."""
    found = {method: [history(path) for path in sorted(out.glob(f"seed*/{method}/metrics.jsonl"))] for method in STYLES}
    return {method: [run for run in runs if run] for method, runs in found.items() if any(runs)}


def history(path: Path) -> list[dict]:
    """The metrics of a run, up to the first damaged line, which is named."""
    run = []
    try:
        for number, line in enumerate(lines_of(path, "step", "accuracy", "hallucination_rate"), 1):
            wrong = [name for name in DRAWN if not is_number(line.get(name)) and line.get(name) is not None]
            if wrong:
                raise ValueError(f"{path}, line {number}: {', '.join(wrong)} must be a number")
            run.append(line)
    except ValueError as error:
        print(f"\n{error}. The curve of this run ends before it")
    return run


def summarize(results: Results) -> dict[str, dict]:
    """For each method mean, low and high of each measure, and of how many seeds: one where nothing is right has no
    hallucination rate. One seed: Wilson's interval of the evaluation's counts; several: Student's of their mean."""
    summary = {}
    for method, by_seed in results.items():
        runs = list(by_seed.values())
        if not runs:
            continue
        summary[method] = {name: dataclasses.asdict(interval) for name, interval in intervals(runs).items()}
        for name in MEASURES:
            summary[method][name]["seeds"] = sum(run[name] is not None for run in runs)
        summary[method]["seeds"] = list(by_seed)
        summary[method]["seconds"] = sum(run["seconds"] for run in runs) / len(runs)
        summary[method]["peak_memory_mib"] = max(run["peak_memory_mib"] for run in runs)
    return summary


def intervals(runs: list[dict]) -> dict[str, Interval]:
    """Each measure with its 95% interval: over seeds, or from one seed's sample of problems."""
    if len(runs) > 1:
        return {name: seeds_interval([run[name] for run in runs]) for name in MEASURES}
    problems, correct, faithful = runs[0]["problems"], runs[0]["correct"], runs[0]["faithful"]
    counts = ((correct, problems), (correct - faithful, correct), (faithful, problems))
    return {name: share_interval(*count) for name, count in zip(MEASURES, counts)}


def table(summary: dict[str, dict]) -> str:
    """The summary as a text table."""
    lines = [f"{'':15} {'accuracy':22} {'hallucination rate':22} {'faithful accuracy':22} seconds"]
    for method, row in summary.items():
        cells = [cell(row[name], len(row["seeds"])) for name in MEASURES]
        lines.append(f"{method:15} " + " ".join(f"{cell:22}" for cell in cells) + f" {row['seconds']:7.1f}")
    return "\n".join(lines)


def cell(found: dict, seeds: int) -> str:
    """A mean with its interval, as far as there are any, and the number of seeds where some have no value."""
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    missing = f" ({found['seeds']} of {seeds} seeds)" if found["seeds"] < seeds else ""
    return number(found["mean"], ".3f") + interval + missing


def show_solutions(results: Results, seed: int) -> None:
    """The same problems as solved by each method, wrong steps marked."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    how = "in red" if colour else "in [brackets]"
    print(f"\nthe first problems of seed {seed}'s evaluation, wrong steps {how}:")
    runs = {method: by_seed[seed] for method, by_seed in results.items() if seed in by_seed}
    for i, (fields, _) in enumerate(next(iter(runs.values()))["examples"]):
        problem = ChainProblem(fields["start"], tuple(fields["operands"]))
        print(f"\n  {problem.prompt}")
        for method, run in runs.items():
            if i < len(run["examples"]):
                print(f"    {method:15} {marked(problem, run['examples'][i][1], colour)}")


def marked(problem: ChainProblem, text: str, colour: bool) -> str:
    """The completion with its wrong steps in red, or in square brackets where there is no colour."""
    body, hash_sign, answer = text.partition("#")
    words = body.split()
    steps = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    wrong = "\033[1;31m{}\033[0m" if colour else "[{}]"
    verdicts = check_steps(problem, text)
    right = [i < len(problem.operands) and verdicts[i] for i in range(len(steps))]  # surplus steps are wrong
    return " ".join(step if ok else wrong.format(step) for step, ok in zip(steps, right)) + f" {hash_sign}{answer}"
