"""The careless textbook in words, on a pretrained language model: does the toy's result hold there?

    python lessons/experiments/stories.py --model HuggingFaceTB/SmolLM2-135M-Instruct --processes 5    # one GPU
    python lessons/experiments/stories.py --model ... --methods baseline clipo --seeds 0 --steps 20 --read-steps 150 \\
        --read-batch 16 --prompts 8 --group-size 8 --operations 2 --dtype bfloat16                     # a CPU
    python lessons/experiments/stories.py --model ... --shared-step 0.5 --hallucinate 0                # a shared false step

In each way of writing (minclipo/tasks/stories.py) the model first reads solutions of a careless author. From that start
every method trains with every seed, which decides problems, sampling and head. What is finished is not done again.
"""

import argparse
import random
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from finished import finished
from processes import in_processes
from sharpness import blindness
from stories_report import report
from tqdm import tqdm

from minclipo.checkpoint import Tokenizer, load_model, load_tokenizer, save_model
from minclipo.checkpoint.files import write_json
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.config import TrainConfig
from minclipo.extensions.float32_adamw import Float32AdamW
from minclipo.model import GPT
from minclipo.runs.loop import Run
from minclipo.runs.machine import pick_device, pick_dtype
from minclipo.runs.measure import evaluate
from minclipo.runs.recipes import METHODS
from minclipo.tasks import Task
from minclipo.tasks.chain import CarelessAuthor
from minclipo.tasks.stories import in_words, makes_up, stories_task
from minclipo.toy import cosine_schedule, solution_loss
from minclipo.trainer import Trainer

WAYS = ("reason_first", "result_first")
HEADS = {
    "clipo": 32,
    "clipo_paper": 144,
}  # outputs of the head; 144: a quarter of SmolLM2-135M's width, as in the paper
WARMUP = 30  # steps of reading with a rising learning rate


@dataclass(frozen=True)
class Story:
    """What does not differ between the runs."""

    model: str
    operations: int
    hallucinate: float
    slip: float
    shared_step: float
    read_steps: int
    read_batch: int
    read_learning_rate: float
    steps: int
    prompts: int
    group_size: int
    learning_rate: float
    micro_batch_tokens: int
    eval_problems: int
    device: str
    dtype: str

    @property
    def max_new_tokens(self) -> int:
        """Room for a solution: its steps have up to 18 tokens each, its answer 11."""
        return 24 + 24 * self.operations

    def task(self, tokenizer: Tokenizer) -> Task:
        return stories_task(prompt_writer(tokenizer), (self.operations, self.operations))

    def load(self, model: str | Path) -> GPT:
        device = pick_device(self.device)
        return load_model(model, dtype=pick_dtype(self.dtype, device), device=device)


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
        factor = cosine_schedule(step, story.read_steps, min(WARMUP, story.read_steps // 4))
        optimizer.param_groups[0]["lr"] = story.read_learning_rate * factor
        optimizer.step()
        losses = [*losses[-19:], loss.item()]
    return sum(losses) / len(losses)


def start(story: Story, way: str, out: Path) -> None:
    """The model that has read the textbook, in OUT/WAY/start, and what it is worth."""
    folder, settings = out / way / "start", vars(story)
    if finished(folder / "result.json", settings) is not None:
        return
    print(f"{way}: reading {story.read_steps} x {story.read_batch} solutions")
    tokenizer, model, began = load_tokenizer(story.model), story.load(story.model), time.perf_counter()
    loss = read(story, way, tokenizer, model)
    seconds = time.perf_counter() - began
    save_model(model, tokenizer, folder / "model")
    found = measure(story, tokenizer, model)
    write_json(folder / "result.json", found | {"loss": loss, "seconds": seconds, "settings": settings})


def train_config(story: Story, method: str, seed: int) -> TrainConfig:
    settings = dict(
        steps=story.steps, save_every=story.steps, keep_states=0, seed=seed, max_new_tokens=story.max_new_tokens
    )
    settings |= dict(prompts_per_step=story.prompts, group_size=story.group_size, learning_rate=story.learning_rate)
    settings |= dict(micro_batch_tokens=story.micro_batch_tokens) | METHODS[method]
    if method in HEADS:
        settings |= dict(head_size=HEADS[method], head_warmup_steps=0)
    return TrainConfig(**settings)


def run(story: Story, way: str, method: str, seed: int, out: Path) -> None:
    """Train one method with one seed in one way of writing, and measure it, unless that has been done."""
    folder, settings = out / way / method / f"seed{seed}", vars(story)
    if finished(folder / "result.json", settings) is not None:
        return
    tokenizer, model, began = (
        load_tokenizer(story.model),
        story.load(out / way / "start" / "model"),
        time.perf_counter(),
    )
    trainer = Trainer(model, tokenizer, story.task(tokenizer), train_config(story, method, seed))
    Run(trainer, folder, f"{way}, {method}, seed {seed}").train()
    seconds = time.perf_counter() - began
    write_json(folder / "result.json", measure(story, tokenizer, model) | {"seconds": seconds, "settings": settings})


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
    add = partial(parser.add_argument)
    add("--model", required=True, help="directory or hub id of the language model")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways of writing (default: both)")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--steps", type=int, default=60, help="training steps (default: 60)")
    add("--prompts", type=int, default=32, help="prompts per step (default: 32)")
    add("--group-size", type=int, default=16, help="rollouts per prompt (default: 16)")
    add("--learning-rate", type=float, default=2e-5, help="of the training (default: 2e-5)")
    add("--micro-batch-tokens", type=int, default=16384, help="tokens per forward pass (default: 16384)")
    add("--operations", type=int, default=4, help="per problem (default: 4)")
    add("--hallucinate", type=float, default=0.15, help="probability per step of a made-up operand (default: 0.15)")
    add("--slip", type=float, default=0.08, help="probability per step of a wrong total (default: 0.08)")
    add("--shared-step", type=float, default=0.0, help="share of solutions with one false step (default: 0)")
    add("--read-steps", type=int, default=400, help="supervised steps (default: 400)")
    add("--read-batch", type=int, default=64, help="solutions per supervised step (default: 64)")
    add("--read-learning-rate", type=float, default=2e-4, help="of the supervised steps (default: 2e-4)")
    add("--eval-problems", type=int, default=500, help="held-out problems (default: 500)")
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="auto: cuda, else mps, else cpu")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on cuda")
    add("--processes", type=int, default=1, help="runs at the same time (default: 1)")
    add("--threads", type=int, default=2, help="CPU threads of each (default: 2)")
    add("--out", type=Path, default=Path("runs/stories"), help="default: runs/stories")
    add("--report", action="store_true", help="train nothing, only write table and picture")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    story = Story(**{name: getattr(arguments, name) for name in Story.__dataclass_fields__})
    ways, out, status = arguments.ways, arguments.out, 0
    runs = [(story, way, m, seed, out) for seed in arguments.seeds for way in ways for m in arguments.methods]
    sys.stdout.reconfigure(line_buffering=True)
    try:
        if not arguments.report:
            in_processes(start, [(story, way, out) for way in ways], 1, arguments.threads)
            in_processes(run, runs, max(1, arguments.processes), max(1, arguments.threads))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command does the rest")
        status = 130
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        status = 1
    report(out, ways)
    return status


if __name__ == "__main__":
    sys.exit(main())
