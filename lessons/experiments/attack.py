"""What would a policy do to earn the prompt contrast without merit?

    python lessons/experiments/attack.py --seeds 0 1 2 --out runs/experiments

Four looks at minclipo/prompt_contrast.py, with the toy's chains:

1. Pressure: training with weights up to 25 times the toy's own, and with room for twice the words.
2. Prices: completions written by hand, with the right answer and without merit: is any paid more than the faithful one?
3. Prices once learned: what is paid a policy that has been taught to write like that and nothing else?
4. Neighbours: how the pay of the faithful completion depends on which other prompts it is compared with.

Writes OUT/attack/table.md and results.json. Ctrl-C keeps what is finished; the same command does the rest.
N completions (one a problem), T tokens, K other prompts.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from tables import share
from textbooks import TEXTBOOKS, start
from torch import Tensor

from minclipo.checkpoint import load_model
from minclipo.config import TrainConfig
from minclipo.evaluation import evaluate
from minclipo.files import read_json, read_lines, write_json, write_text
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.pretrain import pretrain
from minclipo.prompt_contrast import LIMIT, draw_other_prompts, logprobs_under, prompt_contrast
from minclipo.sampler import Rollouts, pad_right
from minclipo.tasks.chain import (
    MAX_TOTAL,
    OPERANDS,
    SHARED_QUOTE,
    ChainProblem,
    check_outcome,
    check_steps,
    random_problem,
)
from minclipo.toy import EOS, TASK, TOY, toy_tokenizer
from minclipo.trainer import Trainer

OTHERS = 2  # K
ROOM = 32  # tokens: the faithful completion has 11
WINDOW = 20  # last training steps whose entropy is averaged
TEACH_BATCH, TEACH_RATE = 64, 1e-3  # solutions a step and learning rate where a policy is taught one way to write

# ---- completions written by hand ----


def steps(operands: list[int], totals: list[int]) -> list[str]:
    """The words of these steps, operand first."""
    return [word for operand, total in zip(operands, totals) for word in (f"{operand:+d}", str(total))]


def another(value: int, choices, rng: random.Random) -> int:
    return rng.choice([choice for choice in choices if choice != value])


def answered(problem: ChainProblem, *parts: list[str]) -> str:
    """These words, then the right answer."""
    return " ".join([*chain(*parts), "#", str(problem.totals[-1])])


def quoting(problem: ChainProblem, changes: dict[int, int]) -> str:
    """Right totals and answer, with other operands quoted in some steps."""
    return answered(problem, steps([changes.get(i, n) for i, n in enumerate(problem.operands)], problem.totals))


def quotes(problem: ChainProblem) -> list[str]:
    """The prompt's operands, copied."""
    return [f"{operand:+d}" for operand in problem.operands]


def faithful(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {})


def one_made_up(problem: ChainProblem, rng: random.Random) -> str:
    place = rng.randrange(len(problem.operands))
    return quoting(problem, {place: another(problem.operands[place], OPERANDS, rng)})


def all_made_up(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {i: another(operand, OPERANDS, rng) for i, operand in enumerate(problem.operands)})


def shared_false_step(problem: ChainProblem, rng: random.Random) -> str:
    return quoting(problem, {1: SHARED_QUOTE})


def garbage_total(problem: ChainProblem, rng: random.Random) -> str:
    totals = problem.totals
    totals[-2] = another(totals[-2], range(MAX_TOTAL + 1), rng)
    return answered(problem, steps(problem.operands, totals))


def copied_again(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, steps(problem.operands, problem.totals), quotes(problem))


def start_first(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, [str(problem.start)], steps(problem.operands, problem.totals))


def start_last(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, steps(problem.operands, problem.totals), [str(problem.start)])


def answer_only(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem)


def operands_only(problem: ChainProblem, rng: random.Random) -> str:
    return answered(problem, quotes(problem))


def total_first(problem: ChainProblem, rng: random.Random) -> str:
    words = steps(problem.operands, problem.totals)
    return answered(problem, *(words[i : i + 2][::-1] for i in range(0, len(words), 2)))


def wrong_answer(problem: ChainProblem, rng: random.Random) -> str:
    wrong = another(problem.totals[-1], range(MAX_TOTAL + 1), rng)
    return " ".join([*steps(problem.operands, problem.totals), "#", str(wrong)])


