"""The careless textbook in words, on a pretrained language model: does the toy's result hold there?

    python lessons/experiments/stories.py --model HuggingFaceTB/SmolLM2-135M-Instruct --processes 5     # one GPU
    python lessons/experiments/stories.py --model ... --methods baseline clipo --seeds 0 --steps 20 --read-steps 100 \\
        --read-batch 16 --prompts 8 --group-size 8 --operations 2 --dtype bfloat16 --out runs/stories_cpu     # a CPU
    python lessons/experiments/stories.py --model ... --hallucinate 0 --shared-step 0.5 --out runs/stories_shared50

In each way of writing (minclipo/tasks/stories.py) the model first reads solutions of a careless author. From that start
every method trains with every seed, which decides problems, sampling and head. What is finished is not done again.
Every trained model stays in OUT: 0.27 GB each for the 135M of the first line, in bfloat16.
"""

import argparse
import math
import random
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from finished import finished
from log_prob_reward import LogProbReward
from processes import in_processes
from sharpness import blindness
from stories_report import report
from tqdm import tqdm

from minclipo.checkpoint import Checkpoint, Tokenizer, load_model, load_tokenizer, save_model
from minclipo.checkpoint.files import write_json
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.config import TrainConfig, check, option
from minclipo.extensions.float32_adamw import Float32AdamW
from minclipo.extensions.schedule import learning_rate_factor
from minclipo.model import GPT
from minclipo.runs.command_line import add_options, given_options
from minclipo.runs.loop import Run
from minclipo.runs.machine import pick_device, pick_dtype
from minclipo.runs.measure import evaluate
from minclipo.runs.recipes import METHODS, PAPER_WARMUP
from minclipo.tasks import Task
from minclipo.tasks.chain import CarelessAuthor
from minclipo.tasks.stories import in_words, makes_up, stories_task
from minclipo.toy import solution_loss
from minclipo.trainer import Trainer

WAYS = ("reason_first", "result_first")
RIVALS = {"log_prob": LogProbReward}  # methods that have a trainer of their own
WARMUP = 30  # reading steps with a rising learning rate, at most a quarter of them
_story = partial(option, group="model and textbook")
_training = partial(option, group="training")


