"""Table and picture of what stories.py has finished."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from pictures import tidy
from tables import share, table, write_results

from minclipo.checkpoint.files import read_json, read_lines
from minclipo.runs.plots import STYLES

COLUMNS = {  # key in result.json -> heading
    "accuracy": "accuracy",
    "hallucination_rate": "hallucination rate",
    "greedy_hallucination_rate": "the same, greedy",
    "right_if_made_up": "right if made up",
    "right_if_faithful": "right if faithful",
}
LOW = 0.02  # a hallucination rate of the training rollouts that counts as cured
Results = dict[str, dict[int, dict]]  # results[method][seed]; "start" has one seed, 0


def results(out: Path, way: str) -> Results:
    """What has been finished in one way of writing, each result with the metrics of its training steps."""
    found = {}
    for method in ["start", *STYLES]:
        paths = [out / way / "start"] if method == "start" else sorted((out / way / method).glob("seed*"))
        done = [path for path in paths if (path / "result.json").is_file()]
        by_seed = {int(path.name.removeprefix("seed").replace("start", "0")): path for path in done}
        found[method] = {
            seed: read_json(path / "result.json") | {"history": read_lines(path / "metrics.jsonl")}
            for seed, path in sorted(by_seed.items())
        }
    return {method: by_seed for method, by_seed in found.items() if by_seed}


def cured(history: list[dict]) -> int | None:
    """The first training step from which on the hallucination rate stays below LOW; None: none."""
    step = None
    for line in history:
        rate = line["hallucination_rate"]
        if rate is None or rate >= LOW:
            step = None
        elif step is None:
            step = line["step"]
    return step


def rows(found: Results) -> list[list[str]]:
    """A row per method."""
    made = []
    for method, by_seed in found.items():
        name = "after reading" if method == "start" else STYLES[method]["label"].format("GRPO")
        values = [share([result.get(key) for result in by_seed.values()]) for key in COLUMNS]
        steps = [cured(result["history"]) for result in by_seed.values()]
        when = "" if method == "start" else ", ".join("never" if step is None else str(step) for step in steps)
        made.append([name, *values, when, str(len(by_seed))])
    return made


def draw(found: dict[str, Results], path: Path) -> None:
    """Hallucination rate of the training rollouts against the step, a panel per way of writing: a line per seed."""
    figure, axes = plt.subplots(1, len(found), figsize=(4.6 * len(found), 3.6), squeeze=False, layout="constrained")
    for axis, (way, by_method) in zip(axes[0], found.items()):
        for method in [name for name in STYLES if name in by_method]:
            style = STYLES[method] | {"label": STYLES[method]["label"].format("GRPO")}
            for result in by_method[method].values():
                steps = [line["step"] for line in result["history"]]
                rates = np.array([line["hallucination_rate"] for line in result["history"]], float)  # None: a gap
                axis.plot(steps, rates, linewidth=1.4, **style)
                style["label"] = None
        axis.set(title=way.replace("_", " "), xlabel="training step", ylim=(-0.02, 1.02))
        tidy(axis)
    axes[0][0].set_ylabel("share of right answers with a wrong step", fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(out: Path, ways: list[str]) -> None:
    """Write OUT/table.md, OUT/results.json and OUT/stories.png."""
    found = {way: found for way in ways if (found := results(out, way))}
    if not found:
        print(f"nothing has been finished yet in {out}")
        return
    headings = [*COLUMNS.values(), f"below {LOW} from step", "seeds"]
    parts = [
        f"**{way.replace('_', ' ')}**\n\n{table('', headings, rows(by_method))}\n" for way, by_method in found.items()
    ]
    write_results(found, "\n".join(parts), out)
    if any(method != "start" for by_method in found.values() for method in by_method):
        draw(found, out / "stories.png")
