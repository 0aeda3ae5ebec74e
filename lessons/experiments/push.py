"""Does GRPO push a false step that many solutions share? What it pays for it before any training, model by model.

    python lessons/experiments/push.py --seeds 0 1 2 3 4 --out runs/experiments

For the textbooks whose author quotes +1 in the second step: the average advantage of the rollouts that quote the true
operand there, minus that of those that quote +1; and the difference of their accuracies. It writes OUT/push/table.md
and results.json. The models are those of run.py, in OUT/starts.
"""

import argparse
from pathlib import Path

import torch
from tables import table, write_results
from textbooks import fresh_problems, start

from minclipo.grpo import group_advantages
from minclipo.model import GPT
from minclipo.runs.intervals import student
from minclipo.sampler import Rollouts, sample
from minclipo.tasks.chain import SHARED_QUOTE, ChainProblem
from minclipo.toy import TASK, toy_tokenizer

BOOKS = {f"{share}%": f"shared{share}" for share in (10, 30, 50, 70, 90)}
PROMPTS, GROUP = 512, 16
STEP = 1  # which of the steps the author's favourite mistake is in


def push(problems: list[ChainProblem], rollouts: Rollouts, texts: list[str]) -> dict[str, float]:
    """Rollouts with the true operand minus those with the shared false one: mean advantage, and share of right answers."""
    correct = torch.tensor(TASK.outcomes(problems, texts, rollouts.finished.tolist())).float()  # [N]
    advantages = group_advantages(correct, GROUP)  # [N]
    quotes = [text.split()[2 * STEP : 2 * STEP + 1] for text in texts]
    true = [[f"{problem.operands[STEP]:+d}"] for problem in problems for _ in range(GROUP)]
    faithful = torch.tensor([quote == word for quote, word in zip(quotes, true)])
    shared = torch.tensor([quote == [f"{SHARED_QUOTE:+d}"] for quote in quotes]) & ~faithful
    minus = lambda values: (values[faithful].mean() - values[shared].mean()).item()
    return {"advantage": minus(advantages), "right": minus(correct)}


def measure(model: GPT, draw: int) -> dict[str, float]:
    """draw: a number of the model's own. With one generator for all, models slip in the same rollouts, and what is chance
    would look like a law."""
    tokenizer, problems = toy_tokenizer(), fresh_problems(f"push {draw}", PROMPTS)
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    generator = torch.Generator().manual_seed(draw)
    rollouts = sample(model, prompts, GROUP, 16, eos_ids=tokenizer.eos_ids, generator=generator)
    return push(problems, rollouts, tokenizer.decode_batch(rollouts.completion_ids()))


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """The means with their 95% intervals; found: for each share of the step, what was measured on each seed's model."""
    rows = []
    for key, name, scale, form in (("advantage", "advantage", 1, "+.3f"), ("right", "right, in points", 100, "+.1f")):
        row = [name]
        for seeds in found.values():
            mean, half = student([scale * one[key] for one in seeds])
            row.append(f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]")
        rows.append(row)
    return table("true operand minus +1", found, rows) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args(argv)
    found = {}
    for place, (share, book) in enumerate(BOOKS.items()):
        models = [(start(book, seed, arguments.out), 100 * place + seed) for seed in arguments.seeds]
        found[share] = [measure(model, draw) for model, draw in models]
    write_results(found, report(found), arguments.out / "push")


if __name__ == "__main__":
    main()
