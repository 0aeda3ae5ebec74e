"""table.md of attack.py. Everywhere `found` holds one result per seed."""

from attack_completions import COMPLETIONS
from attack_pay import OTHERS
from tables import share, table, values_at

PRESSURE = {  # column: key of what `press` returns
    "accuracy": "accuracy",
    "hallucination rate": "hallucination_rate",
    "faithful accuracy": "faithful_accuracy",
    "surplus words": "surplus",
    "length": "completion_length",
    "g": "gain",
    "p, own": "own",
    "p, others": "others",
    "at the limit": "at_limit",
    "entropy": "entropy",
}


def report(results: dict) -> str:
    """table.md. results: what `attack.py` has collected."""
    shown = [
        f"    weight {weight}: {text}" for weight, found in results["pressure"].items() for text in found[0]["shown"]
    ]
    prices = results["prices"] | {"once learned": results["learned"]}
    parts = [
        f"Seeds {', '.join(map(str, results['seeds']))}: means; in parentheses, the lowest and highest seed "
        "(95% intervals for accuracy, hallucination rate and faithful accuracy). Gains g in nats per token, "
        f"K = {OTHERS} other prompts.",
        "**Under pressure.** g, the probabilities and the share of tokens at the limit are those of the right answers; "
        "surplus words count as hallucination.",
        pressure_table(results["pressure"]),
        f"The first three of seed {results['seeds'][0]}, then up to three with surplus words:\n\n" + "\n".join(shown),
        "**Prices.** g of completions written by hand. Last column: each by a policy taught to write nothing else.",
        price_table(prices),
        "\n".join(verdict(name, found) for name, found in prices.items()),
        "**Neighbours.** The faithful completion against other prompts that share operands with its own; pretrained.",
        neighbour_table(results["neighbours"]),
    ]
    return "\n\n".join(parts) + "\n"


def cell(values: list[float | None]) -> str:
    """The mean over seeds, and the lowest and the highest."""
    if not values or None in values:
        return "–"
    number = lambda value: f"{round(value, 2) + 0.0:.2f}"  # 0.00, not -0.00
    mean = number(sum(values) / len(values))
    return f"{mean} ({number(min(values))} to {number(max(values))})" if len(values) > 1 else mean


def mean_at(found: list[dict], *keys: str) -> float:
    """The mean over seeds of the value at the end of these keys."""
    values = values_at(found, *keys)
    return sum(values) / len(values)


def pressure_table(pressed: dict[str, list[dict]]) -> str:
    """One row per weight."""
    rows = []
    for weight, found in pressed.items():
        cells = [weight]
        for key in PRESSURE.values():
            form = share if key in ("accuracy", "hallucination_rate", "faithful_accuracy") else cell
            cells.append(form([result.get(key) for result in found]))
        rows.append(cells)
    return table("weight", PRESSURE, rows)


def price_table(prices: dict[str, list[dict]]) -> str:
    """One row per kind of completion, sorted by the first model's prices; one column per model. Bold: paid more than
    the faithful completion."""
    first, rows = next(iter(prices.values())), []
    for kind in sorted(COMPLETIONS, key=lambda kind: -mean_at(first, kind, "gain")):
        cells = [kind, f"{mean_at(first, kind, 'right'):.2f}"]
        for found in prices.values():
            values = [by_kind[kind]["gain"] for by_kind in found if kind in by_kind]
            more = values and sum(values) / len(values) > mean_at(found, "faithful", "gain")
            cells.append(f"**{cell(values)}**" if more and not kind.startswith("wrong") else cell(values))
        rows.append(cells)
    return table("", ["right", *prices], rows)


def verdict(name: str, found: list[dict]) -> str:
    """Which completions without merit are paid more than the faithful one, and how often."""
    reference = mean_at(found, "faithful", "gain")
    better = [
        f"{kind} ({mean_at(found, kind, 'gain') - reference:+.2f} nats"
        + (f", on {mean_at(found, kind, 'beats_faithful'):.0%} of the problems" if "right" in found[0][kind] else "")
        + ")"
        for kind in found[0]
        if not kind.startswith("wrong") and mean_at(found, kind, "gain") > reference
    ]
    return f"- {name}, more than the faithful completion's {reference:.2f} nats: {'; '.join(better) or 'none'}"


def neighbour_table(found: list[list[dict]]) -> str:
    """One row per kind of neighbour."""
    keys, rows = ("gain", "shared_operands", "other_operands", "totals"), []
    for case in zip(*found):
        cells = [cell(values_at(case, key)) for key in keys]
        rows.append(["same" if case[0]["same_start"] else "other", str(case[0]["shared"]), *cells])
    return table("start", ["shared operands", "g", "shared operands'", "other operands'", "totals'"], rows)
