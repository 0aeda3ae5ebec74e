"""How does CLIPO find made-up steps? Three looks at the pooled states of a group's rollouts.

    python lessons/experiments/separation.py --seeds 0 1 2 --out runs/experiments

1. Separation: how often does a hallucinated right rollout have a larger contrastive loss than a clean one of its group?
2. Signal: how much of that loss arrives in the reward, and in how many groups?
3. Map: where do clean, hallucinated and wrong rollouts lie, and where do GRPO and CLIPO move them? (First seed only.)

Everything goes to OUT/separation: table.md, results.json, map.png. It starts from OUT/starts (made if need be), and
takes the GRPO model of part 2 from OUT/toy-100/GRPO, if `run.py algorithms` has made it.
Left out: the head that training learns; here heads are random, as in training's first step, or there is none.

B prompts, G rollouts a prompt, N = B * G rows, D width of the pooled states, E width of the embeddings.
"""

import argparse
import copy
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from run import train_config
from textbooks import start
from torch import Tensor
from variants import CLIPO, PAPER, Variant

from minclipo.checkpoint import load_model
from minclipo.config import TrainConfig
from minclipo.contrastive import (
    LOSSES,
    ContrastiveHead,
    ContrastiveLoss,
    center_by_group,
    contrastive_loss,
    contrastive_reward,
)
from minclipo.files import write_json, write_text
from minclipo.metrics import spread
from minclipo.model import GPT
from minclipo.plots import STYLES, plt
from minclipo.sampler import sample
from minclipo.tasks import Problem
from minclipo.tasks.chain import is_faithful
from minclipo.toy import TASK, TOY, toy_tokenizer
from minclipo.trainer import Trainer

TEMPERATURES = (0.05, 0.2, 0.5, 1.0, 2.0)
SCORED_LEVELS = ("group", "cross")
PAPERS, OURS = TrainConfig(**TOY | PAPER), TrainConfig(**TOY | CLIPO)
SETTINGS = {
    "paper's setting": PAPERS,
    "paper's, but cross level": replace(PAPERS, contrastive_level="cross"),
    "ours, but group level": replace(OURS, contrastive_level="group"),
    "our setting": OURS,
}
TRAINED = Variant("GRPO", steps=TOY["steps"])  # whose model part 2 compares with the pretrained one
MAPPED = {"baseline": Variant("GRPO"), "clipo": Variant("CLIPO", CLIPO)}  # by their names in STYLES
# Colours that no method has (Okabe-Ito palette).
KINDS = {"clean": "#56B4E9", "hallucinated": "#E69F00", "wrong": "#999999"}
ROUNDING = 0.02  # differences of an AUC through float32 that the report mentions
SHOWN = 0.98  # share of the right rollouts that the picture has room for
MARKER = 6.0  # area of the marker of one rollout in it, in square points


# --- the rollouts ---


@dataclass
class States:
    """Pooled states of rollouts, and what each of them is."""

    pooled: Tensor  # [N, D]
    group: Tensor  # [N], which prompt a row answers; the G rows of a prompt are adjacent
    correct: Tensor  # [N] bool, the outcome check's verdict
    faithful: Tensor  # [N] bool, the step check's; no method that is looked at here knows it
    solution: Tensor  # [N], the first row of the same prompt with the same text

    @property
    def kinds(self) -> dict[str, Tensor]:
        """[N] bool a kind."""
        clean, hallucinated = self.correct & self.faithful, self.correct & ~self.faithful
        return {"clean": clean, "hallucinated": hallucinated, "wrong": ~self.correct}

    @property
    def shares(self) -> dict[str, float]:
        return {kind: rows.float().mean().item() for kind, rows in self.kinds.items()}


def fresh_problems(number: int, seed: int) -> list[Problem]:
    """Problems from a stream of their own: neither training nor evaluation draws from it."""
    return [TASK.draw(f"separation {seed}", index) for index in range(number)]


