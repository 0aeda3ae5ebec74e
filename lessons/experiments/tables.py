"""Results as a Markdown table and as JSON: means over seeds, 95% intervals, paired differences."""

from pathlib import Path

from textbooks import TEXTBOOKS
from variants import Variant

from minclipo.files import write_json, write_text
from minclipo.intervals import Interval, mean_interval, paired_interval

MEASURES = ("accuracy", "hallucination_rate", "faithful_accuracy")
Found = list[tuple[Variant, dict[int, dict]]]  # each variant with its result by seed


def summary(found: Found) -> list[dict]:
    """One dict a variant that has been run: its name, seeds, values by measure, and differences to its partner."""
    rows = []
    by_place = {(variant.textbook, variant.steps, variant.name): by_seed for variant, by_seed in found}
    for variant, by_seed in found:
        if not by_seed:
            continue
        partner = by_place.get((variant.textbook, variant.steps, variant.against), {})
        row = {"name": variant.name, "textbook": variant.textbook, "against": variant.against, "seeds": list(by_seed)}
        row["values"] = {name: [result[name] for result in by_seed.values()] for name in MEASURES}
        common = [seed for seed in by_seed if seed in partner]
        if variant.name != variant.against and len(common) > 1:
            row["difference"] = {
                name: vars(paired_interval(*([side[seed][name] for seed in common] for side in (by_seed, partner))))
                for name in MEASURES
            }
        for extra in ("signals", "tests", "diversity"):
            values = [result[extra] for result in by_seed.values() if result.get(extra)]
            if values:
                row[extra] = values
        row["seconds"] = [result["seconds"] for result in by_seed.values()]
        rows.append(row)
    return rows


def cell(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def share(values: list[float]) -> str:
    """A mean with its interval, or the one value there is."""
    return cell(mean_interval(values)) if len(values) > 1 else f"{values[0]:.3f}"


def points(difference: dict | None) -> str:
    """A difference of two shares in percentage points, with its interval."""
    if difference is None:
        return ""
    return f"{100 * difference['mean']:+.1f} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"


def markdown(rows: list[dict]) -> str:
    """One table a textbook."""
    lines = []
    for textbook in dict.fromkeys(row["textbook"] for row in rows):
        mine = [row for row in rows if row["textbook"] == textbook]
        if len({row["textbook"] for row in rows}) > 1:
            lines += [f"**{textbook}**: {describe(textbook)}", ""]
        lines += [
            "| | accuracy | hallucination rate | faithful accuracy | halluc. − partner's, points | accuracy − "
            "partner's, points | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in mine:
            difference = row.get("difference", {})
            values = [share(row["values"][name]) for name in MEASURES]
            differences = [points(difference.get(name)) for name in ("hallucination_rate", "accuracy")]
            lines.append(f"| {' | '.join([row['name'], *values, *differences, str(len(row['seeds']))])} |")
        lines.append("")
    return "\n".join(lines)


def describe(textbook: str) -> str:
    config = TEXTBOOKS[textbook].config
    words = [f"made-up operand {config.hallucinate:.0%} a step", f"slip {config.slip:.0%} a step"]
    words += [f"the same false quote in {config.shared_step:.0%} of the solutions"] * (config.shared_step > 0)
    words += [f"total first in {config.total_first:.0%} of the solutions"] * (config.total_first > 0)
    return ", ".join(words) + f"; {config.pretrain_steps} steps of pretraining"


def nested(rows: list[dict], key: str) -> str:
    """What the rows' `tests` or `diversity` say, a column a test."""
    mine = [row for row in rows if key in row]
    if not mine:
        return ""
    names = list(mine[0][key][0])
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in mine:
        if key == "tests":
            both = ("accuracy", "hallucination_rate")
            cells = [", ".join(share([run[name][what] for run in row[key]]) for what in both) for name in names]
        else:
            cells = [f"{sum(run[name] for run in row[key]) / len(row[key]):.3f}" for name in names]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return "\n".join(lines) + "\n"


def time_table(rows: list[dict]) -> str:
    """Where the time of these runs went."""
    total = {what: sum(run[what] for row in rows for run in row["seconds"]) for what in ("training", "evaluation")}
    runs = sum(len(row["seeds"]) for row in rows)
    spent = sum(total.values())
    in_training = total["training"] / spent
    return f"{runs} runs, {spent / 60:.1f} minutes without pretraining, of which training {in_training:.0%}\n"


def write_tables(found: Found, folder: Path) -> None:
    rows = summary(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", rows)
    tests = nested(rows, "tests")
    parts = [markdown(rows), tests and "accuracy, hallucination rate:\n\n" + tests, nested(rows, "diversity")]
    text = "\n".join(part for part in [*parts, time_table(rows)] if part)
    write_text(folder / "table.md", text)
    print(text)
