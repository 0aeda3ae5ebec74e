"""GRPO and CLIPO on a real checkpoint: the training step of the toy, unchanged, on Llama, Mistral and Qwen models.

    python train_llm.py --model DIR --data sums --dtype float32                       # a small model on a CPU
    python train_llm.py --model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:main/train-* \\
                        --eval-data openai/gsm8k:main/test-*                          # one GPU
    python train_llm.py --preset track1                                               # the paper's first recipe
    python train_llm.py --preset track2 --algorithm gspo --mini-batches 4             # its second, under GSPO
    python train_llm.py --model runs/toy/seed0/pretrained/model --data chain --max-new-tokens 16    # the toy's own model
    python train_llm.py --model runs/llm/model --eval-only --data ...                 # how good is it?

--data and --eval-data take a .jsonl or .parquet file, ORGANISATION/NAME:PATTERN (files of a dataset on the Hugging Face
hub), or the name of a built-in task: sums, chain. Ctrl-C, a crash or a full disk lose nothing that was saved: the same
command with --resume goes on from the last training state in OUT/states.
"""

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from minclipo.algorithms import ALGORITHMS
from minclipo.checkpoint import load_config, load_model
from minclipo.config import TrainConfig, refuse_idle
from minclipo.evaluation import evaluate
from minclipo.files import read_lines, write_lines
from minclipo.intervals import share_interval
from minclipo.memory import count_weights, estimate_memory
from minclipo.model import GPT, GPTConfig
from minclipo.options import add_options, check_options, given_options, option
from minclipo.plots import plot_evaluation
from minclipo.runs import check_out, check_room, earlier_settings, peak_memory_mib, prepare_out
from minclipo.tasks import Task
from minclipo.tasks.sums import sums_task
from minclipo.tasks.word_problems import read_problems, word_problem_task
from minclipo.tokenizer import Tokenizer, load_tokenizer
from minclipo.toy import TASK as CHAIN_TASK
from minclipo.trainer import Trainer

BOXED = "\nLet's think step by step and output the final answer within \\boxed{}."
# What a real model does otherwise than TrainConfig's defaults, which are the toy's.
LLM = dict(
    steps=100,
    prompts_per_step=16,
    group_size=8,
    max_new_tokens=256,
    learning_rate=1e-6,
    micro_batch_tokens=8192,
    head_size=512,
)
# The two recipes of CLIPO (arXiv 2603.10101), as its official scripts have them. The README gives each value's source.
PAPER = dict(
    group_size=16,
    learning_rate=1e-6,
    weight_decay=0.01,
    dual_clip=3.0,
    kl_weight=0.001,
    contrastive_weight=0.2,
    contrastive_loss="infonce",
    contrastive_level="group",
    contrastive_temperature=0.05,
    contrastive_center=False,
    sampling_rows=128,  # this and the next two are ours: they change how much memory it takes, not what is learnt
    micro_batch_tokens=8192,
    gradient_checkpointing=True,
)
PRESETS = {
    "none": {},
    "track1": PAPER
    | dict(
        model="Qwen/Qwen2.5-3B-Instruct",
        data="openai/gsm8k:main/train-*",
        eval_data="openai/gsm8k:main/test-*",
        steps=84,
        prompts_per_step=512,
        mini_batches=2,
        max_new_tokens=2048,
        head_size=512,
        head_warmup_steps=13,
        eval_every=7,
        eval_problems=0,
    ),
    "track2": PAPER
    | dict(
        model="Qwen/Qwen2.5-7B-Instruct",
        data="EleutherAI/hendrycks_math:*/train-*",
        eval_data="HuggingFaceH4/MATH-500:test.jsonl",
        question_field="problem",
        answer_field="solution",
        steps=580,
        prompts_per_step=128,
        mini_batches=1,
        max_new_tokens=4096,
        head_size=2048,
        head_warmup_steps=57,
        eval_every=29,
        eval_problems=0,
        eval_samples=16,
    ),
}
# Options that may change when a run is resumed: they decide how far and how comfortably, not what is learnt.
MAY_DIFFER = (
    "steps", "save_every", "keep_states", "sampling_rows", "micro_batch_tokens", "gradient_checkpointing", "show",
    "eval_every", "eval_data", "eval_problems", "eval_samples", "eval_temperature", "eval_top_p",
)  # fmt: skip


