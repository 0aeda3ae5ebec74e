"""GRPO and CLIPO on a real checkpoint: the training step of the toy, unchanged, on Llama, Mistral, Qwen and SmolLM.

    python train_llm.py --model DIR --data sums --dtype float32                       # a small model on a CPU
    python train_llm.py --model Qwen/Qwen2.5-0.5B-Instruct --data "openai/gsm8k:main/train-*" \\
                        --eval-data "openai/gsm8k:main/test-*"                        # one GPU
    python train_llm.py --preset track1                                               # the paper's first recipe
    python train_llm.py --preset track2 --algorithm gspo --num-mini-batches 4         # its second, under GSPO
    python train_llm.py --model runs/toy/seed0/pretrained/model --data chain --max-new-tokens 16   # the toy's own model
    python train_llm.py --model runs/llm/model --eval-only --data ...                 # how good is it?

--data and --eval-data take a .jsonl, .json, .parquet or .arrow file, several by a pattern, ORGANISATION/NAME:PATTERN
(files of a dataset on the Hugging Face hub), FILE.py:NAME (a task of your own in Python, also with --task), or the name of
a built-in task: sums, stories, chain. Ctrl-C and SIGTERM save first, and a crash or a full disk lose nothing that was
saved: the same command with --resume goes on.
"""

import argparse
import dataclasses
import platform
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from minclipo.checkpoint import Checkpoint, Tokenizer
from minclipo.checkpoint.files import write_json
from minclipo.config import TrainConfig
from minclipo.extensions.processes import count, every, rank
from minclipo.extensions.sharding import shard
from minclipo.model import GPT, GPTConfig
from minclipo.runs.adapters import load_policy, write_adapter
from minclipo.runs.available import advice_on
from minclipo.runs.best import KeepBest, check_keep_best
from minclipo.runs.callbacks import TensorBoard
from minclipo.runs.changes import may_change, say_if_done
from minclipo.runs.command_line import Parser, add_options, add_run_options, whole_number
from minclipo.runs.config_file import read_arguments
from minclipo.runs.console import prepare_console
from minclipo.runs.evaluator import Evaluator, evaluation_size, scores, show_evaluation, write_answers
from minclipo.runs.folder import FolderOfAnother, RunFolder, check_out, earlier_settings, out_path, prepare_out
from minclipo.runs.inputs import refuse_inside, same_revision, what_was_read
from minclipo.runs.launch import LOST, Launch, check_processes, check_shares, is_lost
from minclipo.runs.llm_config import (
    READ_BY_EVALUATION,
    LLMConfig,
    make_configs,
    say_repeats,
    say_settings,
    say_unread_variables,
)
from minclipo.runs.loop import Run
from minclipo.runs.machine import (
    bytes_on_disk,
    check_memory,
    check_room,
    estimate_memory,
    peak_memory_mib,
    pick_device,
    pick_dtype,
    ways_to_save,
)
from minclipo.runs.plots import Curves
from minclipo.runs.problems import brings_evaluation, make_task
from minclipo.runs.progress import watched
from minclipo.runs.recipes import ALGORITHMS, LLM, PRESETS
from minclipo.runs.settings import asked_for
from minclipo.runs.signals import exit_code, stop_signals
from minclipo.tasks import Task
from minclipo.tasks.data_files import without_commands
from minclipo.tasks.word_problems import shared_prompts
from minclipo.trainer import Trainer


def tokenizer_of(checkpoint: Checkpoint, config: LLMConfig) -> Tokenizer:
    """The model's tokenizer; says where completions end, since a model that goes on after its answer learns nothing."""
    checkpoint.tokenizer.stop_at(config.stop_tokens.split())
    print("a completion ends with", " or ".join(map(repr, checkpoint.tokenizer.stop_tokens())), "(see --stop-tokens)")
    say_unread_variables(config, checkpoint.tokenizer)
    return checkpoint.tokenizer


