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

from minclipo.checkpoint import load_model, save_model
from minclipo.checkpoint.files import write_json
from minclipo.config import TrainConfig
from minclipo.runs.callbacks import TensorBoard
from minclipo.runs.command_line import (
    Parser,
    add_options,
    add_run_options,
    changeable_later,
    flag,
    given_options,
    made,
    needed_by,
    refuse_idle,
    whole_number,
)
from minclipo.runs.config_file import read_arguments
from minclipo.runs.console import prepare_console, say
from minclipo.runs.folder import RunFolder, out_path, prepare_out
from minclipo.runs.launch import by_torchrun
from minclipo.runs.lock import Taken
from minclipo.runs.loop import Run
from minclipo.runs.machine import peak_memory_mib
from minclipo.runs.measure import evaluate
from minclipo.runs.plots import STYLES
from minclipo.runs.progress import watched
from minclipo.runs.recipes import ALGORITHMS, METHODS, PAPER_WARMUP, SWITCHES, TOY
from minclipo.runs.report import report
from minclipo.runs.settings import Layer, announce, asked_for, merged, show, show_group
from minclipo.runs.signals import Stopped, exit_code, signal_of, stop_signals
from minclipo.tasks.chain import random_problem
from minclipo.toy import TASK, ToyConfig, pretrained_toy, toy_model, toy_tokenizer
from minclipo.trainer import Trainer


def owner(option: str) -> str | None:
    """The method that an option belongs to, None if it is everybody's."""
    switch = needed_by(TrainConfig).get(option, option)
    return next((method for method, own in SWITCHES.items() if own == switch), None)


def method_config(method: str, given: dict, seed: int, algorithm: str = "grpo") -> TrainConfig:
    """The TrainConfig of a method under an algorithm; an option that belongs to another method does not reach it."""
    found = merged(method_layers(method, [Layer("given", given)], algorithm))
    return made(TrainConfig, {name: value for name, (value, _) in found.items()} | {"seed": seed})


