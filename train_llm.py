"""GRPO and CLIPO on a real checkpoint: the training step of the toy, unchanged, on Llama, Mistral and Qwen models.

    python train_llm.py --model DIR --data sums --dtype float32                       # a small model on a CPU
    python train_llm.py --model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:main/train-* \\
                        --eval-data openai/gsm8k:main/test-*                          # one GPU
    python train_llm.py --preset track1                                               # the paper's first recipe
    python train_llm.py --preset track2 --algorithm gspo --num-mini-batches 4         # its second, under GSPO
    python train_llm.py --model runs/toy/seed0/pretrained/model --data chain --max-new-tokens 16   # the toy's own model
    python train_llm.py --model runs/llm/model --eval-only --data ...                 # how good is it?

--data and --eval-data take a .jsonl, .json, .parquet or .arrow file, several by a pattern, ORGANISATION/NAME:PATTERN
(files of a dataset on the Hugging Face hub), or the name of a built-in task: sums, stories, chain. Ctrl-C, a crash or a
full disk lose nothing that was saved: the same command with --resume goes on from the last training state in OUT/states.
"""

import argparse
import dataclasses
import json
import platform
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from minclipo.checkpoint import Checkpoint, Tokenizer
from minclipo.checkpoint.files import write_json
from minclipo.config import TrainConfig, check, option
from minclipo.model import GPT, GPTConfig
from minclipo.runs.best import METRICS, KeepBest, check_keep_best
from minclipo.runs.callbacks import TensorBoard
from minclipo.runs.command_line import add_options, changeable_later, given_options, refuse_idle
from minclipo.runs.evaluator import Evaluator, evaluation_size, scores, show_evaluation, write_answers
from minclipo.runs.folder import check_out, earlier_settings, prepare_out
from minclipo.runs.loop import Run
from minclipo.runs.machine import (
    bytes_on_disk,
    check_memory,
    check_room,
    estimate_memory,
    peak_memory_mib,
    pick_device,
    pick_dtype,
)
from minclipo.runs.plots import Curves
from minclipo.runs.problems import BUILT_IN, make_task
from minclipo.runs.recipes import ALGORITHMS, LLM, PRESETS
from minclipo.tasks import Task
from minclipo.tasks.word_problems import shared_prompts
from minclipo.trainer import Trainer

ON_OFF = ("auto", "on", "off")
BOXED = "\nLet's think step by step and output the final answer within \\boxed{}."
_input = partial(option, group="model and data")
_evaluation = partial(option, group="evaluation", later=True)


@dataclass
class LLMConfig:
    """Model, data and evaluation; TrainConfig has the rest."""

    model: str = _input("", "directory of a checkpoint, or its id on the Hugging Face hub (ORGANISATION/NAME@REVISION)")
    data: str = _input("", "training problems: a file, ORGANISATION/NAME:PATTERN, sums, stories or chain")
    question_field: str = _input(
        "question", "field of the data that holds the question, a text or a chat; a.b: field b within a"
    )
    answer_field: str = _input("answer", "field of the data that holds the answer, or a solution that ends in it")
    system_prompt: str = _input("", "system message of the chat; empty: the template's own")
    chat_variables: str = _input("", "JSON object of variables for the chat template: '{\"enable_thinking\": false}'")
    stop_tokens: str = _input("", "more tokens that end a completion, separated by spaces: '<|im_end|>'")
    prompt_suffix: str = _input(BOXED, "added to every question of a file that is no chat")
    max_prompt_tokens: int = _input(512, "problems with a longer prompt are left out", at_least=1)
    dtype: str = _input(
        "auto", "numbers the model computes in; auto: bfloat16 on cuda", choices=("auto", "float32", "bfloat16")
    )
    device: str = _input("auto", "auto: cuda, else mps, else cpu", choices=("auto", "cuda", "mps", "cpu"))
    gradient_checkpointing: bool = _input(
        False, "less memory for activations, a third more time for the update", later=True
    )
    compile: str = _input(
        "auto",
        "fuse the update's kernels: a slower first step, faster others; auto: on cuda",
        choices=ON_OFF,
        later=True,
    )
    eval_data: str = _evaluation("", "held-out problems, like data; built-in tasks bring their own")
    eval_every: int = _evaluation(10, "steps between two evaluations; 0: none", at_least=0)
    eval_problems: int = _evaluation(200, "problems per evaluation; 0: all there are", at_least=0)
    eval_samples: int = _evaluation(
        0, "completions per problem (N) for avg@N and pass@k; 0: only the greedy one", at_least=0
    )
    eval_temperature: float = _evaluation(0.6, "sampling temperature of those", above=0, at_least=1e-6)
    eval_top_p: float = _evaluation(0.95, "their top-p", above=0, at_most=1)
    show: int = _evaluation(2, "completions shown at each evaluation", at_least=0)
    keep_best: str = _evaluation(
        "off", "keep the model that is best by this, held out, in OUT/best, too", choices=("off", *METRICS)
    )

    def __post_init__(self):
        check(self)
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed: {self.__dataclass_fields__[name].metadata['help']}")
        self.template_variables()

    def template_variables(self) -> dict:
        try:
            variables = json.loads(self.chat_variables or "{}")
        except ValueError as error:
            raise ValueError(f"--chat-variables {self.chat_variables} is not JSON: {error}") from error
        if not isinstance(variables, dict):
            raise ValueError(f"--chat-variables must be a JSON object, found {self.chat_variables}")
        for name in ("messages", "add_generation_prompt"):
            if name in variables:
                raise ValueError(f"--chat-variables: {name} is not yours to set, each prompt has its own")
        return variables