def make_evaluator(
    config: LLMConfig, train_config: TrainConfig, model: GPT, tokenizer: Tokenizer, task: Task, **options
) -> Evaluator:
    return Evaluator(
        model,
        tokenizer,
        task,
        problems=config.eval_problems,
        max_new_tokens=train_config.max_new_tokens,
        samples=config.eval_samples,
        temperature=config.eval_temperature,
        top_p=config.eval_top_p,
        sampling_rows=train_config.sampling_rows or train_config.prompts_per_step * train_config.group_size // count(),
        row_seeds=train_config.row_seeds,
        **options,
    )


def prompt_limit(shape: GPTConfig, config: LLMConfig, train_config: TrainConfig) -> int:
    """The longest prompt that leaves room for a whole completion."""
    room = shape.max_positions - train_config.max_new_tokens
    if room < 1:
        raise ValueError(
            f"--max-new-tokens {train_config.max_new_tokens} leaves no room for a prompt: {config.model} has "
            f"max_positions {shape.max_positions}"
        )
    return min(config.max_prompt_tokens, room)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("train_llm.py", __doc__)
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="none", help="all settings of one of the paper's recipes"
    )
    parser.add_argument(
        "--algorithm", choices=list(ALGORITHMS), help="ratio, clip, means and KL (default: the preset's GRPO)"
    )
    parser.add_argument("--eval-only", action="store_true", help="measure the model; trains nothing")
    parser.add_argument(
        "--out",
        type=out_path,
        default=Path("runs/llm"),
        help="where everything goes (default: runs/llm; with --eval-only: runs/eval)",
    )
    add_run_options(parser)
    parser.add_argument("--tensorboard", action="store_true", help="scalars for TensorBoard, in OUT/tensorboard")
    parser.add_argument(
        "--threads",
        type=whole_number(0, 1024),
        default=0,
        metavar="N",
        help="CPU threads (default: 0, as many as PyTorch takes)",
    )
    parser.add_argument("--task", dest="data", metavar="FILE.py:NAME", help="a task of your own; the same as --data")
    add_options(parser, LLMConfig)
    add_options(parser, TrainConfig, skip=("process_penalty",), other_defaults=LLM)
    arguments = read_arguments(parser, argv)
    if arguments.eval_only and "out" not in asked_for(arguments.layers):
        arguments.out = Path("runs/eval")
    return arguments


