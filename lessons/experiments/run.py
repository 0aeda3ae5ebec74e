"""The experiments behind lessons/results.md: train the variants, seed by seed, and write tables and pictures.

    python lessons/experiments/run.py algorithms --seeds 0 1 2 3 4
    python lessons/experiments/run.py --help              # what there is

Everything goes to OUT (default: runs/experiments). Ctrl-C keeps all runs that are finished; the same command does the
rest. OUT/EXPERIMENT/ then holds table.md, results.json and pictures, which page.py copies to lessons/results/.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from direct_gradient import DirectContrast
from draw import draw
from finished import finished
from log_prob_reward import LogProbReward
from processes import in_processes
from sharpness import look
from tables import write_tables
from textbooks import TEXTBOOKS, Textbook, start
from variants import EXPERIMENTS, Variant, beginning

from minclipo.checkpoint.files import read_json, write_json
from minclipo.config import TrainConfig
from minclipo.model import GPT
from minclipo.runs.loop import Run
from minclipo.runs.measure import evaluate
from minclipo.runs.recipes import TOY
from minclipo.tasks import Task
from minclipo.tasks.chain import check_steps, is_total_first
from minclipo.toy import toy_tokenizer
from minclipo.trainer import Trainer

TRAINERS = {"rewards": Trainer, "gradient": DirectContrast, "log_prob": LogProbReward}
EVERY = 10  # training steps between two looks at how sure the model is, and how blind its outcomes
WINDOW = 20  # training steps at the beginning and at the end whose metrics are averaged
SIGNALS = (
    "informative_prompts",
    "contrastive_signal",
    "contrastive_penalty",
    "prompt_contrast",
    "accuracy",
    "clip_fraction",
)


def train_config(variant: Variant, seed: int) -> TrainConfig:
    """The toy's settings, then the variant's own, and no copies on the way: a run takes seconds."""
    common = dict(steps=variant.steps, save_every=variant.steps, keep_states=0, keep_rollouts=0, seed=seed)
    room = dict(max_new_tokens=TEXTBOOKS[variant.textbook].max_new_tokens)
    return TrainConfig(**TOY | common | room | variant.training)


def run(variant: Variant, seed: int, out: Path) -> None:
    """Train and measure one variant with one seed, unless that has been done."""
    folder, textbook = out / variant.folder / f"seed{seed}", TEXTBOOKS[variant.textbook]
    config = train_config(variant, seed) if variant.steps else None
    training = asdict(config) if config else None
    settings = {"training": training, "toy": asdict(textbook.config), "trainer": variant.trainer}
    if finished(folder / "result.json", settings) is not None:
        return
    print(f"\nseed {seed}, {variant.textbook}: {variant.name}")
    model, began = start(variant.textbook, seed, out), time.perf_counter()
    signals, looking = train(model, variant, config, textbook, folder) if config else ({}, 0.0)
    trained = time.perf_counter()
    found = measure(model, textbook, seed)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {"training": trained - began - looking, "evaluation": looking + time.perf_counter() - trained}
    write_json(folder / "result.json", found | {"signals": signals, "seconds": seconds, "settings": settings})


def train(model: GPT, variant: Variant, config: TrainConfig, textbook: Textbook, folder: Path) -> tuple[dict, float]:
    """Train the model in place; the metrics that say what the contrast had to work with, of the first and last steps,
    and what was seen of the model on the way; and how many seconds the looking took."""
    trainer = TRAINERS[variant.trainer](model, toy_tokenizer(), textbook.training, config)
    run, looks, looking = Run(trainer, folder, variant.name), [], 0.0

    def after_step(step: int) -> None:
        nonlocal looking
        if step % EVERY == 0:
            began = time.perf_counter()
            looks.append({"step": step} | look(model, textbook.training, textbook.max_new_tokens))
            looking += time.perf_counter() - began

    history = run.train(after_step=after_step)
    return {"first": means(history[:WINDOW]), "last": means(history[-WINDOW:]), "looks": looks}, looking


def means(history: list[dict]) -> dict[str, float | None]:
    """The mean of each of SIGNALS over the steps that have a value; None: no step has one."""
    values = {
        name: [line[name] for line in history if line[name] is not None] for name in SIGNALS if name in history[0]
    }
    return {name: sum(found) / len(found) if found else None for name, found in values.items()}


def measure(model: GPT, textbook: Textbook, seed: int) -> dict:
    """The model on fresh problems of the kind it was trained on, and on the textbook's other tests."""

    def on(task: Task, **options) -> dict:
        size = dict(problems=textbook.config.eval_problems, max_new_tokens=textbook.max_new_tokens)
        return evaluate(model, toy_tokenizer(), task, **size | options, seed=seed)

    found = on(textbook.training)
    found["look"] = look(model, textbook.training, textbook.max_new_tokens, textbook.config.eval_problems)
    found["tests"] = {name: on(task) for name, task in textbook.tests.items()}
    if textbook.config.total_first:
        found["diversity"] = diversity(on(textbook.training, problems=300, samples=16))
    for part in (found, *found["tests"].values()):
        part.pop("examples")
    return found


