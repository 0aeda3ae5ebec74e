"""Right answers for wrong reasons, and how contrasting rollouts mends the reasons: the toy experiment.

    python train_toy.py                          # pretraining, then GRPO, CLIPO and the oracle: minutes on a laptop
    python train_toy.py --seeds 0 1 2 3 4        # five of each: means, 95% intervals, bands
    python train_toy.py --paper                  # CLIPO in the paper's own setting beside them
    python train_toy.py --algorithm gspo         # GSPO, with and without CLIPO; likewise dr_grpo, dapo, gmpo
    python train_toy.py --method clipo --contrastive-weight 0.3

A small Llama first reads a careless textbook. The outcome reward then repairs its answers; whether its steps are right
shows only in the hallucination rate, which no method but the oracle gets to see. Look at OUT/curves.png.
"""

import argparse
import copy
import dataclasses
import json
import os
import platform
import random
import sys
import time
from pathlib import Path

import torch

from minclipo.algorithms import ALGORITHMS, NAMES
from minclipo.checkpoint import load_model, save_model
from minclipo.config import refuse_idle
from minclipo.evaluation import evaluate
from minclipo.files import read_json, write_json
from minclipo.intervals import Interval, mean_interval, share_interval
from minclipo.options import add_options, given_options
from minclipo.plots import STYLES, plot_training
from minclipo.runs import peak_memory_mib, prepare_out
from minclipo.tasks.chain import ChainProblem, check_steps, random_problem
from minclipo.toy import METHODS, PAPER_WARMUP, TASK, TOY, ToyConfig, pretrained_toy, toy_model, toy_tokenizer
from minclipo.trainer import TrainConfig, Trainer

MEASURES = ("accuracy", "hallucination_rate", "faithful_accuracy")


# Options that only one method reads, by how they begin.
OWN = {"contrastive_": "clipo", "head_": "clipo", "process_": "oracle", "prompt_contrast_": "prompt_contrast"}


def owner(option: str) -> str | None:
    """The method that an option belongs to, None if it is everybody's."""
    return next((method for beginning, method in OWN.items() if option.startswith(beginning)), None)


def method_config(method: str, given: dict, seed: int, algorithm: str = "grpo") -> TrainConfig:
    """The TrainConfig of a method under an algorithm: contrastive options reach CLIPO only, and so on (`OWN`)."""
    given = {name: value for name, value in given.items() if owner(name) in (None, method)}
    settings = TOY | ALGORITHMS[algorithm] | METHODS[method] | given | {"seed": seed}
    if method == "clipo_paper":
        settings |= METHODS[method] | {"head_warmup_steps": round(settings["steps"] * PAPER_WARMUP)}
    return TrainConfig(**settings)


def measure(trained, tokenizer, config: TrainConfig, toy: ToyConfig, started: float, folder: Path) -> None:
    """Evaluate on fresh problems and write result.json. All methods of a seed get the same problems."""
    seconds = time.perf_counter() - started
    size = dict(problems=toy.eval_problems, max_new_tokens=config.max_new_tokens)
    found = evaluate(trained, tokenizer, TASK, **size, seed=config.seed)
    examples = [(dataclasses.asdict(problem), text) for problem, text, _ in found.pop("examples")[:4]]
    result = found | {"seconds": seconds, "peak_memory_mib": peak_memory_mib(), "examples": examples}
    write_json(folder / "result.json", result)


def run_seed(
    seed: int, methods: list[str], given: dict, algorithm: str, toy: ToyConfig, out: Path, resume: bool
) -> None:
    """Pretrain, then train every method from that start. What an earlier run has finished is not done again, and with
    `resume` a method that was interrupted goes on from its last training state."""
    tokenizer, folder = toy_tokenizer(), out / f"seed{seed}"
    if not (folder / "pretrained" / "result.json").is_file():
        print(f"\nseed {seed}: pretraining on the careless textbook, {toy.pretrain_steps} steps")
        started = time.perf_counter()
        start = pretrained_toy(toy, tokenizer, seed)
        save_model(start, tokenizer, folder / "pretrained" / "model")
        measure(start, tokenizer, method_config("baseline", given, seed), toy, started, folder / "pretrained")
    start = load_model(folder / "pretrained" / "model")

    for method in methods:
        if (folder / method / "result.json").is_file():
            continue
        print(f"\nseed {seed}: {method}")
        started, config = time.perf_counter(), method_config(method, given, seed, algorithm)
        trainer = Trainer(copy.deepcopy(start), tokenizer, TASK, config, folder / method)
        trainer.run(method, resume=resume)
        measure(trainer.model, tokenizer, config, toy, started, folder / method)


