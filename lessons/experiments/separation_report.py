"""table.md of separation.py."""

from itertools import product

from separation_auc import SCORED_LEVELS, TEMPERATURES, mean
from separation_map import KINDS, MAPPED
from separation_states import OURS, PAPERS, SETTINGS
from tables import table, values_at

from minclipo.contrastive import LOSSES

ROUNDING = 0.02  # differences of an AUC through float32 that the report mentions
REPORT = """\
Seeds {seeds}; {groups} groups of {group_size} rollouts. Mean over seeds; in parentheses, the lowest and highest seed.

## Separation

Pretrained model. AUC within a group: how often a hallucinated right rollout has a larger contrastive loss than a clean
one (0.5: chance); random heads: mean over {heads} of width {width}. Bold: the paper's setting and ours. supcon_in is
soft_nn plus the log of the number of positives, which all right rollouts of a group share: their AUCs are equal.
Computed in float64.

{separation}
## Signal

Random heads of each setting's own width. The reward is at its floor of -0.5 where the loss is at least what the last
column says.

{signal}
## Map

Seed {map_seed}, {map_prompts} prompts. Group-centred pooled states on the two leading principal components of those of
step {first}, the same axes in all panels; they hold {explained[0]:.1%} and {explained[1]:.1%} of that step's variance.

{map}"""


def report(found: dict) -> str:
    """table.md. found: what `separation.py` has collected."""
    arguments, in_map = found["arguments"], found["map"]
    return REPORT.format(
        seeds=", ".join(map(str, found["separation"])),
        **{name: arguments[name] for name in ("groups", "group_size", "heads")},
        width=OURS.head_size,
        separation=separation_tables(found["separation"]),
        signal=f"{groups_table(found['signal'])}\n\n{rewards_table(found['signal'])}\n",
        map_seed=in_map["seed"],
        map_prompts=in_map["prompts"],
        first=in_map["panels"][0]["step"],
        explained=in_map["explained"],
        map=map_table(in_map),
    )


def over_seeds(values: list[float | None], form: str = ".3f") -> str:
    """Mean over seeds, and the lowest and the highest seed."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = format(mean(known), form)
    return middle if len(known) == 1 else f"{middle} ({min(known):{form}} to {max(known):{form}})"


def separation_tables(by_seed: dict[int, list[dict]]) -> str:
    """One table per level and head: one row per loss, one column per temperature. Then what float32 changes."""
    lines, rounded = [], []
    for level, head in product(SCORED_LEVELS, ("random head", "no head")):
        some = dict(center=False, loss=LOSSES[0], temperature=TEMPERATURES[0])  # the others have as many groups
        groups = over_seeds(auc_values(by_seed, "groups", level=level, head=head, **some), ".0f")
        rows = []
        for center, loss in product((False, True), LOSSES):
            state, cells = "centred" if center else "as it is", []
            for temperature in TEMPERATURES:
                options = dict(level=level, center=center, loss=loss, temperature=temperature)
                text = over_seeds(auc_values(by_seed, "auc", **options, head=head))
                cells.append(f"**{text}**" if head == "random head" and is_setting(**options) else text)
                pair = [mean(auc_values(by_seed, what, **options, head=head)) for what in ("auc", "auc_float32")]
                if None not in pair and abs(pair[0] - pair[1]) > ROUNDING:
                    where = f"{level} level, {head}, {state}, {loss}, τ {temperature:g}"
                    rounded.append([where, *(f"{value:.3f}" for value in pair)])
            rows.append([state, loss, *cells])
        lines += [f"**{level} level, {head}** ({groups} groups with both kinds)", ""]
        lines += [table("pooled state", ["loss", *(f"τ {value:g}" for value in TEMPERATURES)], rows), ""]
    if rounded:
        lines += [f"Where training's float32 changes the mean by more than {ROUNDING}:", ""]
        lines += [table("", ["float64", "float32"], rounded), ""]
    return "\n".join(lines)


def auc_values(by_seed: dict[int, list[dict]], what: str, **wanted) -> list:
    """That number in the row with these settings, one per seed. by_seed: what `score_losses` returned."""
    rows = [row for of_seed in by_seed.values() for row in of_seed]
    return [row[what] for row in rows if all(row[name] == value for name, value in wanted.items())]


def is_setting(**options) -> bool:
    """Is it the paper's setting or ours?"""
    return any(all(getattr(c, f"contrastive_{k}") == v for k, v in options.items()) for c in (PAPERS, OURS))


def groups_table(by_model: dict[str, dict[int, dict]]) -> str:
    """What groups look like, one column per model."""
    facts = {
        "accuracy": ("accuracy",),
        "hallucination rate": ("hallucination_rate",),
        "groups with right and wrong rollouts": ("both_verdicts",),
    }
    for state, pair in product(("as it is", "centred"), ("any two", "clean, clean", "clean, hallucinated")):
        facts[f"cosine within a group, {state}: {pair}"] = ("cosine", state, pair)
    rows = [["seeds", *(", ".join(map(str, runs)) or "–" for runs in by_model.values())]]
    for name, keys in facts.items():
        rows.append([name, *(over_seeds(values_at(runs.values(), *keys)) for runs in by_model.values())])
    return table("", by_model, rows)


def rewards_table(by_model: dict[str, dict[int, dict]]) -> str:
    """What the reward says, one row per model and setting."""
    columns = {
        "groups whose right rollouts differ in reward": "differ",
        "right rollouts with a loss": "compared",
        "of them at the floor": "at_floor",
        "spread of the reward within a group": "reward_spread",
        "AUC of the reward": "reward_auc",
    }
    rows = []
    for (model, runs), (name, config) in product(by_model.items(), SETTINGS.items()):
        found = values_at(runs.values(), "settings", name)
        quantiles = [mean(values_at(found, f"loss_{which}")) for which in ("low", "median", "high")]
        cells = [over_seeds(values_at(found, column)) for column in columns.values()]
        cells.append(", ".join("–" if value is None else f"{value:.2f}" for value in quantiles))
        cells.append(f"{-config.contrastive_floor / config.contrastive_weight:.1f}")
        rows.append([model, name, *cells])
    return table("model", ["setting", *columns, "loss: 5%, median, 95%", "floor at"], rows)


def map_table(found: dict) -> str:
    rows = []
    for panel in found["panels"]:
        numbers = [panel["shares"][kind] for kind in KINDS] + [panel["variance"], panel["outside"]]
        rows.append([MAPPED[panel["method"]].name, str(panel["step"]), *(f"{number:.3f}" for number in numbers)])
    return table("method", ["step", *KINDS, "variance in the plane", "outside the picture"], rows) + "\n"