@dataclass(frozen=True)
class Story:
    """What all runs have in common."""

    model: str = _story("", "directory or hub id of the language model")
    operations: int = _story(4, "operations per problem", at_least=1)
    hallucinate: float = _story(0.15, "probability per step of a made-up operand", at_least=0, at_most=1)
    slip: float = _story(0.08, "probability per step of a wrong total", at_least=0, at_most=1)
    shared_step: float = _story(0.0, "share of the solutions with one false step", at_least=0, at_most=1)
    read_steps: int = _story(400, "supervised steps on the textbook", at_least=1)
    read_batch: int = _story(64, "solutions per supervised step", at_least=1)
    read_learning_rate: float = _story(2e-4, "highest learning rate of the supervised steps", above=0)
    steps: int = _training(60, "training steps", at_least=1)
    prompts: int = _training(32, "prompts per step", at_least=1)
    group_size: int = _training(16, "rollouts per prompt", at_least=2)
    learning_rate: float = _training(2e-5, "of the training", above=0)
    micro_batch_tokens: int = _training(16384, "tokens per forward pass of the update", at_least=1)
    eval_problems: int = _training(500, "held-out problems", at_least=1)
    device: str = _training("auto", "auto: cuda, else mps, else cpu", choices=("auto", "cuda", "mps", "cpu"))
    dtype: str = _training("auto", "auto: bfloat16 on cuda", choices=("auto", "float32", "bfloat16"))

    def __post_init__(self):
        check(self)
        if not self.model:
            raise ValueError("--model is needed: directory or hub id of the language model")
        if self.shared_step and self.operations < 2:
            raise ValueError("--shared-step is a false second step, so --operations must be at least 2")

    @property
    def max_new_tokens(self) -> int:
        """Room for a solution: SmolLM2 writes a step in up to 18 tokens, the answer in 11."""
        return 24 + 24 * self.operations

    def task(self, tokenizer: Tokenizer) -> Task:
        return stories_task(prompt_writer(tokenizer), (self.operations, self.operations))

    def load(self, model: str | Path) -> GPT:
        device = pick_device(self.device)
        return load_model(model, dtype=pick_dtype(self.dtype, device), device=device)

    def train_config(self, method: str, seed: int) -> TrainConfig:
        common = dict(
            steps=self.steps,
            save_every=self.steps,
            keep_states=0,
            keep_rollouts=0,
            seed=seed,
            group_size=self.group_size,
        )
        common |= dict(prompts_per_step=self.prompts, max_new_tokens=self.max_new_tokens)
        common |= dict(learning_rate=self.learning_rate, micro_batch_tokens=self.micro_batch_tokens)
        if method == "clipo_paper":  # a head of a quarter of the model's width that learns alone at first
            width = Checkpoint(self.model).config.hidden_size
            common |= dict(head_size=width // 4, head_warmup_steps=round(self.steps * PAPER_WARMUP))
        return TrainConfig(**METHODS.get(method, {}) | common)

    def settings(self, config: TrainConfig | None = None) -> dict:
        """What a result depends on, with what auto stands for on this machine."""
        device = pick_device(self.device)
        dtype = str(pick_dtype(self.dtype, device)).removeprefix("torch.")
        return asdict(self) | {"device": device.type, "dtype": dtype, "training": config and asdict(config)}


def read(story: Story, way: str, tokenizer: Tokenizer, model: GPT) -> float:
    """Supervised training in place on the careless author's solutions; returns the mean loss of the last 20 steps."""
    task, rng = story.task(tokenizer), random.Random(f"textbook {way}")
    author = CarelessAuthor(story.hallucinate, story.slip, story.shared_step)
    optimizer = Float32AdamW(model, story.read_learning_rate, weight_decay=0.01)
    eos, losses = tokenizer.eos_ids[0], []
    for step in tqdm(range(story.read_steps), desc=f"reading, {way}", disable=None):
        first = step * story.read_batch
        problems = [task.draw("textbook", index) for index in range(first, first + story.read_batch)]
        told = [in_words(p, author.solution(p.chain, rng), result_first=way == "result_first") for p in problems]
        prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
        loss = solution_loss(model, prompts, [ids + [eos] for ids in tokenizer.encode_batch(told)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.masters.values(), 1.0)
        factor = learning_rate_factor("cosine", step + 1, story.read_steps, min(WARMUP, story.read_steps // 4))
        optimizer.param_groups[0]["lr"] = story.read_learning_rate * factor
        losses = [*losses[-19:], loss.item()]
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{way}: the loss of reading step {step} is {losses[-1]}: try a smaller --read-learning-rate"
            )
        optimizer.step()
    return sum(losses) / len(losses)


def start(story: Story, way: str, out: Path) -> None:
    """The model that has read the textbook, in OUT/WAY/start, and what it is worth."""
    folder, settings = out / way / "start", story.settings()
    if finished(folder / "result.json", settings) is not None:
        return
    print(f"{way}: reading {story.read_steps} x {story.read_batch} solutions")
    tokenizer, model, began = load_tokenizer(story.model), story.load(story.model), time.perf_counter()
    loss = read(story, way, tokenizer, model)
    seconds = time.perf_counter() - began
    save_model(model, tokenizer, folder / "model")
    found = measure(story, tokenizer, model)
    write_json(folder / "result.json", found | {"loss": loss, "seconds": seconds, "settings": settings})


def run(story: Story, way: str, method: str, seed: int, out: Path) -> None:
    """Train one method with one seed in one way of writing, and measure it, unless that has been done."""
    folder, config = out / way / method / f"seed{seed}", story.train_config(method, seed)
    settings = story.settings(config)
    if finished(folder / "result.json", settings) is not None:
        return
    tokenizer, began = load_tokenizer(story.model), time.perf_counter()
    make = RIVALS.get(method, Trainer)
    trainer = make(story.load(out / way / "start" / "model"), tokenizer, story.task(tokenizer), config)
    Run(trainer, folder, f"{way}, {method}, seed {seed}").train()
    seconds = time.perf_counter() - began
    found = measure(story, tokenizer, trainer.model)
    write_json(folder / "result.json", found | {"seconds": seconds, "settings": settings})


def measure(story: Story, tokenizer: Tokenizer, model: GPT) -> dict:
    """The model on held-out problems: one completion each at temperature 1, and one greedily."""
    size = dict(problems=story.eval_problems, max_new_tokens=story.max_new_tokens, seed=0)
    on = partial(evaluate, model, tokenizer, story.task(tokenizer), sampling_rows=512, **size)
    sampled, greedy = on(), on(temperature=0.0)
    sampled |= blindness(sampled["examples"], makes_up)
    sampled["examples"] = [(problem.prompt, text, right) for problem, text, right in sampled["examples"][:8]]
    return sampled | {f"greedy_{name}": greedy[name] for name in ("accuracy", "hallucination_rate")}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways of writing (default: both)")
    known, usual = [*METHODS, *RIVALS], list(METHODS)
    parser.add_argument("--methods", nargs="+", choices=known, default=usual, help=f"default: {' '.join(usual)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/stories"), help="default: runs/stories")
    parser.add_argument("--report", action="store_true", help="train nothing, only write table and picture")
    add_options(parser, Story)
    return parser.parse_args(argv)


def train(story: Story, ways: list[str], methods: list[str], seeds: list[int], out: Path, processes: int, threads: int):
    """All runs that are not finished. What cannot be trained is refused before hours of reading."""
    for method in methods:
        story.train_config(method, seeds[0])
    in_processes(start, [(story, way, out) for way in ways], min(len(ways), processes), threads)
    runs = [(story, way, method, seed, out) for seed in seeds for way in ways for method in methods]
    in_processes(run, runs, processes, threads)


def main(argv: list[str] | None = None) -> int:
    arguments, status = parse_arguments(argv), 0
    ways, methods, seeds = (list(dict.fromkeys(getattr(arguments, name))) for name in ("ways", "methods", "seeds"))
    sys.stdout.reconfigure(line_buffering=True)
    try:
        if not arguments.report:
            story, at_least_one = Story(**given_options(arguments, Story)), lambda number: max(1, number)
            processes, threads = map(at_least_one, (arguments.processes, arguments.threads))
            train(story, ways, methods, seeds, arguments.out, processes, threads)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        status = 130
    except (torch.OutOfMemoryError, BrokenProcessPool) as error:
        print(f"\nstopped: {error}\nTry fewer --processes or smaller --micro-batch-tokens", file=sys.stderr)
        status = 1
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        status = 1
    try:
        report(arguments.out, ways, methods, seeds)
    except (ValueError, OSError) as error:
        print(f"the report could not be written: {error}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