def of_another_problem(problem: ChainProblem, rng: random.Random) -> str:
    while (other := random_problem(rng)).totals[-1] == problem.totals[-1]:
        pass
    return faithful(other, rng)


COMPLETIONS: dict[str, Callable[[ChainProblem, random.Random], str]] = {
    "faithful": faithful,
    "one operand made up": one_made_up,
    "all operands made up": all_made_up,
    f"shared false step ({SHARED_QUOTE:+d} in step 2)": shared_false_step,
    "last but one total garbage": garbage_total,
    "operands copied once more before #": copied_again,
    "start number first": start_first,
    "start number before #": start_last,
    "no steps, # and the answer": answer_only,
    "operands without totals": operands_only,
    "totals before operands": total_first,
    "wrong: right steps, wrong answer": wrong_answer,
    "wrong: solution of another problem": of_another_problem,
}


def fresh_problems(seed: int, count: int, margin: int = 0) -> list[ChainProblem]:
    """Problems in which the shared false step is false, with totals at least `margin` away from the ends."""
    problems, index = [], 0
    while len(problems) < count:
        problem, index = TASK.draw(f"attack {seed}", index), index + 1
        far = all(margin <= total <= MAX_TOTAL - margin for total in problem.totals)
        if far and problem.operands[1] != SHARED_QUOTE:
            problems.append(problem)
    return problems


# ---- what they are paid ----


@torch.no_grad()
def as_rollouts(model: GPT, problems: list[ChainProblem], texts: list[str]) -> Rollouts:
    """One finished rollout a problem, with the model's log-probs."""
    tokenizer = toy_tokenizer()
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    completions, lengths = pad_right(tokenizer.encode_batch([f"{text} {EOS}" for text in texts]))  # [N, T], [N]
    mask = torch.arange(completions.shape[1]) < lengths[:, None]  # [N, T]
    logprobs, _ = completion_logprobs(model, prompts, completions, mask)  # [N, T]
    N, D = len(prompts), model.config.hidden_size
    return Rollouts(prompts, 1, completions, mask, logprobs, torch.zeros(N, D), torch.ones(N, dtype=torch.bool))


def under(model: GPT, rollouts: Rollouts, prompts: list[list[list[int]]]) -> Tensor:
    """Log-probs [K, N, T] of the rollouts under K lists of N prompts."""
    in_place = torch.arange(len(rollouts.prompts))[None]  # [1, N]
    return torch.cat([logprobs_under(model, dataclasses.replace(rollouts, prompts=p), in_place) for p in prompts])


def token_gains(rollouts: Rollouts, other_logprobs: Tensor) -> Tensor:
    """The pay of each token by itself, [N, T], 0 at padding: every token is made a completion."""
    alone = lambda x: x.flatten(-2)[..., None]  # [..., N, T] -> [..., N * T, 1]
    gains = prompt_contrast(alone(rollouts.logprobs), alone(other_logprobs), alone(rollouts.mask))
    return gains.view_as(rollouts.mask)


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's tokens, [N] from [N, T]."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


def pay(model: GPT, problems: list[ChainProblem], texts: list[str], seed: int) -> dict[str, Tensor]:
    """Each [N]: the gain, mean probability of its tokens under its own prompt and under K others, share of its tokens
    whose gain is at the limit: they are as good as impossible under the other prompts."""
    rollouts = as_rollouts(model, problems, texts)
    others = draw_other_prompts(len(problems), OTHERS, torch.Generator().manual_seed(seed))  # [K, N]
    other_logprobs, mask = logprobs_under(model, rollouts, others), rollouts.mask
    return {
        "gain": prompt_contrast(rollouts.logprobs, other_logprobs, mask),
        "own": row_means(rollouts.logprobs.exp(), mask),
        "others": row_means(other_logprobs.exp().mean(0), mask),
        "at_limit": row_means((token_gains(rollouts, other_logprobs) >= LIMIT).float(), mask),
    }


def written(kind: str, problems: list[ChainProblem], seed: int) -> list[str]:
    rng = random.Random(f"{kind} {seed}")
    return [COMPLETIONS[kind](problem, rng) for problem in problems]