@dataclass
class LLMConfig:
    """Model, data and evaluation; TrainConfig has the rest."""

    model: str = option("", "directory of a checkpoint, or its id on the Hugging Face hub (ORGANISATION/NAME@REVISION)")
    data: str = option("", "training problems: a file, ORGANISATION/NAME:PATTERN, sums or chain")
    eval_data: str = option("", "held-out problems, like data; sums and chain bring their own")
    question_field: str = option("question", "field of the data that holds the question")
    answer_field: str = option("answer", "field of the data that holds the answer, or a solution that ends in it")
    system_prompt: str = option("", "system message of the chat; empty: the template's own")
    chat_variables: str = option("", "JSON object of variables for the chat template: '{\"enable_thinking\": false}'")
    prompt_suffix: str = option(BOXED, "added to every question of a file")
    max_prompt_tokens: int = option(512, "problems with a longer prompt are left out", at_least=1)
    dtype: str = option(
        "auto", "numbers the model computes in; auto: bfloat16 on cuda", choices=("auto", "float32", "bfloat16")
    )
    device: str = option("auto", "auto: cuda, else mps, else cpu", choices=("auto", "cuda", "mps", "cpu"))
    gradient_checkpointing: bool = option(False, "less memory for activations, a third more time for the update")
    eval_every: int = option(10, "steps between two evaluations; 0: none", at_least=0)
    eval_problems: int = option(200, "problems of an evaluation; 0: all there are", at_least=0)
    eval_samples: int = option(0, "completions of each for avg@k and pass@k; 0: only the greedy one", at_least=0)
    eval_temperature: float = option(0.6, "sampling temperature of those", above=0)
    eval_top_p: float = option(0.95, "their top-p", above=0, at_most=1)
    show: int = option(2, "completions shown at each evaluation", at_least=0)

    def __post_init__(self):
        check_options(self)
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
        return variables


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch finds no CUDA device")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this PyTorch finds no MPS device")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def prompt_writer(tokenizer: Tokenizer, config: LLMConfig, suffix: str) -> Callable[[str], str]:
    """A function that writes a question as the model expects it: in its chat template, or as plain text without one."""
    variables = config.template_variables()

    def as_chat(question: str) -> str:
        system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
        return tokenizer.chat([*system, {"role": "user", "content": question + suffix}], **variables)

    def as_text(question: str) -> str:
        parts = [config.system_prompt, question + suffix]
        return opening(tokenizer) + "\n".join(part for part in parts if part) + "\n"

    return as_chat if tokenizer.has_chat_template else as_text


def opening(tokenizer: Tokenizer) -> str:
    """The bos token, if this tokenizer puts one before a text: we add no special tokens when encoding prompts."""
    bos = tokenizer.settings.get("bos_token")
    adds_bos = bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == tokenizer.encode(bos)
    return bos if adds_bos else ""


def make_task(source: str, config: LLMConfig, tokenizer: Tokenizer, limit: int) -> Task:
    """The task that --data or --eval-data names, without prompts of more than `limit` tokens; says how many."""
    if source == "chain":
        return CHAIN_TASK
    if source == "sums":
        return sums_task(prompt_writer(tokenizer, config, suffix=""))
    write = prompt_writer(tokenizer, config, config.prompt_suffix)
    pairs = read_problems(source, config.question_field, config.answer_field)
    lengths = [len(ids) for ids in tokenizer.encode_batch([write(question) for question, _ in pairs])]
    kept = [pair for pair, length in zip(pairs, lengths) if length <= limit]
    if not kept:
        raise ValueError(f"{source}: every prompt is longer than {limit} tokens; see --max-prompt-tokens")
    left_out = len(pairs) - len(kept)
    print(f"{source}: {len(kept)} problems" + (f", {left_out} left out as too long" if left_out else ""))
    return word_problem_task(kept, write)


