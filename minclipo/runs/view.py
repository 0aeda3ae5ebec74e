"""The rollouts of a run as one HTML page that needs nothing else: what people look at to believe a curve.

    python -m minclipo.runs.view runs/toy                        # every seed and method below it, a tab each
    python -m minclipo.runs.view runs/llm --to rollouts.html     # one run
    python -m minclipo.runs.view runs/llm --steps 20:60          # or --last 3: fewer steps, more of each

The page is self-contained: it loads nothing, and can be sent to others. What a model wrote is text there, whatever it is.
"""

import argparse
import base64
import hashlib
import html
import json
import math
import re
import sys
from pathlib import Path

from minclipo.checkpoint.files import lines_of, read_lines, write_text
from minclipo.tasks.chain import ChainProblem, check_steps

TEMPLATE = Path(__file__).with_name("view.html")
ROLLOUTS, METRICS = "rollouts.jsonl", "metrics.jsonl"
NEEDED = ("step", "group", "prompt", "completion", "correct")
NUMBERS = ("reward", "outcome", "contrastive", "extra", "advantage", "tokens")
ROOM = 8_000_000  # bytes of rollouts on a page: browsers and mail take that
MOST_STEPS = 400  # on a page: each brings a prompt, however little room there is
LARGEST = 2**53  # from there on the page's script cannot tell a number from the next one
CHAIN = re.compile(r"(\d+) +((?:, [+-]\d+ )+)=")
RECORDS = "--keep-rollouts N of the training records them: of step 1 and of every N-th (20 by default, 0: of none)"


# ---- which runs, which steps ----


def runs_in(path: Path) -> dict[str, Path]:
    """{name: its rollouts.jsonl} of a file, of a run's folder, or of all runs below a folder."""
    if not path.exists():
        raise ValueError(f"{path} does not exist. Name the folder of a run, as runs/toy or runs/llm, or a {ROLLOUTS}")
    if path.is_file():
        return {path.resolve().parent.name: path}
    files = [path / ROLLOUTS] if (path / ROLLOUTS).is_file() else sorted(path.rglob(ROLLOUTS))
    files = [file for file in files if file.is_file()]
    if not files:
        known = "there are metrics, but" if any(path.rglob(METRICS)) else "there is"
        raise ValueError(f"nothing recorded in {path}: {known} no {ROLLOUTS}. {RECORDS}")
    name = lambda folder: folder.relative_to(path).as_posix() if folder != path else path.resolve().name
    return {name(file.parent): file for file in files}


def recorded(file: Path) -> dict[int, int]:
    """{step: how many rollouts it has}, in order; ValueError for a line that is none."""
    counts = {}
    for number, line in enumerate(lines_of(file, *NEEDED), 1):
        wrong = [name for name in ("step", "group") if type(line[name]) is not int or abs(line[name]) >= LARGEST]
        wrong += [name for name in ("prompt", "completion") if type(line[name]) is not str]
        wrong += ["correct"] if type(line["correct"]) is not bool else []
        if wrong:
            raise ValueError(f"{file}, line {number}: {wrong[0]} is {line[wrong[0]]!r:.60}. Correct or remove it")
        counts[line["step"]] = counts.get(line["step"], 0) + 1
    return dict(sorted(counts.items()))


def chosen(steps: list[int], span: tuple[int, float] | None, last: int | None) -> list[int]:
    """Those within `span`, or the `last` ones; all without either."""
    if span:
        return [step for step in steps if span[0] <= step <= span[1]]
    return steps[-last:] if last else steps