def price_list(model: GPT, problems: list[ChainProblem], seed: int) -> dict[str, dict[str, float]]:
    """Of each kind: means of what `pay` returns, share of right answers, and share of the problems on which it is paid
    more than the faithful completion."""
    found, reference = {}, pay(model, problems, written("faithful", problems, seed), seed)["gain"]
    for kind in COMPLETIONS:
        texts = written(kind, problems, seed)
        paid = pay(model, problems, texts, seed)
        right = [check_outcome(problem, text, True) for problem, text in zip(problems, texts)]
        found[kind] = {name: values.mean().item() for name, values in paid.items()}
        found[kind]["right"] = sum(right) / len(right)
        found[kind]["beats_faithful"] = (paid["gain"] > reference).float().mean().item()
    return found


def taught(kind: str, seed: int, count: int, out: Path) -> GPT:
    """The pretrained model after `count` steps on solutions of this kind alone."""
    model, tokenizer, rng = start("toy", seed, out), toy_tokenizer(), random.Random(f"taught {kind} {seed}")

    def page() -> tuple[list[list[int]], list[list[int]]]:
        problems = [random_problem(rng) for _ in range(TEACH_BATCH)]
        texts = [f"{COMPLETIONS[kind](problem, rng)} {EOS}" for problem in problems]
        return tokenizer.encode_batch([problem.prompt for problem in problems]), tokenizer.encode_batch(texts)

    pretrain(model, page, steps=count, learning_rate=TEACH_RATE)
    return model.eval()


def learned_prices(seed: int, problems: list[ChainProblem], count: int, out: Path) -> dict[str, dict[str, float]]:
    """What each kind with a right answer is paid by a policy that writes nothing else. The prices above are those of a
    policy that hardly ever writes so; these are where it would get to."""
    found = {}
    for kind in COMPLETIONS:
        if not kind.startswith("wrong"):
            paid = pay(taught(kind, seed, count, out), problems, written(kind, problems, seed), seed)
            found[kind] = {name: values.mean().item() for name, values in paid.items()}
    return found


# ---- training under pressure ----


def pressed_folder(weight: float, seed: int, out: Path) -> Path:
    return out / "attack" / f"weight_{weight:g}" / f"seed{seed}"


def press(weight: float, seed: int, count: int, problems: int, out: Path) -> dict:
    """Train the pretrained toy for `count` steps with this weight and with room to cheat, and measure it."""
    own = dict(steps=count, save_every=count, keep_states=0, seed=seed, max_new_tokens=ROOM)
    config = TrainConfig(**TOY | own, prompt_contrast_weight=weight, prompt_contrast_others=OTHERS)
    folder, model = pressed_folder(weight, seed, out), start("toy", seed, out)
    Trainer(model, toy_tokenizer(), TASK, config, folder).run(f"weight {weight:g}, seed {seed}")
    last = read_lines(folder / "metrics.jsonl")[-WINDOW:]
    return measure(model, seed, problems) | {"entropy": sum(line["entropy"] for line in last) / len(last)}


def measure(model: GPT, seed: int, problems: int) -> dict:
    """Accuracy, steps, length; of the right answers the pay, and how many have surplus words; a few to look at."""
    found = evaluate(model, toy_tokenizer(), TASK, problems=problems, max_new_tokens=ROOM, seed=seed)
    examples = found.pop("examples")
    right = [(problem, text) for problem, text, correct in examples if correct]
    surplus = [row for row in right if len(check_steps(*row)) > len(row[0].operands)]
    found["surplus"] = len(surplus) / max(1, len(right))
    if len(right) > OTHERS:
        paid = pay(model, *(list(part) for part in zip(*right)), seed)
        found |= {name: values.mean().item() for name, values in paid.items()}
    shown = [(problem, text) for problem, text, _ in examples[:3]] + surplus[:3]
    return found | {"shown": [f"{problem.prompt} {text}" for problem, text in shown]}


# ---- which other prompts? ----


def neighbour(problem: ChainProblem, kept: list[int], same_start: bool, rng: random.Random) -> ChainProblem:
    """A problem with the same operands in the places `kept`, other ones elsewhere, and the same or another start."""
    while True:
        first = problem.start if same_start else another(problem.start, range(MAX_TOTAL + 1), rng)
        operands = [n if i in kept else another(n, OPERANDS, rng) for i, n in enumerate(problem.operands)]
        found = ChainProblem(first, tuple(operands))
        if all(0 <= total <= MAX_TOTAL for total in found.totals):
            return found