def look(model: GPT, problems: list[Problem], group_size: int, seed: int) -> States:
    """Sample `group_size` rollouts of each problem with a generator of its own, and check them."""
    tokenizer = toy_tokenizer()
    rollouts = sample(
        model,
        tokenizer.encode_batch([problem.prompt for problem in problems]),
        group_size,
        OURS.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = tokenizer.decode_batch(rollouts.completion_ids())
    rows = [(problems[i // group_size], text) for i, text in enumerate(texts)]
    correct = [TASK.check_outcome(*row, finished) for row, finished in zip(rows, rollouts.finished.tolist())]
    faithful = [is_faithful(*row) for row in rows]
    numbers: dict[tuple[int, str], int] = {}
    solution = [numbers.setdefault((i // group_size, text), i) for i, text in enumerate(texts)]
    return States(rollouts.pooled, rollouts.group, *map(torch.tensor, (correct, faithful, solution)))


# --- 1. Separation ---


def auc(values: Tensor, positive: Tensor) -> float:
    """Probability that a positive has the larger value than a negative, ties counting half: the area under the curve.

    values [n], positive [n] bool, at least one of either kind. Equal to Mann and Whitney's U / (n+ n-), 1947.

    >>> auc(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([False, False, True, True]))
    0.875
    """
    difference = values[positive][:, None] - values[~positive][None, :]  # [n+, n-]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def mean_auc(values: Tensor, states: States, compared: Tensor) -> tuple[float | None, int]:
    """(mean over groups of the AUC that hallucinated rollouts have the larger value than clean ones, number of groups).

    values [N]; compared [N] bool: correct rollouts that have a value. Groups that lack one of the kinds do not count.
    """
    found = []
    for b in states.group.unique():
        rows = compared & (states.group == b)
        hallucinated = ~states.faithful[rows]
        if hallucinated.any() and not hallucinated.all():
            found.append(auc(values[rows], hallucinated))
    return mean(found), len(found)


def mean(values: list[float | None]) -> float | None:
    """Mean of the values there are; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def random_heads(hidden_size: int, output_size: int, number: int, seed: int) -> list[ContrastiveHead]:
    """Linear heads as training begins with."""
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
        torch.default_generator.manual_seed(seed)
        return [ContrastiveHead(hidden_size, output_size) for _ in range(number)]


@torch.no_grad()
def loss_of(states: States, head: ContrastiveHead, *, center: bool, seed: int, **options) -> ContrastiveLoss:
    """The contrastive loss of each correct rollout, as training computes it; `options` go to `contrastive_loss`."""
    pooled = center_by_group(states.pooled, states.group) if center else states.pooled  # [N, D]
    generator = torch.Generator().manual_seed(seed)  # for infonce's positives
    return contrastive_loss(head(pooled), states.correct, states.group, generator=generator, **options)


def separation(states: States, head_number: int, seed: int) -> list[dict]:
    """Part 1: mean AUC within a group, for every loss, temperature and level, with and without centring and head.

    auc is computed in float64. auc_float32 is what training's precision leaves of it: soft_nn is the difference of two
    logarithms, which at temperature 0.05 are near 20, where float32 has steps of 2e-6; many a loss is smaller.
    """
    width = states.pooled.shape[1]
    heads = {
        "no head": [ContrastiveHead(width, width, "none")],
        "random head": random_heads(width, OURS.head_size, head_number, seed),
    }
    exact = replace(states, pooled=states.pooled.double())
    exact_heads = {name: [copy.deepcopy(head).double() for head in some] for name, some in heads.items()}

    def score(states: States, heads: list[ContrastiveHead], **options) -> tuple[float | None, int]:
        """(mean AUC over heads and groups, number of groups)."""
        found = [loss_of(states, head, seed=seed + i, **options) for i, head in enumerate(heads)]
        scores = [mean_auc(one.loss, states, one.anchors) for one in found]
        return mean([value for value, _ in scores]), scores[0][1]

    rows = []
    for level, name, center, loss, temperature in product(SCORED_LEVELS, heads, (False, True), LOSSES, TEMPERATURES):
        options = dict(level=level, center=center, loss=loss, temperature=temperature)
        value, groups = score(exact, exact_heads[name], **options)
        rounded, _ = score(states, heads[name], **options)
        rows.append(options | {"head": name, "auc": value, "auc_float32": rounded, "groups": groups})
    return rows


# --- 2. Signal ---


def signal(states: States, config: TrainConfig, heads: list[ContrastiveHead], seed: int) -> dict[str, float | None]:
    """Part 2: what the contrastive reward of one setting tells correct rollouts apart by. Means over the heads.

    differ: share of groups whose correct rollouts differ in contrastive reward (by more than 1e-6).
    compared: share of the correct rollouts that have a contrastive loss at all.
    at_floor: share of those whose reward is the floor.
    loss_low, loss_median, loss_high: 5%, 50% and 95% quantiles of their losses.
    reward_spread: largest minus smallest reward within a group, mean over groups with a difference or without.
    reward_auc: AUC within a group that hallucinated rollouts earn less than clean ones; a tie counts half.
    """
    G = int((states.group == states.group[0]).sum())
    found = []
    for i, head in enumerate(heads):
        one = loss_of(
            states,
            head,
            center=config.contrastive_center,
            seed=seed + i,
            loss=config.contrastive_loss,
            level=config.contrastive_level,
            temperature=config.contrastive_temperature,
        )
        reward = contrastive_reward(
            one.loss, states.correct, weight=config.contrastive_weight, floor=config.contrastive_floor
        )  # [N]
        spreads = spread(reward.view(-1, G), states.correct.view(-1, G))  # [B]
        losses = one.loss[one.anchors]
        quantiles = losses.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist() if len(losses) else [None] * 3
        found.append(
            {
                "differ": share(spreads > 1e-6),
                "compared": share(one.anchors[states.correct]),
                "at_floor": share(reward[one.anchors] <= config.contrastive_floor),
                **dict(zip(("loss_low", "loss_median", "loss_high"), quantiles)),
                "reward_spread": spreads.mean().item(),
                "reward_auc": mean_auc(-reward, states, one.anchors)[0],
            }
        )
    return {name: mean([one[name] for one in found]) for name in found[0]}


def share(rows: Tensor) -> float | None:
    """Share of the rows [n] that are true; None of none."""
    return rows.float().mean().item() if len(rows) else None


def cosines(states: States, *, center: bool) -> dict[str, float | None]:
    """Mean cosine between the pooled states of two rollouts of one prompt: of any two, and by kind.

    Centred states that are exactly 0 (all rollouts of the prompt are the same) have no direction and are left out.
    """
    pooled = center_by_group(states.pooled, states.group) if center else states.pooled
    z = F.normalize(pooled, dim=1)
    cosine = z @ z.T  # [N, N]
    pairs = states.group[:, None] == states.group[None, :]
    pairs &= ~torch.eye(len(z), dtype=torch.bool)
    directed = pooled.any(1)
    pairs &= directed[:, None] & directed[None, :]
    of_kinds = lambda a, b: pairs & states.kinds[a][:, None] & states.kinds[b][None, :]
    chosen = {"any two": pairs}
    chosen["clean, clean"] = of_kinds("clean", "clean")
    chosen["clean, hallucinated"] = of_kinds("clean", "hallucinated")
    return {name: cosine[which].mean().item() if which.any() else None for name, which in chosen.items()}


def signals(states: States, head_number: int, seed: int) -> dict:
    """What part 2 says of one model."""
    by_group = [states.correct[states.group == b] for b in states.group.unique()]
    shares = states.shares
    accuracy = shares["clean"] + shares["hallucinated"]
    by_setting = {}
    for name, config in SETTINGS.items():
        heads = random_heads(states.pooled.shape[1], config.head_size, head_number, seed)
        by_setting[name] = signal(states, config, heads, seed)
    return {
        "accuracy": accuracy,
        "hallucination_rate": shares["hallucinated"] / accuracy if accuracy else None,
        "both_verdicts": mean([float(group.any() and not group.all()) for group in by_group]),
        "cosine": {name: cosines(states, center=center) for name, center in (("as it is", False), ("centred", True))},
        "settings": by_setting,
    }


# --- 3. Map ---


def snapshots(variant: Variant, seed: int, out: Path, steps: list[int], prompts: int) -> dict[int, States]:
    """States at these steps of a training run, of the same problems and with the same random numbers every time.

    The training is the one that `run.py` does with this variant and seed: looking draws nothing from its generator.
    """
    model, found, problems = start("toy", seed, out), {}, fresh_problems(prompts, seed)

    def after_step(step: int) -> None:
        if step in steps:
            found[step] = look(model, problems, OURS.group_size, seed)

    config = train_config(replace(variant, steps=max(steps)), seed)
    folder = out / "separation" / f"seed{seed}" / variant.name
    Trainer(model, toy_tokenizer(), TASK, config, folder).run(variant.name, after_step=after_step)
    return found


def principal_axes(points: Tensor) -> tuple[Tensor, list[float]]:
    """The two directions [D, 2] in which points [N, D] vary most, and the share of the variance along each.

    Points are taken as they are: those of a group have mean 0 once they are centred. Pearson 1901.
    """
    _, lengths, axes = torch.linalg.svd(points, full_matrices=False)  # [min(N, D)], [min(N, D), D]
    return axes[:2].T, (lengths.square() / lengths.square().sum())[:2].tolist()


@dataclass
class Panel:
    """One method at one step."""

    method: str
    step: int
    states: States
    points: Tensor  # [N, 2], in the plane
    variance: float  # share of these states' variance that lies in the plane


def make_map(seed: int, out: Path, steps: list[int], prompts: int) -> dict:
    """Part 3: train both methods from one start, draw OUT/separation/map.png, return the numbers in it."""
    by_method = {name: snapshots(variant, seed, out, steps, prompts) for name, variant in MAPPED.items()}
    centred = {
        name: {step: center_by_group(states.pooled, states.group) for step, states in by_step.items()}
        for name, by_step in by_method.items()
    }
    first = torch.cat([by_step[steps[0]] for by_step in centred.values()])  # of all methods, [.., D]
    axes, explained = principal_axes(first)
    panels = []
    for name, by_step in by_method.items():
        for step, states in by_step.items():
            points = centred[name][step]  # [N, D]
            in_plane = (points @ axes).square().sum() / points.square().sum().clamp(min=1e-30)
            panels.append(Panel(name, step, states, points @ axes, in_plane.item()))
    shown = draw_map(panels, explained, out / "separation" / "map.png")
    numbers = [
        {"method": p.method, "step": p.step, "shares": p.states.shares, "variance": p.variance, "outside": outside}
        for p, outside in zip(panels, outside_of(panels, shown))
    ]
    return {"seed": seed, "prompts": prompts, "explained": explained, "shown": shown, "panels": numbers}


def room(panels: list[Panel]) -> float:
    """Half the side of a square around 0 that holds SHOWN of the right rollouts; wrong ones may lie far out."""
    right = torch.cat([panel.points[panel.states.correct] for panel in panels])  # [.., 2]
    return 1.1 * right.abs().amax(1).quantile(SHOWN).item() if len(right) else 1.0


def outside_of(panels: list[Panel], half: float) -> list[float]:
    """Share of each panel's rollouts that lie outside that square."""
    return [(panel.points.abs().amax(1) > half).float().mean().item() for panel in panels]


def draw_map(panels: list[Panel], explained: list[float], path: Path) -> float:
    """A row a method, a column a step; the same axes everywhere, from -half to half. Returns half."""
    methods, half = list(dict.fromkeys(panel.method for panel in panels)), room(panels)
    columns = len(panels) // len(methods)
    size = (2.6 * columns + 0.7, 2.9 * len(methods) + 0.9)
    figure, grid = plt.subplots(len(methods), columns, figsize=size, layout="compressed", squeeze=False)
    for axis, panel in zip(grid.flat, panels):
        draw_panel(axis, panel)
        axis.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        axis.locator_params(nbins=5)
        axis.label_outer()
    for axis in grid[-1]:
        axis.set_xlabel(f"1st component ({explained[0]:.0%})", fontsize=8.5)
    for axis, method in zip(grid[:, 0], methods):
        axis.set_ylabel(f"2nd component ({explained[1]:.0%})", fontsize=8.5)
        place = dict(x=-0.36, y=0.5, transform=axis.transAxes, rotation=90, va="center", ha="center")
        axis.text(s=MAPPED[method].name, **place, fontsize=13, fontweight="bold", color=STYLES[method]["color"])
    place = dict(loc="outside lower center", ncols=6 if columns > 2 else 3)
    figure.legend(handles=legend(), **place, frameon=False, fontsize=9, handletextpad=0.4)
    figure.suptitle(
        "Rollouts' pooled states minus their group's mean, on the two leading principal components of "
        f"step {panels[0].step}: the same axes everywhere",
        fontsize=9.5,
        wrap=True,
    )
    figure.savefig(path, dpi=180)
    plt.close(figure)
    return half


def legend() -> list:
    """What colours and sizes mean."""
    marker = lambda number, colour, label: plt.Line2D(
        [], [], linestyle="", marker="o", markersize=(MARKER * number) ** 0.5, color=colour, label=label
    )
    sizes = {1: "one rollout", 4: "4 with the same text", 16: "16 with the same text"}
    return [marker(6, colour, kind) for kind, colour in KINDS.items()] + [
        marker(number, "#444444", label) for number, label in sizes.items()
    ]


def draw_panel(axis, panel: Panel) -> None:
    """The rollouts of one method at one step: a marker a solution of a prompt, its area how many rollouts wrote it."""
    states, colours = panel.states, {}
    for kind, rows in states.kinds.items():
        colours |= dict.fromkeys(states.solution[rows].tolist(), KINDS[kind])
    solutions, counts = states.solution.unique(return_counts=True)  # [S]: rows, one a solution; rollouts of it
    order = counts.argsort(descending=True, stable=True)  # the small ones on top
    solutions, counts = solutions[order], counts[order]
    axis.scatter(
        *panel.points[solutions].T.tolist(),
        s=(MARKER * counts).tolist(),
        c=[colours[number] for number in solutions.tolist()],
        alpha=0.8,
        edgecolors="white",
        linewidths=0.3,
    )
    words = ", ".join(f"{value:.0%} {kind}" for kind, value in states.shares.items())
    axis.set_title(f"step {panel.step}\n{words}", fontsize=8.2)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


# --- the tables ---


def over_seeds(values: list[float | None], form: str = ".3f") -> str:
    """Mean over seeds, and the lowest and the highest seed."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = format(mean(known), form)
    return middle if len(known) == 1 else f"{middle} ({min(known):{form}} to {max(known):{form}})"


def auc_values(by_seed: dict[int, list[dict]], what: str, **wanted) -> list:
    """That number of the row with these settings in `separation`'s result, a seed each."""
    rows = [row for of_seed in by_seed.values() for row in of_seed]
    return [row[what] for row in rows if all(row[name] == value for name, value in wanted.items())]


def separation_table(by_seed: dict[int, list[dict]]) -> str:
    """Four tables: level and head; a row a loss, a column a temperature. Then what float32 changes."""
    lines, rounded = [], []
    for level, head in product(SCORED_LEVELS, ("random head", "no head")):
        some = dict(center=False, loss=LOSSES[0], temperature=TEMPERATURES[0])  # the others have as many groups
        groups = over_seeds(auc_values(by_seed, "groups", level=level, head=head, **some), ".0f")
        lines += [f"**{level} level, {head}** ({groups} groups with both kinds)", ""]
        lines += ["| pooled state | loss | " + " | ".join(f"τ {value:g}" for value in TEMPERATURES) + " |"]
        lines += ["|---" * (len(TEMPERATURES) + 2) + "|"]
        for center, loss in product((False, True), LOSSES):
            state, cells = "centred" if center else "as it is", []
            for temperature in TEMPERATURES:
                options = dict(level=level, center=center, loss=loss, temperature=temperature)
                text = over_seeds(auc_values(by_seed, "auc", **options, head=head))
                cells.append(f"**{text}**" if head == "random head" and is_setting(**options) else text)
                pair = [mean(auc_values(by_seed, what, **options, head=head)) for what in ("auc", "auc_float32")]
                if None not in pair and abs(pair[0] - pair[1]) > ROUNDING:
                    where = f"{level} level, {head}, {state}, {loss}, τ {temperature:g}"
                    rounded.append(f"| {where} | {pair[0]:.3f} | {pair[1]:.3f} |")
            lines.append(f"| {' | '.join([state, loss, *cells])} |")
        lines.append("")
    if rounded:
        lines += [f"Where training's float32 changes the mean by more than {ROUNDING}:", ""]
        lines += ["| | float64 | float32 |", "|---|---|---|", *rounded, ""]
    return "\n".join(lines)


def is_setting(**options) -> bool:
    """Is it the paper's setting or ours?"""
    return any(all(getattr(c, f"contrastive_{k}") == v for k, v in options.items()) for c in (PAPERS, OURS))


def signal_tables(by_model: dict[str, dict[int, dict]]) -> str:
    """What groups look like, a column a model; what the reward says, a row a model and setting."""
    of = lambda runs, *keys: [dig(run, *keys) for run in runs.values()]
    lines = ["| | " + " | ".join(by_model) + " |", "|---" * (len(by_model) + 1) + "|"]
    lines.append("| seeds | " + " | ".join(", ".join(map(str, runs)) or "–" for runs in by_model.values()) + " |")
    facts = {
        "accuracy": ("accuracy",),
        "hallucination rate": ("hallucination_rate",),
        "groups with right and wrong rollouts": ("both_verdicts",),
    }
    for state, pair in product(("as it is", "centred"), ("any two", "clean, clean", "clean, hallucinated")):
        facts[f"cosine within a group, {state}: {pair}"] = ("cosine", state, pair)
    for name, keys in facts.items():
        lines.append(f"| {name} | " + " | ".join(over_seeds(of(runs, *keys)) for runs in by_model.values()) + " |")
    columns = {
        "groups whose right rollouts differ in reward": "differ",
        "right rollouts with a loss": "compared",
        "of them at the floor": "at_floor",
        "spread of the reward within a group": "reward_spread",
        "AUC of the reward": "reward_auc",
    }
    header = ["model", "setting", *columns, "loss: 5%, median, 95%", "floor at"]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (model, runs), (name, config) in product(by_model.items(), SETTINGS.items()):
        cells = [over_seeds(of(runs, "settings", name, column)) for column in columns.values()]
        quantiles = [mean(of(runs, "settings", name, f"loss_{which}")) for which in ("low", "median", "high")]
        cells.append(", ".join("–" if value is None else f"{value:.2f}" for value in quantiles))
        cells.append(f"{-config.contrastive_floor / config.contrastive_weight:.1f}")
        lines.append(f"| {' | '.join([model, name, *cells])} |")
    return "\n".join(lines) + "\n"


def dig(value: dict, *keys: str):
    """value[key][key]..."""
    for key in keys:
        value = value[key]
    return value


def map_table(found: dict) -> str:
    lines = ["| method | step | clean | hallucinated | wrong | variance in the plane | outside the picture |"]
    lines += ["|---" * 7 + "|"]
    for panel in found["panels"]:
        numbers = [panel["shares"][kind] for kind in KINDS] + [panel["variance"], panel["outside"]]
        cells = [MAPPED[panel["method"]].name, str(panel["step"]), *(f"{number:.3f}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


REPORT = """\
Seeds {seeds}; {groups} groups of {group_size} rollouts. Mean over seeds, in brackets the lowest and the highest seed.

## Separation

Pretrained model. AUC within a group that a hallucinated right rollout has a larger contrastive loss than a clean one
(0.5: chance); random heads: mean over {heads} of width {width}. Bold: the paper's setting and ours. supcon_in is
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
    """table.md. found: what `main` collected."""
    arguments, in_map = found["arguments"], found["map"]
    return REPORT.format(
        seeds=", ".join(map(str, found["separation"])),
        **{name: arguments[name] for name in ("groups", "group_size", "heads")},
        width=OURS.head_size,
        separation=separation_table(found["separation"]),
        signal=signal_tables(found["signal"]),
        map_seed=in_map["seed"],
        map_prompts=in_map["prompts"],
        first=in_map["panels"][0]["step"],
        explained=in_map["explained"],
        map=map_table(in_map),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="default: runs/experiments")
    parser.add_argument("--groups", type=int, default=64, help="prompts of parts 1 and 2 (default: 64)")
    parser.add_argument("--group-size", type=int, default=16, help="rollouts of each of them (default: 16)")
    parser.add_argument("--heads", type=int, default=5, help="random heads to average over (default: 5)")
    parser.add_argument("--map-prompts", type=int, default=40, help="prompts of the map (default: 40)")
    parser.add_argument(
        "--map-steps", nargs="+", type=int, default=[0, 20, 40, 60], help="its columns; training ends with the last"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(max(1, arguments.threads))
    out, seeds, steps = arguments.out, sorted(set(arguments.seeds)), sorted(set(arguments.map_steps))
    (out / "separation").mkdir(parents=True, exist_ok=True)

    models = {"after pretraining": {}, f"after {TRAINED.steps} steps of GRPO": {}}
    found = {"separation": {}, "signal": models}
    for seed in seeds:
        problems = fresh_problems(arguments.groups, seed)
        states = look(start("toy", seed, out), problems, arguments.group_size, seed)
        found["separation"][seed] = separation(states, arguments.heads, seed)
        before, after = models.values()
        before[seed] = signals(states, arguments.heads, seed)
        trained = out / TRAINED.folder / f"seed{seed}"
        if (trained / "result.json").is_file():  # it is written last: without it the run is not finished
            states = look(load_model(trained / "model"), problems, arguments.group_size, seed)
            after[seed] = signals(states, arguments.heads, seed)
        print(f"seed {seed}: parts 1 and 2 done", flush=True)
    found["map"] = make_map(seeds[0], out, steps, arguments.map_prompts)
    found["arguments"] = {name: value for name, value in vars(arguments).items() if name != "out"}
    text = report(found)
    write_json(out / "separation" / "results.json", found)
    write_text(out / "separation" / "table.md", text)
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