def thinned(steps: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced; the last is among them."""
    if len(steps) <= most:
        return steps
    return [steps[(place + 1) * len(steps) // most - 1] for place in range(most)]


def span_of(text: str) -> tuple[int, float]:
    """20:60, 20: or :60, both ends included; 20 alone is that step."""
    match = re.fullmatch(r"(\d*)(:?)(\d*)", text)
    if not match or not (match[1] or match[3]):
        raise argparse.ArgumentTypeError(f"{text!r} is no FIRST:LAST, such as 20:60, 20: or :60")
    first = int(match[1] or 0)
    return first, (int(match[3]) if match[3] else math.inf) if match[2] else first


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps, 1 or more")
    return int(text)


# ---- what is shown of a rollout ----


def shown(line: dict) -> dict:
    """What the page needs of a line of rollouts.jsonl: kind, text in pieces, verdicts, numbers."""
    verdicts = line.get("step_verdicts") if type(line.get("step_verdicts")) is list else []
    kind = "wrong" if not line["correct"] else "right"
    if "step_verdicts" in line and line["correct"]:
        kind = "faithful" if all(verdicts) else "hallucinated"
    numbers = {name: finite(line.get(name)) for name in NUMBERS}
    row = {"kind": kind, "finished": bool(line.get("finished", True))} | numbers
    problem = chain_problem(line["prompt"])
    if problem:
        return row | {"pieces": chain_pieces(problem, line["completion"], bool(line["correct"]))}
    row["pieces"] = [[visible(line["completion"]), True]]
    return row | ({"steps": [bool(verdict) for verdict in verdicts]} if verdicts else {})


def chain_problem(prompt: str) -> ChainProblem | None:
    """The toy's problem behind a prompt, None for any other prompt."""
    match = CHAIN.fullmatch(prompt.strip())
    if not match or len(prompt) > 1000:  # as no textbook has them: Python refuses to read the longest numbers
        return None
    return ChainProblem(int(match[1]), tuple(int(word) for word in match[2].replace(",", "").split()))


def chain_pieces(problem: ChainProblem, text: str, correct: bool) -> list[list]:
    """The completion cut into [text, is it right?]: steps as the toy's table marks them, then the answer."""
    verdicts = check_steps(problem, text)[: len(problem.operands)]
    body, sign, answer = text.partition("#")
    words = [match.span() for match in re.finditer(r"\S+", body)]
    pieces, end = [], 0
    for i, (start, _) in enumerate(words[::2]):
        step_end = words[min(2 * i + 1, len(words) - 1)][1]
        right = i < len(verdicts) and verdicts[i]  # surplus steps are wrong
        pieces += [[body[end:start], True], [body[start:step_end], right]]
        end = step_end
    pieces += [[body[end:], True], [sign + answer, correct]]
    return [[visible(piece), right] for piece, right in pieces if piece]


def visible(text: str) -> str:
    """The text with control characters as escapes, such as those that turn the direction of writing."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def finite(value) -> float | int | None:
    """A number that the page's script can read; None for anything else."""
    return value if type(value) in (int, float) and abs(value) < LARGEST else None  # NaN is not below anything


# ---- a run, and the page ----


def read_run(name: str, file: Path, steps: list[int], counts: dict[int, int], room: float) -> dict:
    """The chosen steps of a run, each with as many of its prompts as fit its share of `room` bytes, and its metrics."""
    parts = {step: {} for step in steps}  # step: {group: prompt with its rollouts}
    left = dict.fromkeys(steps, room / max(1, len(steps)))
    for line in lines_of(file, *NEEDED):
        step, group = line["step"], line["group"]
        if step not in parts or (group not in parts[step] and parts[step] and left[step] <= 0):
            continue  # the first prompt of a step is always there, and a prompt is there with all its rollouts
        prompt = {"prompt": visible(line["prompt"]), "truth": visible(str(line.get("truth") or "")), "rollouts": []}
        row = shown(line)
        left[step] -= len(embedded(row)) + (len(embedded(prompt)) if group not in parts[step] else 0)
        parts[step].setdefault(group, prompt | {"group": group})["rollouts"].append(row)
    found = [{"step": step, "count": counts[step], "prompts": list(parts[step].values())} for step in steps]
    return {"name": visible(name), "steps": found, "curve": curve(file.with_name(METRICS))}


def curve(path: Path) -> list[list]:
    """[step, accuracy, hallucination rate] of each training step that metrics.jsonl has; None where it has no value."""
    names = ("step", "accuracy", "hallucination_rate")
    points = [[finite(line.get(name)) for name in names] for line in read_lines(path, "step")]
    return [point for point in points if point[0] is not None]


def read_runs(path: Path, span: tuple[int, float] | None, last: int | None, room: float = ROOM) -> list[dict]:
    """All runs that have one of the chosen steps; they share the room."""
    counts = {name: (file, recorded(file)) for name, file in runs_in(path).items()}
    steps = {name: chosen(list(count), span, last) for name, (_, count) in counts.items()}
    kept = [name for name in counts if steps[name]]
    if not kept:
        there = sorted({step for _, count in counts.values() for step in count})
        said = f"recorded are {', '.join(map(str, there))}" if there else f"no step is recorded yet. {RECORDS}"
        raise ValueError(f"no such step in {path}: {said}")
    runs = []
    for name in kept:
        (file, count), some = counts[name], thinned(steps[name], max(1, MOST_STEPS // len(kept)))
        run = read_run(name, file, some, count, room / len(kept))
        runs.append(run | {"recorded": sum(count[step] for step in steps[name])})
    return runs


def left_out(runs: list[dict]) -> str:
    """A sentence on what the page lacks, empty if that is nothing."""
    steps = [step for run in runs for step in run["steps"]]
    there, all_of_them = sum(map(rollouts_on, steps)), sum(run["recorded"] for run in runs)
    if there == all_of_them:
        return ""
    which = "each step" if sum(step["count"] for step in steps) == all_of_them else "some of the steps"
    return (
        f"This page holds {there:,} of {all_of_them:,} rollouts, to stay small: the first prompts of {which}. "
        "For more of fewer steps, make it with --steps FIRST:LAST or --last N."
    )


def rollouts_on(step: dict) -> int:
    return sum(len(prompt["rollouts"]) for prompt in step["prompts"])


def embedded(value) -> str:
    """JSON that may stand in an HTML page: ASCII, and nothing in it can end or begin an element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page(title: str, runs: list[dict]) -> str:
    """The page. Its policy lets no script run but its own, known by checksum, and nothing be loaded."""
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = embedded({"title": title, "left_out": left_out(runs), "runs": runs})
    values = {"CHECKSUM": checksum, "TITLE": html.escape(title), "DATA": data}
    return re.sub(r"%%(CHECKSUM|TITLE|DATA)%%", lambda mark: values[mark[1]], template)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help=f"the folder of a run, a folder of runs, or a {ROLLOUTS}")
    parser.add_argument("--to", type=Path, help="the file to write (default: rollouts.html in that folder)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--steps", type=span_of, metavar="FIRST:LAST", help="only these steps, both included")
    which.add_argument("--last", type=at_least_one, metavar="N", help="only the last N recorded steps")
    arguments = parser.parse_args(argv)
    path = arguments.run
    try:
        runs = read_runs(path, arguments.steps, arguments.last)
        to = arguments.to or (path if path.is_dir() else path.parent) / "rollouts.html"
        if to.exists() and not to.is_file():
            raise ValueError(f"--to {to} is a folder or a device: name a file")
        write_text(to, page(visible(str(path)), runs))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
