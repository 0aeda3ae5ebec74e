"""Results as Markdown tables and as JSON: means over seeds, 95% intervals, paired differences."""

from collections.abc import Callable, Iterable
from pathlib import Path

from textbooks import TEXTBOOKS
from variants import Variant

from minclipo.checkpoint.files import write_json, write_text
from minclipo.runs.intervals import Interval, seeds_interval, student
from minclipo.runs.report import MEASURES, cell

LOOKS = {  # of sharpness.look -> heading
    "greedy_hallucination_rate": "halluc., greedy",
    "right_if_made_up": "right if made up",
    "right_if_not_made_up": "right if not",
}
Found = list[tuple[Variant, dict[int, dict]]]  # each variant with its result by seed


# ---- what all experiments use ----


def table(corner: str, columns: Iterable[str], rows: list[list[str]]) -> str:
    """A Markdown table. corner: the heading of the rows' first cells; columns: the headings of the others."""
    columns = list(columns)
    lines = [f"| {corner}".rstrip() + f" | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def values_at(found: Iterable[dict], *keys: str) -> list:
    """The value at the end of these keys, one per result."""
    values = list(found)
    for key in keys:
        values = [value[key] for value in values]
    return values


def share(values: list[float | None]) -> str:
    """A mean with its interval, or the one value there is; None: a seed where nothing is right has no rate."""
    found = vars(seeds_interval(values)) | {"seeds": len(values) - values.count(None)}
    return cell(found, len(values))


def write_results(results, text: str, folder: Path) -> None:
    """Write results.json and table.md to folder, and show the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", text)
    print(text)


# ---- the tables of run.py ----


def paired_interval(values: list[float | None], others: list[float | None]) -> Interval:
    """Student's t interval of the mean of values[i] - others[i]: what two methods share, seed by seed, cancels. Of the
    pairs that have both values; fewer than two have no interval."""
    if len(values) != len(others):
        raise ValueError(f"values and others must pair up, found {len(values)} and {len(others)}")
    differences = [value - other for value, other in zip(values, others) if None not in (value, other)]
    if len(differences) < 2:
        return Interval(None, None, None)
    mean, half = student(differences)
    return Interval(mean, mean - half, mean + half)


def summary(found: Found) -> list[dict]:
    """One dict per variant that has been run: its name, seeds, values by measure, and differences from its partner."""
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
        for extra in ("signals", "tests", "diversity", "look"):
            values = [result[extra] for result in by_seed.values() if result.get(extra)]
            if values:
                row[extra] = values
        row["seconds"] = [result["seconds"] for result in by_seed.values()]
        rows.append(row)
    return rows


def points(difference: dict | None) -> str:
    """A difference of two shares in percentage points, with its interval."""
    if difference is None or difference["mean"] is None:
        return ""
    return f"{100 * difference['mean']:+.1f} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"


def markdown(rows: list[dict]) -> str:
    """One table per textbook."""
    looks = LOOKS if any("look" in row for row in rows) else {}
    columns = [*(name.replace("_", " ") for name in MEASURES), *looks.values()]
    columns += ["halluc. − partner's, points", "accuracy − partner's, points", "seeds"]
    lines, textbooks = [], dict.fromkeys(row["textbook"] for row in rows)
    for textbook in textbooks:
        if len(textbooks) > 1:
            lines += [f"**{textbook}**: {describe(textbook)}", ""]
        lines += [table("", columns, [line(row, looks) for row in rows if row["textbook"] == textbook]), ""]
    return "\n".join(lines)


def line(row: dict, looks: Iterable[str] = ()) -> list[str]:
    """The cells of one variant. looks: which of LOOKS the table has."""
    difference = row.get("difference", {})
    values = [share(row["values"][name]) for name in MEASURES]
    seen = [share(values_at(row["look"], name)) if "look" in row else "" for name in looks]
    differences = [points(difference.get(name)) for name in ("hallucination_rate", "accuracy")]
    return [row["name"], *values, *seen, *differences, str(len(row["seeds"]))]


def describe(textbook: str) -> str:
    config = TEXTBOOKS[textbook].config
    words = [f"made-up operand {config.hallucinate:.0%} per step", f"slip {config.slip:.0%} per step"]
    words += [f"believed in {config.believe:.0%} of the cases"] * (config.believe > 0)
    words += [f"the same false quote in {config.shared_step:.0%} of the solutions"] * (config.shared_step > 0)
    words += [f"total first in {config.total_first:.0%} of the solutions"] * (config.total_first > 0)
    return ", ".join(words) + f"; {config.pretrain_steps} steps of pretraining"


def nested(rows: list[dict], key: str, form: Callable[[list], str]) -> str:
    """What the rows' `tests` or `diversity` say, one column per name in there; form writes the values of all seeds."""
    mine = [row for row in rows if key in row]
    names = list(mine[0][key][0]) if mine else []
    cells = [[row["name"], *(form(values_at(row[key], name)) for name in names)] for row in mine]
    return table("", names, cells) + "\n" if mine else ""


def tested(found: list[dict]) -> str:
    """What one test says, for all seeds."""
    return ", ".join(share(values_at(found, name)) for name in ("accuracy", "hallucination_rate"))


def time_table(rows: list[dict]) -> str:
    """Where the time of these runs went."""
    total = {what: sum(run[what] for row in rows for run in row["seconds"]) for what in ("training", "evaluation")}
    runs = sum(len(row["seeds"]) for row in rows)
    spent = sum(total.values())
    in_training = total["training"] / spent
    return f"{runs} runs, {spent / 60:.1f} minutes without pretraining, of which training {in_training:.0%}\n"


def write_tables(found: Found, folder: Path) -> None:
    """Write results.json and table.md of what has been found to folder."""
    rows = summary(found)
    tests = nested(rows, "tests", tested)
    diversity = nested(rows, "diversity", lambda values: f"{sum(values) / len(values):.3f}")
    parts = [markdown(rows), tests and "accuracy, hallucination rate:\n\n" + tests, diversity, time_table(rows)]
    write_results(rows, "\n".join(part for part in parts if part), folder)