def method_layers(method: str, given: list[Layer], algorithm: str) -> list[Layer]:
    """Where the TrainConfig of a method comes from; each layer wins over those before it."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    layers = [Layer("default", defaults | TOY), Layer(f"algorithm {algorithm}", ALGORITHMS[algorithm])]
    layers.append(Layer(f"method {method}", METHODS[method]))
    of_method = lambda name: name in defaults and owner(name) in (None, method)
    for layer in given:
        layers.append(layer._replace(values={name: value for name, value in layer.values.items() if of_method(name)}))
    if method == "clipo_paper":
        warmup = {"head_warmup_steps": round(merged(layers)["steps"][0] * PAPER_WARMUP)}
        layers.append(Layer(f"method {method}", METHODS[method] | warmup))
    return layers


def say_settings(arguments: argparse.Namespace, methods: list[str]) -> None:
    """What the algorithm sets; with --show-settings all settings, and those that only some methods have."""
    given, algorithm = arguments.layers, arguments.algorithm
    everybody = merged(method_layers("baseline", given, algorithm))
    if algorithm != "grpo":
        announce(method_layers("baseline", given, algorithm), f"algorithm {algorithm}", everybody)
    if not arguments.show_settings:
        return
    toy = Layer("default", {field.name: field.default for field in dataclasses.fields(ToyConfig)})
    del everybody["seed"]  # --seeds has them
    show(merged([toy, *given]) | everybody, ToyConfig, TrainConfig)
    for method in methods:
        own = merged(method_layers(method, given, algorithm))
        show_group(f"method {method}", {name: own[name] for name in everybody if own[name][0] != everybody[name][0]})


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
        progress=partial(watched, what="evaluation"),
    )
    examples = [(dataclasses.asdict(problem), text) for problem, text, _ in found.pop("examples")[:4]]
    result = found | {"seconds": seconds, "peak_memory_mib": peak_memory_mib(), "examples": examples}
    write_json(folder / "result.json", result)


def run_seed(
    seed: int,
    methods: list[str],
    given: dict,
    algorithm: str,
    toy: ToyConfig,
    run_folder: RunFolder,
    resume: bool,
    board: bool,
) -> None:
    """Pretrain, then train every method from that start. What an earlier run has finished is not repeated; with
    `resume` a method that was interrupted goes on from its last training state. board: scalars for TensorBoard?"""
    tokenizer, folder = toy_tokenizer(), run_folder.folder / f"seed{seed}"
    if not (folder / "pretrained" / "result.json").is_file():
        print(f"\nseed {seed}: pretraining on the careless textbook, {toy.pretrain_steps} steps")
        started = time.perf_counter()
        try:
            start = pretrained_toy(toy, tokenizer, seed, progress=partial(watched, what="pretraining"))
            run_folder.keep()
            save_model(start, tokenizer, folder / "pretrained" / "model")
            measure(start, tokenizer, method_config("baseline", given, seed), toy, started, folder / "pretrained")
        except KeyboardInterrupt as stop:
            message = f"{stop or 'interrupted'}: the pretraining of seed {seed} is not finished and starts anew"
            raise Stopped(signal_of(stop), message) from None
    start = load_model(folder / "pretrained" / "model")

    for method in methods:
        if (folder / method / "result.json").is_file():
            continue
        print(f"\nseed {seed}: {method}")
        started, config = time.perf_counter(), method_config(method, given, seed, algorithm)
        trainer = Trainer(copy.deepcopy(start), tokenizer, TASK, config)
        callbacks = [TensorBoard(folder / method / "tensorboard")] if board else []
        run = Run(trainer, folder / method, method, callbacks)
        run.before_writing = run_folder.keep
        run.train(resume=resume)
        run_folder.keep()
        measure(trainer.model, tokenizer, config, toy, started, folder / method)


def check_given(methods: list[str], given: dict, asked: dict, algorithm: str, toy: ToyConfig, seeds: list[int]) -> None:
    """Refuse options that would fail after pretraining or be silently ignored: ValueError.

    given: all options of training; asked: those that somebody has written by hand, now.
    """
    asked = {name: value for name, value in given.items() if name in asked}
    for name in asked:
        if owner(name) not in (None, *methods):
            raise ValueError(f"{flag(name)} is an option of {owner(name)}, which --method leaves out")
    ownerless = {name: value for name, value in asked.items() if owner(name) is None}
    refuse_idle(ownerless, ALGORITHMS[algorithm] | given, TrainConfig)
    model, longest_prompt = toy_model(toy, seed=0), len(toy_tokenizer().encode(random_problem(random.Random(0)).prompt))
    for method in methods:
        for seed in seeds:
            config = method_config(method, given, seed, algorithm)
        longest, limit = longest_prompt + config.max_new_tokens, model.config.max_positions
        if longest > limit:
            raise ValueError(f"--max-new-tokens {config.max_new_tokens} makes {longest} tokens, the model has {limit}")


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = Parser("train_toy.py", __doc__)
    parser.add_argument(
        "--method",
        nargs="+",
        choices=list(METHODS),
        default=["baseline", "clipo", "oracle"],
        help="which to train; baseline is the algorithm with the outcome reward alone (default: baseline clipo oracle)",
    )
    parser.add_argument(
        "--algorithm", choices=list(ALGORITHMS), default="grpo", help="what all methods train with (default: grpo)"
    )
    parser.add_argument("--paper", action="store_true", help="train clipo_paper too: CLIPO in the paper's own setting")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=whole_number(0, 2**63 - 1),
        default=[0],
        metavar="N",
        help="seeds of pretraining, problems and sampling (default: 0)",
    )
    parser.add_argument(
        "--out", type=out_path, default=Path("runs/toy"), help="where everything goes (default: runs/toy)"
    )
    add_run_options(parser)
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), default=2, metavar="N", help="CPU threads (default: 2)"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="scalars for TensorBoard, in the tensorboard folder of each method"
    )
    add_options(parser, ToyConfig)
    methods_own = {switch: f"{METHODS[method][switch]} for {method}" for method, switch in SWITCHES.items()}
    add_options(parser, TrainConfig, skip=("seed",), other_defaults=TOY | methods_own)
    return read_arguments(parser, argv), parser


def run_settings(arguments: argparse.Namespace, methods: list[str], seeds: list[int], toy: ToyConfig) -> dict:
    """What settings.json says. A run that goes on keeps what was asked for before."""
    earlier = arguments.earlier
    return {
        "script": "train_toy.py",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "command_lines": [*(earlier.get("command_lines") or []), arguments.command_line],
        "method": list(dict.fromkeys([*(earlier.get("method") or []), *methods])),
        "seeds": list(dict.fromkeys([*(earlier.get("seeds") or []), *seeds])),
        "tensorboard": arguments.tensorboard,
        "threads": arguments.threads,
        "toy": dataclasses.asdict(toy),
        "training": {"algorithm": arguments.algorithm} | given_options(arguments, TrainConfig),
    }


def say_if_done(methods: list[str], seeds: list[int], out: Path) -> None:
    folders = [out / f"seed{seed}" / method for seed in seeds for method in methods]
    if all((folder / "result.json").is_file() for folder in folders):
        print("everything that was asked for is done; more --seeds or another --method go on")


@stop_signals()
def main(argv: list[str] | None = None) -> int:
    prepare_console()
    arguments, parser = parse_arguments(argv)
    methods = list(dict.fromkeys(arguments.method + ["clipo_paper"] * arguments.paper))
    methods.sort(key=list(STYLES).index)
    seeds = list(dict.fromkeys(arguments.seeds))
    given = given_options(arguments, TrainConfig)
    try:
        if by_torchrun():
            raise ValueError("the toy is for one process: start it without torchrun")
        toy = made(ToyConfig, given_options(arguments, ToyConfig))
        check_given(methods, given, asked_for(arguments.layers), arguments.algorithm, toy, seeds)
        say_settings(arguments, methods)
        if arguments.show_settings:
            return 0
        if arguments.tensorboard:
            TensorBoard(arguments.out)  # fails if the package is missing
        settings = run_settings(arguments, methods, seeds, toy)
        # The number of steps stays: what a method's evaluation has found is about its last one.
        folder = prepare_out(arguments.out, settings, arguments.resume, changeable_later(TrainConfig) - {"steps"})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    say_if_done(methods, seeds, arguments.out)
    torch.set_num_threads(max(1, arguments.threads))
    started, status = time.perf_counter(), 0
    try:
        for seed in seeds:
            run_seed(seed, methods, given, arguments.algorithm, toy, folder, arguments.resume, arguments.tensorboard)
    except KeyboardInterrupt as stop:
        lost = getattr(stop, "can_go_on", None) is False
        on = "It cannot go on." if lost else "The same command with --resume goes on."
        say(f"\n{stop or 'interrupted'}. {on} This is what is finished:")
        status = exit_code(stop)
    except Taken as error:  # what lies in the folder now is not this run's
        print(f"\nstopped: {error}", file=sys.stderr)
        return 1
    except (FloatingPointError, ValueError, OSError) as error:  # a damaged state, a full disk, a folder that has gone
        print(f"\nstopped: {error}. What is finished is kept; the same command with --resume goes on.", file=sys.stderr)
        status = 1
    try:
        report(folder.folder, arguments.algorithm)
    except OSError as error:
        print(f"\nthe report could not be written: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt as stop:
        say(f"\n{stop or 'interrupted'}. The report is not complete; the same command with --resume makes it.")
        status = exit_code(stop)
    folder.release()
    print(f"{time.perf_counter() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