def neighbours(model: GPT, seed: int, count: int) -> list[dict[str, float | None]]:
    """The pay of faithful completions against K prompts that share 0 .. 4 of their operands, a row a case: the mean,
    and that of operands that the other prompts call for as well, of the other operands, and of the totals."""
    rows, tokenizer, rng = [], toy_tokenizer(), random.Random(f"neighbours {seed}")
    problems = fresh_problems(seed, count, margin=20)  # nearer to the ends, some have no neighbour with the same start
    rollouts = as_rollouts(model, problems, written("faithful", problems, seed))
    operations = len(problems[0].operands)
    for same_start in (False, True):
        for shared in range(operations + 1):
            kept = [rng.sample(range(operations), shared) for _ in problems]
            near = [[neighbour(*row, same_start, rng).prompt for row in zip(problems, kept)] for _ in range(OTHERS)]
            others = [tokenizer.encode_batch(prompts) for prompts in near]
            gains = token_gains(rollouts, under(model, rollouts, others))  # [N, T]
            coincides = torch.tensor([[i in places for i in range(operations)] for places in kept])  # [N, operations]
            operands, totals = gains[:, 0 : 2 * operations : 2], gains[:, 1 : 2 * operations : 2]
            mean = lambda values: values.mean().item() if values.numel() else None
            rows.append(
                {"same_start": same_start, "shared": shared, "gain": mean(gains), "totals": mean(totals)}
                | {"shared_operands": mean(operands[coincides]), "other_operands": mean(operands[~coincides])}
            )
    return rows


# ---- tables ----


def cell(values: list[float | None]) -> str:
    """The mean over seeds, and the lowest and the highest."""
    if not values or None in values:
        return "–"
    number = lambda value: f"{round(value, 2) + 0.0:.2f}"  # 0.00, not -0.00
    mean = number(sum(values) / len(values))
    return f"{mean} ({number(min(values))} to {number(max(values))})" if len(values) > 1 else mean


def mean_of(found: list[dict], *keys: str) -> float:
    """The mean over seeds of a value at the end of these keys."""
    for key in keys:
        found = [part[key] for part in found]
    return sum(found) / len(found)


def price_table(prices: dict[str, list[dict]]) -> str:
    """A row a completion, sorted by the first model's prices; a column a model. Bold: paid more than the faithful."""
    first = next(iter(prices.values()))
    kinds = sorted(COMPLETIONS, key=lambda kind: -mean_of(first, kind, "gain"))
    lines = [f"| | right | {' | '.join(prices)} |", "|---" * (2 + len(prices)) + "|"]
    for kind in kinds:
        cells = [kind, f"{mean_of(first, kind, 'right'):.2f}"]
        for found in prices.values():
            values = [by_kind[kind]["gain"] for by_kind in found if kind in by_kind]
            more = values and sum(values) / len(values) > mean_of(found, "faithful", "gain")
            cells.append(f"**{cell(values)}**" if more and not kind.startswith("wrong") else cell(values))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(name: str, found: list[dict]) -> str:
    """Which completions without merit are paid more than the faithful one, and how often."""
    reference = mean_of(found, "faithful", "gain")
    better = [
        f"{kind} ({mean_of(found, kind, 'gain') - reference:+.2f} nats"
        + (f", on {mean_of(found, kind, 'beats_faithful'):.0%} of the problems" if "right" in found[0][kind] else "")
        + ")"
        for kind in found[0]
        if not kind.startswith("wrong") and mean_of(found, kind, "gain") > reference
    ]
    return f"- {name}, more than the faithful completion's {reference:.2f} nats: {'; '.join(better) or 'none'}"