def finished(out: Path) -> dict[str, dict[int, dict]]:
    """results[method][seed] of everything that `out` has finished, of this call and of earlier ones."""
    seeds = sorted(int(path.name.removeprefix("seed")) for path in out.glob("seed*"))
    return {
        method: {
            seed: read_json(path) for seed in seeds if (path := out / f"seed{seed}" / method / "result.json").is_file()
        }
        for method in ["pretrained", *STYLES]
    }


def summarize(results: dict[str, dict[int, dict]]) -> dict[str, dict]:
    """Per method mean, low and high of each measure. One seed: Wilson's interval of the evaluation's counts; several
    seeds: Student's interval of the mean over seeds."""
    summary = {}
    for method, by_seed in results.items():
        runs = list(by_seed.values())
        if not runs:
            continue
        summary[method] = {name: dataclasses.asdict(interval) for name, interval in intervals(runs).items()}
        summary[method]["seeds"] = list(by_seed)
        summary[method]["seconds"] = sum(run["seconds"] for run in runs) / len(runs)
        summary[method]["peak_memory_mib"] = max(run["peak_memory_mib"] for run in runs)
    return summary


def intervals(runs: list[dict]) -> dict[str, Interval]:
    if len(runs) > 1:
        return {name: mean_interval([run[name] for run in runs]) for name in MEASURES}
    problems, correct, faithful = runs[0]["problems"], runs[0]["correct"], runs[0]["faithful"]
    counts = ((correct, problems), (correct - faithful, correct), (faithful, problems))
    return {name: share_interval(*count) for name, count in zip(MEASURES, counts)}


def table(summary: dict[str, dict]) -> str:
    """The summary for people."""
    lines = [f"{'':15} {'accuracy':22} {'hallucination rate':22} {'faithful accuracy':22} seconds  peak MiB so far"]
    for method, row in summary.items():
        cells = [f"{row[name]['mean']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]" for name in MEASURES]
        lines.append(
            f"{method:15} "
            + " ".join(f"{cell:22}" for cell in cells)
            + f" {row['seconds']:7.1f} {row['peak_memory_mib']:9.0f}"
        )
    return "\n".join(lines)


def marked(problem: ChainProblem, text: str, colour: bool) -> str:
    """The completion with its wrong steps in red, or in square brackets where there is no colour."""
    body, hash_sign, answer = text.partition("#")
    words = body.split()
    steps = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    wrong = "\033[1;31m{}\033[0m" if colour else "[{}]"
    verdicts = check_steps(problem, text)
    right = [i < len(problem.operands) and verdicts[i] for i in range(len(steps))]  # surplus steps are wrong
    return " ".join(step if ok else wrong.format(step) for step, ok in zip(steps, right)) + f" {hash_sign}{answer}"