def tokenizer_of(checkpoint: Checkpoint, config: LLMConfig) -> Tokenizer:
    """The model's tokenizer; says where completions end, since a model that goes on after its answer learns nothing."""
    checkpoint.tokenizer.stop_at(config.stop_tokens.split())
    print("a completion ends with", " or ".join(map(repr, checkpoint.tokenizer.stop_tokens())), "(see --stop-tokens)")
    return checkpoint.tokenizer


def make_evaluator(
    config: LLMConfig, train_config: TrainConfig, model: GPT, tokenizer: Tokenizer, task: Task
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
        sampling_rows=train_config.sampling_rows or train_config.prompts_per_step * train_config.group_size,
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
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="none", help="all settings of one of the paper's recipes"
    )
    parser.add_argument(
        "--algorithm", choices=list(ALGORITHMS), help="ratio, clip, means and KL (default: the preset's GRPO)"
    )
    parser.add_argument("--eval-only", action="store_true", help="measure the model; trains nothing")
    parser.add_argument(
        "--out", type=Path, help="where everything goes (default: runs/llm; with --eval-only: runs/eval)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last training state in OUT")
    parser.add_argument("--tensorboard", action="store_true", help="scalars for TensorBoard, in OUT/tensorboard")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: 0, as many as PyTorch takes)")
    add_options(parser, LLMConfig)
    add_options(parser, TrainConfig, skip=("process_penalty",), other_defaults=LLM)
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out or Path("runs/eval" if arguments.eval_only else "runs/llm")
    return arguments


def make_configs(arguments: argparse.Namespace) -> tuple[LLMConfig, TrainConfig]:
    """Defaults, then the preset, then the algorithm, then what was given on the command line."""
    given = given_options(arguments, TrainConfig)
    algorithm = ALGORITHMS[arguments.algorithm] if arguments.algorithm else {}
    chosen = LLM | PRESETS[arguments.preset] | algorithm | given_options(arguments, LLMConfig) | given
    refuse_idle(given, chosen, TrainConfig)
    if not chosen.get("contrastive_weight"):
        chosen.pop("head_warmup_steps", None)  # a preset's: without CLIPO there is no head
    fields = {field.name for field in dataclasses.fields(LLMConfig)}
    llm = {name: value for name, value in chosen.items() if name in fields}
    if arguments.eval_only:
        llm.setdefault("data", llm.get("eval_data", ""))
    return LLMConfig(**llm), TrainConfig(**{name: value for name, value in chosen.items() if name not in fields})