def evaluate_only(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> None:
    """Measure the model; its numbers and answers go to a folder of their own."""
    out, settings = arguments.out, run_settings(arguments, config, train_config)
    settings["script"] += " --eval-only"
    settings["training"] = {name: settings["training"][name] for name in READ_BY_EVALUATION}
    if arguments.resume:
        raise ValueError("--eval-only resumes nothing: measure what a run has trained with --model OUT/model")
    if earlier_settings(out, "train_llm.py") is not None:
        raise ValueError(f"--out {out} is a training run; an evaluation needs a folder of its own")
    if rank() == 0:
        check_out(out, settings, resume=False)
    device, checkpoint = pick_device(config.device), Checkpoint(config.model)
    limit = prompt_limit(checkpoint.config, config, train_config)
    tokenizer = tokenizer_of(checkpoint, config)
    task = make_task(config.eval_data or config.data, config, tokenizer, limit)
    model = load_policy(checkpoint, config, pick_dtype(config.dtype, device), device)
    if config.shard:
        shard(model)
    print(f"measuring {evaluation_size(config.eval_problems, task)} problems")
    watch = partial(watched, what="evaluation")
    answers = make_evaluator(config, train_config, model, tokenizer, task, progress=watch).measure()
    found = scores(answers)
    show_evaluation(found, answers, config.show)
    if rank() > 0:
        return
    with prepare_out(out, settings, resume=False):
        write_answers(answers, out / "answers.jsonl")
        write_json(out / "evaluation.json", found)
    print(f"in {out}: evaluation.json (these numbers), answers.jsonl (every completion with its verdict)")


def run_settings(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> dict:
    """What settings.json says. A run that is resumed keeps the time of its first start."""
    device = pick_device(config.device)
    dtype = str(pick_dtype(config.dtype, device)).removeprefix("torch.")
    return {
        "script": "train_llm.py",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "started": every(arguments.earlier.get("started", time.time()))[0],  # the same in every process
        "command_lines": [*(arguments.earlier.get("command_lines") or []), arguments.command_line],
        "preset": arguments.preset,
        "algorithm": arguments.algorithm,
        "tensorboard": arguments.tensorboard,
        "threads": arguments.threads,
        "llm": dataclasses.asdict(config) | {"device": device.type, "dtype": dtype},
        "training": dataclasses.asdict(train_config),
    }


def check_machine(
    shape: GPTConfig, config: LLMConfig, train_config: TrainConfig, device: torch.device, out: Path, resume: bool
) -> None:
    """Is there room on the disk and in the memory? Says what a step will take, and what would help."""
    dtype = pick_dtype(config.dtype, device)
    lora = dict(lora_rank=config.lora_rank, lora_targets=config.lora_targets.split())
    if rank() == 0:
        needed = bytes_on_disk(shape, dtype, train_config.keep_states, **lora)
        if config.keep_best != "off":  # one more model
            needed += bytes_on_disk(shape, dtype, keep_states=0) // 2
        check_room(out, needed, resume)
    options = lora | dict(
        prompt_tokens=config.max_prompt_tokens,
        dtype=dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        device_type=device.type,
        processes=count(),
        shard=config.shard,
    )
    save = partial(ways_to_save, shape=shape, train=train_config, **options)
    check_memory(estimate_memory(shape, train_config, **options), device, save)


def train(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> None:
    """Check everything that can be checked, cheapest checks first; then train."""
    out, resume, device = arguments.out, arguments.resume, pick_device(config.device)
    dtype, may_differ = pick_dtype(config.dtype, device), may_change(train_config)
    if arguments.tensorboard:
        TensorBoard(out)  # fails if the package is missing
    settings = run_settings(arguments, config, train_config)
    if rank() == 0:  # it alone writes there
        check_out(out, settings, resume, may_differ)
    sources = {"--model": config.model, "--data": config.data, "--eval-data": config.eval_data}
    refuse_inside(out, sources | {"--init-adapter": config.init_adapter})
    if resume:
        say_if_done(out, train_config)
    if arguments.algorithm and train_config.num_mini_batches == 1:
        print("with --num-mini-batches 1 every ratio is 1: ratio and clip of the algorithm do nothing")
    checkpoint = Checkpoint(same_revision(config.model, arguments.earlier))
    shape, tokenizer = checkpoint.config, tokenizer_of(checkpoint, config)
    check_machine(shape, config, train_config, device, out, resume)
    if tokenizer.chat_template is not None:  # a template that writes the date writes the one of the first start
        tokenizer.chat_template.now = datetime.fromtimestamp(settings["started"])
    limit = prompt_limit(shape, config, train_config)
    task = make_task(config.data, config, tokenizer, limit)
    say_repeats(task, train_config)
    eval_source = config.eval_data or (config.data if brings_evaluation(config.data) else "")
    eval_task = make_task(eval_source, config, tokenizer, limit) if eval_source else None
    if eval_task is not None:
        evaluation_size(config.eval_problems, eval_task)
        shared = shared_prompts(task, eval_task) if task.size and eval_task.size else 0
        if shared:
            print(f"{shared} of {eval_task.size} problems of --eval-data are in --data, too: they are not held out")
    check_keep_best(config, eval_task)
    earlier, reference = arguments.earlier or None, bool(train_config.kl_weight)
    if rank() == 0:
        read = (checkpoint.weights.parent, config.data, eval_source, earlier, reference)
        settings |= what_was_read(out, *read, adapter=config.init_adapter, frozen=config.lora_rank > 0)
    model = load_policy(checkpoint, config, dtype, device, train_config.seed)
    model.gradient_checkpointing = config.gradient_checkpointing
    model.compiled = config.compile == "on" or config.compile == "auto" and device.type == "cuda" and not config.shard
    if config.shard:
        shard(model)

    folder = prepare_out(out, settings, resume, may_differ) if rank() == 0 else FolderOfAnother(out)
    with folder:
        run_training(
            Trainer(model, tokenizer, task, train_config), eval_task, config, folder, arguments.tensorboard, resume
        )


def run_training(
    trainer: Trainer,
    eval_task: Task | None,
    config: LLMConfig,
    folder: RunFolder,
    board: bool,
    resume: bool,
) -> None:
    """Train, with all that watches: evaluations on held-out problems if there are any, pictures, TensorBoard."""
    model, tokenizer, train_config, out = trainer.model, trainer.tokenizer, trainer.config, folder.folder
    steps, longest = train_config.steps, train_config.max_new_tokens
    curves = Curves(out, every=train_config.save_every, last=steps, max_new_tokens=longest)
    draws_itself = eval_task is not None and config.eval_every  # after each evaluation
    boards = [TensorBoard(out / "tensorboard")] if board and rank() == 0 else []
    callbacks = boards + ([] if draws_itself else [curves])
    run = Run(trainer, out, "train", callbacks)
    run.before_writing = folder.keep
    if config.lora_rank:
        run.save_adapter = partial(write_adapter, directory=out / "adapter", config=config)
    if eval_task is not None:
        evaluator = make_evaluator(config, train_config, model, tokenizer, eval_task)
        evaluator.before_writing = folder.keep
        evaluator.listeners += [board.after_evaluation for board in boards]
        if config.keep_best != "off":
            evaluator.listeners.append(KeepBest(model, tokenizer, out / "best", config.keep_best).after_evaluation)
        after_step = partial(evaluator.after_step, every=config.eval_every, last=steps, out=out, show=config.show)
    else:
        print("no --eval-data: only the training rollouts will be measured")
        after_step = lambda step: config.eval_every and step % config.eval_every == 0 and run.show_rollouts(config.show)
    run.train(resume=resume, after_step=after_step)
    print(f"in {out}: model/, {'adapter/, ' * bool(config.lora_rank)}metrics.jsonl, rollouts.jsonl, curves.png")


@stop_signals()
def main(argv: list[str] | None = None) -> int:
    prepare_console()
    launch = Launch()
    try:
        run(argv, launch)
    except (Exception, KeyboardInterrupt) as error:
        with stop_signals(lambda: False):  # when a process has died, torchrun sends the others SIGTERM at this moment
            code = tell(error, launch)
        if code is None:
            raise
        return code
    launch.leave()
    return 0


def run(argv: list[str] | None, launch: Launch) -> None:
    """Train or measure, as the command line says."""
    started = time.perf_counter()
    arguments = parse_arguments(argv)
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    configs = make_configs(arguments)
    say_settings(arguments)
    if arguments.show_settings:
        return
    device = pick_device(configs[0].device)
    launch.join(device)
    check_processes(configs[1], configs[0], pick_dtype(configs[0].dtype, device), device)
    if not arguments.eval_only:
        check_shares(configs[1])
    if count() > 1:
        print(f"{count()} processes, which share the prompts of each step")
    (evaluate_only if arguments.eval_only else train)(arguments, *configs)
    print(f"{time.perf_counter() - started:.0f} s, at most {peak_memory_mib():.0f} MiB of memory")
    if torch.cuda.is_available():
        print(f"at most {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU")


def tell(error: BaseException, launch: Launch) -> int | None:
    """Say what has ended the run, and what to do. The exit code, None for an error that nobody has foreseen."""
    if is_lost(error):
        launch.says(f"train_llm.py: {LOST}")
    elif isinstance(error, KeyboardInterrupt):
        launch.says_that_it_stops(error)
        return exit_code(error)
    elif isinstance(error, (ValueError, OSError, FloatingPointError)):  # it may quote what a stranger wrote
        launch.says(without_commands(f"train_llm.py: {error}", but="\n"))
    elif (advice := advice_on(error)) is not None:
        launch.says(f"train_llm.py: {error}\n{advice}")
    else:
        launch.let_it_show()
        return None
    return 1


if __name__ == "__main__":
    sys.exit(main())
