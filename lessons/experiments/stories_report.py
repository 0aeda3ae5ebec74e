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
    "right_if_not_made_up": "right if not",
}
LOOKS = STYLES | {"log_prob": dict(color="#E69F00", linestyle=(0, (3, 1, 1, 1)), label="log-prob as a reward")}
LOW = 0.02  # a hallucination rate of the training rollouts that counts as cured
Results = dict[str, dict[int, dict]]  # results[method][seed]; "start" has one seed, 0


def results(out: Path, way: str, methods: list[str], seeds: list[int]) -> Results:
    """What has been finished in one way of writing. ValueError if runs with different settings lie side by side."""
    places = {"start": {0: out / way / "start"}}
    places |= {m: {seed: out / way / m / f"seed{seed}" for seed in seeds} for m in LOOKS if m in methods}
    found = {
        method: {
            seed: read_json(path / "result.json") for seed, path in paths.items() if (path / "result.json").is_file()
        }
        for method, paths in places.items()
    }
    common = [result["settings"] | {"training": None} for by_seed in found.values() for result in by_seed.values()]
    if any(settings != common[0] for settings in common):
        raise ValueError(f"{out / way} holds runs with different settings: choose another --out for each")
    for method in found.keys() - {"start"}:
        for seed, result in found[method].items():
            result["history"] = read_lines(places[method][seed] / "metrics.jsonl")
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
        name = "after reading" if method == "start" else LOOKS[method]["label"].format("GRPO")
        values = [share([result[key] for result in by_seed.values()]) for key in COLUMNS]
        steps = [] if method == "start" else [cured(result["history"]) for result in by_seed.values()]
        when = ", ".join("never" if step is None else str(step) for step in steps)
        made.append([name, *values, when, str(len(by_seed))])
    return made


def draw(found: dict[str, Results], path: Path) -> None:
    """Hallucination rate of the training rollouts against the step, a panel per way of writing: a line per seed."""
    figure, axes = plt.subplots(1, len(found), figsize=(4.6 * len(found), 3.6), squeeze=False, layout="constrained")
    for axis, (way, by_method) in zip(axes[0], found.items()):
        for method in [name for name in by_method if name != "start"]:
            style = LOOKS[method] | {"label": LOOKS[method]["label"].format("GRPO")}
            for result in by_method[method].values():
                steps = [line["step"] for line in result["history"]]
                rates = np.array([line["hallucination_rate"] for line in result["history"]], float)  # None: a gap
                axis.plot(steps, rates, linewidth=1.4, **style)
                style["label"] = None
        axis.set(title=way.replace("_", " "), xlabel="training step", ylim=(-0.02, 1.02))
        tidy(axis)
        axis.legend(frameon=False, fontsize=8.5)
    axes[0][0].set_ylabel("share of right answers with a wrong step", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(out: Path, ways: list[str], methods: list[str], seeds: list[int]) -> None:
    """Write OUT/table.md, OUT/results.json and OUT/stories.png."""
    found = {way: by_method for way in ways if (by_method := results(out, way, methods, seeds))}
    if not found:
        print(f"nothing has been finished yet in {out}")
        return
    headings, parts = [*COLUMNS.values(), f"below {LOW} from step", "seeds"], []
    for way, by_method in found.items():
        parts.append(f"**{way.replace('_', ' ')}**\n\n{table('', headings, rows(by_method))}\n")
    bare = lambda by_seed: {
        seed: {k: v for k, v in result.items() if k != "history"} for seed, result in by_seed.items()
    }
    numbers = {way: {m: bare(by_seed) for m, by_seed in by_method.items()} for way, by_method in found.items()}
    write_results(numbers, "\n".join(parts), out)
    if any(method != "start" for by_method in found.values() for method in by_method):
        draw({way: by_method for way, by_method in found.items() if len(by_method) > 1}, out / "stories.png")
