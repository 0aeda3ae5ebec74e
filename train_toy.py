"""Right answers for wrong reasons, and how contrasting rollouts repairs the reasons: the toy experiment.

    python train_toy.py                          # pretraining, then GRPO, CLIPO and the oracle: minutes on a laptop
    python train_toy.py --seeds 0 1 2 3 4        # five of each: means, 95% intervals, bands
    python train_toy.py --paper                  # CLIPO in the paper's own setting beside them
    python train_toy.py --algorithm gspo         # GSPO, with and without CLIPO; likewise dr_grpo, dapo, gmpo
    python train_toy.py --method clipo --contrastive-weight 0.3

A small Llama first reads a careless textbook. The outcome reward then repairs its answers. Whether its steps are right
shows only in the hallucination rate, which no method but the oracle ever sees. Look at OUT/curves.png.
"""

import argparse
import copy
import dataclasses
import platform
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.files import write_json
from minclipo.config import TrainConfig
from minclipo.runs.callbacks import TensorBoard
from minclipo.runs.command_line import add_options, flag, given_options, needed_by, refuse_idle
from minclipo.runs.folder import prepare_out
from minclipo.runs.loop import Run
from minclipo.runs.machine import peak_memory_mib
from minclipo.runs.measure import evaluate
from minclipo.runs.plots import STYLES
from minclipo.runs.recipes import ALGORITHMS, METHODS, PAPER_WARMUP, SWITCHES, TOY
from minclipo.runs.report import report
from minclipo.tasks.chain import random_problem
from minclipo.toy import TASK, ToyConfig, pretrained_toy, toy_model, toy_tokenizer
from minclipo.trainer import Trainer


def owner(option: str) -> str | None:
    """The method that an option belongs to, None if it is everybody's."""
    switch = needed_by(TrainConfig).get(option, option)
    return next((method for method, own in SWITCHES.items() if own == switch), None)


def method_config(method: str, given: dict, seed: int, algorithm: str = "grpo") -> TrainConfig:
    """The TrainConfig of a method under an algorithm; an option that belongs to another method does not reach it."""
    given = {name: value for name, value in given.items() if owner(name) in (None, method)}
    settings = TOY | ALGORITHMS[algorithm] | METHODS[method] | given | {"seed": seed}
    if method == "clipo_paper":
        settings |= METHODS[method] | {"head_warmup_steps": round(settings["steps"] * PAPER_WARMUP)}
    return TrainConfig(**settings)


def measure(trained, tokenizer, config: TrainConfig, toy: ToyConfig, started: float, folder: Path) -> None:
    """Evaluate on fresh problems and write result.json. All methods of a seed get the same problems."""
    seconds = time.perf_counter() - started
    found = evaluate(
        trained,
        tokenizer,
        TASK,
        problems=toy.eval_problems,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        progress=partial(tqdm, desc="evaluation", leave=False, disable=None),
    )
    examples = [(dataclasses.asdict(problem), text) for problem, text, _ in found.pop("examples")[:4]]
    result = found | {"seconds": seconds, "peak_memory_mib": peak_memory_mib(), "examples": examples}
    write_json(folder / "result.json", result)


def run_seed(
    seed: int, methods: list[str], given: dict, algorithm: str, toy: ToyConfig, out: Path, resume: bool, board: bool
) -> None:
    """Pretrain, then train every method from that start. What an earlier run has finished is not repeated; with
    `resume` a method that was interrupted goes on from its last training state. board: scalars for TensorBoard?"""
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
        trainer = Trainer(copy.deepcopy(start), tokenizer, TASK, config)
        callbacks = [TensorBoard(folder / method / "tensorboard")] if board else []
        Run(trainer, folder / method, method, callbacks).train(resume=resume)
        measure(trainer.model, tokenizer, config, toy, started, folder / method)


def check_given(methods: list[str], given: dict, algorithm: str, toy: ToyConfig, seeds: list[int]) -> None:
    """Refuse options that would fail after pretraining or be silently ignored: ValueError."""
    for name in given:
        if owner(name) not in (None, *methods):
            raise ValueError(f"{flag(name)} is an option of {owner(name)}, which --method leaves out")
    ownerless = {name: value for name, value in given.items() if owner(name) is None}
    refuse_idle(ownerless, ALGORITHMS[algorithm] | given, TrainConfig)
    model, longest_prompt = toy_model(toy, seed=0), len(toy_tokenizer().encode(random_problem(random.Random(0)).prompt))
    for method in methods:
        for seed in seeds:
            config = method_config(method, given, seed, algorithm)
        longest, limit = longest_prompt + config.max_new_tokens, model.config.max_positions
        if longest > limit:
            raise ValueError(f"--max-new-tokens {config.max_new_tokens} makes {longest} tokens, the model has {limit}")


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument(
        "--tensorboard", action="store_true", help="scalars for TensorBoard, in the tensorboard folder of each method"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add_options(parser, ToyConfig)
    methods_own = {switch: f"{METHODS[method][switch]} for {method}" for method, switch in SWITCHES.items()}
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
        if arguments.tensorboard:
            TensorBoard(arguments.out)  # fails if the package is missing
        prepare_out(arguments.out, settings, arguments.resume)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    torch.set_num_threads(max(1, arguments.threads))
    sys.stdout.reconfigure(line_buffering=True)  # a piped log should grow line by line
    started, status = time.perf_counter(), 0
    try:
        for seed in seeds:
            options = (arguments.algorithm, toy, arguments.out, arguments.resume, arguments.tensorboard)
            run_seed(seed, methods, given, *options)
    except KeyboardInterrupt:
        print("\ninterrupted; this is what there is. The same command with --resume goes on from here.")
        status = 130
    except (FloatingPointError, ValueError, OSError) as error:  # a damaged state, a full disk, a folder that has gone
        print(f"\nstopped: {error}. What is finished is kept; the same command with --resume goes on.", file=sys.stderr)
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