def diversity(found: dict) -> dict[str, float]:
    """What 16 completions of each problem have in common. found: from `evaluate`."""
    right = [(problem, text) for problem, text, correct in found["examples"] if correct]
    faithful = [(problem, text) for problem, text in right if all(check_steps(problem, text))]
    return {
        "pass@16": found["pass_at"][16],
        "distinct right solutions per problem": len(set(right)) / found["problems"],
        "distinct faithful solutions per problem": len(set(faithful)) / found["problems"],
        "share of total-first among the right": sum(is_total_first(text) for _, text in right) / max(1, len(right)),
    }


def run_book(name: str, textbook: str, seed: int, out: Path) -> None:
    """The variants of an experiment that start from the same model, one after the other."""
    for variant in beginning(EXPERIMENTS[name]()):
        if variant.textbook == textbook:
            run(variant, seed, out)


def jobs(name: str, seeds: list[int], out: Path) -> list[tuple]:
    """What can be done at the same time. Seed by seed: an interrupted experiment leaves seeds that can be compared."""
    books = dict.fromkeys(variant.textbook for variant in EXPERIMENTS[name]())
    return [(name, book, seed, out) for seed in seeds for book in books]


def results(variants: list[Variant], seeds: list[int], out: Path) -> list[tuple[Variant, dict[int, dict]]]:
    """For each variant its result by seed, of all that has been finished."""
    found = []
    for variant in variants:
        paths = {seed: out / variant.folder / f"seed{seed}" / "result.json" for seed in seeds}
        found.append((variant, {seed: read_json(path) for seed, path in paths.items() if path.is_file()}))
    return found


def report(name: str, seeds: list[int], out: Path) -> None:
    """Tables and pictures of all that this experiment has finished."""
    found = results(beginning(EXPERIMENTS[name]()), seeds, out)
    if not any(by_seed for _, by_seed in found):
        print(f"{name}: nothing has been finished yet in {out}")
        return
    write_tables(found, out / name)
    draw(name, found, out / name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS), help="which experiments")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="default: runs/experiments")
    parser.add_argument("--report", action="store_true", help="train nothing, only write tables and pictures")
    parser.add_argument(
        "--processes", type=int, default=1, help="pairs of seed and textbook trained at the same time (default: 1)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each (default: 2)")
    arguments = parser.parse_args(argv)
    processes, threads = max(1, arguments.processes), max(1, arguments.threads)
    sys.stdout.reconfigure(line_buffering=True)
    out, seeds, status = arguments.out, sorted(set(arguments.seeds)), 0
    try:
        for name in [] if arguments.report else arguments.experiments:
            in_processes(run_book, jobs(name, seeds, out), processes, threads)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        status = 130
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        status = 1
    try:
        for name in arguments.experiments:
            report(name, seeds, out)
    except (ValueError, OSError) as error:
        print(f"the report could not be written: {error}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