class Evaluator:
    """Measures the model on held-out problems and keeps OUT/evaluation.jsonl, a line a measurement."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, task: Task, config: LLMConfig, train: TrainConfig, out: Path):
        self.model, self.tokenizer, self.task, self.out = model, tokenizer, task, out
        self.config, self.train = config, train
        self.lines: list[dict] | None = None  # of evaluation.jsonl; None: not read yet

    def measure(self) -> dict:
        """{"greedy": found, "sampled": found}; see minclipo.evaluation.evaluate."""
        common = dict(
            problems=evaluation_size(self.config, self.task),
            max_new_tokens=self.train.max_new_tokens,
            seed=0,  # the same problems whatever the run's seed
            rows_at_once=self.train.sampling_rows or self.train.prompts_per_step * self.train.group_size,
        )
        models = (self.model, self.tokenizer, self.task)
        found = {"greedy": evaluate(*models, **common, temperature=0.0)}
        if self.config.eval_samples:
            sampling = dict(temperature=self.config.eval_temperature, top_p=self.config.eval_top_p)
            found["sampled"] = evaluate(*models, **common, **sampling, samples=self.config.eval_samples)
        return found

    def after_step(self, step: int) -> None:
        """Measure if it is time to and has not been done, write it down, show it."""
        path = self.out / "evaluation.jsonl"
        if self.lines is None:  # a resumed run forgets what was measured after the state that it goes on from
            self.lines = [line for line in read_lines(path) if line["step"] <= step]
        every = self.config.eval_every
        due = every and (step % every == 0 or step == self.train.steps)
        if not due or step in [line["step"] for line in self.lines]:
            return
        found = self.measure()
        tqdm.write(f"step {step}: {evaluation_line(found)}")
        show(found["greedy"]["examples"][: self.config.show])
        self.lines.append({"step": step} | {name: without_examples(result) for name, result in found.items()})
        write_lines(path, self.lines)
        plot_evaluation(read_lines(self.out / "metrics.jsonl"), self.lines, self.out / "curves.png")


def evaluation_size(config: LLMConfig, task: Task) -> int:
    """Number of problems of an evaluation."""
    if not config.eval_problems and task.size is None:
        raise ValueError("--eval-problems 0 means all there are, but this task makes problems without end")
    return min(config.eval_problems or task.size, task.size or config.eval_problems)


def show(examples: list) -> None:
    """Completions to look at: numbers hide what a model has really learnt to do."""
    for problem, text, right in examples:
        tqdm.write(f"  {'right' if right else 'wrong'}: {problem.prompt!r}\n      -> {text!r}")


def without_examples(found: dict) -> dict:
    return {name: value for name, value in found.items() if name != "examples"}


def evaluation_line(found: dict) -> str:
    """An evaluation in one line."""
    greedy = found["greedy"]
    interval = share_interval(greedy["correct"], greedy["problems"])
    bounds = f"95% interval {interval.low:.3f} to {interval.high:.3f}"
    words = [f"greedy accuracy {greedy['accuracy']:.3f} of {greedy['problems']} held-out problems ({bounds})"]
    if "hallucination_rate" in greedy:
        rate, checked = greedy["hallucination_rate"], greedy["steps_checked"]
        words.append(f"hallucination rate {rate:.3f} ({checked:.1f} steps checked a right answer)")
    words.append(f"length {greedy['completion_length']:.1f}, finished {greedy['finished']:.2f}")
    if "sampled" in found:
        sampled = found["sampled"]
        words.append(f"avg@{sampled['samples']} {sampled['accuracy']:.3f}")
        words += [f"pass@{k} {value:.3f}" for k, value in sampled["pass_at"].items() if int(k) > 1]
    return ", ".join(words)


def check_memory(shape: GPTConfig, config: LLMConfig, train_config: TrainConfig, device: torch.device) -> None:
    """Say what a step will take if prompts and completions are as long as they may be; ValueError if it cannot fit."""
    estimate = estimate_memory(
        shape,
        train_config,
        prompt_tokens=config.max_prompt_tokens,
        dtype=pick_dtype(config.dtype, device),
        gradient_checkpointing=config.gradient_checkpointing,
    )
    print(f"estimated memory: at most {estimate}")
    if device.type != "cuda":
        return
    there = torch.cuda.get_device_properties(device).total_memory
    if estimate.fixed > there:
        raise ValueError(
            f"weights, optimizer and gradients alone take {estimate.fixed / 2**30:.0f} GiB, this GPU has "
            f"{there / 2**30:.0f}: choose a smaller --model"
        )
    if estimate.peak > there:
        print("that is more than this GPU has: try --micro-batch-tokens, --sampling-rows, --gradient-checkpointing")


def bytes_on_disk(shape: GPTConfig, dtype: torch.dtype, keep_states: int) -> int:
    """What a run needs on the disk at most: keep_states + 1 states of three float32 numbers a weight, two models."""
    return count_weights(shape) * (12 * (keep_states + 1 if keep_states else 0) + 2 * dtype.itemsize)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="none", help="all settings of one of the paper's recipes"
    )
    parser.add_argument(
        "--algorithm", choices=list(ALGORITHMS), help="ratio, clip, means and KL (default: the preset's GRPO)"
    )
    parser.add_argument("--eval-only", action="store_true", help="measure the model; trains and writes nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/llm"), help="where everything goes (default: runs/llm)")
    parser.add_argument("--resume", action="store_true", help="go on from the last training state in OUT")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: 0, as many as PyTorch takes)")
    add_options(parser, LLMConfig)
    add_options(parser, TrainConfig, skip=("process_penalty",), other_defaults=LLM)
    return parser.parse_args(argv)


def make_configs(arguments: argparse.Namespace) -> tuple[LLMConfig, TrainConfig]:
    """Defaults, then the preset, then the algorithm, then what was given on the command line."""
    given = given_options(arguments, TrainConfig)
    algorithm = ALGORITHMS[arguments.algorithm] if arguments.algorithm else {}
    chosen = LLM | PRESETS[arguments.preset] | algorithm | given_options(arguments, LLMConfig) | given
    refuse_idle(given, chosen)
    if not chosen.get("contrastive_weight"):
        chosen.pop("head_warmup_steps", None)  # a preset's: without CLIPO there is no head
    fields = {field.name for field in dataclasses.fields(LLMConfig)}
    llm = {name: value for name, value in chosen.items() if name in fields}
    if arguments.eval_only:
        llm.setdefault("data", llm.get("eval_data", ""))
    return LLMConfig(**llm), TrainConfig(**{name: value for name, value in chosen.items() if name not in fields})


def evaluate_only(config: LLMConfig, train_config: TrainConfig) -> None:
    device = pick_device(config.device)
    tokenizer, limit = load_tokenizer(config.model), prompt_limit(load_config(config.model), config, train_config)
    task = make_task(config.eval_data or config.data, config, tokenizer, limit)
    model = load_model(config.model, dtype=pick_dtype(config.dtype, device), device=device)
    found = Evaluator(model, tokenizer, task, config, train_config, Path()).measure()
    print(evaluation_line(found))
    show(found["greedy"]["examples"][: config.show])


def prompt_limit(shape: GPTConfig, config: LLMConfig, train_config: TrainConfig) -> int:
    """The longest prompt that leaves room for a whole completion."""
    room = shape.max_positions - train_config.max_new_tokens
    if room < 1:
        raise ValueError(
            f"--max-new-tokens {train_config.max_new_tokens} leaves no room for a prompt: {config.model} has "
            f"max_positions {shape.max_positions}"
        )
    return min(config.max_prompt_tokens, room)


def train(arguments: argparse.Namespace, config: LLMConfig, train_config: TrainConfig) -> None:
    """Check everything that can be checked, from what is cheap to what is dear; then train."""
    out, resume, device = arguments.out, arguments.resume, pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if Path(config.model).exists() and Path(config.model).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--model {config.model} lies in --out {out}, which is written to: choose another --out")
    resolved = {"device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    settings = {
        "script": "train_llm.py",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "started": ((earlier_settings(out, "train_llm.py") or {}) if resume else {}).get("started", time.time()),
        "llm": dataclasses.asdict(config) | resolved,
        "training": dataclasses.asdict(train_config),
    }
    check_out(out, settings, resume, MAY_DIFFER)
    if arguments.algorithm and train_config.mini_batches == 1:
        print("with --mini-batches 1 every ratio is 1: ratio and clip of the algorithm do nothing")
    shape = load_config(config.model)
    check_room(out, bytes_on_disk(shape, dtype, train_config.keep_states), resume)
    check_memory(shape, config, train_config, device)
    tokenizer, limit = load_tokenizer(config.model), prompt_limit(shape, config, train_config)
    if tokenizer.chat_template is not None:  # a template that writes the date writes the one of the first start
        tokenizer.chat_template.now = datetime.fromtimestamp(settings["started"])
    task = make_task(config.data, config, tokenizer, limit)
    eval_source = config.eval_data or (config.data if config.data in ("sums", "chain") else "")
    eval_task = make_task(eval_source, config, tokenizer, limit) if eval_source else None
    if eval_task is not None:
        evaluation_size(config, eval_task)
    model = load_model(config.model, dtype=dtype, device=device)
    model.gradient_checkpointing = config.gradient_checkpointing

    prepare_out(out, settings, resume, MAY_DIFFER)
    trainer = Trainer(model, tokenizer, task, train_config, out)
    if eval_task is not None:
        after_step = Evaluator(model, tokenizer, eval_task, config, train_config, out).after_step
    else:
        print("no --eval-data: only the training rollouts will be measured")
        after_step = lambda step: (
            config.eval_every and step % config.eval_every == 0 and show(trainer.examples[: config.show])
        )
    trainer.run("train", resume=resume, after_step=after_step)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    sys.stdout.reconfigure(line_buffering=True)  # a log that is piped to a file should grow line by line
    started = time.perf_counter()
    try:
        configs = make_configs(arguments)
        evaluate_only(*configs) if arguments.eval_only else train(arguments, *configs)
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
    print(f"{time.perf_counter() - started:.0f} s, at most {peak_memory_mib():.0f} MiB")
    if torch.cuda.is_available():
        print(f"at most {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