def show_examples(results: dict[str, dict[int, dict]], seed: int) -> None:
    """The same problems as solved by each method, wrong steps marked."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    how = "in red" if colour else "in [brackets]"
    print(f"\nthe first problems of seed {seed}'s evaluation, wrong steps {how}:")
    runs = {method: by_seed[seed] for method, by_seed in results.items() if seed in by_seed}
    for i, (fields, _) in enumerate(runs["pretrained"]["examples"]):
        problem = ChainProblem(fields["start"], tuple(fields["operands"]))
        print(f"\n  {problem.prompt}")
        for method, run in runs.items():
            print(f"    {method:15} {marked(problem, run['examples'][i][1], colour)}")


def histories(out: Path) -> dict[str, list[list[dict]]]:
    """The metrics that runs have written so far, finished or not: for each method a list of runs."""
    found = {}
    for method in STYLES:
        runs = [path.read_text().splitlines() for path in sorted(out.glob(f"seed*/{method}/metrics.jsonl"))]
        found[method] = [[json.loads(line) for line in run] for run in runs if run]
    return {method: runs for method, runs in found.items() if runs}


def report(out: Path, algorithm: str) -> None:
    """Table, examples, summary.json and curves.png of all that has been finished."""
    results = finished(out)
    summary = summarize(results)
    if not summary:
        print("nothing has been finished yet")
        return
    print("\n" + table(summary))
    several = len(results["pretrained"]) > 1
    print("(mean and 95% interval over seeds)" if several else "(95% interval of the evaluation's sample: one seed)")
    show_examples(results, next(iter(results["pretrained"])))
    write_json(out / "summary.json", summary)
    curves = histories(out)
    if curves:
        plot_training(curves, out / "curves.png", NAMES[algorithm])
    print(f"\nin {out}: summary.json, curves.png; for each seed and method metrics.jsonl and model/")


def check_given(methods: list[str], given: dict, algorithm: str, toy: ToyConfig, seeds: list[int]) -> None:
    """ValueError now for what would otherwise end the run after the pretraining, or be ignored without a word."""
    for name in given:
        if owner(name) not in (None, *methods):
            raise ValueError(f"--{name.replace('_', '-')} is an option of {owner(name)}, which --method leaves out")
    ownerless = {name: value for name, value in given.items() if owner(name) is None}
    refuse_idle(ownerless, ALGORITHMS[algorithm] | given)
    model, longest_prompt = toy_model(toy, seed=0), len(toy_tokenizer().encode(random_problem(random.Random(0)).prompt))
    for method in methods:
        for seed in seeds:
            config = method_config(method, given, seed, algorithm)
        longest, limit = longest_prompt + config.max_new_tokens, model.config.max_positions
        if longest > limit:
            raise ValueError(f"--max-new-tokens {config.max_new_tokens} makes {longest} tokens, the model has {limit}")


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--method",
        nargs="+",
        choices=list(METHODS),
        default=["baseline", "clipo", "oracle"],
        help="which to train; baseline is the algorithm with the outcome reward alone (default: baseline clipo oracle)",
    )
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="grpo", help="what all methods train with")
    parser.add_argument("--paper", action="store_true", help="train clipo_paper too: CLIPO in the paper's own setting")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="seeds of pretraining, problems and sampling (default: 0)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="where everything goes (default: runs/toy)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what OUT has finished with these settings, do the rest"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add_options(parser, ToyConfig)
    methods_own = {"contrastive_weight": "0.1 for clipo", "process_penalty": "0.5 for the oracle"}
    methods_own["prompt_contrast_weight"] = "0.2 for prompt_contrast"
    add_options(parser, TrainConfig, skip=("seed",), other_defaults=TOY | methods_own)
    return parser.parse_args(argv), parser


def main(argv: list[str] | None = None) -> int:
    arguments, parser = parse_arguments(argv)
    methods = list(dict.fromkeys(arguments.method + ["clipo_paper"] * arguments.paper))
    methods.sort(key=list(STYLES).index)
    seeds = list(dict.fromkeys(arguments.seeds))
    given = given_options(arguments, TrainConfig)
    try:
        toy = ToyConfig(**given_options(arguments, ToyConfig))
        check_given(methods, given, arguments.algorithm, toy, seeds)
        machine = f"{platform.machine()}, torch {torch.__version__}"
        settings = {"script": "train_toy.py", "machine": machine, "toy": dataclasses.asdict(toy)}
        settings["training"] = {"algorithm": arguments.algorithm} | given
        prepare_out(arguments.out, settings, arguments.resume)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    torch.set_num_threads(max(1, arguments.threads))
    sys.stdout.reconfigure(line_buffering=True)  # a log that is piped to a file should grow line by line
    started, status = time.perf_counter(), 0
    try:
        for seed in seeds:
            run_seed(seed, methods, given, arguments.algorithm, toy, arguments.out, arguments.resume)
    except KeyboardInterrupt:
        print("\ninterrupted; this is what there is. The same command with --resume goes on from here.")
        status = 130
    except (FloatingPointError, ValueError, OSError) as error:  # a damaged state, a full disk, a folder that has gone
        print(f"\nstopped: {error}. What is finished is kept; --resume goes on from there.", file=sys.stderr)
        status = 1
    try:
        report(arguments.out, arguments.algorithm)
    except OSError as error:
        print(f"\nthe report could not be written: {error}", file=sys.stderr)
        status = 1
    print(f"{time.perf_counter() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