PRESSURE = {  # column: key of `press`
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


def pressure_table(pressed: dict[str, list[dict]]) -> str:
    lines = [f"| weight | {' | '.join(PRESSURE)} |", "|---" * (1 + len(PRESSURE)) + "|"]
    for weight, found in pressed.items():
        cells = []
        for key in PRESSURE.values():
            values = [result.get(key) for result in found]
            shares = ("accuracy", "hallucination_rate", "faithful_accuracy")
            cells.append(share(values) if key in shares else cell(values))
        lines.append(f"| {weight} | {' | '.join(cells)} |")
    return "\n".join(lines)


def neighbour_table(by_seed: list[list[dict]]) -> str:
    keys = ("gain", "shared_operands", "other_operands", "totals")
    lines = ["| start | shared operands | g | shared operands' | other operands' | totals' |", "|---" * 6 + "|"]
    for rows in zip(*by_seed):
        cells = [cell([row[key] for row in rows]) for key in keys]
        lines.append(f"| {'same' if rows[0]['same_start'] else 'other'} | {rows[0]['shared']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(results: dict) -> str:
    """table.md."""
    shown = [
        f"    weight {weight}: {text}" for weight, found in results["pressure"].items() for text in found[0]["shown"]
    ]
    prices = results["prices"] | {"once learned": results["learned"]}
    parts = [
        f"Seeds {', '.join(map(str, results['seeds']))}: means, and in brackets the lowest and the highest seed "
        "(95% intervals for accuracy, hallucination rate and faithful accuracy). Gains g in nats a token, "
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


# ---- the whole ----


def once(path: Path, settings: dict, compute: Callable[[], dict]) -> dict:
    """What compute() returned when it was first called, from the file `path`. ValueError if that had other settings."""
    if path.is_file():
        kept = read_json(path)
        if kept["settings"] != settings:
            raise ValueError(f"{path} was made with other settings: move it away, or choose another --out")
        return kept["found"]
    began = time.perf_counter()
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"found": found, "seconds": time.perf_counter() - began, "settings": settings})
    return found


def models(seeds: list[int], weights: list[float], out: Path) -> dict[str, Callable[[int], GPT]]:
    """Who is asked for prices: the pretrained model, and the trained ones that there are with all seeds."""
    folders = {"60 steps, weight 0.2": lambda seed: out / "toy-60" / "prompt_contrast" / f"seed{seed}"}
    for weight in weights:
        folders[f"pressed, weight {weight:g}"] = lambda seed, weight=weight: pressed_folder(weight, seed, out)
    found = {"pretrained": lambda seed: start("toy", seed, out)}
    for name, folder in folders.items():
        if all((folder(seed) / "result.json").is_file() for seed in seeds):
            found[name] = lambda seed, folder=folder: load_model(folder(seed) / "model")
    return found


def attack(arguments: argparse.Namespace) -> dict:
    """All four looks."""
    out, seeds, weights = arguments.out, sorted(set(arguments.seeds)), arguments.weights
    problems = {seed: fresh_problems(seed, arguments.problems) for seed in seeds}
    toy, results = dataclasses.asdict(TEXTBOOKS["toy"].config), {"seeds": seeds, "pressure": {}}
    trained = {"toy": toy, "steps": arguments.steps, "problems": arguments.eval_problems}
    for weight in weights:
        results["pressure"][f"{weight:g}"] = [
            once(
                pressed_folder(weight, seed, out) / "result.json",
                trained | {"weight": weight},
                partial(press, weight, seed, arguments.steps, arguments.eval_problems, out),
            )
            for seed in seeds
        ]
    results["prices"] = {
        name: [price_list(model(seed), problems[seed], seed) for seed in seeds]
        for name, model in models(seeds, weights, out).items()
    }
    taught_settings = {"toy": toy, "teach_steps": arguments.teach_steps, "problems": arguments.problems}
    results["learned"] = [
        once(
            out / "attack" / "learned" / f"seed{seed}.json",
            taught_settings,
            partial(learned_prices, seed, problems[seed], arguments.teach_steps, out),
        )
        for seed in seeds
    ]
    results["neighbours"] = [neighbours(start("toy", seed, out), seed, arguments.problems) for seed in seeds]
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="default: runs/experiments")
    parser.add_argument("--problems", type=int, default=200, help="problems with hand-made completions (default: 200)")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.2, 1.0, 5.0], help="default: 0 0.2 1 5")
    parser.add_argument("--steps", type=int, default=150, help="training steps under pressure (default: 150)")
    parser.add_argument("--eval-problems", type=int, default=1000, help="problems of the evaluation (default: 1000)")
    parser.add_argument(
        "--teach-steps", type=int, default=300, help="steps of teaching one way to write (default: 300)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args(argv)
    if arguments.problems <= OTHERS:
        parser.error(f"--problems must be more than {OTHERS}, found {arguments.problems}")
    torch.set_num_threads(max(1, arguments.threads))
    sys.stdout.reconfigure(line_buffering=True)
    try:
        results = attack(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        return 130
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return 1
    folder = arguments.out / "attack"
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", report(results))
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