def evaluate_only(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> None:
    """Measure the model; its numbers and answers go to a folder of their own."""
    out, settings = arguments.out, run_settings(arguments, config, train_config)
    settings["script"] += " --eval-only"
    if earlier_settings(out, "train_llm.py") is not None:
        raise ValueError(f"--out {out} is a training run; an evaluation needs a folder of its own")
    check_out(out, settings, resume=False)
    device, checkpoint = pick_device(config.device), Checkpoint(config.model)
    limit = prompt_limit(checkpoint.config, config, train_config)
    tokenizer = tokenizer_of(checkpoint, config)
    task = make_task(config.eval_data or config.data, config, tokenizer, limit)
    model = checkpoint.model(pick_dtype(config.dtype, device), device)
    prepare_out(out, settings, resume=False)
    answers = make_evaluator(config, train_config, model, tokenizer, task).measure()
    found = scores(answers)
    show_evaluation(found, answers, config.show)
    write_answers(answers, out / "answers.jsonl")
    write_json(out / "evaluation.json", found)
    print(f"in {out}: evaluation.json (these numbers), answers.jsonl (every completion with its verdict)")


def run_settings(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> dict:
    """What settings.json says. A run that is resumed keeps the time of its first start."""
    device = pick_device(config.device)
    dtype = str(pick_dtype(config.dtype, device)).removeprefix("torch.")
    earlier = earlier_settings(arguments.out, "train_llm.py") if arguments.resume else None
    return {
        "script": "train_llm.py",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "started": (earlier or {}).get("started", time.time()),
        "llm": dataclasses.asdict(config) | {"device": device.type, "dtype": dtype},
        "training": dataclasses.asdict(train_config),
    }


def train(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> None:
    """Check everything that can be checked, cheapest checks first; then train."""
    out, resume, device = arguments.out, arguments.resume, pick_device(config.device)
    dtype, may_differ = pick_dtype(config.dtype, device), changeable_later(LLMConfig, TrainConfig)
    if Path(config.model).exists() and Path(config.model).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--model {config.model} is inside --out {out}, which is written to: choose another --out")
    check_keep_best(config, held_out=bool(config.eval_data or config.data in BUILT_IN))
    board = TensorBoard(out / "tensorboard") if arguments.tensorboard else None
    settings = run_settings(arguments, config, train_config)
    check_out(out, settings, resume, may_differ)
    if arguments.algorithm and train_config.num_mini_batches == 1:
        print("with --num-mini-batches 1 every ratio is 1: ratio and clip of the algorithm do nothing")
    checkpoint = Checkpoint(config.model)
    shape, tokenizer = checkpoint.config, tokenizer_of(checkpoint, config)
    best = bytes_on_disk(shape, dtype, keep_states=0) // 2 if config.keep_best != "off" else 0  # one more model
    check_room(out, bytes_on_disk(shape, dtype, train_config.keep_states) + best, resume)
    estimate = estimate_memory(
        shape,
        train_config,
        prompt_tokens=config.max_prompt_tokens,
        dtype=dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        device_type=device.type,
    )
    check_memory(estimate, device)
    if tokenizer.chat_template is not None:  # a template that writes the date writes the one of the first start
        tokenizer.chat_template.now = datetime.fromtimestamp(settings["started"])
    limit = prompt_limit(shape, config, train_config)
    task = make_task(config.data, config, tokenizer, limit)
    eval_source = config.eval_data or (config.data if config.data in BUILT_IN else "")
    eval_task = make_task(eval_source, config, tokenizer, limit) if eval_source else None
    if eval_task is not None:
        evaluation_size(config.eval_problems, eval_task)
        shared = shared_prompts(task, eval_task) if task.size and eval_task.size else 0
        if shared:
            print(f"{shared} of {eval_task.size} problems of --eval-data are in --data, too: they are not held out")
    model = checkpoint.model(dtype, device)
    model.gradient_checkpointing = config.gradient_checkpointing
    model.compiled = config.compile == "on" or config.compile == "auto" and device.type == "cuda"

    prepare_out(out, settings, resume, may_differ)
    run_training(Trainer(model, tokenizer, task, train_config), eval_task, config, out, board, resume)


def run_training(
    trainer: Trainer, eval_task: Task | None, config: LLMConfig, out: Path, board: TensorBoard | None, resume: bool
) -> None:
    """Train, with all that watches: evaluations on held-out problems if there are any, pictures, TensorBoard."""
    model, tokenizer, train_config = trainer.model, trainer.tokenizer, trainer.config
    steps, longest = train_config.steps, train_config.max_new_tokens
    curves = Curves(out, every=train_config.save_every, last=steps, max_new_tokens=longest)
    draws_itself = eval_task is not None and config.eval_every  # after each evaluation
    callbacks = ([board] if board else []) + ([] if draws_itself else [curves])
    run = Run(trainer, out, "train", callbacks)
    if eval_task is not None:
        evaluator = make_evaluator(config, train_config, model, tokenizer, eval_task)
        if board is not None:
            evaluator.listeners.append(board.after_evaluation)
        if config.keep_best != "off":
            evaluator.listeners.append(KeepBest(model, tokenizer, out / "best", config.keep_best).after_evaluation)
        after_step = partial(evaluator.after_step, every=config.eval_every, last=steps, out=out, show=config.show)
    else:
        print("no --eval-data: only the training rollouts will be measured")
        after_step = lambda step: config.eval_every and step % config.eval_every == 0 and run.show_rollouts(config.show)
    run.train(resume=resume, after_step=after_step)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    sys.stdout.reconfigure(line_buffering=True)  # a piped log should grow line by line
    started = time.perf_counter()
    try:
        configs = make_configs(arguments)
        (evaluate_only if arguments.eval_only else train)(arguments, *configs)
    except KeyboardInterrupt:
        on = "" if arguments.eval_only else " The same command with --resume goes on from the last training state."
        print("\ninterrupted." + on)
        return 130
    except torch.OutOfMemoryError as error:
        print(
            f"train_llm.py: {error}\nTry smaller --sampling-rows (for the rollouts) and --micro-batch-tokens (for the "
            "update), or --gradient-checkpointing; with --resume they go on from the last training state.",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"train_llm.py: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("torch._dynamo"):
            raise
        print(
            f"train_llm.py: {error}\nCompiling failed: try --compile off, with --resume if steps are done.",
            file=sys.stderr,
        )
        return 1
    print(f"{time.perf_counter() - started:.0f} s, at most {peak_memory_mib():.0f} MiB")
    if torch.cuda.is_available():
        print(f"at most {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
